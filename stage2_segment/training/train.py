"""The training loop: one pass over the cache for one run, or for many side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.log import log_to
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, detail, progress_bar, say, warn
from zeus_union.cache.text_statistics import warn_of_texts
from zeus_union.stage2_segment.checkpoint import only_trainer
from zeus_union.stage2_segment.choose_postprocessing import choose_postprocessing, say_choices, why_not_chosen
from zeus_union.stage2_segment.chosen_postprocessing import FILE as POSTPROCESSING
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData, draw_views, epoch_batches
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.learner import Learner, take_batch
from zeus_union.stage2_segment.training.memory import keep_freed_memory
from zeus_union.stage2_segment.training.messages import (
    epoch_line,
    plan_line,
    say_what_is_faster,
    say_what_views_bring,
    speed_in_words,
    warn_of_learned_texts,
    warn_of_what_is_known,
)
from zeus_union.stage2_segment.training.step import group_learners
from zeus_union.stage2_segment.training.validation import Validation


def train_run(
    cache_path: Path,
    run: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    allow_partial: bool = False,
    resident: str = "auto",
    validate_every: int = 1,
    **options: Any,
) -> None:
    """Plans a run with the options of `plan_run` and trains it; see `train`."""
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "device": device}
    how |= {"resident": resident, "validate_every": validate_every}
    with Cache(cache_path, allow_partial=allow_partial) as cache:
        config = plan_run(cache, run=run, **options)
        train(cache, config, run, pretrained=options.get("pretrained"), **how)


def train(
    cache: Cache,
    config: RunConfig,
    run: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    resident: str = "auto",
    validate_every: int = 1,
    pretrained: Path | None = None,
) -> None:
    """Trains one run, in as many processes as accelerate started; each takes its share of every batch.

    A run that was stopped resumes. What is said goes into the run's log.txt, too.

    Post-processing is chosen at the end, by the main process; a complete run that has none yet gets it.

    Raises:
        UserError: the folder holds another run, or another process trains this one; no such device; the loss is not finite.
    """
    accelerator = make_accelerator(device, config.recipe.modality_drop > 0, [config.recipe.precision])
    with only_trainer(run) if accelerator.is_main_process else nullcontext():
        _train_alone(cache, config, run, accelerator, resume, overwrite, resident, validate_every, pretrained)


def _train_alone(
    cache: Cache,
    config: RunConfig,
    run: Path,
    accelerator: Accelerator,
    resume: bool,
    overwrite: bool,
    resident: str,
    validate_every: int,
    pretrained: Path | None,
) -> None:
    learner = Learner(cache, config, run, accelerator, resume, pretrained, overwrite)
    if learner.finished:
        if accelerator.is_main_process:
            say(
                f"{run} is complete ({counted(learner.epoch - 1, 'epoch')}); --resume with more --epochs trains it further"
            )
            if not (run / POSTPROCESSING).exists():
                _choose_postprocessing(cache, learner, accelerator, resident)
        return
    with log_to(run) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            detail(", ".join(f"{name} {version}" for name, version in config.versions.items()))
            say(plan_line(cache, config, accelerator))
            say_what_is_faster([config], accelerator.device, "--precision bf16")
            say_what_views_bring(cache, [config])
            warn_of_texts(cache, config.inputs.texts_read)
            warn_of_what_is_known(config.inputs)
            warn_of_learned_texts(cache, [config])
        train_together(cache, [learner], accelerator, resident=resident, validate_every=validate_every)
        if learner.stopped:
            raise UserError(learner.stopped)
        if learner.epoch <= config.recipe.epochs:
            epoch = learner.epoch - 1
            say(
                f"stopped after epoch {epoch}: training loss has not improved for {counted(config.recipe.patience, 'epoch')}"
            )
        if accelerator.is_main_process:
            _choose_postprocessing(cache, learner, accelerator, resident)


def _choose_postprocessing(cache: Cache, learner: Learner, accelerator: Accelerator, resident: str) -> None:
    run, config = learner.run, learner.config
    why_not = why_not_chosen(run, config)
    if why_not is not None:
        say(why_not)
        return
    choose_postprocessing(run, cache, str(accelerator.device), resident)
    say_choices(run, config)


def shared_plan(config: RunConfig) -> tuple[Any, ...]:
    """Runs that agree in this see the same batches in the same order: one pass over the cache serves them all."""
    recipe = config.recipe
    batches = (recipe.batch_size, recipe.foreground_share, recipe.augment, recipe.views)
    return (config.inputs.encoder, config.split, *batches, config.seed)


def train_together(
    cache: Cache,
    learners: Sequence[Learner],
    accelerator: Accelerator,
    *,
    resident: str = "auto",
    validate_every: int = 1,
    stacked: bool = False,
    title: str = "training",
) -> None:
    """Trains `learners` of one `shared_plan` side by side; each batch is read, moved and decoded once for all.

    Args:
        resident: see `SliceData`.
        validate_every: epochs between validations on the validation subjects; 0: none.
        stacked: run models of one architecture as one (`Stack`), where several processes don't share the batches.
    """
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    plan = learners[0].config
    assert all(shared_plan(learner.config) == shared_plan(plan) for learner in learners)
    wanted = {name for learner in learners for name in learner.config.inputs.modalities}
    modalities = [name for name in cache.modalities if name in wanted]
    rows = cache.rows_of(plan.split.train)
    data = SliceData(
        cache,
        plan.inputs.encoder,
        modalities,
        rows,
        accelerator.device,
        resident=resident,
        augmented=plan.recipe.augment,
        views=plan.recipe.views,
    )
    for learner in learners:
        learner.begin(RunInputs(learner.config, data))
    validation = None
    if validate_every and plan.split.validation:
        validation = Validation(cache, learners, modalities, accelerator, resident)
    foreground = cache.rows["foreground"][rows] > 0

    going = [learner for learner in learners if not learner.finished]
    last = max((learner.config.recipe.epochs for learner in going), default=0)
    first = min((learner.epoch for learner in going), default=last)
    with progress_bar() as bar:
        task = bar.add_task(title, total=last, completed=first - 1)
        for epoch in range(first, last + 1):
            started = time.monotonic()
            here = [learner for learner in learners if learner.epoch == epoch and not learner.finished]
            if here:
                batches = epoch_batches(
                    foreground, plan.recipe.batch_size, plan.recipe.foreground_share, plan.seed, epoch
                )
                timing = _train_epoch(here, data, batches, accelerator, stacked)
                done = [learner for learner in here if not learner.stopped]
                for learner in done:
                    learner.share_buffers()
                due = validation is not None and (epoch % validate_every == 0 or epoch == last)
                with _saved_if_unreadable(done):
                    scores = validation(done) if validation and due else {}
                timing["seconds"] = time.monotonic() - started
                records = [
                    learner.end_epoch(len(batches), {**timing, **scores.get(id(learner), {})}) for learner in done
                ]
                if accelerator.is_main_process:
                    _report(learners, records, last, title)
                if len(learners) == 1 and records:
                    bar.update(task, description=f"loss {records[0]['loss']:.3f}")
            bar.advance(task)
    for learner in learners:
        learner.close()


def _augmentation_seeds(
    learner: Learner, batches: Sequence[NDArray[np.intp]], first: int
) -> Iterator[list[tuple[int, ...]]]:
    """From the batch `first` on, one for each slice of it, whichever process augments it."""
    seed, epoch = learner.config.seed, learner.epoch
    for index in range(first, len(batches)):
        yield [(seed, epoch, index, position) for position in range(len(batches[index]))]


def _train_epoch(
    learners: Sequence[Learner],
    data: SliceData,
    batches: Sequence[NDArray[np.intp]],
    accelerator: Accelerator,
    stacked: bool,
) -> dict[str, float]:
    """What is left of one epoch, for learners that are somewhere in it; slices a second, and the share of waiting."""
    rank, world = accelerator.process_index, accelerator.num_processes
    first = min(learner.index for learner in learners)
    groups = group_learners(learners, stacked and world == 1)
    started, waited, seen = time.monotonic(), 0.0, 0
    seed, epoch = learners[0].config.seed, learners[0].epoch
    places = (
        draw_views(positions, len(data), data.views, seed, epoch, index)
        for index, positions in enumerate(batches[first:], first)
    )
    stream = data.batches(
        (drawn[rank::world] for drawn in places),
        (seeds[rank::world] for seeds in _augmentation_seeds(learners[0], batches, first)) if data.augmented else None,
    )
    for index, positions in enumerate(batches[first:], first):
        requested = time.monotonic()
        with _saved_if_unreadable(learners):
            batch = next(stream)
        waited += time.monotonic() - requested
        seen += len(positions)
        mine = positions[rank::world]
        pending = [group.backward(index, mine, len(positions), batch, len(batches)) for group in groups]
        take_batch([step for steps in pending for step in steps], len(batches))
        stopped = [learner for learner in learners if learner.stopped]
        if stopped:
            if accelerator.is_main_process:
                for learner in stopped:
                    warn(f"{learner.run.name} stopped: {learner.stopped}")
            learners = [learner for learner in learners if not learner.stopped]
            groups = group_learners(learners, stacked and world == 1)
            if not groups:
                break
    spent = max(time.monotonic() - started, 1e-9)
    return {"slices_per_s": seen / spent, "waiting": waited / spent}


@contextmanager
def _saved_if_unreadable(learners: Sequence[Learner]) -> Iterator[None]:
    """Where the cache's disk or mount is lost within, the learners are saved: the same command goes on from there."""
    try:
        yield
    except (UserError, OSError):
        for learner in learners:
            learner.save_between_steps()
        raise


def _report(learners: Sequence[Learner], records: Sequence[dict[str, Any]], last: int, title: str) -> None:
    """A line now and then: a run's figures, or how far the runs side by side are."""
    if not records:
        return
    record, every = records[0], 10 if len(learners) == 1 else 5
    if record["epoch"] % max(1, last // every) and record["epoch"] != last and not learners[0].finished:
        return
    if len(learners) == 1:
        say(epoch_line(record, last))
    else:
        say(
            f"{title}: epoch {record['epoch']}/{last}, {counted(len(records), 'run')}, {speed_in_words(record['slices_per_s'])}"
        )
