"""Slices that --slice-step left out: filled between two segmented ones, by signed distances, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.stage2_segment.gaps import describe_slices, fill_gaps, filled_numbers

SPACING = (1.0, 1.0)


def dsc(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * int((a & b).sum()) / int(a.sum() + b.sum())


def sampled(volume: NDArray[np.uint8], step: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Every `step`-th slice of a volume, the others 0, and their numbers."""
    numbers = np.arange(0, len(volume), step, dtype=np.int32)
    slices = np.zeros_like(volume)
    slices[numbers] = volume[numbers]
    return slices, numbers


def ellipsoid(shape: tuple[int, int, int], centre: tuple[float, ...], radii: tuple[float, ...]) -> NDArray[np.bool_]:
    axes = np.indices(shape).astype(float)
    return sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(axes, centre, radii)) <= 1  # type: ignore[no-any-return]


@pytest.mark.parametrize(("step", "least"), [(2, 0.985), (3, 0.98), (4, 0.97), (6, 0.95)])
def test_sampled_ellipsoid_is_restored(step: int, least: float) -> None:
    truth = ellipsoid((61, 60, 50), (30, 28, 24), (24, 20, 15)).astype(np.uint8)
    slices, numbers = sampled(truth, step)
    restored = fill_gaps(slices, numbers, step, SPACING)
    assert dsc(restored > 0, truth > 0) > least
    # Straight lines between two slices of a convex body lie within it, but for voxels on its border.
    assert 0.95 < int(restored.sum()) / int(truth.sum()) < 1.01
    assert dsc(slices > 0, truth > 0) < 0.7


def test_oblique_tube_moves_as_a_line_between_two_slices() -> None:
    truth = np.stack([ellipsoid((1, 40, 80), (0, 20, 15 + 2 * z), (1, 8, 8))[0] for z in range(25)]).astype(np.uint8)
    slices, numbers = sampled(truth, 4)
    restored = fill_gaps(slices, numbers, 4, SPACING)
    assert dsc(restored > 0, truth > 0) > 0.93
    centres = [ndimage.center_of_mass(part)[1] for part in restored]
    np.testing.assert_allclose(centres, [15 + 2 * z for z in range(25)], atol=0.5)


def test_millimetres_count_not_voxels() -> None:
    """A border between rows 10 and 30 of 40, another between columns 10 and 30 of a slice three times as fine there."""
    slices = np.zeros((3, 40, 120), np.uint8)
    slices[0, :10, :30] = 1
    slices[2, :30, :90] = 1
    middle = fill_gaps(slices, np.array([0, 2]), 2, (3.0, 1.0))[1]
    assert middle[:, :5].any(axis=1).sum() == pytest.approx(20, abs=1)
    assert middle[:5].any(axis=0).sum() == pytest.approx(60, abs=1)


def test_shape_that_does_not_change_is_continued_exactly() -> None:
    truth = np.zeros((13, 20, 20), np.uint8)
    truth[:, 3:9, 4:15], truth[:, 9:12, 4:15] = 1, 2
    slices, numbers = sampled(truth, 4)
    np.testing.assert_array_equal(fill_gaps(slices, numbers, 4, SPACING), truth)


def test_border_between_two_classes_moves_without_a_slit() -> None:
    slices = np.zeros((5, 12, 40), np.uint8)
    slices[0, 2:10, 2:14], slices[0, 2:10, 14:38] = 1, 2
    slices[4, 2:10, 2:26], slices[4, 2:10, 26:38] = 1, 2
    filled = fill_gaps(slices, np.array([0, 4]), 4, SPACING)
    assert (filled[:, 2:10, 2:38] > 0).all()
    borders = [int((part[5] == 1).sum()) for part in filled]
    np.testing.assert_allclose(borders, [12, 15, 18, 21, 24], atol=1)


def test_object_that_ends_between_two_slices_gets_narrower_and_is_gone_beyond_the_middle() -> None:
    slices = np.zeros((9, 41, 41), np.uint8)
    slices[0] = ellipsoid((1, 41, 41), (0, 20, 20), (1, 12, 12))[0]
    areas = [int(part.sum()) for part in fill_gaps(slices, np.array([0, 8]), 8, SPACING)]
    assert areas[0] > areas[1] > areas[2] > areas[3] > areas[4] and areas[4] < 10 and areas[5:] == [0] * 4
    backwards = fill_gaps(slices[::-1], np.array([0, 8]), 8, SPACING)[::-1]
    assert [int(part.sum()) for part in backwards] == areas


def test_slice_skipped_as_empty_and_those_outside_stay_empty() -> None:
    slices = np.zeros((14, 10, 10), np.uint8)
    numbers = np.array([2, 4, 8, 10])  # every second one; number 6 showed nothing
    slices[numbers, 2:8, 2:8] = 1
    filled = fill_gaps(slices, numbers, 2, SPACING)
    assert np.flatnonzero(filled.any(axis=(1, 2))).tolist() == [2, 3, 4, 8, 9, 10]
    assert filled_numbers(numbers, 2) == (3, 9)
    assert describe_slices(14, numbers, 2) == "4 of 14 slices segmented (one in 2), 2 between them filled, 8 stay 0"
    assert describe_slices(4, np.arange(4), 1) == "4 of 4 slices segmented"


LABELS = arrays.arrays(
    np.uint8, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)
)


@settings(max_examples=150, deadline=None)
@given(pair=LABELS, step=st.integers(2, 5), spacing=st.tuples(st.floats(0.3, 5), st.floats(0.3, 5)))
def test_what_both_neighbours_have_is_kept_and_nothing_appears_that_neither_has(
    pair: NDArray[np.uint8], step: int, spacing: tuple[float, float]
) -> None:
    slices = np.zeros((step + 1, *pair.shape[1:]), np.uint8)
    slices[[0, step]] = pair
    before = slices.copy()
    filled = fill_gaps(slices, np.array([0, step]), step, spacing)
    np.testing.assert_array_equal(slices, before)
    np.testing.assert_array_equal(filled[[0, step]], pair)
    same = pair[0] == pair[1]
    for part in filled[1:step]:
        np.testing.assert_array_equal(part[same], pair[0][same])
        for label in range(1, 4):
            assert not ((part == label) & (pair[0] != label) & (pair[1] != label)).any()
    backwards = fill_gaps(np.ascontiguousarray(slices[::-1]), np.array([0, step]), step, spacing)[::-1]
    np.testing.assert_array_equal(filled, backwards)


@settings(max_examples=50, deadline=None)
@given(
    volume=arrays.arrays(np.uint8, (7, 6, 5), elements=st.integers(0, 2)),
    numbers=st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True),
    step=st.integers(1, 4),
)
def test_only_gaps_as_wide_as_the_step_are_touched(volume: NDArray[np.uint8], numbers: list[int], step: int) -> None:
    outside = [number for number in range(7) if number not in numbers]
    volume[outside] = 0
    filled = fill_gaps(volume, np.array(numbers), step, SPACING)
    touched = {number for number in range(7) if (filled[number] != volume[number]).any()}
    assert touched <= set(filled_numbers(np.array(numbers), step)) <= set(outside)
    for number in filled_numbers(np.array(numbers), step):
        below = max(other for other in numbers if other < number)
        above = min(other for other in numbers if other > number)
        assert above - below <= step
    if step == 1:
        assert not touched


@pytest.mark.parametrize("spacing", [(2.8, 2.8), (0.7, 1.3)])
def test_a_header_in_float32_fills_as_one_in_float64(spacing: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    slices = np.zeros((13, 24, 24), np.uint8)
    numbers = np.array([0, 6, 12])
    for number in numbers:
        slices[number] = ndimage.zoom(random.integers(0, 3, (6, 6)), 4, order=0)
    single = tuple(float(np.float32(side) * np.float32(1 + 1e-7)) for side in spacing)
    filled = fill_gaps(slices, numbers, 6, spacing)
    np.testing.assert_array_equal(fill_gaps(slices, numbers, 6, (single[0], spacing[1])), filled)
    np.testing.assert_array_equal(fill_gaps(slices, numbers, 6, single), filled)  # type: ignore[arg-type]
