"""Pictures of a page, and which slices of a long study it takes."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from zeus_union.cache.colours import class_colour
from zeus_union.cache.grid import Grid
from zeus_union.cache.page.pictures import (
    CONFUSED,
    EXTRA,
    FILL,
    MISSED,
    SCALE,
    error_kinds,
    errors_url,
    image_url,
    labels_url,
)
from zeus_union.cache.page.slices import SliceView, SubjectView, subjects_json

CLASSES = ("liver", "spleen")


def pixels(url: str | None) -> NDArray[np.uint8]:
    assert url is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


def test_a_class_is_filled_and_outlined_in_its_colour_and_background_is_transparent() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1
    mask[8:12, 8:12] = 2  # nested
    picture = pixels(labels_url(mask, CLASSES))
    assert picture.shape == (20 * SCALE, 20 * SCALE, 4)
    assert picture[0, 0, 3] == 0
    assert tuple(picture[5 * SCALE, 10 * SCALE]) == (*class_colour(1), 255)
    assert tuple(picture[10 * SCALE, 10 * SCALE]) == (*class_colour(2), FILL)
    assert tuple(picture[8 * SCALE, 10 * SCALE]) == (*class_colour(2), 255)


def test_an_empty_mask_has_no_picture() -> None:
    empty = np.zeros((4, 4), np.uint8)
    assert labels_url(empty, CLASSES) is None
    assert errors_url(empty, empty) is None


@given(st.integers(1, 254), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_every_label_of_any_number_of_classes_has_its_colour(count: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(1, count + 1)).astype(np.uint8)
    mask = labels.reshape(1, -1).repeat(5, axis=0).repeat(5, axis=1)
    picture = pixels(labels_url(mask, [str(label) for label in range(count)]))
    centres = picture[5 * SCALE // 2, 5 * SCALE // 2 :: 5 * SCALE, :3]
    assert [tuple(colour) for colour in centres] == [class_colour(label) for label in labels]


def test_errors_are_told_apart_and_unlabelled_pixels_are_none() -> None:
    truth = np.array([[1, 0, 1, 255, 2, 0]], np.uint8)
    predicted = np.array([[0, 1, 2, 1, 2, 0]], np.uint8)
    assert error_kinds(predicted, truth).tolist() == [[MISSED, EXTRA, CONFUSED, 0, 0, 0]]
    assert (pixels(errors_url(predicted, truth))[:, 3 * SCALE :, 3] == 0).all()


def test_an_image_is_what_it_was_but_for_little() -> None:
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    assert np.abs(pixels(image_url(ramp))[..., 0].astype(int) - ramp).mean() < 2


@pytest.fixture(scope="module")
def long_study() -> SubjectView:
    """120 slices of noise, which no format makes small, in two modalities; the second class in one slice only."""
    random = np.random.default_rng(0)
    slices = []
    for number in range(120):
        mask = np.zeros((64, 64), np.uint8)
        mask[20 : 20 + number % 30, 20:40] = 1
        mask[:5, :5] = 2 * (number == 77)
        images = random.integers(0, 256, (2, 64, 64), np.uint8)
        slices.append(SliceView(number, images, mask, mask, scores={"liver": 1.0}))
    return SubjectView("long", "best", "", ("T1", "T2"), CLASSES, tuple(slices), Grid((64, 64, 120), np.eye(4)))


@pytest.mark.parametrize("most_bytes", [100_000, 300_000, 10_000_000])
def test_a_page_stays_within_its_size_and_keeps_every_class(long_study: SubjectView, most_bytes: int) -> None:
    first, second = subjects_json([long_study, long_study], most_bytes)
    assert first == second
    assert len(json.dumps([first["slices"], second["slices"]])) <= 1.1 * most_bytes
    numbers = [part["number"] for part in first["slices"]]
    assert 77 in numbers and numbers == sorted(numbers)
    assert first["left_out"] + len(numbers) == 120
    assert "spleen" in first["slices"][first["first"]]["truth"]["classes"]
