"""A slice changed at random: pictures and masks move together, sides stay, and the seed alone decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeus_union.cache import augmentation
from zeus_union.cache.augmentation import AUGMENTATION, augment
from zeus_union.cache.layout import IGNORE

SIDE = 64
SEEDS = st.lists(st.integers(0, 2**31), min_size=1, max_size=4)
QUICK = settings(deadline=None, max_examples=20)


def disc(row: float, column: float, radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


def slice_of_two() -> tuple[Tensor, Tensor]:
    """A bright disc left (1), a grey one right (2), an unlabelled one below; two pictures of 64 x 64."""
    left, right, unknown = disc(24, 18, 8), disc(30, 46, 8), disc(52, 32, 5)
    picture = 0.9 * left + 0.5 * right + 0.3 * unknown
    masks = (left + 2 * right).to(torch.uint8)
    masks[unknown] = IGNORE
    return torch.stack([picture, 1 - picture]).float(), masks


def only(monkeypatch: pytest.MonkeyPatch, *changes: str) -> None:
    """Of the changes these always and the others never."""
    for name in AUGMENTATION:
        if name.endswith("_chance"):
            monkeypatch.setitem(AUGMENTATION, name, float(name.removesuffix("_chance") in changes))


def centre(where: Tensor) -> tuple[float, float]:
    return tuple(torch.nonzero(where).double().mean(dim=0).tolist())  # type: ignore[return-value]


@QUICK
@given(SEEDS)
def test_the_seed_alone_decides(seed: list[int]) -> None:
    pictures, masks = slice_of_two()
    first = augment(pictures, masks, seed)
    np.random.seed(1)
    torch.manual_seed(1)
    again = augment(pictures, masks, seed)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])  # type: ignore[arg-type]
    assert torch.equal(pictures, slice_of_two()[0])  # what was given is not written to


@QUICK
@given(SEEDS)
def test_shapes_types_and_ranges_stay_and_no_value_of_a_mask_is_new(seed: list[int]) -> None:
    pictures, masks = slice_of_two()
    changed, moved = augment(pictures, masks, seed)
    assert moved is not None and type(changed) is type(moved) is Tensor
    assert (changed.shape, changed.dtype, moved.shape, moved.dtype) == (
        (2, SIDE, SIDE),
        torch.float32,
        (SIDE, SIDE),
        torch.uint8,
    )
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 1
    assert set(moved.unique().tolist()) <= {0, 1, 2, IGNORE}


@QUICK
@given(SEEDS)
def test_left_stays_left_of_right(seed: list[int]) -> None:
    _, moved = augment(*slice_of_two(), seed)
    assert moved is not None
    assert centre(moved == 1)[1] < centre(moved == 2)[1]


@pytest.mark.parametrize("change", ["rotation", "zoom", "shift", "elastic"])
def test_pictures_and_masks_move_together(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, change)
    pictures, masks = slice_of_two()
    moved_any = False
    for seed in range(10):
        changed, moved = augment(pictures, torch.stack([masks, masks]), [seed])
        assert moved is not None and torch.equal(moved[0], moved[1])
        picture, inverse = changed
        # Inside the picture both are one geometry: the second picture stays the inverse of the first, and each disc lies
        # where its grey value is, but for pixels that are interpolated at an edge.
        assert ((picture > 0.7) ^ (moved[0] == 1)).sum() < 40
        inside = picture + inverse > 0.99
        torch.testing.assert_close(inverse[inside], 1 - picture[inside], atol=0.02, rtol=0)
        moved_any |= not torch.equal(moved[0], masks)
    assert moved_any


@pytest.mark.parametrize("change", ["noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "bias_field"])
def test_grey_values_change_alone_and_each_picture_by_itself(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, change)
    pictures, masks = slice_of_two()
    pictures = torch.stack([pictures[0], pictures[0]]) * 0.8 + 0.1
    changed, moved = augment(pictures, masks, [4])
    assert moved is not None and torch.equal(moved, masks)
    assert not torch.equal(changed[0], pictures[0]) and not torch.equal(changed[0], changed[1])


def test_a_modality_is_changed_the_same_whichever_others_are_beside_it() -> None:
    pictures, masks = slice_of_two()
    for seed in range(8):
        both, moved = augment(pictures, masks, [seed], [3, 7])
        alone, moved_alone = augment(pictures[1:], masks, [seed], [7])
        assert torch.equal(both[1], alone[0]) and torch.equal(moved, moved_alone)  # type: ignore[arg-type]


def test_nothing_drawn_changes_nothing_and_a_still_geometry_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, masks = slice_of_two()
    only(monkeypatch)
    still = [augment(pictures, masks, [1])]
    only(monkeypatch, "rotation", "elastic")
    for name in ("rotation_degrees", "elastic_low", "elastic_high"):
        monkeypatch.setitem(AUGMENTATION, name, 0.0)
    still.append(augment(pictures, masks, [1]))
    for changed, moved in still:
        assert torch.equal(changed, pictures) and torch.equal(moved, masks)  # type: ignore[arg-type]


def test_an_empty_picture_and_no_mask_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, *(name.removesuffix("_chance") for name in AUGMENTATION if name.endswith("_chance")))
    changed, masks = augment(torch.zeros(1, SIDE, SIDE), None, [0])
    assert changed.isfinite().all() and masks is None


def test_ranges_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the geometry, over many seeds: the matrix that MONAI's grid is made with."""
    only(monkeypatch, "rotation", "zoom", "shift")
    angles, zooms, shifts = [], [], []
    for seed in range(300):
        grid = augmentation._sampling_grid((SIDE, SIDE), augmentation._random_state([seed]))
        assert grid is not None
        step = grid[:2, -1, 0] - grid[:2, 0, 0]  # of 63 rows
        zooms.append(float((SIDE - 1) / step.norm()))
        angles.append(float(torch.rad2deg(torch.atan2(step[1], step[0]))))
        shifts.append(float(grid[:2].mean(dim=(1, 2)).abs().max()) / SIDE)
    assert 13 < max(angles) <= 15.001 and -15.001 <= min(angles) < -13
    assert 0.7 <= min(zooms) < 0.75 and 1.3 < max(zooms) <= 1.4001
    assert 0.03 < max(shifts) <= 0.05 * 2**0.5  # along turned axes
