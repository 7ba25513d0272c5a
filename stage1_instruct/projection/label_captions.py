"""Captions made from labelled slices: what is where, how large and how bright, for training the projection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import IGNORE

if TYPE_CHECKING:
    from zeus_union.cache.reader import Cache

# Share of the body's area; the bounds that split CHAOS's organs and BraTS's tumours about evenly.
SMALL, LARGE = 0.03, 0.12
# Distance of an organ's mean grey value from the body's, in the body's standard deviations.
CONTRAST = 0.4


def describe(mask: NDArray[np.uint8], image: NDArray[np.uint8], classes: Sequence[str], term: str) -> str:
    """A caption of one labelled slice, in the words of its axial view.

    Args:
        mask: uint8 (256, 256), 0 background, k = classes[k - 1]; where pixels are `IGNORE` nothing is called absent.
        image: uint8 (256, 256), the same slice; rows run to posterior, columns to the patient's left.
        term: what the modality is called, e.g. 'MRI-T2'.
    Returns:
        e.g. 'The MRI-T2 slice shows a large dark liver on the right and a small bright spleen at the back left; no left
        kidney.' Left and right are the patient's. Four organs take about 40 tokens. '' where nothing is known.
    """
    body = image > 0 if (image > 0).any() else np.ones_like(image, bool)
    visible, absent = [], []
    for label, name in enumerate(classes, start=1):
        organ = mask == label
        if organ.any():
            visible.append(f"a {_size(organ, body)} {_brightness(organ, body, image)} {name} {_position(organ, body)}")
        else:
            absent.append(name)
    if (mask == IGNORE).any():
        absent = []
    if not visible:
        return f"The {term} slice shows no {_list(absent, 'or')}." if absent else ""
    rest = f"; no {_list(absent, 'or')}" if absent else ""
    return f"The {term} slice shows {_list(visible, 'and')}{rest}."


def _list(words: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _size(organ: NDArray[np.bool_], body: NDArray[np.bool_]) -> str:
    share = organ.sum() / body.sum()
    return "small" if share < SMALL else "large" if share > LARGE else "medium"


def _brightness(organ: NDArray[np.bool_], body: NDArray[np.bool_], image: NDArray[np.uint8]) -> str:
    values = image[body].astype(float)
    contrast = (image[organ].mean() - values.mean()) / max(values.std(), 1.0)
    return "bright" if contrast > CONTRAST else "dark" if contrast < -CONTRAST else "grey"


def _position(organ: NDArray[np.bool_], body: NDArray[np.bool_]) -> str:
    """Where the organ's centre lies within the body's bounding box, in thirds."""
    names = (("at the front", "in the middle", "at the back"), ("right", "centre", "left"))
    thirds = []
    for axis in (1, 0):
        extent = np.flatnonzero(body.any(axis))
        centre = (np.nonzero(organ)[1 - axis].mean() - extent[0] + 0.5) / (extent[-1] - extent[0] + 1)
        thirds.append(min(2, max(0, int(centre * 3))))
    depth, side = names[0][thirds[0]], names[1][thirds[1]]
    if side == "centre":
        return "in the centre" if thirds[0] == 1 else depth
    return f"on the {side}" if thirds[0] == 1 else f"{depth} {side}"


def make_pairs(cache: Cache, subjects: Sequence[str], out: Path) -> int:
    """Writes a pairs file (JSONL) of every labelled slice and modality of these subjects; atomic.

    Returns:
        How many pairs; slices without labels, and those with nothing but ignored pixels, are left out.
    Raises:
        UserError: none of these slices is labelled.
    """
    rows = cache.rows_of(subjects)
    rows = rows[cache.rows["labelled"][rows]]
    if not len(rows):
        raise UserError("none of these subjects is labelled: captions are made from labels, give a pairs file instead")
    images, masks = cache.images(rows), cache.masks(rows)
    card = cache.card
    lines = []
    for row, slice_images, mask in zip(cache.rows[rows], images, masks):
        for modality, image in zip(cache.modalities, slice_images):
            caption = describe(mask, image, cache.classes, card.terms[modality])
            if not caption:
                continue
            pair = {
                "subject": cache.subjects[int(row["subject"])],
                "slice": int(row["number"]),
                "modality": modality,
                "caption": caption,
            }
            lines.append(json.dumps(pair, ensure_ascii=False))
    write_atomically(out, ("\n".join(lines) + "\n").encode())
    return len(lines)
