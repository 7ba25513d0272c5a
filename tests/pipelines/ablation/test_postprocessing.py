"""zeus ablate: every run gets its post-processing, and its results are with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.stage2_segment.conftest import make_cache
from tests.stage2_segment.test_chosen_postprocessing import Speckled
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.ablation import run as ablate
from zeus_union.pipelines.ablation.grid import read_grid
from zeus_union.pipelines.ablation.plan import plan_ablation
from zeus_union.pipelines.report.ablation import report_ablation
from zeus_union.stage2_segment import choose_postprocessing, native
from zeus_union.stage2_segment.evaluation import evaluate
from zeus_union.stage2_segment.inputs.slices import SliceData

GRID = """
title: a test
options: {fusion: hybrid, epochs: 1, batch-size: 3, train-subjects: ada, test-subjects: ben, validation-subjects: [cleo, dan]}
rows:
  - {name: both}
  - {name: T2, set: {modalities: [T2]}}
"""


def test_every_run_has_its_own_and_each_validation_subject_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "RunInputs", Speckled)
    read: list[int] = []

    class Counted(SliceData):
        def __init__(
            self, cache: Cache, encoder: str | None, modalities: Any, rows: np.ndarray, *args: Any, **how: Any
        ):
            read.extend(rows.tolist())
            super().__init__(cache, encoder, modalities, rows, *args, **how)

    monkeypatch.setattr(choose_postprocessing, "SliceData", Counted)
    (tmp_path / "grid.yaml").write_text(GRID)
    out = tmp_path / "out"
    with Cache(make_cache(tmp_path / "toy.h5")) as cache:
        grid = read_grid(str(tmp_path / "grid.yaml"), {})
        ablate.run_ablation(cache, grid, plan_ablation(cache, grid, out), out, device="cpu")
        assert read == cache.rows_of(["cleo", "dan"]).tolist()
    results = pq.read_table(out / "results.parquet").to_pylist()
    for row in ("both", "T2"):
        run = out / "runs" / f"{row}-named-seed0"
        chosen = json.loads((run / "postprocessing.json").read_text())["choices"]
        assert chosen["last"]["steps"]["liver"] == ["largest_component"]
        alone = evaluate.evaluate_run(run, device="cpu").rows
        shared = [line for line in results if line["row"] == row]
        assert [{name: line[name] for name in alone[0]} for line in shared] == alone
        liver = next(line for line in shared if line["class"] == "liver")
        assert liver["dsc_raw"] < liver["dsc"] > 0.98
    report_ablation(out)
    lines = list(csv.DictReader((out / "measurements.csv").open()))
    assert [(line["row"], line["subject"], line["class"]) for line in lines] == [
        (row, "ben", name) for row in ("both", "T2") for name in ("liver", "spleen", "(mean)")
    ]
    assert "its gain in DSC: both +" in (out / "table.md").read_text()
