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
# View -> the patient's directions along the thirds of the rows and of the columns (see `cache.grid.VIEWS`). The middle third is
# named only where both are in the middle.
DIRECTIONS = {
    "axial": (("front", "back"), ("right", "left")),
    "coronal": (("top", "bottom"), ("right", "left")),
    "sagittal": (("top", "bottom"), ("front", "back")),
}


def describe(
    mask: NDArray[np.uint8], image: NDArray[np.uint8], classes: Sequence[str], term: str, view: str = "axial"
) -> str:
    """A caption of one labelled slice, in the patient's directions, those that its view shows.

    Args:
        mask: uint8 (256, 256), 0 background, k = classes[k - 1]; where pixels are `IGNORE` nothing is called absent.
        image: uint8 (256, 256), the same slice; rows and columns run as `cache.grid.VIEWS` says.
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
            visible.append(
                f"a {_size(organ, body)} {_brightness(organ, body, image)} {name} {_position(organ, body, view)}"
            )
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


def _position(organ: NDArray[np.bool_], body: NDArray[np.bool_], view: str) -> str:
    """Where the organ's centre lies within the body's bounding box, in thirds."""
    words = []
    for axis, (first, last) in enumerate(DIRECTIONS[view]):
        extent = np.flatnonzero(body.any(1 - axis))
        centre = (np.nonzero(organ)[axis].mean() - extent[0] + 0.5) / (extent[-1] - extent[0] + 1)
        words.append((first, "", last)[min(2, max(0, int(centre * 3)))])
    named = " ".join(word for word in words if word)
    if not named:
        return "in the centre"
    return f"on the {named}" if named in ("left", "right") else f"at the {named}"


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
    views = {subject: cache.grid(subject).view for subject in subjects}
    for row, slice_images, mask in zip(cache.rows[rows], images, masks):
        subject = cache.subjects[int(row["subject"])]
        for modality, image in zip(cache.modalities, slice_images):
            caption = describe(mask, image, cache.classes, card.terms[modality], views[subject])
            if not caption:
                continue
            pair = {
                "subject": subject,
                "slice": int(row["number"]),
                "modality": modality,
                "caption": caption,
            }
            lines.append(json.dumps(pair, ensure_ascii=False))
    write_atomically(out, ("\n".join(lines) + "\n").encode())
    return len(lines)
