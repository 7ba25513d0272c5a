"""The training loop: one pass over the cache for one run, or for many side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import progress_bar, say
from zeus_union.stage2_segment.choices import BASELINES, TEXTS
from zeus_union.stage2_segment.config import RunConfig, plan_run
from zeus_union.stage2_segment.evaluation.metrics import dsc, iou, mean_defined, overlap_counts
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import Batch, SliceData, epoch_batches
from zeus_union.stage2_segment.model.zeus import class_map
from zeus_union.stage2_segment.predict import pick_device
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.processes import sum_plain
from zeus_union.stage2_segment.training.stack import Stack


def train_run(
    cache_path: Path,
    run: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    allow_partial: bool = False,
    resident: str = "auto",
    validate_every: int = 1,
    **options: Any,
) -> None:
    """Plans a run with the options of `plan_run` and trains it; see `train`."""
    how: dict[str, Any] = {"resume": resume, "device": device, "resident": resident, "validate_every": validate_every}
    with Cache(cache_path, allow_partial=allow_partial) as cache:
        config = plan_run(cache, run=run, **options)
        train(cache, config, run, pretrained=options.get("pretrained"), **how)


def train(
    cache: Cache,
    config: RunConfig,
    run: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    resident: str = "auto",
    validate_every: int = 1,
    pretrained: Path | None = None,
) -> None:
    """Trains one run, in as many processes as accelerate started; each takes its share of every batch.

    Raises:
        UserError: the folder holds another run; no such device; the loss is not finite.
    """
    accelerator = make_accelerator(device, config.recipe.modality_drop > 0)
    learner = Learner(cache, config, run, accelerator, resume, pretrained)
    if learner.finished:
        say(f"{run} has had its {learner.epoch - 1} epochs; nothing is left to do")
        return
    if accelerator.is_main_process:
        say(_what(cache, config, accelerator))
    train_together(cache, [learner], accelerator, resident=resident, validate_every=validate_every)
    if learner.stopped:
        raise UserError(learner.stopped)
    if learner.epoch <= config.recipe.epochs:
        epoch = learner.epoch - 1
        say(f"stopped after epoch {epoch}: no lower training loss for {config.recipe.patience} epochs")


def make_accelerator(device: str | None, unused_parameters: bool = False) -> Accelerator:
    """For one device, or the device of this process where accelerate launch started several.

    Args:
        unused_parameters: a step may leave some of a model out.
    """
    chosen = pick_device(device)
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)
    return Accelerator(cpu=chosen.type == "cpu", kwargs_handlers=[kwargs])


def shared_plan(config: RunConfig) -> tuple[Any, ...]:
    """Runs that agree in this see the same batches in the same order: one pass over the cache serves them all."""
    recipe = config.recipe
    subjects = (config.train_subjects, config.test_subjects)
    return (config.encoder, *subjects, recipe.batch_size, recipe.foreground_share, config.seed)


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
        validate_every: epochs between validations on the held-out subjects; 0: none.
        stacked: run models of one architecture as one (`Stack`), where several processes don't share the batches.
    """
    plan = learners[0].config
    assert all(shared_plan(learner.config) == shared_plan(plan) for learner in learners)
    wanted = {name for learner in learners for name in learner.config.modalities}
    modalities = [name for name in cache.modalities if name in wanted]
    rows = cache.rows_of(plan.train_subjects)
    data = SliceData(cache, plan.encoder, modalities, rows, accelerator.device, resident=resident)
    for learner in learners:
        learner.inputs = RunInputs(learner.config, data)
    validation = _Validation(cache, learners, modalities, accelerator, resident) if validate_every else None
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
                due = validation is not None and (epoch % validate_every == 0 or epoch == last)
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
    groups = _groups(learners, stacked and world == 1)
    started, waited, seen = time.monotonic(), 0.0, 0
    stream = data.batches(positions[rank::world] for positions in batches[first:])
    for index, positions in enumerate(batches[first:], first):
        asked = time.monotonic()
        batch = next(stream)
        waited += time.monotonic() - asked
        seen += len(positions)
        for group in groups:
            group.step(index, positions[rank::world], len(positions), batch, len(batches))
        stopped = [learner for learner in learners if learner.stopped]
        if stopped:
            if accelerator.is_main_process:
                for learner in stopped:
                    say(f"{learner.run.name} stopped: {learner.stopped}")
            learners = [learner for learner in learners if not learner.stopped]
            groups = _groups(learners, stacked and world == 1)
            if not groups:
                break
    spent = max(time.monotonic() - started, 1e-9)
    return {"slices_per_s": seen / spent, "waiting": waited / spent}


def _report(learners: Sequence[Learner], records: Sequence[dict[str, Any]], last: int, title: str) -> None:
    """A line now and then: a run's figures, or how far the runs side by side are."""
    if not records:
        return
    record, every = records[0], 10 if len(learners) == 1 else 5
    if record["epoch"] % max(1, last // every) and record["epoch"] != last and not learners[0].finished:
        return
    if len(learners) == 1:
        say(_line(record, last))
    else:
        say(f"{title}: epoch {record['epoch']}/{last}, {len(records)} runs, {record['slices_per_s']:.1f} slices/s")


class _Alone:
    """A learner that runs its own forward and backward pass."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def step(self, index: int, mine: NDArray[np.intp], slices: int, batch: Batch, batches: int) -> None:
        """`mine`: this process's positions of a batch of `slices`; `batches`: of the epoch."""
        learner = self._learner
        if learner.index != index:
            return
        learner.model.train()
        assert batch.masks is not None
        logits = learner.inputs.logits(learner.model, mine, batch, learner.keep())
        losses = learner.losses(logits, batch.masks, slices)
        (losses.total / learner.share(batches)).backward()
        learner.take(losses, batches)


class _Stacked:
    """Learners of one architecture; in turn while some of them are at another place than the rest (after a resume)."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self._learners = list(learners)
        self._stack = Stack([learner.bare for learner in learners])

    def step(self, index: int, mine: NDArray[np.intp], slices: int, batch: Batch, batches: int) -> None:
        """As `_Alone.step`."""
        if any(learner.index != index for learner in self._learners):
            for learner in self._learners:
                _Alone(learner).step(index, mine, slices, batch, batches)
            return
        assert batch.masks is not None
        first = self._learners[0]
        keep = first.keep()  # the same for all: it follows from the seed
        parts = [learner.inputs.of(mine, batch, keep) for learner in self._learners]
        alike = len({learner.config.modalities for learner in self._learners}) == 1
        embeddings = parts[0][0] if alike else torch.stack([part[0] for part in parts])
        for learner in self._learners:
            learner.model.train()
        with first.inputs.autocast():
            logits = self._stack.logits(embeddings, torch.stack([part[1] for part in parts]), parts[0][2]).float()
        found = [learner.losses(own, batch.masks, slices) for learner, own in zip(self._learners, logits)]
        torch.stack([losses.total / own.share(batches) for own, losses in zip(self._learners, found)]).sum().backward()
        self._stack.hand_out_gradients()
        for learner, losses in zip(self._learners, found):
            learner.take(losses, batches)


def architecture(config: RunConfig) -> tuple[Any, ...]:
    """Runs that agree in this have models of one shape and see the same number of modalities in the same precision."""
    recipe, constant = config.recipe, config.text == "constant"
    kind = (config.model, config.fusion, config.combine, config.merge, config.preset, config.instructions, config.form)
    aligner = (constant, config.keep_iou_token, config.aligner_hidden, config.aligner_depth)
    sizes = (len(config.modalities), len(config.classes), config.text_width)
    return (*kind, *aligner, *sizes, recipe.modality_drop, recipe.precision, recipe.accumulate)


def _groups(learners: Sequence[Learner], stacked: bool) -> list[_Alone | _Stacked]:
    if not stacked:
        return [_Alone(learner) for learner in learners]
    alike: dict[tuple[Any, ...], list[Learner]] = {}
    for learner in learners:
        # A baseline's batch norm writes its running means within the forward pass, which vmap does not allow.
        key = architecture(learner.config) if learner.config.is_zeus else (id(learner),)
        alike.setdefault(key, []).append(learner)
    return [_Stacked(group) if len(group) > 1 else _Alone(group[0]) for group in alike.values()]


class _Validation:
    """The held-out subjects, read once for all learners; each process predicts its share of the slices."""

    def __init__(
        self,
        cache: Cache,
        learners: Sequence[Learner],
        modalities: Sequence[str],
        accelerator: Accelerator,
        resident: str,
    ) -> None:
        plan = learners[0].config
        self._classes = plan.classes
        rows = cache.rows_of(plan.test_subjects)[accelerator.process_index :: accelerator.num_processes]
        self._data = SliceData(cache, plan.encoder, modalities, rows, accelerator.device, resident=resident)
        place = {cache.subjects.index(name): place for place, name in enumerate(plan.test_subjects)}
        self._owner = np.array([place[int(subject)] for subject in cache.rows["subject"][rows]], np.intp)
        self._subjects = len(place)
        self._inputs = {id(learner): RunInputs(learner.config, self._data) for learner in learners}

    @torch.inference_mode()
    def __call__(self, learners: Sequence[Learner]) -> dict[int, dict[str, float]]:
        """id of a learner -> mean over subjects of DSC (mean over the classes) and mIoU (with background), at 256."""
        counts = {id(learner): np.zeros((self._subjects, len(self._classes) + 1, 3), np.int64) for learner in learners}
        batch_size = max((learner.config.recipe.batch_size for learner in learners), default=1)
        for positions, batch in self._data.in_order(batch_size):
            assert batch.masks is not None
            truth = batch.masks.cpu().numpy()
            for learner in learners:
                model = learner.predictor.eval()
                predicted = class_map(self._inputs[id(learner)].logits(model, positions, batch)).cpu().numpy()
                for owner in np.unique(self._owner[positions]):
                    mine = self._owner[positions] == owner
                    counts[id(learner)][owner] += overlap_counts(predicted[mine], truth[mine], len(self._classes))
        return {key: self._scores(sum_plain(torch.from_numpy(own)).numpy()) for key, own in counts.items()}

    def _scores(self, counts: NDArray[np.int64]) -> dict[str, float]:
        per_class = dsc(counts)[:, 1:]
        values = {"validation_dsc": mean_defined(np.array([mean_defined(row) for row in per_class]))}
        values["validation_miou"] = mean_defined(np.array([mean_defined(row) for row in iou(counts)]))
        for index, name in enumerate(self._classes):
            values[f"validation_dsc_{name}"] = mean_defined(per_class[:, index])
        return values


def _line(record: dict[str, Any], epochs: int) -> str:
    held_out = ""
    if "validation_dsc" in record:
        held_out = f"held-out DSC {record['validation_dsc']:.3f}, mIoU {record['validation_miou']:.3f}, "
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.3f}, {held_out}{record['slices_per_s']:.1f} slices/s"
    )


def _what(cache: Cache, config: RunConfig, accelerator: Accelerator) -> str:
    recipe = config.recipe
    model = "" if config.is_zeus else f"{BASELINES[config.model]}, "
    text = TEXTS[config.text] + (f" ({', '.join(config.variants)})" if config.variants else "")
    text = text if config.is_zeus else "pictures, no text"
    many = f" in {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return (
        f"{model}{config.fusion} fusion of {', '.join(config.modalities)}, classes {', '.join(config.classes)}; {text}; "
        f"{len(cache.rows_of(config.train_subjects))} slices of {len(config.train_subjects)} subjects to train on, "
        f"{len(cache.rows_of(config.test_subjects))} slices of {', '.join(config.test_subjects)} held out; "
        f"recipe {recipe.name}: {recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g}; "
        f"on {accelerator.device}{many}"
    )
