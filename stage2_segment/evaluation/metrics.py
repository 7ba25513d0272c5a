"""How good a mask is. Every number here is defined in `DEFINITIONS`, which reports print beside it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.layout import IGNORE
from zeus_union.stage2_segment.evaluation.surfaces import SURFACE_TOLERANCE_MM

K = TypeVar("K", bound=Hashable)

DEFINITIONS = {
    "DSC": "2 |P and T| / (|P| + |T|) of one class in one subject's volume (all its cached slices together)",
    "IoU": "|P and T| / |P or T|, likewise",
    "mIoU": "mean IoU over the classes and the background, then over the subjects (the paper's)",
    "256": "on the 256 x 256 pictures that the decoder sees (the paper's); without it: in the study's own grid",
    "post-processing": "what the run chose on its validation subjects: in the study's own grid; never in what is called "
    "256 (the paper's) or raw",
    "HD95": "95th percentile (linear between ranks) of the distances from the surface voxels of one mask to the nearest "
    "of the other, the larger of both directions (MONAI's), in mm, in the study's own grid over the cached slices",
    "NSD": f"share of the surface voxels of both masks within {SURFACE_TOLERANCE_MM:g} mm of the other's (MONAI's, without "
    "subvoxels), in the study's own grid over the cached slices",
    "slices": "those that were segmented: of a cache of every n-th slice (slice_step) these alone, n times as far apart; "
    "what predict and segment fill between them is in no number",
    "surface": "voxels with one of their six neighbours outside the mask, or outside the cached slices",
    "empty": "class in neither truth nor prediction: not counted; in only one: DSC, IoU, NSD 0, HD95 not counted",
    "ignored": "voxels that nobody labelled (255): in no number; surfaces are drawn as if nothing were there",
    "mean": "over the classes that are defined in a subject, then over the subjects that have one; of one class: over "
    "the subjects where it is defined",
}


def overlap_counts(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Voxels per label: int64 (classes + 1, 3) = in both, predicted, true; background is row 0.

    Voxels that are `IGNORE` in the truth are not counted.
    """
    size = classes + 1
    known = truth != IGNORE
    predicted, truth = predicted[known], truth[known]
    both = np.bincount(predicted[predicted == truth].ravel(), minlength=size)
    return np.stack(
        [both, np.bincount(predicted.ravel(), minlength=size), np.bincount(truth.ravel(), minlength=size)], axis=1
    )


def dsc(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(..., 3) of `overlap_counts` -> DSC (...), NaN where truth and prediction are both empty.

    >>> dsc(np.array([[50, 100, 50], [0, 0, 0]]))  # voxels in both, predicted, true
    array([0.66666667,        nan])
    """
    both, predicted, true = np.moveaxis(counts.astype(np.float64), -1, 0)
    return _ratio(2 * both, predicted + true)


def iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(..., 3) of `overlap_counts` -> IoU (...), NaN where truth and prediction are both empty."""
    both, predicted, true = np.moveaxis(counts.astype(np.float64), -1, 0)
    return _ratio(both, predicted + true - both)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def is_defined(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def mean_defined(values: Iterable[float | None]) -> float:
    """Mean of what is neither None nor NaN, exactly summed, so that their order changes no digit; NaN where nothing is."""
    defined = [float(value) for value in values if value is not None and is_defined(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def subject_means(scores: Iterable[tuple[K, float | None]]) -> dict[K, float]:
    """(subject, score of a class) -> each subject's mean over the classes defined in it; without one it is left out."""
    by_subject: dict[K, list[float | None]] = {}
    for subject, score in scores:
        by_subject.setdefault(subject, []).append(score)
    means = {subject: mean_defined(values) for subject, values in by_subject.items()}
    return {subject: mean for subject, mean in means.items() if is_defined(mean)}


def mean_over_subjects(scores: Iterable[tuple[Hashable, float | None]]) -> float:
    """The mean of every table, summary and validation (`DEFINITIONS`): over a subject's classes, then over the subjects.

    Not over the classes' means: a class that one subject alone has would count as much there as one that all have.

    Args:
        scores: (subject, score of a class).
    """
    return mean_defined(subject_means(scores).values())


def stack_slices(slices: NDArray[np.uint8], numbers: NDArray[np.int32], step: int) -> NDArray[np.uint8]:
    """Slices (n, rows, columns) at their places along the body, `step` apart; those missing in between are 0."""
    positions = (numbers - numbers.min()) // step
    volume = np.zeros((int(positions.max()) + 1, *slices.shape[1:]), slices.dtype)
    volume[positions] = slices
    return volume
