"""zeus-instruct make-oracle: captions from the true labels as instructions, the upper bound of what a text can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import IGNORE
from zeus_union.cache.leaks import LEAK, ORACLE, TRUE_LABELS
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import some_of, warn
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.models.text.bert import InstructionEncoder
from zeus_union.stage1_instruct.projection.label_captions import CAPTIONS, caption
from zeus_union.stage1_instruct.texts.layers import TextLayer, add_text_layers
from zeus_union.stage1_instruct.texts.matching import Cell


def make_oracle(path: Path, encoder: InstructionEncoder, per_class: bool = False) -> tuple[str, ...]:
    """Writes instructions/oracle of a finished cache, marked as a leak; with `per_class` oracle.CLASS for each class.

    Every caption is in the same words, so that only what it says differs. A slice of which nothing is known, and subjects
    without labels, get an empty text.

    Returns:
        The names of the variants.

    Raises:
        UserError: no labelled subject; as `add_text_layers`.
    """
    with Cache(path) as cache:
        labelled = [name for name in cache.subjects if cache.rows["labelled"][cache.rows_of([name])].all()]
        if not labelled:
            raise UserError(f"none of the subjects of {path} is labelled: the oracle's captions are made from labels")
        if without := [name for name in cache.subjects if name not in labelled]:
            warn(f"{some_of(without)}: no labels, so no caption; their texts are empty")
        names = {ORACLE: cache.card.instance}
        if per_class:
            names = class_variants(ORACLE, cache.classes)
        layers = {
            f"instructions/{variant}": TextLayer(
                {
                    "slices": cache.fingerprint("slices"),
                    "instructor": ORACLE,
                    "captions": CAPTIONS,
                    "terms": dict(cache.card.terms),
                    "instance": instance,
                    LEAK: TRUE_LABELS,
                },
                dict(_captions(cache, set(labelled), instance if per_class else None)),
                ORACLE,
            )
            for variant, instance in names.items()
        }
    add_text_layers(path, layers, encoder)
    return tuple(names)


def _captions(cache: Cache, labelled: set[str], class_name: str | None) -> Iterator[tuple[Cell, str]]:
    """Args: class_name: the class that the captions speak of alone; None: all of them."""
    classes = cache.classes if class_name is None else (class_name,)
    for subject in cache.subjects:
        rows, view = cache.rows_of([subject]), cache.grid(subject).view
        images, masks = cache.images(rows), cache.masks(rows) if subject in labelled else None
        if masks is not None and class_name is not None:
            label = cache.classes.index(class_name) + 1
            masks = np.where(masks == IGNORE, IGNORE, masks == label).astype(np.uint8)
        for index, number in enumerate(cache.rows["number"][rows].tolist()):
            for column, modality in enumerate(cache.modalities):
                text = ""
                if masks is not None:
                    text = caption(images[index, column], masks[index], classes, cache.card.terms[modality], view)
                yield (subject, number, modality), text
