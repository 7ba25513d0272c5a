"""What a run loses where modalities are missing when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from rich.table import Table

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.ensemble import as_runs
from zeus_union.stage2_segment.evaluation.evaluate import Evaluation, measure_run, results_folder, results_path
from zeus_union.stage2_segment.measured import MISSING, means_of_modalities


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All of them, then one left out, then two, ... in a fixed order.

    >>> subsets(("t1", "t2", "flair"))
    [('t1', 't2', 'flair'), ('t1', 't2'), ('t1', 'flair'), ('t2', 'flair'), ('t1',), ('t2',), ('flair',)]
    """
    return [part for size in range(len(modalities), 0, -1) for part in combinations(modalities, size)]


def evaluate_missing(
    run: Path | Sequence[Path],
    cache: Cache,
    *,
    subjects: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
    out: Path | None = None,
    postprocess: bool = True,
) -> dict[tuple[str, ...], Evaluation]:
    """Evaluates a run, or several together, on every subset of the modalities; writes missing.parquet (see `results_path`).

    The table has a line for each subset, subject and class: `modalities` (joined by '+') and the columns of an
    `Evaluation`.

    Raises:
        UserError: a run of one modality; else as `measure_run`.
    """
    runs = as_runs(run)
    configs = [checkpoint.load_config(folder) for folder in runs]
    modalities = configs[0].inputs.modalities
    if len(modalities) == 1:
        raise UserError(f"{runs[0]} was trained with {modalities[0]} alone; none can be missing")
    evaluations = {
        part: measure_run(
            runs, cache, subjects=subjects, modalities=part, which=which, device=device, postprocess=postprocess
        )
        for part in subsets(modalities)
    }
    lines = [
        {"modalities": "+".join(part), **row} for part, evaluation in evaluations.items() for row in evaluation.rows
    ]
    checkpoint.write_table(results_path(results_folder(runs, out), configs, cache, MISSING), lines)
    return evaluations


def known_loss(runs: Sequence[Path], present: Sequence[str]) -> float | None:
    """Mean DSC in the native grid that the runs lose on their own data without the modalities that are not `present`.

    Returns:
        what `evaluate_missing` found of them together, else the mean of what it found of each; None where it was not
        measured.
    """
    together = _loss(results_folder(runs), present)
    if together is not None:
        return together
    losses = [loss for run in runs if (loss := _loss(run, present)) is not None]
    return fmean(losses) if losses and len(losses) == len(runs) else None


def _loss(folder: Path, present: Sequence[str]) -> float | None:
    means = means_of_modalities(folder)
    some, with_all = (
        means.get("+".join(present)),
        next(iter(means.values()), None),
    )  # all of them is the first of `subsets`
    return None if some is None or with_all is None else with_all - some


def as_table(evaluations: dict[tuple[str, ...], Evaluation]) -> Table:
    """One line per subset: mean DSC in the native grid, and what it is less than with all modalities."""
    table = Table(title="with modalities missing")
    table.add_column("modalities there")
    for name in ("DSC", "DSC lost", "mIoU 256"):
        table.add_column(name, justify="right")
    with_all = next(iter(evaluations.values())).summary()["mean_over_classes"]["dsc"]
    for part, evaluation in evaluations.items():
        summary = evaluation.summary()
        mean, miou = summary["mean_over_classes"]["dsc"], summary["miou_256"]
        loss = "-" if mean is None or with_all is None else f"{with_all - mean:.3f}"
        table.add_row(
            ", ".join(part),
            "-" if mean is None else f"{mean:.3f}",
            loss,
            "-" if miou is None else f"{miou:.3f}",
        )
    return table
