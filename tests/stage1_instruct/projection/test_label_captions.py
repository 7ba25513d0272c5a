"""A caption says what the labels show: which organ, where, how large, how bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.quantize import decode
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, SubjectSlices
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.models.language.llm import Decoding, InstructionLLM
from zeus_union.stage1_instruct.models.language.prompts import template
from zeus_union.stage1_instruct.models.vision.regions import VisionFeatures
from zeus_union.stage1_instruct.profiles.profile import Profile, load_profile
from zeus_union.stage1_instruct.projection.label_captions import describe, make_pairs
from zeus_union.stage1_instruct.projection.pairs import Pair, read_pairs, vision_features

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
        "The MRI-T2 slice shows a large dark liver on the right and a small bright spleen at the back left; "
        "no right kidney or left kidney."
    )


def test_slice_without_an_organ_says_so() -> None:
    mask, image = slice_of({})
    assert describe(mask, image, ("brain tumour",), "MRI-FLAIR") == "The MRI-FLAIR slice shows no brain tumour."


def test_grey_organ_in_the_centre() -> None:
    mask, image = slice_of({1: (slice(100, 150), slice(100, 150), 100)})
    assert describe(mask, image, ("brain tumour",), "MRI-T1") == (
        "The MRI-T1 slice shows a medium grey brain tumour in the centre."
    )


@pytest.mark.parametrize(
    ("view", "places"),
    [
        ("axial", ["at the front right", "at the back", "on the left", "in the centre"]),
        ("coronal", ["at the top right", "at the bottom", "on the left", "in the centre"]),
        ("sagittal", ["at the top front", "at the bottom", "at the back", "in the centre"]),
    ],
)
def test_captions_name_the_directions_that_a_view_shows(view: str, places: list[str]) -> None:
    low, middle, high = slice(40, 60), slice(118, 138), slice(200, 220)
    for (rows, columns), place in zip([(low, low), (high, middle), (middle, high), (middle, middle)], places):
        mask, image = slice_of({1: (rows, columns, 200)})
        caption = describe(mask, image, ("tumour",), "MRI-T1", view)
        assert caption == f"The MRI-T1 slice shows a small bright tumour {place}."


def test_black_picture_is_described_without_a_warning() -> None:
    mask = np.ones((256, 256), np.uint8)
    assert "a large grey liver" in describe(mask, np.zeros((256, 256), np.uint8), ("liver",), "MRI-T1")


@pytest.mark.slow
def test_caption_of_four_organs_fits_the_training_target(lite: Profile) -> None:
    mask, image = slice_of({n: (slice(190, 210), slice(50 * n, 50 * n + 20), 200) for n in (1, 2, 3, 4)})
    llm = InstructionLLM(lite.llm, template("zeus"), Decoding())
    assert len(llm.token_ids(describe(mask, image, CLASSES, "MRI-T2-SPIR"))) <= 48


def write_cache(path: Path) -> None:
    """Two subjects of two slices and two modalities, the second without labels; embeddings of LiteMedSAM's shape."""
    generator = np.random.default_rng(0)
    terms = {"T1": "MRI-T1", "T2": "MRI-T2"}
    writer = CacheWriter(path, DatasetCard("phantom", ("T1", "T2"), terms, CLASSES, "organs", ("A", "B"), 1))
    writer.begin_layer("slices", {})
    writer.begin_layer("embeddings/litemedsam", {})
    for subject in ("A", "B"):
        mask, image = slice_of({1: (slice(60, 160), slice(30, 110), 40)})
        labels = np.stack([mask, np.zeros_like(mask)]) if subject == "A" else None
        writer.write_slices(
            subject,
            SubjectSlices(
                grid=Grid((256, 256, 9), np.eye(4)),
                numbers=np.array([3, 4], np.int32),
                images=np.broadcast_to(image, (2, 2, 256, 256)).copy(),
                masks=labels,
                modality_masks=None,
                native_masks=None if labels is None else labels,
                sources={},
            ),
        )
        embeddings = generator.normal(size=(2, 2, 256, 64, 64)).astype(np.float32)
        writer.write_embeddings("embeddings/litemedsam", subject, embeddings, store="uint8")
    writer.finalize()


def test_pairs_of_a_cache_are_its_labelled_slices_with_their_features(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5")
    with Cache(tmp_path / "c.h5") as cache:
        assert make_pairs(cache, ("A", "B"), tmp_path / "pairs.jsonl") == 4
        pairs = read_pairs(tmp_path / "pairs.jsonl")
        assert [(pair.subject, pair.slice, pair.modality) for pair in pairs] == [
            ("A", number, modality) for number in (3, 4) for modality in ("T1", "T2")
        ]
        assert pairs[1].caption.startswith("The MRI-T2 slice shows a large dark liver on the right; no right kidney")
        assert pairs[2].caption == "The MRI-T1 slice shows no liver, right kidney, left kidney or spleen."
        features = vision_features(pairs, load_models(load_profile("lite")), cache)
        stored = cache.read_embeddings("litemedsam", [0], [1])
        expected = VisionFeatures(4).tokens(decode(stored.values, stored.scale, stored.offset)[:, 0])
        assert features.shape == (4, 16, 256)
        assert torch.equal(features[1], expected[0])


def test_pairs_need_labels_and_slices_that_are_there(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5")
    with Cache(tmp_path / "c.h5") as cache:
        with pytest.raises(UserError, match="none of these subjects is labelled"):
            make_pairs(cache, ("B",), tmp_path / "pairs.jsonl")
        with pytest.raises(UserError, match="no T1 of slice 9 of A"):
            vision_features([Pair("a", "", "T1", subject="A", slice=9)], load_models(load_profile("lite")), cache)
