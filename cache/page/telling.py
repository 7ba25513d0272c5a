"""Which slices of a study say most of it, and what their sides are called."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.grid import VIEWS, Grid
from zeus_union.cache.reader import Cache

# What a picture's sides are called along each axis of the patient: towards - and towards +.
_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))


def telling_slices(voxels: NDArray[np.intp], count: int = 3) -> list[int]:
    """Numbers of `count` slices, ascending, that show as much of every class as so many can.

    One after the other: each adds the most to what is shown best of every class, as a share of the class's largest slice;
    where none adds anything, the one with something that lies furthest from those chosen. Empty slices come last, spread
    evenly, and only where all others are taken.

    Args:
        voxels: (slices, classes) as `voxels_by_slice`.
    """
    total = len(voxels)
    largest = voxels.max(axis=0, initial=0)
    shares = voxels[:, largest > 0] / largest[largest > 0]
    filled = shares.any(axis=1)
    if not filled.any():
        return sorted({round((total - 1) * part / (count + 1)) for part in range(1, count + 1)})
    span = int(np.ptp(np.flatnonzero(filled))) + 1
    chosen: list[int] = []
    while len(chosen) < min(count, total):
        best = shares[chosen].max(axis=0, initial=0)
        gain = np.maximum(shares - best, 0).sum(axis=1)
        far = np.array([min((abs(number - other) for other in chosen), default=0) for number in range(total)])
        # A slice with half a class that lies elsewhere says more than its neighbour with a little more of it.
        score = gain + shares.mean(axis=1) * far / span
        score = np.where(filled, score, far / total - 2)
        score[chosen] = -np.inf
        chosen.append(int(score.argmax()))
    return sorted(chosen)


def telling_rows(cache: Cache, rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """`count` of a subject's rows that show as much of every class as so many can; without labels, spread over all."""
    if len(rows) <= count:
        return rows
    classes = len(cache.classes)
    if cache.rows["labelled"][rows].all():
        voxels = np.stack([voxels_of(np.where(mask > classes, 0, mask), classes) for mask in cache.masks(rows)])
    else:
        voxels = np.zeros((len(rows), classes), np.intp)
    return rows[telling_slices(voxels, count)]


def voxels_of(mask: NDArray[np.uint8], classes: int) -> NDArray[np.intp]:
    """(classes,): how many pixels of each class a label map has."""
    return np.bincount(mask.ravel(), minlength=classes + 1)[1 : classes + 1]


def sides(grid: Grid) -> dict[str, str]:
    """'left', 'right', 'top', 'bottom' of a slice -> the patient's side there: R, L, A, P, S or I.

    Of an oblique slice the side that is nearest.
    """
    _, (row_axis, row_direction), (column_axis, column_direction) = VIEWS[grid.view]
    top, bottom = _SIDES[row_axis][:: 1 if row_direction > 0 else -1]
    left, right = _SIDES[column_axis][:: 1 if column_direction > 0 else -1]
    return {"left": left, "right": right, "top": top, "bottom": bottom}
