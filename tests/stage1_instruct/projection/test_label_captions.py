"""A caption says what the labels show: which organ, where, how large, how bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from zeus_union.stage1_instruct.projection.label_captions import NOTHING, OPENINGS, caption, findings, make_pairs
from zeus_union.stage1_instruct.projection.loop import TrainingRecipe
from zeus_union.stage1_instruct.projection.pairs import Pair, read_pairs, vision_features
from zeus_union.stage1_instruct.seeds import slice_seed

CLASSES = ("liver", "right kidney", "left kidney", "spleen")


def slice_of(organs: dict[int, tuple[slice, slice, int]]) -> tuple[np.ndarray, np.ndarray]:
    """A body of grey 100 over the middle of the picture, organs in it: label -> (rows, columns, grey)."""
    image, mask = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint8)
    image[28:228, 28:228] = np.random.default_rng(0).integers(80, 121, (200, 200))
    for label, (rows, columns, grey) in organs.items():
        mask[rows, columns], image[rows, columns] = label, grey
    return mask, image


def test_organs_are_placed_sized_graded_and_shaped() -> None:
    mask, image = slice_of({1: (slice(60, 160), slice(30, 110), 40), 4: (slice(190, 210), slice(180, 224), 220)})
    assert caption(image, mask, CLASSES, "MRI-T2") == (
        "The MRI-T2 slice shows a large liver on the right, spanning front to back and darker than its surroundings "
        "and a small spleen at the back left, long right to left and brighter than its surroundings; "
        "no right kidney or left kidney."
    )


def test_slice_without_an_organ_says_so() -> None:
    mask, image = slice_of({})
    assert caption(image, mask, ("brain tumour",), "MRI-FLAIR") == "The MRI-FLAIR slice shows no brain tumour."


def test_grey_organ_in_the_centre() -> None:
    mask, image = slice_of({1: (slice(100, 150), slice(100, 150), 100)})
    assert caption(image, mask, ("brain tumour",), "MRI-T1") == (
        "The MRI-T1 slice shows a medium brain tumour in the centre, round and as bright as its surroundings."
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
        said = caption(image, mask, ("tumour",), "MRI-T1", view)
        assert said == f"The MRI-T1 slice shows a small tumour {place}, round and brighter than its surroundings."


@pytest.mark.parametrize(
    ("view", "extents"),
    [
        ("axial", ["long front to back", "long right to left", "spanning right to left"]),
        ("coronal", ["long top to bottom", "long right to left", "spanning right to left"]),
        ("sagittal", ["long top to bottom", "long front to back", "spanning front to back"]),
    ],
)
def test_captions_name_the_extent_in_the_patients_directions(view: str, extents: list[str]) -> None:
    shapes = [(slice(100, 160), slice(100, 110)), (slice(100, 110), slice(100, 160)), (slice(100, 110), slice(60, 180))]
    for shape, extent in zip(shapes, extents):
        mask, image = slice_of({1: (*shape, 200)})
        assert caption(image, mask, ("tumour",), "MRI-T1", view).endswith(
            f", {extent} and brighter than its surroundings."
        )


def test_contrast_is_that_to_the_surroundings() -> None:
    """A tumour of the body's mean grey in a dark organ is brighter than what is around it."""
    mask, image = slice_of({})
    image[60:160, 60:160], image[100:120, 100:120] = 20, 100
    mask[100:120, 100:120] = 1
    assert "brighter than its surroundings" in caption(image, mask, ("tumour",), "CT")


SIZES = {"tiny": (0.0, 0.005), "small": (0.005, 0.03), "medium": (0.03, 0.12), "large": (0.12, 1.0)}
ellipses = st.tuples(*[st.integers(*bounds) for bounds in ((40, 215), (40, 215), (1, 70), (1, 70), (0, 255))])


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(ellipses, min_size=0, max_size=4), seed=st.integers(0, 2**63 - 1))
def test_every_word_is_true_whatever_the_words(shapes: list[tuple[int, ...]], seed: int) -> None:
    mask, image = slice_of({})
    rows, columns = np.mgrid[:256, :256]
    for label, (row, column, high, wide, grey) in enumerate(shapes, 1):
        inside = (((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1) & (image > 0)
        mask[inside], image[inside] = label, max(grey, 1)
    said = caption(image, mask, CLASSES, "MRI-T1", seed=seed)
    body = np.count_nonzero(image)
    seen = {name: mask == label for label, name in enumerate(CLASSES, 1) if (mask == label).any()}
    for name in CLASSES:
        assert said.count(name) == 1
    for organ in seen.values():
        words = findings(organ, image > 0, image)
        low, high = SIZES[words["size"]]
        assert low <= organ.sum() / body < high
        row, column = (where.mean() for where in np.nonzero(organ))
        assert ("right" in words["place"]) == (column + 0.5 < 28 + 200 / 3)
        assert ("left" in words["place"]) == (column + 0.5 >= 28 + 400 / 3)
        assert ("front" in words["place"]) == (row + 0.5 < 28 + 200 / 3)
        height, width = (np.ptp(where) + 1 for where in np.nonzero(organ))
        assert (words["extent"] in ("spanning front to back", "spanning the slice")) == (height >= 100)
        assert (words["extent"] == "round") == (max(height, width) < min(100, 1.5 * min(height, width)))
        said_of = [words["size"], words["place"], words["contrast"] if len(seen) <= 2 else words["shade"]]
        assert all(word in said for word in said_of)
    assert ("no " in said.lower() or "not visible" in said) == (len(seen) < len(CLASSES))


def test_a_slice_is_described_in_several_ways_and_one_seed_in_one() -> None:
    mask, image = slice_of({1: (slice(60, 160), slice(30, 110), 40)})
    ways = [caption(image, mask, CLASSES, "MRI-T2", seed=slice_seed(0, "A", number, "T2")) for number in range(180)]
    assert len(set(ways)) == 18 and all("large liver" in way and "on the right" in way for way in ways)
    assert ways[7] == caption(image, mask, CLASSES, "MRI-T2", seed=slice_seed(0, "A", 7, "T2"))
    empty = {caption(image, np.zeros_like(mask), CLASSES, "CT", seed=seed) for seed in range(60)}
    assert len(empty) == len(NOTHING) == len(OPENINGS)


def test_black_picture_is_described_without_a_warning() -> None:
    mask = np.ones((256, 256), np.uint8)
    assert "a large liver" in caption(np.zeros((256, 256), np.uint8), mask, ("liver",), "MRI-T1")


@pytest.mark.slow
def test_caption_of_four_organs_fits_the_training_target(lite: Profile) -> None:
    mask, image = slice_of({n: (slice(190, 210), slice(50 * n, 50 * n + 20), 200) for n in (1, 2, 3, 4)})
    llm = InstructionLLM(lite.llm, template("zeus"), Decoding())
    assert all(
        len(llm.token_ids(caption(image, mask, CLASSES, "MRI-T2-SPIR", seed=seed))) <= TrainingRecipe.caption_tokens
        for seed in range(18)
    )


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
        assert all(word in pairs[1].caption for word in ("MRI-T2", "a large liver", "on the right", "darker than"))
        assert "liver, right kidney, left kidney or spleen" in pairs[2].caption and "large" not in pairs[2].caption
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
