"""Masks of the slices that --slice-step left out, from their two segmented neighbours.

Shape-based interpolation (Herman, Zheng and Bucholtz 1992): each label's signed distance in the plane is interpolated
linearly between two slices, and a voxel gets that of its two neighbours' labels whose distance is larger there; the background
is a label too. So a voxel with one label in both neighbours keeps it, and no label appears where neither has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.cache.grid import Grid
from zeus_union.cache.terminal import counted
from zeus_union.stage2_segment.nifti import to_every_slice


def fill_gaps(
    slices: NDArray[np.uint8], numbers: NDArray[np.integer], step: int, spacing: tuple[float, float]
) -> NDArray[np.uint8]:
    """A label map with the slices between two segmented neighbours filled; `slices` stays as it is.

    A gap is filled where its neighbours are as many slices apart as `step` says. Where they are further apart, what lies
    between was left out because it shows nothing, and stays 0, as do the slices before the first and after the last.
    A label that ends between two slices gets narrower and is gone beyond the middle.

    Args:
        slices: (every slice of the grid's view, rows, columns).
        numbers: of the segmented ones, in any order.
        step: every how many-th slice was segmented.
        spacing: mm between (rows, columns).
    """
    filled = slices.copy()
    # Their ratio alone decides; rounded, so that ties fall alike from a header in float32 and from one in float64.
    rows, columns = (round(side / min(spacing), 5) for side in spacing)
    for first, last in _gaps(numbers, step):
        filled[first + 1 : last] = _between(slices[first], slices[last], last - first, (rows, columns))
    return filled


def filled_volume(slices: NDArray[np.uint8], numbers: NDArray[np.int32], step: int, grid: Grid) -> NDArray[np.uint8]:
    """Label maps (n, rows, columns) of the segmented slices of a grid -> a volume in its array order, filled between them."""
    every = to_every_slice(slices, numbers, grid)
    return grid.from_slices(fill_gaps(every, numbers, step, grid.slice_spacing[1:]))


def filled_numbers(numbers: NDArray[np.integer], step: int) -> tuple[int, ...]:
    """The numbers of the slices that `fill_gaps` fills.

    >>> filled_numbers(np.array([0, 4, 8]), step=4)
    (1, 2, 3, 5, 6, 7)
    """
    return tuple(number for first, last in _gaps(numbers, step) for number in range(first + 1, last))


def describe_slices(count: int, numbers: NDArray[np.integer], step: int) -> str:
    """What became of each of a mask's `count` slices, for a line on the terminal; the others as for `fill_gaps`."""
    filled = len(filled_numbers(numbers, step))
    segmented = f"{len(numbers)} of {counted(count, 'slice')} segmented" + (f" (one in {step})" if step > 1 else "")
    parts = [f"{filled} between them filled"] if filled else []
    parts += [f"{empty} stay 0"] if (empty := count - len(numbers) - filled) else []
    return ", ".join([segmented, *parts])


def _gaps(numbers: NDArray[np.integer], step: int) -> Iterator[tuple[int, int]]:
    """Segmented neighbours with slices between them that only the step left out."""
    ordered = sorted({int(number) for number in numbers})
    for first, last in pairwise(ordered):
        if 1 < last - first <= step:
            yield first, last


def _between(
    first: NDArray[np.uint8], last: NDArray[np.uint8], apart: int, spacing: tuple[float, float]
) -> NDArray[np.uint8]:
    """uint8 (apart - 1, rows, columns): the slices between two label maps (rows, columns)."""
    filled = np.zeros((apart - 1, *first.shape), np.uint8)
    if not (first.any() or last.any()):
        return filled
    rows, columns = _box((first > 0) | (last > 0))
    first, last = first[rows, columns], last[rows, columns]
    # Whole numbers as weights, not fractions: so equal distances stay equal, whatever the spacing.
    after = np.arange(1, apart)[:, None, None]
    nearest = np.full((apart - 1, *first.shape), -np.inf)
    chosen = np.zeros(nearest.shape, np.uint8)
    labels = np.union1d(first, last)
    # Where two are equal the lower class, and the background last of all: of the labels of BraTS 2013, every second slice
    # filled, the classes have 0.985 of their volume so, and 0.962 where the background is first.
    for label in (*labels[labels > 0], *labels[labels == 0]):
        in_first, in_last = _signed_distances(first == label, last == label, spacing)
        distance = (apart - after) * in_first + after * in_last
        distance[:, (first != label) & (last != label)] = -np.inf
        chosen[distance > nearest] = label
        np.maximum(nearest, distance, out=nearest)
    filled[:, rows, columns] = chosen
    return filled


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns of a mask that is not empty, and one around: no distance that decides reaches further."""
    ranges = []
    for axis in (1, 0):
        occupied = np.flatnonzero(mask.any(axis=axis))
        ranges.append(slice(max(int(occupied[0]) - 1, 0), int(occupied[-1]) + 2))
    return ranges[0], ranges[1]


def _signed_distances(
    in_first: NDArray[np.bool_], in_last: NDArray[np.bool_], spacing: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """mm to the nearest voxel on the other side of the border, in each slice; below 0 outside.

    A slice without the label, or with nothing else, has no border: it counts as far from one as the other slice is deep.
    """
    first, last = _signed_distance(in_first, spacing), _signed_distance(in_last, spacing)
    if first is None and last is None:
        return (np.where(mask, 1.0, -1.0) for mask in (in_first, in_last))  # type: ignore[return-value]
    if first is None and last is not None:
        first = np.full(last.shape, -last.min() if in_first.any() else -last.max())
    if last is None and first is not None:
        last = np.full(first.shape, -first.min() if in_last.any() else -first.max())
    assert first is not None and last is not None
    return first, last


def _signed_distance(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> NDArray[np.float64] | None:
    """None where a mask is empty or full."""
    if mask.all() or not mask.any():
        return None
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    return np.asarray(inside - outside, dtype=np.float64)
