"""What a run was measured as on its held-out subjects, as its folder says; in a shared run, subjects are numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.evaluation.metrics import is_defined, mean_over_subjects

MEASURED = "measured.json"
MISSING = "missing.parquet"


@dataclass(frozen=True)
class Measured:
    """DSC in the native grid, with the run's post-processing.

    Attributes:
        weights: 'last' or 'best'.
        dsc: class -> subject -> DSC; without those in which neither truth nor prediction has the class.
        mean: over classes and subjects; None where nothing is defined.
        of_modalities: modalities joined by '+' -> the same mean from them alone; empty unless `evaluate --missing`.
    """

    weights: str
    dsc: Mapping[str, Mapping[str, float]]
    mean: float | None
    of_modalities: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_measured(run: Path) -> Measured | None:
    """Of a run, or of one that was shared; None where it was never measured on its held-out subjects.

    Raises:
        UserError: the files that say so are damaged.
    """
    shared, summary = run / MEASURED, run / "evaluation.json"
    try:
        if shared.is_file():
            return Measured(**json.loads(shared.read_text(encoding="utf-8")))
        if not summary.is_file():
            return None
        weights = json.loads(summary.read_text(encoding="utf-8"))["weights"]
        dsc: dict[str, dict[str, float]] = {}
        rows = [row for row in pq.read_table(summary.with_suffix(".parquet")).to_pylist() if is_defined(row["dsc"])]
        for row in rows:
            dsc.setdefault(row["class"], {})[row["subject"]] = row["dsc"]
        return Measured(weights, dsc, _mean(rows), means_of_modalities(run))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, pa.ArrowException) as error:
        raise UserError(
            f"the evaluation in {run} is damaged ({error}); zeus-segment evaluate --run {run} writes it again"
        ) from error


def means_of_modalities(folder: Path) -> dict[str, float]:
    """Modalities joined by '+' -> mean DSC from them alone, of `evaluate --missing`; all of the run's first.

    Empty where that was never measured.
    """
    if (folder / MEASURED).is_file():
        shared = read_measured(folder)
        return dict(shared.of_modalities) if shared else {}
    path = folder / MISSING
    if not path.is_file():
        return {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(path, columns=["modalities", "subject", "dsc"]).to_pylist():
        rows.setdefault(row["modalities"], []).append(row)
    means = {names: _mean(lines) for names, lines in rows.items()}
    return {names: mean for names, mean in means.items() if mean is not None}


def numbered(measured: Measured, order: Mapping[str, str]) -> Measured:
    """With numbers from 1 in place of subjects.

    Args:
        order: subject -> what they are sorted by.
    """
    subjects = sorted({name for scores in measured.dsc.values() for name in scores}, key=lambda name: order[name])
    numbers = {name: str(number) for number, name in enumerate(subjects, 1)}
    dsc = {
        name: {numbers[subject]: scores[subject] for subject in subjects if subject in scores}
        for name, scores in measured.dsc.items()
    }
    return Measured(measured.weights, dsc, measured.mean, measured.of_modalities)


def _mean(rows: list[dict[str, Any]]) -> float | None:
    mean = mean_over_subjects((row["subject"], row["dsc"]) for row in rows)
    return mean if is_defined(mean) else None
