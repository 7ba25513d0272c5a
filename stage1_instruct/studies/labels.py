"""Which label values become which classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABELS = ("default", "binary", "native")


@dataclass(frozen=True)
class LabelMapping:
    """From the values in a file to 0 background, k = classes[k - 1].

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


def in_prose(names: Sequence[str]) -> str:
    """('liver', 'spleen', 'aorta') -> 'liver, spleen and aorta'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
