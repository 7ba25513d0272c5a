"""One subject's predicted masks against the truth."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import IGNORE
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.chosen_postprocessing import PostProcessing
from zeus_union.stage2_segment.evaluation.metrics import dsc, iou, mean_defined, overlap_counts, stack_slices
from zeus_union.stage2_segment.evaluation.surfaces import scores_of_labels
from zeus_union.stage2_segment.native import SubjectPrediction

SubjectScores = tuple[list[dict[str, Any]], float]  # rows of an `Evaluation`, one per class, and the mIoU at 256


def begin_scoring(
    cache: Cache,
    subject: str,
    predicted: SubjectPrediction,
    postprocessing: PostProcessing | None = None,
    pool: Executor | None = None,
) -> Callable[[], SubjectScores]:
    """Begins to measure a subject; what it returns waits for the distances.

    Args:
        postprocessing: of the masks in the native grid; those at 256 are the decoder's, as in the paper.
        pool: where distances are measured, class by class; None: here and now.
    """
    classes = cache.classes
    positions, grid = cache.rows_of([subject]), cache.grid(subject)
    at_256 = overlap_counts(predicted.labels_256, cache.masks(positions), len(classes))
    truth = cache.native_masks(subject)
    if truth is None:
        raise UserError(f"{cache.path} has no masks of {subject} in its native grid; build the cache again")
    numbers, step = cache.rows["number"][positions], cache.card.slice_step
    native = predicted.labels
    raw = overlap_counts(native, truth, len(classes))
    native = stack_slices(native if postprocessing is None else postprocessing(native), numbers, step)
    truth = stack_slices(truth, numbers, step)
    native = np.where(truth == IGNORE, 0, native)
    counts = overlap_counts(native, truth, len(classes))
    labels = range(1, len(classes) + 1)
    surfaces = scores_of_labels(native, truth, labels, _spacing(grid, step), pool)

    def finish() -> SubjectScores:
        rows = [
            {
                "subject": subject,
                "class": name,
                "dsc_256": float(dsc(at_256)[label]),
                "iou_256": float(iou(at_256)[label]),
                "dsc": float(dsc(counts)[label]),
                "iou": float(iou(counts)[label]),
                "hd95_mm": surface.result().hd95_mm,
                "nsd": surface.result().nsd,
                "dsc_raw": float(dsc(raw)[label]),
                "both": int(counts[label, 0]),
                "predicted": int(counts[label, 1]),
                "true": int(counts[label, 2]),
            }
            for label, name, surface in zip(labels, classes, surfaces)
        ]
        return rows, mean_defined(iou(at_256))

    return finish


def _spacing(grid: Grid, step: int) -> tuple[float, float, float]:
    """mm between (cached slices, rows, columns)."""
    slices, rows, columns = grid.slice_spacing
    return slices * step, rows, columns
