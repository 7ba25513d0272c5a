"""The way back from a square: linear between its pixels, in the place that `to_square` took them from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tests.nearest import from_square
from zeus_union.cache.grid import square_weights, to_square

SIZE = 64  # of the squares here; the geometry knows only ratios

shapes = st.tuples(st.integers(1, 200), st.integers(1, 200))
spacings = st.tuples(st.floats(0.2, 6), st.floats(0.2, 6))


def back(square: NDArray[np.float64], shape: tuple[int, int], spacing: tuple[float, float]) -> NDArray[np.float64]:
    """(size, size) -> (rows, columns)."""
    side_mm = max(count * step for count, step in zip(shape, spacing))
    rows, columns = (square_weights(count, step, side_mm, len(square)) for count, step in zip(shape, spacing))
    return rows @ square @ columns.T


def voxel_centres_mm(shape: tuple[int, int], spacing: tuple[float, float], axis: int) -> NDArray[np.float64]:
    return (np.arange(shape[axis]) + 0.5 - shape[axis] / 2) * spacing[axis]


def shown_range(shape: tuple[int, int], spacing: tuple[float, float], axis: int) -> tuple[int, int]:
    """First and last voxel along an axis that the square shows; (0, -1) if none."""
    index = np.arange(1, shape[axis] + 1)
    numbers = np.broadcast_to(index if axis else index[:, None], shape)
    shown = np.unique(to_square(numbers, spacing, SIZE))
    shown = shown[shown > 0] - 1
    return (int(shown[0]), int(shown[-1])) if len(shown) else (0, -1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(shapes, spacings)
def test_a_constant_field_comes_back_as_it_is_from_any_slice(
    shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    native = back(np.full((SIZE, SIZE), -3.5), shape, spacing)
    assert native.shape == shape
    np.testing.assert_allclose(native, -3.5, rtol=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shapes, spacings, st.floats(-2, 2), st.floats(-2, 2))
def test_a_linear_field_comes_back_exactly_between_the_voxels_that_the_square_shows(
    shape: tuple[int, int], spacing: tuple[float, float], by_row: float, by_column: float
) -> None:
    """However the slice is put onto the square: finer, coarser, anisotropic, beside a margin. Beyond them it goes on flat."""
    y, x = (voxel_centres_mm(shape, spacing, axis) for axis in (0, 1))
    field = 7 + by_row * y[:, None] + by_column * x[None, :]
    native = back(to_square(field, spacing, SIZE), shape, spacing)
    rows, columns = (shown_range(shape, spacing, axis) for axis in (0, 1))
    inner = np.s_[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
    if rows[1] >= rows[0] and columns[1] >= columns[0]:
        np.testing.assert_allclose(native[inner], field[inner], atol=1e-9 * np.abs(field).max())
        assert native.min() >= field[inner].min() - 1e-6 and native.max() <= field[inner].max() + 1e-6


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.37, 0.37)])
def test_a_slice_that_is_its_own_square_comes_back_to_the_bit(spacing: tuple[float, float]) -> None:
    square = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    np.testing.assert_array_equal(back(square, (SIZE, SIZE), spacing), square)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.tuples(st.integers(2, SIZE), st.integers(2, SIZE)), st.integers(0, 9), st.data())
def test_voxels_that_are_not_smaller_than_pixels_come_back_exactly_and_no_pixel_of_theirs_is_skipped(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    side = data.draw(st.floats(1, 3)) * SIZE
    spacing = tuple(data.draw(st.floats(side / SIZE, side / count)) for count in shape)
    labels = np.random.default_rng(seed).integers(0, 2, shape).astype(np.float64)
    square = to_square(labels, spacing, SIZE)
    if max(count * step for count, step in zip(shape, spacing)) / SIZE <= min(spacing):
        np.testing.assert_allclose(back(square, shape, spacing), labels, atol=1e-12)
        side_mm = max(count * step for count, step in zip(shape, spacing))
        for axis in (0, 1):
            weights = square_weights(shape[axis], spacing[axis], side_mm, SIZE)
            inside = to_square(np.ones(shape), spacing, SIZE).any(axis=1 - axis)
            np.testing.assert_array_equal(weights.any(axis=0), inside)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(shapes, spacings)
def test_what_lies_beside_the_slice_is_never_read(shape: tuple[int, int], spacing: tuple[float, float]) -> None:
    """A mask that touches the slice's edge does not fade there into the black margin of the square."""
    inside = to_square(np.ones(shape), spacing, SIZE) > 0
    square = np.where(inside, 10.0, -1e6)
    if inside.any():
        np.testing.assert_allclose(back(square, shape, spacing), 10.0, rtol=1e-9)


@pytest.mark.parametrize("shape", [(200, 1), (1, 200)])
def test_a_slice_narrower_than_a_pixel_takes_the_pixels_it_lies_between(shape: tuple[int, int]) -> None:
    square = np.arange(SIZE * SIZE, dtype=np.float64).reshape(SIZE, SIZE)
    native = back(square, shape, (1.0, 1.0))
    middle = square[:, 31:33].mean(axis=1) if shape[1] == 1 else square[31:33].mean(axis=0)
    assert middle.min() - SIZE <= native.min() and native.max() <= middle.max() + SIZE


def dsc(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((128, 128), (0.7, 0.7)),  # twice as fine as the square, as 512 is to 256: every pixel on a border of voxels
        ((256, 256), (0.5, 0.5)),
        ((100, 100), (1.0, 1.0)),
        ((150, 90), (0.6, 1.1)),
        ((70, 200), (1.9, 0.7)),
        ((64, 64), (1.0, 1.0)),
        ((40, 33), (1.0, 1.3)),  # coarser than the square
    ],
)
@pytest.mark.parametrize("radius", [0.2, 0.3])
@pytest.mark.parametrize("network", ["perfect", "blurred", "centred"])
def test_interpolated_logits_are_at_least_as_good_as_nearest_labels_on_discs(
    shape: tuple[int, int], spacing: tuple[float, float], radius: float, network: str
) -> None:
    """Signed distances are the logits of a perfect network, one that repeats the masks it is trained on; "blurred": of one
    that sees them through a blur of a pixel; "centred": of one that does not know which voxel a pixel shows.
    """
    y, x = np.meshgrid(*(voxel_centres_mm(shape, spacing, axis) for axis in (0, 1)), indexing="ij")
    extent = min(count * step for count, step in zip(shape, spacing))
    by_logits, by_labels = [], []
    side_mm = max(count * step for count, step in zip(shape, spacing))
    pixels = (np.arange(SIZE) + 0.5) * side_mm / SIZE - side_mm / 2
    for seed in range(8):
        centre = np.random.default_rng(seed).uniform(-0.1, 0.1, 2) * extent
        distance = radius * extent - np.hypot(y - centre[0], x - centre[1])
        if network == "perfect":
            square = to_square(distance, spacing, SIZE)
            square[to_square(np.ones(shape), spacing, SIZE) == 0] = -1e3
        elif network == "blurred":
            share = ndimage.gaussian_filter(to_square((distance > 0).astype(float), spacing, SIZE), 1).clip(
                1e-6, 1 - 1e-6
            )
            square = np.log(share / (1 - share))
        else:
            square = radius * extent - np.hypot(pixels[:, None] - centre[0], pixels[None] - centre[1])
        by_logits.append(dsc(back(square, shape, spacing) > 0, distance > 0))
        by_labels.append(dsc(from_square(square > 0, shape, spacing), distance > 0))
    # A centred network's masks lie beside those it is trained on, and neither way knows where.
    assert np.mean(by_logits) >= np.mean(by_labels) - (0.002 if network == "centred" else 0)
    if network == "perfect":
        assert np.mean(by_logits) > 0.995
