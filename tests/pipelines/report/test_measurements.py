"""measurements.csv: every measurement, and each subject's mean, to the last digit."""

from __future__ import annotations

import csv
import io
from typing import Any

from zeus_union.pipelines.report.measurements import MEAN, METRICS, VOXELS, measurements_csv


def line(row: str, subject: str, name: str, dsc: float | None, **more: Any) -> dict[str, Any]:
    scores: dict[str, Any] = {metric: 0.5 for metric in METRICS}
    head = {"row": row, "fold": None, "seed": 0, "subject": subject, "class": name, "miou_256": 0.25}
    return {**head, **scores, "dsc": dsc, **dict.fromkeys(VOXELS, 7), **more}


def test_each_run_subject_and_class_has_a_line_and_each_subject_its_mean() -> None:
    results = [
        line("late", "ann", "liver", 1 / 3),
        line("late", "ann", "spleen", None, hd95_mm=float("nan")),
        line("late", "ben", "liver", 0.9),
        line("a, b", "ann", "liver", 0.1),
    ]
    lines = list(csv.DictReader(io.StringIO(measurements_csv(results))))
    assert [(one["row"], one["subject"], one["class"]) for one in lines] == [
        ("late", "ann", "liver"), ("late", "ann", "spleen"), ("late", "ann", MEAN),
        ("late", "ben", "liver"), ("late", "ben", MEAN), ("a, b", "ann", "liver"), ("a, b", "ann", MEAN),
    ]  # fmt: skip
    first, undefined, mean = lines[:3]
    assert float(first["dsc"]) == 1 / 3 and first["fold"] == "" and first["true"] == "7"
    assert undefined["dsc"] == undefined["hd95_mm"] == ""
    assert float(mean["dsc"]) == 1 / 3 and mean["miou_256"] == "0.25" and mean["true"] == ""
