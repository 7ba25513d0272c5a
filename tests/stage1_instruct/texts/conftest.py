"""Small finished caches with labels, and the tiny text encoder that their instructions come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices
from zeus_union.stage1_instruct.models.text.bert import TextEncoder

MODALITIES = ("T1", "T2")
CLASSES = ("liver", "spleen")
NUMBERS = (3, 6)


@pytest.fixture(scope="session")
def encoder(tiny_bert: Path) -> TextEncoder:
    return TextEncoder(str(tiny_bert))


def make_labelled_cache(
    path: Path,
    encoder: TextEncoder,
    subjects: Sequence[str] = ("A", "B"),
    unlabelled: Sequence[str] = (),
    pack: bool | None = None,
    texts: Sequence[str] = ("one text", "another", "", "a third\nof two lines"),
) -> Path:
    """Slices 3 and 6 of each subject, a bright liver on the right, a dark spleen on the left of slice 6 alone.

    Args:
        texts: of the variant 'lite', in the order of slices and modalities, the same for every subject.
    """
    terms = {name: f"MRI-{name}" for name in MODALITIES}
    card = DatasetCard("toy", MODALITIES, terms, CLASSES, "liver, spleen", tuple(subjects), slice_step=3)
    writer = CacheWriter(path, card, labelled=set(subjects) - set(unlabelled))
    writer.begin_layer("slices", {"toy": 1})
    writer.begin_layer("instructions/lite", {"slices": "toy", "text_encoder": encoder.recipe()})
    for place, subject in enumerate(subjects):
        masks = np.zeros((2, 256, 256), np.uint8)
        masks[:, 60 + place : 120, 20:90] = 1
        masks[1, 180:230, 170:200] = 2
        images = np.where(masks == 1, 200, np.where(masks == 2, 40, 120)).astype(np.uint8)[:, None].repeat(2, 1)
        labels = (masks, None, masks) if subject not in unlabelled else (None, None, None)
        numbers = np.array(NUMBERS, np.int32)
        writer.write_slices(subject, SubjectSlices(Grid((256, 256, 9), np.eye(4)), numbers, images, *labels, {}))
        keys = [(number, modality) for number in NUMBERS for modality in MODALITIES]
        rows = [Instruction(*key, "Where?", text, 1, 1, "stop", 0) for key, text in zip(keys, texts)]
        writer.write_instructions("instructions/lite", subject, encoder.encode(texts).reshape(2, 2, -1), rows)
    writer.finalize(pack)
    return path


@pytest.fixture
def labelled(encoder: TextEncoder, tmp_path: Path) -> Path:
    return make_labelled_cache(tmp_path / "c.h5", encoder)
