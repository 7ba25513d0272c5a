"""A caption says what the labels show: which organ, where, how large, how bright."""

from __future__ import annotations

import numpy as np
import pytest

from stage1_instruct.captions import describe
from stage1_instruct.models.llm import Decoding, InstructionLLM
from stage1_instruct.profiles import Profile
from stage1_instruct.prompts import template

CLASSES = ("liver", "right kidney", "left kidney", "spleen")


def slice_of(organs: dict[int, tuple[slice, slice, int]]) -> tuple[np.ndarray, np.ndarray]:
    """A body of grey 100 over the middle of the picture, organs in it: label -> (rows, columns, grey)."""
    image, mask = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint8)
    image[28:228, 28:228] = np.random.default_rng(0).integers(80, 121, (200, 200))
    for label, (rows, columns, grey) in organs.items():
        mask[rows, columns], image[rows, columns] = label, grey
    return mask, image


def test_organs_are_placed_sized_and_graded() -> None:
    mask, image = slice_of({1: (slice(60, 160), slice(30, 110), 40), 4: (slice(190, 210), slice(200, 220), 220)})
    assert describe(mask, image, CLASSES, "MRI-T2") == (
        "The MRI-T2 slice shows the liver, large and dark, on the right; "
        "the spleen, small and bright, at the back left. No right kidney or left kidney is visible."
    )


def test_slice_without_an_organ_says_so() -> None:
    mask, image = slice_of({})
    assert describe(mask, image, ("brain tumour",), "MRI-FLAIR") == "The MRI-FLAIR slice shows no brain tumour."


def test_grey_organ_in_the_centre() -> None:
    mask, image = slice_of({1: (slice(100, 150), slice(100, 150), 100)})
    assert describe(mask, image, ("brain tumour",), "MRI-T1") == (
        "The MRI-T1 slice shows the brain tumour, medium and grey, in the centre."
    )


def test_black_picture_is_described_without_a_warning() -> None:
    mask = np.ones((256, 256), np.uint8)
    assert "liver, large and grey" in describe(mask, np.zeros((256, 256), np.uint8), ("liver",), "MRI-T1")


@pytest.mark.slow
def test_caption_of_three_organs_fits_the_training_target(lite: Profile) -> None:
    mask, image = slice_of({n: (slice(60, 90), slice(30 + 50 * n, 60 + 50 * n), 200) for n in (1, 2, 3)})
    llm = InstructionLLM(lite.llm, template("zeus"), Decoding())
    assert len(llm.token_ids(describe(mask, image, CLASSES, "MRI-T2-SPIR"))) <= 48
