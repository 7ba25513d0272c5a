"""Geometry: there and back again, for any orientation."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.nearest import from_square
from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import VIEWS, Grid, to_square

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any axis order and direction, anisotropic, turned by up to 25 degrees about any axis."""
    order, signs = draw(st.sampled_from(ORIENTATIONS))
    spacing = draw(st.tuples(*[st.floats(0.3, 9)] * 3))
    angles = draw(st.tuples(*[st.floats(-14, 14)] * 3))
    axes = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(order, signs)):
        axes[row, column] = sign
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return Grid(draw(st.tuples(*[st.integers(2, 24)] * 3)), affine, draw(st.sampled_from(list(VIEWS))))


def blob(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.uint8)


@given(grids(), st.integers(0, 99))
def test_slices_and_back_is_the_identity(grid: Grid, seed: int):
    volume = blob(grid.shape, seed)
    np.testing.assert_array_equal(grid.from_slices(grid.to_slices(volume)), volume)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_each_of_the_48_orientations_shows_the_same_slices(order: tuple[int, ...], signs: tuple[int, ...]):
    """One body stored in every axis order and direction gives one axial view and comes back as it was stored."""
    body = blob((5, 6, 7), 0)  # right, anterior, superior
    expected = body[::-1, ::-1].transpose(2, 1, 0)  # superior, posterior, left
    stored = body.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (ras, sign) in enumerate(zip(order, signs)):
        affine[ras, axis] = sign * (1.0, 2.0, 5.0)[ras]
    grid = Grid(stored.shape, affine)
    np.testing.assert_array_equal(grid.to_slices(stored), expected)
    np.testing.assert_array_equal(grid.from_slices(expected), stored)
    assert grid.slice_spacing == (5.0, 2.0, 1.0)


@given(grids())
def test_slices_rows_and_columns_run_as_dicom_shows_them(grid: Grid):
    index = np.indices(grid.shape).reshape(3, -1)
    right, anterior, superior = (grid.affine[:3, :3] @ index).reshape(3, *grid.shape)
    directions = {
        "axial": ((superior, 1), (anterior, -1), (right, -1)),
        "coronal": ((anterior, -1), (superior, -1), (right, -1)),
        "sagittal": ((right, 1), (superior, -1), (anterior, -1)),
    }
    for axis, (coordinate, sign) in enumerate(directions[grid.view]):
        steps = np.diff(grid.to_slices(coordinate), axis=axis)
        assert (sign * steps > 0).all()


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize(
    ("spacing", "shape", "view"),
    [
        ((4.0, 0.9, 0.9), (20, 30, 30), "sagittal"),
        ((0.9, 4.0, 0.5), (30, 20, 30), "coronal"),
        ((0.9, 0.9, 4.0), (30, 30, 20), "axial"),
        ((1.4, 1.0, 1.0), (20, 30, 30), "axial"),  # near isotropic
        ((4.0, 3.5, 0.5), (20, 30, 30), "axial"),  # no saying which
        ((1.0, 1.0, 1.0), (1, 30, 30), "sagittal"),  # a single slice
    ],
)
def test_slices_lie_in_the_plane_of_acquisition(
    order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple, shape: tuple, view: str
):
    """`spacing` and `shape` along right, anterior, superior, stored in any axis order and direction."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (ras, sign) in enumerate(zip(order, signs)):
        affine[ras, axis] = sign * spacing[ras]
    assert Grid(tuple(shape[ras] for ras in order), affine).acquired_view == view


@settings(max_examples=40)
@given(grids(), st.integers(0, 99))
def test_label_maps_survive_256_where_voxels_are_not_smaller_than_its_pixels(grid: Grid, seed: int):
    volume = blob(grid.shape, seed)
    slices, spacing = grid.to_slices(volume), grid.slice_spacing[1:]
    side = max(n * s for n, s in zip(grid.slice_shape[1:], spacing))
    squares = to_square(slices, spacing, 256)
    assert squares.shape == (grid.slice_shape[0], 256, 256)
    if side / 256 <= min(spacing):
        back = from_square(squares, grid.slice_shape[1:], spacing)
        np.testing.assert_array_equal(grid.from_slices(back), volume)


def test_finer_slices_than_256_lose_less_than_three_per_cent():
    rows, columns = np.mgrid[:512, :400]
    disc = ((rows - 250) ** 2 + (columns - 180) ** 2 < 60**2).astype(np.uint8)[None]
    back = from_square(to_square(disc, (0.7, 0.7), 256), disc.shape[1:], (0.7, 0.7))
    assert 2 * (disc & back).sum() / (disc.sum() + back.sum()) > 0.97


def test_a_square_picture_keeps_the_shape_of_a_wide_slice():
    square = to_square(np.full((10, 40), 9), (2.0, 1.0), 80)
    assert (square[20:60] == 9).all() and (square[:20] == 0).all() and (square[60:] == 0).all()


def test_grids_are_equal_by_the_place_of_their_voxels():
    affine = np.diag([1.0, 1, 3, 1])
    assert Grid((4, 5, 6), affine).same_as(Grid((4, 5, 6), affine + 1e-5))
    assert not Grid((4, 5, 6), affine).same_as(Grid((4, 5, 7), affine))
    moved = affine.copy()
    moved[2, 3] = 1
    assert not Grid((4, 5, 6), affine).same_as(Grid((4, 5, 6), moved))


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e6])
def test_equal_grids_and_invertible_affines_are_so_in_any_unit(unit: float):
    """Voxels of 20 micrometres, or an affine in metres."""
    affine = np.diag([unit, unit, 3 * unit, 1])
    moved = affine.copy()
    moved[0, 3] = 0.04 * unit
    assert Grid((40, 50, 60), affine).same_as(Grid((40, 50, 60), moved))
    moved[0, 3] = 0.06 * unit
    assert not Grid((40, 50, 60), affine).same_as(Grid((40, 50, 60), moved))


def test_an_unknown_view_is_refused():
    with pytest.raises(UserError, match="no view 'oblique'; there are axial, coronal, sagittal"):
        Grid((4, 5, 6), np.eye(4), "oblique")


FLAT = np.array([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1e-9, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("affine", [FLAT, np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_an_affine_that_cannot_be_inverted_is_refused(affine: NDArray[np.float64]):
    with pytest.raises(UserError, match="affine"):
        Grid((4, 5, 6), affine)


@given(grids())
def test_a_grid_survives_json(grid: Grid):
    again = Grid.from_json(json.loads(json.dumps(grid.to_json())))
    assert again.same_as(grid, tolerance_mm=0)
    assert (again.view, again.header) == (grid.view, grid.header)
