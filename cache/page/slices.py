"""The slices of a subject that one leafs through: images, truth, prediction, their difference, and what was said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import IGNORE
from zeus_union.cache.page.pictures import errors_url, image_url, labels_url
from zeus_union.cache.page.telling import sides, telling_slices, voxels_of

MOST_SLICES = 40  # of a subject: enough to leaf through, and a page stays small
MOST_BYTES = 12 << 20  # of all pictures of a page, so that it stays under 20 MB with plotly


@dataclass(frozen=True)
class Sentence:
    """A part of a text.

    Attributes:
        changed: how much of the mask it moves when it is left out (0 to 1); None: not probed.
    """

    text: str
    changed: float | None = None


@dataclass(frozen=True)
class Said:
    """What was said of a slice in one modality.

    Attributes:
        of: the modality, or the modality and the class.
        cut: whether the answer ended at the limit of its length.
    """

    of: str
    sentences: tuple[Sentence, ...]
    cut: bool = False


@dataclass(frozen=True, eq=False)
class SliceView:
    """One slice.

    Attributes:
        number: in the view of the native grid.
        images: uint8 (M, rows, columns); M may be 0.
        truth, prediction: label maps (rows, columns); None where there is none.
        scores: class -> DSC of this slice, where it is defined.
        said: the texts.
        compared: the label map of another run, beside the prediction.
    """

    number: int
    images: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    prediction: NDArray[np.uint8] | None
    scores: Mapping[str, float] = field(default_factory=dict)
    said: tuple[Said, ...] = ()
    compared: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class SubjectView:
    """A subject to leaf through.

    Attributes:
        name: of the subject.
        role: why it is here ('best', 'median', 'worst'); ''.
        note: what is known of it, in a sentence.
        modalities: names of the images.
        classes: label k is classes[k - 1].
        slices: in their order.
        grid: of the subject, for its sides and the scale bar; pictures are `to_square` of its slices.
        left_out: slices that are not here.
        compared: what the other run of `SliceView.compared` is called.
    """

    name: str
    role: str
    note: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    slices: tuple[SliceView, ...]
    grid: Grid
    left_out: int = 0
    compared: str = ""


def subjects_json(views: Sequence[SubjectView], most_bytes: int = MOST_BYTES) -> list[dict[str, Any]]:
    """What the page's script reads of subjects, with as many slices of each as fit.

    Args:
        most_bytes: of all pictures; beyond it every subject keeps the slices that tell most.
    """
    encoded = [[_slice_json(part, view.classes) for part in view.slices] for view in views]
    total = sum(len(json.dumps(part)) for parts in encoded for part in parts)
    share = min(1.0, most_bytes / max(total, 1))
    return [_subject_json(view, parts, share) for view, parts in zip(views, encoded)]


def _subject_json(view: SubjectView, encoded: list[dict[str, Any]], share: float) -> dict[str, Any]:
    kept = list(range(len(encoded)))
    if share < 1:
        kept = telling_slices(_voxels(view), max(1, int(share * len(encoded))))
    return {
        "name": view.name,
        "role": view.role,
        "note": view.note,
        "modalities": list(view.modalities),
        "classes": list(view.classes),
        "compared": view.compared,
        "sides": sides(view.grid),
        "side_mm": round(float(max(np.array(view.grid.slice_shape[1:]) * view.grid.slice_spacing[1:])), 1),
        "first": _first([view.slices[index] for index in kept]),
        "left_out": view.left_out + len(encoded) - len(kept),
        "slices": [encoded[index] for index in kept],
    }


def _slice_json(view: SliceView, classes: Sequence[str]) -> dict[str, Any]:
    def labels(mask: NDArray[np.uint8] | None) -> dict[str, Any] | None:
        return None if mask is None else {"url": labels_url(mask, classes), "classes": _present(mask, classes)}

    both = view.truth is not None and view.prediction is not None
    return {
        "number": view.number,
        "images": [image_url(image) for image in view.images],
        "truth": labels(view.truth),
        "prediction": labels(view.prediction),
        "compared": labels(view.compared),
        "errors": {"url": errors_url(view.prediction, view.truth)} if both else None,  # type: ignore[arg-type]
        "scores": [[name, round(score, 3)] for name, score in view.scores.items()],
        "said": [
            {"of": said.of, "cut": said.cut, "sentences": [[part.text, part.changed] for part in said.sentences]}
            for said in view.said
        ],
    }


def _present(mask: NDArray[np.uint8], classes: Sequence[str]) -> list[str]:
    labels = set(np.unique(mask).tolist())
    return [name for label, name in enumerate(classes, 1) if label in labels]


def _mask(view: SliceView) -> NDArray[np.uint8]:
    """The truth, else the prediction, pixels that nobody labelled left out."""
    mask = view.truth if view.truth is not None else view.prediction
    return np.zeros((1, 1), np.uint8) if mask is None else np.where(mask == IGNORE, 0, mask)


def _voxels(view: SubjectView) -> NDArray[np.intp]:
    """(slices, classes) of `telling_slices`."""
    return np.stack([voxels_of(_mask(part), len(view.classes)) for part in view.slices])


def _first(parts: Sequence[SliceView]) -> int:
    """Which slice is seen first: the one with most classes, and of these with most of them."""
    seen = [(len(np.unique(mask)), int(np.count_nonzero(mask))) for mask in map(_mask, parts)]
    return max(range(len(seen)), key=seen.__getitem__, default=0)
