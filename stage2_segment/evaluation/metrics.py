"""How good a mask is. Every number here is defined in `DEFINITIONS`, which reports print beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray

from zeus_union.cache.layout import IGNORE

K = TypeVar("K", bound=Hashable)
SURFACE_TOLERANCE_MM = 2.0

DEFINITIONS = {
    "DSC": "2 |P and T| / (|P| + |T|) of one class in one subject's volume (all its cached slices together)",
    "IoU": "|P and T| / |P or T|, likewise",
    "mIoU": "mean IoU over the classes and the background, then over the subjects (the paper's)",
    "256": "on the 256 x 256 pictures that the decoder sees (the paper's); without it: in the study's own grid",
    "HD95": "95th percentile of the symmetric surface distance, in mm, in the study's own grid over the cached slices",
    "NSD": f"share of both surfaces within {SURFACE_TOLERANCE_MM:g} mm of the other, in the study's own grid",
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
    """(..., 3) of `overlap_counts` -> DSC (...), NaN where truth and prediction are both empty."""
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


@dataclass(frozen=True)
class SurfaceScores:
    """hd95_mm (NaN where truth or prediction is empty), nsd in [0, 1] (NaN where both are)."""

    hd95_mm: float
    nsd: float


def surface_scores(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> SurfaceScores:
    """Distances between the surfaces of two binary volumes, by MONAI.

    Args:
        predicted, truth: (slices, rows, columns).
        spacing: mm along each axis.
    """
    if not predicted.any() or not truth.any():
        return SurfaceScores(float("nan"), 0.0 if predicted.any() or truth.any() else float("nan"))
    mm = [float(step) for step in spacing]
    # A margin of one voxel around both: what touches the edge of the volume has a surface there.
    occupied = np.argwhere(predicted | truth)
    box = tuple(slice(low, high + 1) for low, high in zip(occupied.min(0), occupied.max(0)))
    p, t = (torch.from_numpy(np.pad(v[box], 1))[None, None] for v in (predicted, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=mm)
        nsd = compute_surface_dice(
            p, t, [SURFACE_TOLERANCE_MM], include_background=True, spacing=mm, use_subvoxels=False
        )
    return SurfaceScores(float(hd95), float(nsd))


def stack_slices(slices: NDArray[np.uint8], numbers: NDArray[np.int32], step: int) -> NDArray[np.uint8]:
    """Slices (n, rows, columns) at their places along the body, `step` apart; those missing in between are 0."""
    positions = (numbers - numbers.min()) // step
    volume = np.zeros((int(positions.max()) + 1, *slices.shape[1:]), slices.dtype)
    volume[positions] = slices
    return volume
