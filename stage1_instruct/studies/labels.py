"""Label maps: which values of a file become which classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import IGNORE
from zeus_union.stage1_instruct.studies.nifti import onto_grid, read_volume

LABELS = ("default", "binary", "native", "regions")
WHOLE = 1e-3  # how far a value in a float file may lie from a whole number


@dataclass(frozen=True)
class LabelMapping:
    """From the values in a file to 0 background, k = classes[k - 1], `IGNORE` for what nobody labelled.

    Attributes:
        classes: their names.
        values: value in the file -> label.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int]

    @classmethod
    def native(cls, names: Mapping[int, str]) -> LabelMapping:
        """Every value but 0 its own class, in the order of the values."""
        foreground = sorted(value for value in names if value != 0)
        return cls(
            tuple(names[value] for value in foreground), {0: 0, **{v: k for k, v in enumerate(foreground, start=1)}}
        )

    @classmethod
    def binary(cls, names: Mapping[int, str], merged: str) -> LabelMapping:
        """All values but 0 into one class called `merged` (Zeus, section 3.4: MSD)."""
        return cls((merged,), {value: int(value != 0) for value in names})

    def ignoring(self, value: int | None) -> LabelMapping:
        """With a value of voxels that nobody labelled, if there is one."""
        return self if value is None else replace(self, values={**self.values, value: IGNORE})

    def apply(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        table = np.zeros(256, dtype=np.uint8)
        for value, label in self.values.items():
            table[value] = label
        return table[labels]

    def facts(self) -> dict[str, Any]:
        """For the cache's recipe."""
        return {
            "classes": list(self.classes),
            "labels": {str(value): label for value, label in sorted(self.values.items())},
        }


def read_labels(
    path: Path, grid: Grid, mapping: LabelMapping, image_path: Path, trust_voxels: bool = False
) -> NDArray[np.uint8]:
    """A label map as classes, uint8 in the array order of `grid`.

    Whole numbers in a float file, to a thousandth, are fine; so is another order or direction of the axes.

    Raises:
        UserError: unreadable, on another grid than the image, or with a value that `mapping` does not know.
    """
    volume, label_grid = read_volume(path, labels=True)
    volume = onto_grid(volume, label_grid, path, grid, image_path, trust_voxels)
    whole = np.rint(volume)
    with np.errstate(invalid="ignore"):  # infinity has no distance to itself
        possible = (np.abs(volume - whole) <= WHOLE) & (whole >= 0) & (whole < IGNORE)
    values = np.where(possible, whole, 0).astype(np.uint8)
    known = np.zeros(256, bool)
    known[list(mapping.values)] = True
    wrong = ~(possible & known[values])
    if wrong.any():
        raise UserError(
            f"{path} holds label values {_listed(np.unique(volume[wrong]))} in {int(wrong.sum())} voxels that "
            f"dataset.json does not name (it names {', '.join(map(str, sorted(mapping.values)))}); correct one of the two"
        )
    return mapping.apply(values)


def _listed(values: NDArray[np.float32]) -> str:
    return ", ".join(f"{value:g}" for value in values[:8]) + (" and more" if len(values) > 8 else "")


def in_prose(names: Sequence[str]) -> str:
    """('liver', 'spleen', 'aorta') -> 'liver, spleen and aorta'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
