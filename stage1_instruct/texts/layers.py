"""A layer of texts that are there already, into a finished cache: encoded, written subject by subject, and finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import say
from zeus_union.cache.text_statistics import say_statistics
from zeus_union.cache.writer import CacheWriter, Instruction
from zeus_union.stage1_instruct.models.text.bert import InstructionEncoder, encode_under_bar
from zeus_union.stage1_instruct.texts.matching import Cell


@dataclass(frozen=True)
class TextLayer:
    """A layer to be written.

    Attributes:
        recipe: what its texts were made from; the text encoder's is added.
        texts: of every cell of the cache.
        source: what stands as stop reason in the table: 'imported', 'oracle'.
    """

    recipe: Mapping[str, Any]
    texts: Mapping[Cell, str]
    source: str


def add_text_layers(path: Path, layers: Mapping[str, TextLayer], encoder: InstructionEncoder) -> None:
    """Writes layers into a finished cache, which stays as it was, packed or sharded, until all of them are there.

    A killed command costs the subject in work: the same one goes on, and does nothing where all is there already.

    Args:
        layers: name of the layer, 'instructions/...' -> what it holds.

    Raises:
        UserError: an unfinished cache; a layer of that name made from something else, naming what differs.
    """
    with Cache(path) as cache:
        card, packed = cache.card, cache.state == "packed"
        numbers = {name: cache.rows["number"][cache.rows_of([name])].tolist() for name in cache.subjects}
    writer = CacheWriter(path, card)
    for layer, wanted in layers.items():
        writer.begin_layer(layer, {**wanted.recipe, "text_encoder": encoder.recipe()})
    waiting = {(layer, subject) for layer in layers for subject in card.subjects if not writer.finished(layer, subject)}
    if not waiting and all(layer in cache.layers for layer in layers):
        say(f"{', '.join(layers)} of {path} exists already, from the same texts")
        return
    here = {subject for _, subject in waiting}
    distinct = list(
        dict.fromkeys(text for wanted in layers.values() for cell, text in wanted.texts.items() if cell[0] in here)
    )
    vectors = dict(zip(distinct, encode_under_bar(encoder, distinct)))
    for subject in card.subjects:
        with writer.claim(subject, wait=True):
            for layer, wanted in layers.items():
                if not writer.finished(layer, subject):
                    rows = _rows(wanted, subject, numbers[subject], card)
                    embeddings = _stacked(rows, vectors, len(card.modalities))
                    writer.write_instructions(layer, subject, embeddings, rows)
    writer.finalize(None if packed else False)
    with Cache(path) as cache:
        say_statistics(cache, [layer.partition("/")[2] for layer in layers])


def _rows(layer: TextLayer, subject: str, numbers: list[int], card: DatasetCard) -> list[Instruction]:
    return [
        Instruction(number, modality, "", layer.texts[subject, number, modality], 0, 0, layer.source, None)
        for number in numbers
        for modality in card.modalities
    ]


def _stacked(
    rows: list[Instruction], vectors: Mapping[str, NDArray[np.float32]], modalities: int
) -> NDArray[np.float32]:
    """Float32 (n, M, D)."""
    return np.stack([vectors[row.text] for row in rows]).reshape(-1, modalities, len(vectors[rows[0].text]))
