"""Every measurement of an ablation as a spreadsheet: one line for each run, subject and class."""

from __future__ import annotations

import csv
import io
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from zeus_union.cache.atomic import write_atomically
from zeus_union.pipelines.report.statistics import Result
from zeus_union.stage2_segment.evaluation.metrics import is_defined, mean_defined

KEYS = ("row", "fold", "seed", "subject")
METRICS = ("dsc", "dsc_raw", "iou", "hd95_mm", "nsd", "dsc_256", "iou_256")
VOXELS = ("both", "predicted", "true")
MEAN = "(mean)"  # over the subject's classes; no class has brackets in its name


def measurements_csv(results: Sequence[Result]) -> str:
    """Columns as in results.parquet; after a subject's classes a line of their means. Empty: not defined."""
    groups: dict[tuple[Hashable, ...], list[Result]] = {}
    for line in results:
        groups.setdefault(tuple(line[key] for key in KEYS), []).append(line)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*KEYS, "class", *METRICS, "miou_256", *VOXELS])
    for group, lines in groups.items():
        for line in lines:
            scores = [*(_number(line.get(name)) for name in METRICS), ""]
            writer.writerow([*map(_text, group), line["class"], *scores, *(line[name] for name in VOXELS)])
        means = [_number(mean_defined(line.get(name) for line in lines)) for name in METRICS]
        miou = _number(lines[0].get("miou_256"))
        writer.writerow([*map(_text, group), MEAN, *means, miou, *[""] * len(VOXELS)])
    return out.getvalue()


def write_measurements(folder: Path, results: Sequence[Result]) -> None:
    """FOLDER/measurements.csv, whole or not there at all."""
    write_atomically(folder / "measurements.csv", measurements_csv(results).encode())


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return repr(float(value)) if value is not None and is_defined(value) else ""
