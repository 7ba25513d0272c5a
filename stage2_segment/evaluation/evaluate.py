"""A trained run on labelled studies: per subject and class, at 256 x 256 and in the native grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import IGNORE
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose, progress
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.metrics import (
    DEFINITIONS,
    SURFACE_TOLERANCE_MM,
    dsc,
    iou,
    mean_defined,
    overlap_counts,
    stack_slices,
    surface_scores,
)
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.predict import check_cache, load_run, open_cache, predict_slices, to_native_slices

NAMES = {"dsc_256": "DSC 256", "iou_256": "IoU 256", "dsc": "DSC", "iou": "IoU", "hd95_mm": "HD95 mm", "nsd": "NSD"}


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        rows: one per subject and class: subject, class, dsc_256, iou_256, dsc, iou, hd95_mm, nsd, native
            voxels both, predicted and true.
        miou_256: subject -> mean IoU at 256 with the background (the paper's).
        weights: 'last' or 'best'.
    """

    rows: list[dict[str, Any]]
    miou_256: dict[str, float]
    weights: str

    def summary(self) -> dict[str, Any]:
        """Means over the subjects, per class and over the classes; None where a number is nowhere defined."""
        classes = list(dict.fromkeys(row["class"] for row in self.rows))
        table = {name: {key: self._mean(key, name) for key in NAMES} for name in classes}
        overall = {key: _known(mean_defined(_floats(table[name][key] for name in classes))) for key in NAMES}
        return {
            "weights": self.weights,
            "subjects": list(self.miou_256),
            "miou_256": _known(mean_defined(_floats(self.miou_256.values()))),
            "mean_over_classes": overall,
            "classes": table,
            "definitions": DEFINITIONS,
        }

    def _mean(self, key: str, name: str) -> float | None:
        return _known(mean_defined(_floats(row[key] for row in self.rows if row["class"] == name)))


def evaluate_run(
    run: Path,
    cache: Cache | None = None,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
) -> Evaluation:
    """`measure_run`, written to evaluation.parquet and evaluation.json in the run's folder."""
    evaluation = measure_run(run, cache, subjects=subjects, modalities=modalities, which=which, device=device)
    checkpoint.write_table(run / "evaluation.parquet", evaluation.rows)
    checkpoint.write_json(run / "evaluation.json", evaluation.summary())
    return evaluation


def measure_run(
    run: Path,
    cache: Cache | None = None,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
) -> Evaluation:
    """A run's masks against the truth.

    Args:
        cache: the run's own if None.
        subjects: the run's held-out subjects if None; of a cache of other data all labelled ones.
        modalities: to predict from, of those the run was trained with; all if None.
        which: 'last' or 'best' weights. The best were chosen on the held-out subjects, so their numbers there are
            too good.

    Raises:
        UserError: subjects that are unknown or have no labels; other classes than the run's.
    """
    trained = load_run(run, which, device)
    config = trained.config
    with open_cache(run) if cache is None else nullcontext(cache) as opened:
        wanted = check_cache(config, opened, modalities)
        if tuple(opened.classes) != config.inputs.classes:
            raise UserError(
                f"{opened.path} has the classes {', '.join(opened.classes)}, the run {', '.join(config.inputs.classes)}"
            )
        chosen = subjects_to_measure(config, opened, subjects)
        rows, miou = [], {}
        for subject in progress(chosen, "evaluating"):
            positions = opened.rows_of([subject])
            data = SliceData(opened, config.inputs.encoder, wanted, positions, trained.device, labelled=False)
            predicted = predict_slices(trained.model, config, data, wanted)
            scores, miou[subject] = score_subject(opened, subject, predicted)
            rows += scores
    return Evaluation(rows, miou, which)


def subjects_to_measure(config: RunConfig, cache: Cache, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """`wanted`, or the run's held-out subjects, or of a cache of other data all with labels.

    Raises:
        UserError: one that is unknown, or without labels.
    """
    labelled = tuple(name for name in cache.subjects if cache.rows["labelled"][cache.rows_of([name])].all())
    if wanted is None:
        same = cache.fingerprint("slices") == config.inputs.fingerprints["slices"]
        held_out = same and set(config.split.test) <= set(cache.subjects)
        wanted = config.split.test if held_out else labelled
    chosen = choose(wanted, cache.subjects, "subject")
    without = [name for name in chosen if name not in labelled]
    if without or not chosen:
        names = ", ".join(without) or "any subject"
        raise UserError(f"no labels of {names}; with labels: {', '.join(labelled) or 'none'}")
    return chosen


def score_subject(cache: Cache, subject: str, predicted: NDArray[np.uint8]) -> tuple[list[dict[str, Any]], float]:
    """Rows of an `Evaluation`, one per class, and the mIoU at 256.

    Args:
        predicted: label maps (n, 256, 256) of all the subject's cached slices, in order.
    """
    classes = cache.classes
    positions, grid = cache.rows_of([subject]), cache.grid(subject)
    at_256 = overlap_counts(predicted, cache.masks(positions), len(classes))
    truth = cache.native_masks(subject)
    if truth is None:
        raise UserError(f"{cache.path} has no masks of {subject} in its native grid; build the cache again")
    numbers, step = cache.rows["number"][positions], cache.card.slice_step
    truth = stack_slices(truth, numbers, step)
    native = stack_slices(to_native_slices(predicted, grid), numbers, step)
    native = np.where(truth == IGNORE, 0, native)
    counts = overlap_counts(native, truth, len(classes))
    spacing = _spacing(grid, step)
    rows = []
    for label, name in enumerate(classes, start=1):
        surface = surface_scores(native == label, truth == label, spacing)
        rows.append(
            {
                "subject": subject,
                "class": name,
                "dsc_256": float(dsc(at_256)[label]),
                "iou_256": float(iou(at_256)[label]),
                "dsc": float(dsc(counts)[label]),
                "iou": float(iou(counts)[label]),
                "hd95_mm": surface.hd95_mm,
                "nsd": surface.nsd,
                "both": int(counts[label, 0]),
                "predicted": int(counts[label, 1]),
                "true": int(counts[label, 2]),
            }
        )
    return rows, mean_defined(iou(at_256))


def _spacing(grid: Grid, step: int) -> tuple[float, float, float]:
    """mm between (cached slices, rows, columns)."""
    slices, rows, columns = grid.slice_spacing
    return slices * step, rows, columns


def as_table(evaluation: Evaluation) -> Table:
    """One line per subject and class, then the means."""
    table = Table(title=f"{evaluation.weights} weights; NSD at {SURFACE_TOLERANCE_MM:g} mm")
    for name in ("subject", "class"):
        table.add_column(name)
    for name in NAMES.values():
        table.add_column(name, justify="right")
    for row in evaluation.rows:
        table.add_row(row["subject"], row["class"], *_cells(row))
    table.add_section()
    summary = evaluation.summary()
    for name, values in summary["classes"].items():
        table.add_row("mean", name, *_cells(values))
    if len(summary["classes"]) > 1:
        table.add_row("mean", "over classes", *_cells(summary["mean_over_classes"]))
    return table


def _cells(values: dict[str, Any]) -> list[str]:
    return [_number(values[key], 2 if key == "hd95_mm" else 4) for key in NAMES]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _floats(values: Any) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
