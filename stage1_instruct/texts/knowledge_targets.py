"""What there is to know of a labelled slice: which classes it shows, on which side, in which third, and how large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.layout import IGNORE
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import progress

AUC, R2 = "AUC", "R2"
FEWEST_SLICES = 5  # with an answer, of two subjects or more: fewer rank by accident
CHANCE = {AUC: 0.5, R2: 0.0}
# Target -> how a probe of it is scored. side: of the halves of the columns, e.g. the patient's right and left; third: of the
# rows, e.g. front, middle and back, the mean over the three of each against the others; area: the logarithm of its share.
TARGETS = {"presence": AUC, "side": AUC, "third": AUC, "area": R2}


@dataclass(frozen=True, eq=False)
class Target:
    """One thing to know of a class.

    Attributes:
        values: float64 (n,), NaN where there is no answer: the class is not there, or whether it is is not known.
    """

    class_name: str
    name: str
    values: NDArray[np.float64]

    @property
    def metric(self) -> str:
        return TARGETS[self.name]


def find_targets(cache: Cache, rows: NDArray[np.intp]) -> list[Target]:
    """The targets of every class over labelled rows.

    An answer that one subject alone gives cannot be learned from the others, and a rare one is no test: such rows have
    none. Targets that are left without two different answers are left out.
    """
    by_target: dict[tuple[str, str], NDArray[np.float64]] = {
        (class_name, name): np.full(len(rows), np.nan) for class_name in cache.classes for name in TARGETS
    }
    for index, row in enumerate(progress(rows, "reading labels")):
        mask, image = cache.masks([row])[0], cache.images([row])[0].max(axis=0)
        for label, class_name in enumerate(cache.classes, 1):
            for name, value in zip(TARGETS, _answers(mask, image, label)):
                by_target[class_name, name][index] = value
    subjects = cache.rows["subject"][rows]
    for (_, name), values in by_target.items():
        answers = (
            values if TARGETS[name] == AUC else np.where(np.isnan(values), np.nan, 0)
        )  # a size is never the same twice
        shared = [
            value
            for value in np.unique(answers)
            if len(np.unique(subjects[answers == value])) > 1 and (answers == value).sum() >= FEWEST_SLICES
        ]
        values[~np.isin(answers, shared)] = np.nan
    return [Target(*key, values) for key, values in by_target.items() if len(np.unique(values[~np.isnan(values)])) > 1]


def _answers(mask: NDArray[np.uint8], image: NDArray[np.uint8], label: int) -> Sequence[float]:
    """Presence, side, third and area of one class in a slice; in the order of `TARGETS`."""
    organ = mask == label
    if not organ.any():
        return (np.nan if (mask == IGNORE).any() else 0.0, np.nan, np.nan, np.nan)
    body = image > 0 if (image > 0).any() else np.ones_like(organ)
    row, column = (_centre(organ, body, axis) for axis in (0, 1))
    return (1.0, float(column >= 0.5), float(min(2, max(0, int(row * 3)))), float(np.log(organ.sum() / body.sum())))


def _centre(organ: NDArray[np.bool_], body: NDArray[np.bool_], axis: int) -> float:
    """Where the organ's centre lies in the body's bounding box, 0 to 1."""
    extent = np.flatnonzero(body.any(1 - axis))
    return float((np.nonzero(organ)[axis].mean() - extent[0] + 0.5) / (extent[-1] - extent[0] + 1))
