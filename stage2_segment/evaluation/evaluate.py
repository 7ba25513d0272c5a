"""A trained run on labelled studies: per subject and class, at 256 x 256 and in the native grid."""

from __future__ import annotations

import math
import os
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
from zeus_union.cache.leaks import leaking
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose, progress, say
from zeus_union.cache.view_layers import view_of
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.compatibility import check_cache
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.metrics import (
    DEFINITIONS,
    SURFACE_TOLERANCE_MM,
    dsc,
    iou,
    mean_defined,
    mean_over_subjects,
    overlap_counts,
    stack_slices,
    surface_scores,
)
from zeus_union.stage2_segment.inputs.layers import layers_read
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.predict import load_run, open_cache, predict_slices, to_native_slices
from zeus_union.stage2_segment.training_subjects import trained_by_projection, trained_by_run

NAMES = {"dsc_256": "DSC 256", "iou_256": "IoU 256", "dsc": "DSC", "iou": "IoU", "hd95_mm": "HD95 mm", "nsd": "NSD"}


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        rows: one per subject and class: subject, class, dsc_256, iou_256, dsc, iou, hd95_mm, nsd, native
            voxels both, predicted and true.
        miou_256: subject -> mean IoU at 256 with the background (the paper's).
        weights: 'last' or 'best'.
        cache: path of the cache, relative to the run's folder.
        content: digest of what it holds of these subjects.
        modalities: that were predicted from.
        trained_on: which of these subjects the run was trained on.
        seen: which of them a projection behind the instructions was trained on.
        leaks: the run's instructions that were made from the true labels.
    """

    rows: list[dict[str, Any]]
    miou_256: dict[str, float]
    weights: str
    cache: str
    content: str
    modalities: tuple[str, ...]
    trained_on: tuple[str, ...]
    seen: tuple[str, ...]
    leaks: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Means over the subjects, of each class and of all (`mean_over_subjects`); None where nothing is defined."""
        classes = list(dict.fromkeys(row["class"] for row in self.rows))
        return {
            "cache": self.cache,
            "content": self.content,
            "weights": self.weights,
            "modalities": list(self.modalities),
            "subjects": list(self.miou_256),
            "trained_on": list(self.trained_on),
            "seen_by_projection": list(self.seen),
            "made_from_true_labels": list(self.leaks),
            "miou_256": _known(mean_defined(self.miou_256.values())),
            "mean_over_classes": {key: self._mean(key, classes) for key in NAMES},
            "classes": {name: {key: self._mean(key, [name]) for key in NAMES} for name in classes},
            "definitions": DEFINITIONS,
        }

    def _mean(self, key: str, classes: Sequence[str]) -> float | None:
        return _known(mean_over_subjects((row["subject"], row[key]) for row in self.rows if row["class"] in classes))


def evaluate_run(
    run: Path,
    cache: Cache | None = None,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
) -> Evaluation:
    """`measure_run`, written to evaluation.parquet and evaluation.json (see `results_path`) in the run's folder."""
    with open_cache(run) if cache is None else nullcontext(cache) as opened:
        evaluation = measure_run(run, opened, subjects=subjects, modalities=modalities, which=which, device=device)
        path = results_path(run, checkpoint.load_config(run), opened, "evaluation.json")
    checkpoint.write_table(path.with_suffix(".parquet"), evaluation.rows)
    checkpoint.write_json(path, evaluation.summary())
    return evaluation


def is_runs_cache(config: RunConfig, cache: Cache) -> bool:
    """Whether a cache holds of the run's subjects what the run read, wherever it lies; views were for training alone."""
    subjects = {*config.split.train, *config.split.test, *config.split.validation}
    return subjects <= set(cache.subjects) and all(
        layer in cache.layers and cache.content_digest(layer, subjects) == digest
        for layer, digest in config.inputs.content.items()
        if not view_of(layer)
    )


def results_path(run: Path, config: RunConfig, cache: Cache, name: str) -> Path:
    """Where results on a cache go: RUN/NAME on the run's own; on another one its name and content are in it.

    So no measurement overwrites one on other data: evaluation.json becomes evaluation-OTHER-1a2b3c4d.json.
    """
    if is_runs_cache(config, cache):
        return run / name
    stem, _, ending = name.partition(".")
    content = cache.content_digest("slices", cache.subjects)[:8]
    return run / f"{stem}-{cache.path.stem}-{content}.{ending}"


def measure_run(
    run: Path,
    cache: Cache,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
) -> Evaluation:
    """A run's masks against the truth.

    Args:
        subjects: see `subjects_to_measure`.
        modalities: to predict from, of those the run was trained with; all if None.
        which: 'last' or 'best' weights. The best were chosen on the validation subjects, so their numbers there are
            too good.

    Raises:
        UserError: subjects that are unknown or have no labels; other classes than the run's.
    """
    trained = load_run(run, which, device)
    config = trained.config
    wanted = check_cache(config, cache, modalities)
    if tuple(cache.classes) != config.inputs.classes:
        raise UserError(
            f"{cache.path} has the classes {', '.join(cache.classes)}, the run {', '.join(config.inputs.classes)}"
        )
    chosen = subjects_to_measure(config, cache, subjects)
    trained_on = trained_by_run(config).among(cache, chosen)
    seen = trained_by_projection(cache, layers_read(config, cache)).among(cache, chosen)
    rows, miou = [], {}
    for subject in progress(chosen, "evaluating"):
        positions = cache.rows_of([subject])
        data = SliceData(cache, config.inputs.encoder, wanted, positions, trained.device, labelled=False)
        predicted = predict_slices(trained.model, config, data, wanted)
        scores, miou[subject] = score_subject(cache, subject, predicted)
        rows += scores
    content = cache.content_digest("slices", chosen)
    path = os.path.relpath(cache.path, run)
    leaks = leaking(cache, layers_read(config, cache))
    return Evaluation(rows, miou, which, path, content, wanted, trained_on, seen, leaks)


def subjects_to_measure(config: RunConfig, cache: Cache, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """`wanted`; else the run's held-out subjects of its own cache, or of another all with labels that nobody trained on.

    Raises:
        UserError: one that is unknown, or without labels; none is left that the run was not trained on.
    """
    labelled = tuple(name for name in cache.subjects if cache.rows["labelled"][cache.rows_of([name])].all())
    if wanted is None:
        held_out = is_runs_cache(config, cache)
        wanted = config.split.test if held_out else _untrained(config, cache, labelled)
    chosen = choose(wanted, cache.subjects, "subject")
    without = [name for name in chosen if name not in labelled]
    if without or not chosen:
        names = ", ".join(without) or "any subject"
        raise UserError(f"no labels of {names}; with labels: {', '.join(labelled) or 'none'}")
    return chosen


def _untrained(config: RunConfig, cache: Cache, labelled: Sequence[str]) -> tuple[str, ...]:
    """Those that neither the run nor the projection behind the cache's instructions was trained on; says who is left out."""
    by_run = set(trained_by_run(config).among(cache, labelled))
    by_projection = set(trained_by_projection(cache, layers_read(config, cache)).among(cache, labelled))
    left_out = [name for name in labelled if name in by_run | by_projection]
    kept = tuple(name for name in labelled if name not in left_out)
    if labelled and not kept:
        raise UserError(
            f"the run (or its projection) was trained on every labelled subject of {cache.path}: {', '.join(left_out)}; "
            "--subjects measures those it names all the same"
        )
    if left_out:
        say(f"trained on, and so not measured (--subjects measures them all the same): {', '.join(left_out)}")
    return kept


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
    table = Table(
        title=f"{evaluation.weights} weights on {evaluation.cache}; NSD at {SURFACE_TOLERANCE_MM:g} mm",
        caption=_reservations(evaluation) or None,
    )
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


def _reservations(evaluation: Evaluation) -> str:
    """Why these numbers are too good, if they are."""
    named = [
        f"{what}: {', '.join(subjects)}"
        for what, subjects in (
            ("an upper bound, no result: made from the true labels are the instructions", evaluation.leaks),
            ("the run was trained on", evaluation.trained_on),
            ("the instructions' projection was trained on", evaluation.seen),
        )
        if subjects
    ]
    return "; ".join(named)


def _cells(values: dict[str, Any]) -> list[str]:
    return [_number(values[key], 2 if key == "hd95_mm" else 4) for key in NAMES]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
