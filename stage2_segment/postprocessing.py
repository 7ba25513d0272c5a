"""Post-processing of a subject's label map: per class the largest component, and holes filled.

The steps and the rule they are chosen by are nnU-Net's (`Candidate.kept`); a hole is filled only where one class alone
surrounds it, so that no class takes a voxel of another and the order of the classes changes nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.stage2_segment.evaluation.metrics import dsc, mean_defined, overlap_counts

LARGEST, HOLES = "largest_component", "fill_holes"
STEPS: Mapping[str, str] = {LARGEST: "largest component", HOLES: "holes filled"}  # in the order they are applied in
# nnU-Net's neighbourhood of foreground: corners touch. That of the background is its dual: only faces do, so that no
# hole leaks out between two voxels that count as connected.
_CORNERS, _FACES = np.ones((3, 3, 3), bool), ndimage.generate_binary_structure(3, 1)
_NEIGHBOURS = (slice(None, -1), slice(1, None))


def apply_steps(labels: NDArray[np.uint8], steps: Mapping[int, Sequence[str]]) -> NDArray[np.uint8]:
    """A label map with the steps of each label, all largest components before all holes; `labels` stays as it is.

    Args:
        labels: (slices, rows, columns) in the native grid, the cached slices in their order, without gaps.
        steps: label -> some of `STEPS`.
    """
    kept = keep_largest(labels, [label for label, names in steps.items() if LARGEST in names])
    return fill_holes(kept, [label for label, names in steps.items() if HOLES in names])


def keep_largest(labels: NDArray[np.uint8], wanted: Sequence[int]) -> NDArray[np.uint8]:
    """Only the largest component (26 neighbours, by voxels) of each of `wanted`; the others become background.

    Of equally large ones the first in the order of slices, rows, columns.
    """
    kept = labels.copy()
    boxes = ndimage.find_objects(labels)
    for label in wanted:
        box = boxes[label - 1] if label <= len(boxes) else None
        if box is None:
            continue
        components, count = ndimage.label(labels[box] == label, _CORNERS)
        if count > 1:
            sizes = np.bincount(components.ravel())[1:]
            kept[box][(components > 0) & (components != sizes.argmax() + 1)] = 0
    return kept


def fill_holes(labels: NDArray[np.uint8], wanted: Sequence[int]) -> NDArray[np.uint8]:
    """Holes in each of `wanted` get its label.

    A hole is background (6 neighbours) that touches one class alone and not the edge of the volume; a volume of one
    slice has its edge in the plane.
    """
    filled = labels.copy()
    if not wanted or not labels.any():
        return filled
    components, count = ndimage.label(labels == 0, _FACES)
    lowest = np.full(count + 1, np.iinfo(np.uint8).max, np.uint8)  # label of the neighbours of each component
    highest = np.zeros(count + 1, np.uint8)
    open_to_edge = np.zeros(count + 1, bool)
    for axis, length in enumerate(labels.shape):
        if length == 1:
            continue
        lower, upper = (tuple(part if a == axis else slice(None) for a in range(3)) for part in _NEIGHBOURS)
        for background, beside in ((lower, upper), (upper, lower)):
            touching = (components[background] > 0) & (labels[beside] > 0)
            component, neighbour = components[background][touching], labels[beside][touching]
            np.minimum.at(lowest, component, neighbour)
            np.maximum.at(highest, component, neighbour)
        open_to_edge[np.unique(np.take(components, (0, -1), axis))] = True
    hole = (lowest == highest) & ~open_to_edge & np.isin(highest, list(wanted))
    hole[0] = False
    inside = hole[components]
    filled[inside] = highest[components[inside]]
    return filled


@dataclass(frozen=True)
class Candidate:
    """One step tried for one class.

    Attributes:
        before, after: subject -> DSC in the native grid without and with it, of the validation subjects whose truth
            has the class.
    """

    class_name: str
    step: str
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def kept(self) -> bool:
        """nnU-Net's rule: strictly better in the mean; not where it changes nothing, nor where nobody has the class."""
        return bool(self.before) and mean_defined(self.after.values()) > mean_defined(self.before.values())

    def to_json(self) -> dict[str, Any]:
        means = {
            name: mean_defined(scores.values()) if scores else None
            for name, scores in (("dsc_before", self.before), ("dsc_after", self.after))
        }
        subjects = {name: {"dsc_before": self.before[name], "dsc_after": self.after[name]} for name in self.before}
        return {"class": self.class_name, "step": self.step, **means, "kept": self.kept, "subjects": subjects}


class Candidates:
    """The label maps of validation subjects that steps are tried on, kept compressed (about a hundredth)."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._volumes: dict[str, tuple[tuple[int, ...], bytes, bytes]] = {}

    def add(self, subject: str, predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Label maps (slices, rows, columns) in the native grid, as for `apply_steps`; 255 in the truth is not counted."""
        if predicted.shape != truth.shape:
            raise ValueError(f"{subject}: predicted {predicted.shape}, truth {truth.shape}")
        packed = (zlib.compress(np.ascontiguousarray(volume).tobytes(), 1) for volume in (predicted, truth))
        self._volumes[subject] = (truth.shape, *packed)  # type: ignore[assignment]

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(self._volumes)

    def try_steps(self) -> list[Candidate]:
        """Every step for every class, `STEPS` one after the other on top of what was kept of those before.

        No step of one class changes another class's voxels, so all classes are tried at once.
        """
        labels = range(1, len(self.classes) + 1)
        tried: list[Candidate] = []
        for step in STEPS:
            chosen = steps_by_label(kept_steps(tried, self.classes), self.classes)
            scores: list[dict[str, dict[str, float]]] = [{"before": {}, "after": {}} for _ in labels]
            for subject in self._volumes:
                predicted, truth = self._unpacked(subject)
                before = apply_steps(predicted, chosen)
                after = apply_steps(before, {label: (step,) for label in labels})
                for name, volume in (("before", before), ("after", after)):
                    counts = overlap_counts(volume, truth, len(self.classes))
                    for label in labels:
                        if counts[label, 2]:
                            scores[label - 1][name][subject] = float(dsc(counts)[label])
            tried += [Candidate(name, step, **both) for name, both in zip(self.classes, scores)]
        return tried

    def _unpacked(self, subject: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        shape, *packed = self._volumes[subject]
        predicted, truth = (np.frombuffer(zlib.decompress(part), np.uint8).reshape(shape) for part in packed)
        return predicted, truth


def kept_steps(tried: Sequence[Candidate], classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Class -> the steps that are kept for it."""
    return {
        name: tuple(candidate.step for candidate in tried if candidate.class_name == name and candidate.kept)
        for name in classes
    }


def steps_by_label(steps: Mapping[str, Sequence[str]], classes: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Label -> steps, of classes that have any."""
    return {label: tuple(steps[name]) for label, name in enumerate(classes, 1) if steps.get(name)}
