"""What others have published for a cache's data set, subject by subject, as a row beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from zeus_union.cache.reader import Cache
from zeus_union.pipelines.report.tables import UNDEFINED, Sheet, Shown

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """One method on one data set.

    Attributes:
        method: the row's name.
        setting: how it was trained, and on whom.
        source: where the values stand.
        dsc: subject -> DSC, the mean over the classes.
    """

    method: str
    setting: str
    source: str
    dsc: Mapping[str, float]

    @property
    def note(self) -> str:
        return f"{self.method}: {self.setting}; from {self.source}"

    def mean(self, subjects: Sequence[str]) -> float | None:
        """Over these subjects; None where one of them has no value."""
        values = [self.dsc[subject] for subject in subjects if subject in self.dsc]
        return sum(values) / len(values) if values and len(values) == len(subjects) else None


def published_for(cache: Cache) -> list[dict[str, Any]]:
    """The fields of every `Published` on the cache's data set; empty where there is none."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [
        asdict(Published(entry["method"], entry["setting"], entry["source"], entry["dsc"]))
        for entry in entries
        if set(entry["modalities"]) == set(cache.modalities)
        and set(entry["classes"]) == set(cache.classes)
        and set(entry["dsc"]) & set(cache.subjects)
    ]


def with_published(sheet: Sheet, published: Sequence[Published], subjects: Sequence[str]) -> Sheet:
    """A table of an ablation with a row for each method that has a value for one of the tested subjects, and its source.

    Args:
        subjects: that the table's means are over; a mean over fewer would be of other subjects and is left out.
    """
    rows, notes = list(sheet.rows), list(sheet.notes)
    for method in published:
        if not set(method.dsc) & set(subjects):
            continue
        cells = {"row": method.method, "DSC mean": _cell(method.mean(subjects))}
        cells |= {subject: _cell(score) for subject, score in method.dsc.items()}
        rows.append(tuple(cells.get(column, UNDEFINED) for column in sheet.columns))
        notes.append(method.note)
    return replace(sheet, rows=tuple(rows), notes=tuple(notes))


def _cell(value: float | None) -> str:
    return UNDEFINED if value is None else Shown(f"{value:.3f}", value)
