"""Augmented copies: mask and pictures move as one, and what is drawn depends on subject, slice and view alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zeus_union.cache.augmentation import augment, change, move
from zeus_union.cache.augmentation_draws import (
    BIAS_COEFFICIENTS,
    GEOMETRY,
    INTENSITY,
    Geometry,
    Intensity,
    draw_geometry,
    draw_intensity,
)
from zeus_union.cache.layout import IGNORE
from zeus_union.stage1_instruct.seeds import view_random
from zeus_union.stage1_instruct.studies.augment import augmented

NOTHING = Geometry(0.0, 1.0, (0.0, 0.0), 0.0, 0, mirrored=False)
PLAIN = Intensity((), 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0)

geometries = st.builds(
    Geometry,
    rotation=st.floats(-15, 15),
    scale=st.floats(0.7, 1.4),
    shift=st.tuples(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05)),
    elastic=st.sampled_from([0.0, 0.01, 0.03]),
    seed=st.integers(0, 2**31 - 1),
    mirrored=st.booleans(),
)
intensities = st.builds(
    Intensity,
    bias=st.one_of(st.just(()), st.tuples(*[st.floats(-0.3, 0.3)] * BIAS_COEFFICIENTS)),
    noise=st.floats(0, 0.32),
    blur=st.sampled_from([0.0, 0.5, 1.0]),
    brightness=st.floats(0.75, 1.25),
    contrast=st.floats(0.75, 1.25),
    resolution=st.floats(0.5, 1),
    gamma=st.floats(0.7, 1.5),
    seed=st.integers(0, 2**31 - 1),
)


def labels(size: int = 256) -> NDArray[np.uint8]:
    """Three classes well inside the picture: an ellipse, a box on its right, and pixels that nobody labelled below."""
    y, x = np.mgrid[:size, :size] * (256 / size)
    mask = np.zeros((size, size), np.uint8)
    mask[((y - 110) / 40) ** 2 + ((x - 90) / 25) ** 2 < 1] = 1
    mask[(abs(y - 110) < 20) & (abs(x - 160) < 25)] = 2
    mask[(abs(y - 180) < 10) & (abs(x - 128) < 30)] = IGNORE
    return mask


def pictures_of(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of each value of the mask, white where it is: (3, S, S)."""
    return np.stack([np.where(mask == value, np.uint8(255), np.uint8(0)) for value in (1, 2, IGNORE)])


def edge(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels with another value within one pixel: there bilinear and nearest may differ."""
    padded = np.pad(mask, 1, mode="edge")
    size = len(mask)
    near = [padded[i : i + size, j : j + size] != mask for i in range(3) for j in range(3)]
    return np.any(near, axis=0)


@settings(max_examples=25, deadline=None)
@given(geometries)
def test_a_mask_moves_as_the_pictures_made_from_it(geometry: Geometry) -> None:
    mask = labels()
    images, moved = move(geometry, pictures_of(mask), mask)
    assert moved is not None and moved.dtype == np.uint8 and images.dtype == np.uint8
    assert set(np.unique(moved)) == {0, 1, 2, IGNORE}
    inside = ~edge(moved)
    for image, value in zip(images, (1, 2, IGNORE)):
        np.testing.assert_array_equal((image > 127)[inside], (moved == value)[inside])


@settings(max_examples=25, deadline=None)
@given(geometries)
def test_left_stays_left_and_up_stays_up_unless_mirrored(geometry: Geometry) -> None:
    _, moved = move(geometry, pictures_of(labels()), labels())
    (y1, x1), (_, x2), (y3, _) = (np.argwhere(moved == value).mean(axis=0) for value in (1, 2, IGNORE))
    assert (x1 < x2) != geometry.mirrored
    assert y1 < y3


@settings(max_examples=8, deadline=None)
@given(geometries, intensities)
def test_a_copy_is_the_same_at_the_size_a_larger_encoder_reads(geometry: Geometry, intensity: Intensity) -> None:
    """Means over the pixels that make one. Of noise a low resolution takes other pixels; it is left out where both are."""
    if intensity.resolution != 1:
        intensity = replace(intensity, noise=0.0)
    small, _ = move(geometry, pictures_of(labels(256)))
    large, _ = move(geometry, pictures_of(labels(512)))
    y, x = np.mgrid[:512, :512]
    smooth = (127 + 100 * np.sin(y / 60) * np.cos(x / 80)).astype(np.uint8)
    changed, changed_large = change(intensity, smooth[::2, ::2].copy()), change(intensity, smooth)
    for one, two in ((small, large), (changed, changed_large)):
        means = two.reshape(*one.shape[:-2], 256, 2, 256, 2).mean(axis=(-3, -1))
        assert np.abs(means - one).mean() < 2  # of 255


def test_a_copy_of_which_nothing_is_drawn_is_the_slice() -> None:
    mask = labels()
    images, moved = move(NOTHING, pictures_of(mask), mask)
    np.testing.assert_array_equal(images, pictures_of(mask))
    np.testing.assert_array_equal(moved, mask)
    np.testing.assert_array_equal(
        change(PLAIN, np.arange(256, dtype=np.uint8).repeat(256).reshape(256, 256)).T[0], range(256)
    )


def test_what_was_outside_the_picture_is_background_and_black() -> None:
    full = np.full((256, 256), 1, np.uint8)
    images, mask = move(replace(NOTHING, scale=1.4), full[None] * 255, full)
    assert mask is not None and not mask[0].any() and not images[0, 0].any()
    assert mask[128, 128] == 1 and images[0, 128, 128] == 255


@settings(max_examples=15, deadline=None)
@given(intensities)
def test_grey_values_are_never_inverted(intensity: Intensity) -> None:
    """Four flat fields; the noise is left out, and what bends brightness over the picture."""
    steps = np.repeat(np.array([20, 80, 140, 200], np.uint8), 64)[None].repeat(256, axis=0)
    changed = change(replace(intensity, noise=0.0, bias=()), steps).astype(int)
    levels = changed[128, [32, 96, 160, 224]]
    assert (np.diff(levels) >= 0).all() and levels[-1] > levels[0]


@settings(max_examples=15, deadline=None)
@given(intensities, st.sampled_from([0, 255]))
def test_a_picture_of_one_value_stays_one_without_noise(intensity: Intensity, value: int) -> None:
    """Nothing is divided by its spread, which is 0; brightness alone may change it."""
    changed = change(replace(intensity, bias=(), brightness=1.0, blur=0.0), np.full((256, 256), value, np.uint8))
    assert abs(changed.astype(int) - value).max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=5, unique=True), st.integers(1, 9), st.data())
def test_a_copy_depends_on_subject_slice_and_view_and_not_on_what_is_made_with_it(
    numbers: list[int], view: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(numbers))))
    names, images = np.array(numbers, np.int32), np.stack([pictures_of(labels())[:2]] * len(numbers))
    masks = np.stack([labels()] * len(numbers))
    whole = augmented("ada", names, view, ("T1", "T2"), images, masks)
    shuffled = augmented("ada", names[order], view, ("T1", "T2"), images[order], masks[order])
    alone = augmented("ada", names[:1], view, ("T1", "T2"), images[:1], masks[:1])
    second = augmented("ada", names[:1], view, ("T2",), images[:1, 1:], masks[:1])
    for both, other in zip(whole, shuffled, strict=True):
        np.testing.assert_array_equal(both[order], other)
    for both, other in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(both[:1], other)
    np.testing.assert_array_equal(whole[0][:1, 1:], second[0])
    assert len({image.tobytes() for image in whole[0]}) == len(numbers)
    assert (augmented("ben", names[:1], view, ("T1", "T2"), images[:1])[0] != whole[0][:1]).any()
    assert (augmented("ada", names[:1], view + 1, ("T1", "T2"), images[:1])[0] != whole[0][:1]).any()


def test_what_is_drawn_is_the_same_on_every_machine() -> None:
    """Numbers as they were when views were first made; another one makes another cache: raise `VERSION`."""
    geometry = draw_geometry(view_random("chaos_1", 12, 3, "geometry"))
    assert geometry == draw_geometry(view_random("chaos_1", 12, 3, "geometry"))
    assert geometry.shift == pytest.approx((0.014200200239755711, 0.01891023946102295))
    assert geometry.seed == 136873811
    assert draw_intensity(view_random("chaos_1", 12, 3, "modality T2")).seed == 1329707652


def test_ranges_are_kept_and_reached_as_often_as_said_and_nothing_is_mirrored_unasked() -> None:
    random = np.random.RandomState(0)
    drawn = [draw_geometry(random) for _ in range(2000)]
    assert not any(geometry.mirrored for geometry in drawn)
    assert 0.45 < np.mean([draw_geometry(random, mirror=True).mirrored for _ in range(2000)]) < 0.55
    for name, neutral in (("rotation", 0.0), ("scale", 1.0), ("elastic", 0.0)):
        values = np.array([getattr(geometry, name) for geometry in drawn])
        done, chance = values != neutral, GEOMETRY[name]
        assert abs(done.mean() - chance.probability) < 0.03
        assert chance.low <= values[done].min() and values[done].max() <= chance.high
    intensity = [draw_intensity(random) for _ in range(2000)]
    for name in ("brightness", "contrast", "resolution", "gamma"):
        values = np.array([getattr(one, name) for one in intensity])
        done, chance = values != 1, INTENSITY[name]
        assert abs(done.mean() - chance.probability) < 0.03
        assert chance.low <= values[done].min() and values[done].max() <= chance.high
    assert abs(np.mean([bool(one.bias) for one in intensity]) - INTENSITY["bias"].probability) < 0.03
    assert max(one.noise for one in intensity) <= 0.1**0.5


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=4))
def test_the_seed_alone_decides_and_a_modality_changes_whichever_others_are_beside_it(seed: list[int]) -> None:
    images, mask = pictures_of(labels()), labels()
    changed, moved = augment(images, mask, seed, [3, 7, 1])
    np.random.seed(1)
    again, moved_again = augment(images[1:2], mask, seed, [7])
    np.testing.assert_array_equal(changed[1:2], again)
    np.testing.assert_array_equal(moved, moved_again)
    np.testing.assert_array_equal(images, pictures_of(labels()))  # what was given is not written to
    assert (changed.shape, changed.dtype, mask.dtype) == (images.shape, np.uint8, np.uint8)
    assert augment(images, None, seed, [0, 1, 2])[1] is None
