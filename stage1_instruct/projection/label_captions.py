"""Captions made from labelled slices: what is where, how large, how far and how bright, for training the projection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import IGNORE
from zeus_union.stage1_instruct.seeds import slice_seed

if TYPE_CHECKING:
    from zeus_union.cache.reader import Cache

# Share of the body's area; 3 and 12 % split CHAOS's organs and BraTS's tumours about evenly.
TINY, SMALL, LARGE = 0.005, 0.03, 0.12
# Distance of an organ's mean grey value from its surroundings', in the body's standard deviations.
CONTRAST = 0.4
RING = 6  # pixels around an organ that are its surroundings
REACHES = 0.5  # share of the body's extent
ELONGATED = 1.5  # ratio of the organ's own extents
# So many organs are described in full: more of them do not fit into the 64 tokens that the projection learns to say.
IN_FULL = 2
# View -> the patient's directions along the thirds of the rows and of the columns (see `cache.grid.VIEWS`). The middle third is
# named only where both are in the middle.
DIRECTIONS = {
    "axial": (("front", "back"), ("right", "left")),
    "coronal": (("top", "bottom"), ("right", "left")),
    "sagittal": (("top", "bottom"), ("front", "back")),
}
# Ways to say the same; a caption takes one of each, by its seed.
OPENINGS = ("The {term} slice shows {seen}{rest}.", "{term}: {seen}{rest}.", "Visible on {term}: {seen}{rest}.")
IN_FULL_PHRASES = (
    "a {size} {name} {place}, {extent} and {contrast} its surroundings",
    "{place} a {size} {name}, {extent} and {contrast} its surroundings",
    "a {size} {name}, {contrast} its surroundings, {place} and {extent}",
)
BRIEF_PHRASES = ("a {size} {shade} {name} {place}", "{place} a {size} {shade} {name}")
RESTS = ("; no {absent}", "; {absent} not visible")
NOTHING = ("The {term} slice shows no {absent}.", "{term}: no {absent}.", "No {absent} visible on {term}.")
SHADES = {"brighter than": "bright", "darker than": "dark", "as bright as": "grey"}
CAPTIONS = "organs, thirds, size, extent, contrast; 2"  # in recipes: what the captions say, and the version of that


def caption(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    classes: Sequence[str],
    term: str,
    view: str = "axial",
    seed: int = 0,
) -> str:
    """A caption of one labelled slice, in the patient's directions, those that its view shows.

    Args:
        image: uint8 (256, 256), one slice of one modality; rows and columns run as `cache.grid.VIEWS` says.
        mask: uint8 (256, 256) of the same slice, 0 background, k = classes[k - 1]; where pixels are `IGNORE` nothing is
            called absent.
        term: what the modality is called, e.g. 'MRI-T2'.
        view: a key of `DIRECTIONS`.
        seed: of the choice of words, 0 or more (`slice_seed`); what is said depends on image and mask alone.
    Returns:
        e.g. 'The MRI-T2 slice shows a medium tumour at the front right, round and darker than its surroundings; no edema.'
        Left and right are the patient's. Four organs take about 50 tokens. '' where nothing is known.
    """
    body = image > 0 if (image > 0).any() else np.ones_like(image, bool)
    labels = {name: mask == label for label, name in enumerate(classes, start=1)}
    visible = {name: organ for name, organ in labels.items() if organ.any()}
    absent = [name for name in classes if name not in visible]
    if (mask == IGNORE).any():
        absent = []
    seed, opening = divmod(seed, len(OPENINGS))
    seed, rest = divmod(seed, len(RESTS))
    missing = _list(absent, "or")
    if not visible:
        return NOTHING[opening].format(term=term, absent=missing) if absent else ""
    phrases = IN_FULL_PHRASES if len(visible) <= IN_FULL else BRIEF_PHRASES
    phrase = phrases[seed % len(phrases)]
    seen = [phrase.format(name=name, **findings(organ, body, image, view)) for name, organ in visible.items()]
    return OPENINGS[opening].format(
        term=term, seen=_list(seen, "and"), rest=RESTS[rest].format(absent=missing) if absent else ""
    )


def findings(
    organ: NDArray[np.bool_], body: NDArray[np.bool_], image: NDArray[np.uint8], view: str = "axial"
) -> dict[str, str]:
    """What a caption says of an organ: size, place, extent, contrast and shade.

    Args:
        organ, body: bool (256, 256), neither empty.
    """
    contrast = _contrast(organ, body, image)
    return {
        "size": _size(organ, body),
        "place": _position(organ, body, view),
        "extent": _extent(organ, body, view),
        "contrast": contrast,
        "shade": SHADES[contrast],
    }


def _list(words: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _size(organ: NDArray[np.bool_], body: NDArray[np.bool_]) -> str:
    share = organ.sum() / body.sum()
    bounds = {"tiny": TINY, "small": SMALL, "medium": LARGE}
    return next((word for word, bound in bounds.items() if share < bound), "large")


def _contrast(organ: NDArray[np.bool_], body: NDArray[np.bool_], image: NDArray[np.uint8]) -> str:
    """Against a ring around the organ inside the body; against the body where there is none."""
    ring = ndimage.binary_dilation(organ, iterations=RING) & body & ~organ
    around = image[ring if ring.any() else body]
    contrast = (image[organ].mean() - around.mean()) / max(image[body].std(), 1.0)
    return "brighter than" if contrast > CONTRAST else "darker than" if contrast < -CONTRAST else "as bright as"


def _position(organ: NDArray[np.bool_], body: NDArray[np.bool_], view: str) -> str:
    """Where the organ's centre lies within the body's bounding box, in thirds."""
    words = []
    for axis, (first, last) in enumerate(DIRECTIONS[view]):
        low, high = _span(body, axis)
        centre = (np.nonzero(organ)[axis].mean() - low + 0.5) / (high - low)
        words.append((first, "", last)[min(2, max(0, int(centre * 3)))])
    named = " ".join(word for word in words if word)
    if not named:
        return "in the centre"
    return f"on the {named}" if named in ("left", "right") else f"at the {named}"


def _extent(organ: NDArray[np.bool_], body: NDArray[np.bool_], view: str) -> str:
    """How far an organ reaches through the body's bounding box; what does not reach far has a shape."""
    lengths, reaches = [], []
    for axis, (first, last) in enumerate(DIRECTIONS[view]):
        (low, high), (body_low, body_high) = _span(organ, axis), _span(body, axis)
        lengths.append(high - low)
        if high - low >= REACHES * (body_high - body_low):
            reaches.append(f"{first} to {last}")
    if reaches:
        return "spanning the slice" if len(reaches) == 2 else f"spanning {reaches[0]}"
    rows, columns = (f"{first} to {last}" for first, last in DIRECTIONS[view])
    if lengths[0] >= ELONGATED * lengths[1]:
        return f"long {rows}"
    return f"long {columns}" if lengths[1] >= ELONGATED * lengths[0] else "round"


def _span(region: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """The first row (axis 0) or column of a region, and the one behind its last."""
    extent = np.flatnonzero(region.any(1 - axis))
    return int(extent[0]), int(extent[-1]) + 1


def make_pairs(cache: Cache, subjects: Sequence[str], out: Path, seed: int = 0) -> int:
    """Writes a pairs file (JSONL) of every labelled slice and modality of these subjects; atomic.

    Args:
        seed: of the choice of words.
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
        number = int(row["number"])
        for modality, image in zip(cache.modalities, slice_images):
            words = slice_seed(seed, subject, number, modality)
            text = caption(image, mask, cache.classes, card.terms[modality], views[subject], words)
            if not text:
                continue
            pair = {
                "subject": subject,
                "slice": number,
                "modality": modality,
                "caption": text,
            }
            lines.append(json.dumps(pair, ensure_ascii=False))
    write_atomically(out, ("\n".join(lines) + "\n").encode())
    return len(lines)
