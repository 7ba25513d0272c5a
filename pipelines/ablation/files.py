"""What stands in an ablation's folder, beside its tables and pictures."""

from __future__ import annotations

from pathlib import Path

PLAN = "ablation.json"  # the grid's rows and runs, so that the same command goes on
RESULTS = "results.parquet"  # a line for each run, subject and class
STOPPED = "stopped.json"  # run -> why it ended before its time


def run_folder(ablation: Path, run: str) -> Path:
    return ablation / "runs" / run
