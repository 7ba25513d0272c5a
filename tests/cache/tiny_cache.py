"""A tiny cache: every layer, arrays small enough to break byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.shard import row_hashes
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices

CARD = DatasetCard(
    "phantom", ("T1", "T2"), {"T1": "MRI-T1", "T2": "MRI-T2"}, ("liver", "spleen"), "liver and spleen", ("A", "B", "C")
)
SLICES_RECIPE = {"window": {"low": 0.5, "high": 99.5}, "slice_step": 1}
ENCODER_RECIPE = {"weights_sha256": "12ab", "store": "uint8"}
LLM_RECIPE = {"llm": {"weights_sha256": "34cd", "template": "zeus"}, "decoding": {"max_new_tokens": 8}}
CONSTANTS = {
    "decoder.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "dense_pe": np.ones((4, 3, 3), np.float32),
    "no_mask": np.full(4, 0.5, np.float32),
}
SIDE, SLICES = 6, 2


def make_slices(subject: str, labelled: bool = True) -> SubjectSlices:
    rng = np.random.default_rng(ord(subject))
    modalities = len(CARD.modalities)
    return SubjectSlices(
        grid=Grid((5, 4, 9), np.diag([1.0, 1.5, 3.0, 1.0])),
        numbers=np.array([2, 5], np.int32),
        images=rng.integers(0, 256, (SLICES, modalities, SIDE, SIDE), np.uint8),
        masks=rng.integers(0, 3, (SLICES, SIDE, SIDE), np.uint8) if labelled else None,
        modality_masks=rng.integers(0, 3, (SLICES, modalities, SIDE, SIDE), np.uint8) if labelled else None,
        native_masks=rng.integers(0, 3, (SLICES, 4, 5), np.uint8) if labelled else None,
        sources={f"{subject}/T1.nii.gz": "00", f"{subject}/T2.nii.gz": "11"},
    )


def make_embeddings(subject: str) -> np.ndarray:
    rng = np.random.default_rng(1000 + ord(subject))
    return rng.normal(size=(SLICES, len(CARD.modalities), 4, 3, 3)).astype(np.float32)


def make_texts(subject: str, variant: str) -> tuple[np.ndarray, list[Instruction]]:
    rng = np.random.default_rng([ord(letter) for letter in subject + variant])
    rows = [
        Instruction(number, modality, f"segment {modality}?", f"{variant}: {subject} {number} é", 12, 5, "marker", None)
        for number in (2, 5)
        for modality in CARD.modalities
    ]
    return rng.normal(size=(SLICES, len(CARD.modalities), 7)).astype(np.float32), rows


def build(
    path: Path,
    variants: tuple[str, ...] = ("zeus",),
    pack: bool | None = None,
    acknowledge: Callable[[str, str], None] = lambda *_: None,
    card: DatasetCard = CARD,
    finalize: bool = True,
) -> None:
    """What the build loop of stage 1 does; `acknowledge(layer, subject)` is called for all that is finished."""
    writer = CacheWriter(path, card)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", ENCODER_RECIPE, lambda: CONSTANTS)
    for variant in variants:
        writer.begin_layer(f"instructions/{variant}", LLM_RECIPE)
    for subject in card.subjects:
        if not writer.finished("slices", subject):
            writer.write_slices(subject, make_slices(subject))
        acknowledge("slices", subject)
        if not writer.finished("embeddings/tiny", subject):
            writer.write_embeddings("embeddings/tiny", subject, make_embeddings(subject))
        acknowledge("embeddings/tiny", subject)
        for variant in variants:
            if not writer.finished(f"instructions/{variant}", subject):
                writer.write_instructions(f"instructions/{variant}", subject, *make_texts(subject, variant))
            acknowledge(f"instructions/{variant}", subject)
    if finalize:
        writer.finalize(pack)


def content(path: Path) -> dict[str, object]:
    """Everything a cache gives, row by row."""
    with Cache(path) as cache:
        rows = cache.rows_of(cache.subjects)
        stored = cache.read_embeddings("tiny", rows, [0, 1])
        arrays = {"images": cache.images(rows), "masks": cache.masks(rows)}
        arrays |= {"values": stored.values, "scale": stored.scale, "offset": stored.offset}
        arrays |= {f"text of {name}": cache.text_embeddings(name, rows) for name in cache.variants}
        found: dict[str, object] = {name: row_hashes({name: array}, 1).tolist() for name, array in arrays.items()}
        found |= {f"constant {name}": array.tolist() for name, array in cache.constants("embeddings/tiny").items()}
        found |= {f"native {name}": np.asarray(cache.native_masks(name)).tolist() for name in cache.subjects}
        found |= {f"recipe of {layer}": cache.fingerprint(layer) for layer in cache.layers}
        return found | {"rows": cache.rows.tolist(), "texts": cache.instructions().to_pylist()}
