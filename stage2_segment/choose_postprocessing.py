"""Choosing a run's post-processing on its validation subjects, never on those it is tested on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeVar

from rich.table import Table

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import progress, say
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.chosen_postprocessing import (
    WEIGHTS,
    load_postprocessing,
    read_record,
    write_choices,
)
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.evaluate import is_runs_cache
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.marks import as_named, spoken
from zeus_union.stage2_segment.native import predict_subject
from zeus_union.stage2_segment.postprocessing import STEPS, Candidates
from zeus_union.stage2_segment.trained import TrainedRun, load_trained

K = TypeVar("K", bound=Hashable)


def choose_postprocessing(run: Path, cache: Cache, device: str | None = None, resident: str = "auto") -> None:
    """Chooses the post-processing of all weights that a run has, and writes it into its folder.

    Args:
        cache: that the run was trained on.
        resident: see `SliceData`.

    Raises:
        UserError: no validation subject, or one without native masks.
    """
    opened = {
        which: load_trained(run, which, device) for which in WEIGHTS if checkpoint.weights_path(run, which).is_file()
    }
    if not opened:
        checkpoint.load_weights(run, "last")  # raises, and says why there are none
    config = checkpoint.load_config(run)
    if not config.split.validation:
        raise UserError(
            f"{run} was trained without validation subjects, and post-processing is chosen on those only; train with a fold "
            "that has some, or with --validation-subjects"
        )
    if not is_runs_cache(config, cache):
        raise UserError(
            f"{cache.path} does not hold what {run} was trained on; post-processing is chosen on its validation subjects as they "
            "were, give the run's cache"
        )
    write_choices(run, predict_validation(cache, opened, resident))


def predict_validation(cache: Cache, runs: Mapping[K, TrainedRun], resident: str = "auto") -> dict[K, Candidates]:
    """What runs of one split make of its validation subjects; each subject is read once for all of them."""
    first = next(iter(runs.values()))
    encoder = first.config.inputs.encoder
    wanted = {name for run in runs.values() for name in run.config.inputs.modalities}
    modalities = [name for name in cache.modalities if name in wanted]
    candidates = {key: Candidates(run.config.inputs.classes) for key, run in runs.items()}
    for subject in progress(as_named(first.config.split.validation, cache.subjects), "choosing post-processing"):
        rows, grid, truth = cache.rows_of([subject]), cache.grid(subject), cache.native_masks(subject)
        if truth is None:
            raise UserError(f"{cache.path} has no masks of {subject} in its native grid; build the cache again")
        data = SliceData(cache, encoder, modalities, rows, first.device, labelled=False, resident=resident)
        for key, run in runs.items():
            candidates[key].add(subject, predict_subject([run], {encoder: data}, grid).labels, truth)
    return candidates


def why_not_chosen(run: Path, config: RunConfig) -> str | None:
    """Why training chooses no post-processing at its end; None: it does.

    The paper's recipe has none, and what was turned off stays off.
    """
    again = f"zeus-segment postprocess --run {run}"
    if config.recipe.name == "paper":
        return f"no post-processing, as in the paper; {again} chooses one"
    if not config.split.validation:
        return "no post-processing: it is chosen on validation subjects, and the run has none"
    if _is_off(run, config):
        return f"no post-processing: it was turned off; {again} turns it on"
    return None


def _is_off(run: Path, config: RunConfig) -> bool:
    try:
        record = read_record(run, config.inputs.classes)
    except UserError:  # it is written anew
        return False
    return record is not None and record["off"]


def say_choices(run: Path, config: RunConfig) -> None:
    """A line for each of the run's weights: what is done to its masks, and the classes that nothing is known of."""
    record = read_record(run, config.inputs.classes)
    assert record is not None
    for which, choice in record["choices"].items():
        unseen = ", ".join(choice["unseen"])
        never = f"; not chosen for {unseen}, which none of them has" if unseen else ""
        say(f"{which} weights, {load_postprocessing(run, config, which).summary}{never}")


def as_table(run: Path, config: RunConfig) -> list[Table]:
    """For each of the run's weights a line per class and step: the mean DSC without and with it."""
    record = read_record(run, config.inputs.classes)
    assert record is not None
    tables = []
    for which, choice in record["choices"].items():
        table = Table(title=f"{which} weights on the validation subjects {spoken(choice['chosen_on'])}")
        for name in ("class", "step"):
            table.add_column(name)
        for name in ("DSC without", "DSC with", "kept"):
            table.add_column(name, justify="right")
        for line in choice["candidates"]:
            scores = (line["dsc_before"], line["dsc_after"])
            cells = ("-" if score is None else f"{score:.4f}" for score in scores)
            table.add_row(line["class"], STEPS[line["step"]], *cells, "yes" if line["kept"] else "no")
        tables.append(table)
    return tables
