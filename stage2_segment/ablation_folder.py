"""What stands in an ablation's folder, beside its tables and pictures; and which of its runs are those of a row."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import nearest, some_of, warn

PLAN = "ablation.json"  # the grid's rows and runs, so that the same command goes on
RESULTS = "results.parquet"  # a line for each run, subject and class
STOPPED = "stopped.json"  # run -> why it ended before its time


def remove_ablation(folder: Path) -> None:
    """Removes an ablation with all that is in its folder, to start again; nothing where there is none.

    Raises:
        UserError: the folder holds something else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / PLAN).is_file():
        raise UserError(f"{folder} exists and is not an ablation: it has no {PLAN}; choose another --out")
    shutil.rmtree(folder)


def run_folder(ablation: Path, run: str) -> Path:
    return ablation / "runs" / run


def ensemble_of_row(ablation: Path, row: str, fold: int | None = None) -> Path:
    """Where results of a row's runs together go."""
    name = re.sub(r"[^\w.+=-]+", "-", row).strip("-") + ("" if fold is None else f"-fold{fold}")
    return ablation / "ensembles" / name


def runs_of_row(ablation: Path, row: str, fold: int | None = None) -> list[Path]:
    """The folders of a row's runs, over its folds and seeds, in the order of the plan; runs that were stopped are left out.

    Args:
        fold: only the runs that hold this one out; None: all.

    Raises:
        UserError: no ablation there; no such row, or no run of it that came to its end.
    """
    from zeus_union.stage2_segment.checkpoint import load_config  # torch: not for a command line's help

    plan = ablation / PLAN
    if not plan.is_file():
        raise UserError(f"{ablation} is not an ablation: it has no {PLAN}; give the folder that zeus ablate wrote")
    try:
        runs = {name: run["row"] for name, run in json.loads(plan.read_text(encoding="utf-8"))["runs"].items()}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{plan} is damaged ({error!r}); the command that wrote it writes it again") from error
    if row not in runs.values():
        rows = tuple(dict.fromkeys(runs.values()))
        raise UserError(f"{ablation} has no row {row!r}; its rows: {', '.join(rows)}{nearest(row, rows)}")
    stopped = json.loads((ablation / STOPPED).read_text()) if (ablation / STOPPED).is_file() else {}
    names = [name for name, of_row in runs.items() if of_row == row]
    left_out = [name for name in names if name in stopped]
    if left_out:
        warn(f"left out, because their training was stopped: {some_of(left_out)}")
    folders = [run_folder(ablation, name) for name in names if name not in stopped]
    if fold is not None:
        folders = [folder for folder in folders if load_config(folder).split.fold == fold]
    if not folders:
        which = f"row {row!r}" if fold is None else f"row {row!r}, fold {fold},"
        raise UserError(f"no run of {which} of {ablation} came to its end; its runs: {some_of(names)}")
    return folders
