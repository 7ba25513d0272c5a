"""What a grid would train on a cache: its runs, each checked before the first begins, and as many epochs as fit into a time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import warn
from zeus_union.pipelines.ablation.grid import PROMPT, AblationGrid, GridRow
from zeus_union.pipelines.ablation.timing import StepTimes, batches_an_epoch
from zeus_union.stage2_segment.ablation_folder import PLAN, run_folder
from zeus_union.stage2_segment.baselines.pretrained import NoWeights
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.device import pick_device
from zeus_union.stage2_segment.model import build_model, parameter_table
from zeus_union.stage2_segment.options import complete
from zeus_union.stage2_segment.plan import check_weights_are_there, plan_run
from zeus_union.stage2_segment.split import folds_with_test, labelled_folds


@dataclass(frozen=True)
class PlannedRun:
    """One run of a row: its folder's name, its plan, and the weights that a baseline begins from."""

    row: str
    name: str
    config: RunConfig
    pretrained: Path | None = None

    @property
    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(parameter_table(build_model(self.config.architecture)).values())


def plan_ablation(
    cache: Cache, grid: AblationGrid, out: Path, skip_missing: bool = False, times: StepTimes | None = None
) -> list[PlannedRun]:
    """All runs of a grid, each checked against the cache before the first begins; none of rows without their weights.

    Args:
        skip_missing: leave out rows that read a layer or modality the cache lacks, and say so.
        times: of the device that will train; for a grid with `minutes`.

    Raises:
        UserError: a row that the cache cannot serve, naming the row and what there is; an ablation in `out` that was
            begun with other minutes.
    """
    folds = folds_with_test(labelled_folds(cache)) if grid.folds is None else grid.folds
    planned = []
    for row in grid.rows:
        named = row.options.get("train_subjects") or row.options.get("test_subjects")
        try:
            runs = [
                _planned(cache, row, seed, fold, out) for fold in ([None] if named else folds) for seed in grid.seeds
            ]
        except NoWeights as error:
            warn(f"row {row.name} is not run: {error}")
            continue
        except UserError as error:
            if skip_missing:
                warn(f"row {row.name} is left out: {error}")
                continue
            how = f"; --set instructor={PROMPT} makes the layer" if row.options.get("variant") == (PROMPT,) else ""
            raise UserError(f"row {row.name}: {error}{how}; --skip-missing leaves such rows out") from error
        planned += runs
    if not planned:
        raise UserError("no row is left to train")
    return planned if grid.minutes is None else _equal_time(cache, planned, grid.minutes, out, times)


def rows_not_run(grid: AblationGrid) -> dict[str, str]:
    """Row -> why it has no runs: the published weights that it begins from are not there."""
    reasons = {}
    for row in grid.rows:
        try:
            check_weights_are_there(complete(row.options))
        except NoWeights as error:
            reasons[row.name] = str(error)
    return reasons


def _equal_time(
    cache: Cache, runs: Sequence[PlannedRun], minutes: float, out: Path, times: StepTimes | None
) -> list[PlannedRun]:
    """Each with as many epochs as fit into the minutes, at least one; a begun ablation keeps what was measured then."""
    begun: Mapping[str, Any] = {}
    if (out / PLAN).exists():
        before = json.loads((out / PLAN).read_text(encoding="utf-8"))
        if before["minutes"] != minutes:
            raise UserError(
                f"{out} was started with minutes: {before['minutes']}; repeat them, or choose another --out"
            )
        begun = before["runs"]
    times = times or StepTimes(pick_device(None))
    planned, longer = [], {}
    for run in runs:
        if run.name in begun:
            epochs = begun[run.name]["epochs"]
        else:
            epoch = batches_an_epoch(cache, run.config) * times.of(run.config) / 60  # minutes
            epochs = max(1, int(minutes / epoch))
            if epoch > minutes:
                longer[run.row] = f"{run.row} ({epoch:.1f})"
        config = replace(run.config, recipe=replace(run.config.recipe, epochs=epochs))
        planned.append(replace(run, config=config))
    if longer:
        warn(
            f"one epoch takes longer than {minutes:g} minutes; one epoch is trained anyway: {', '.join(longer.values())}"
        )
    return planned


def _planned(cache: Cache, row: GridRow, seed: int, fold: int | None, out: Path) -> PlannedRun:
    split = "named" if fold is None else f"fold{fold}"
    name = f"{re.sub(r'[^A-Za-z0-9.+=-]+', '-', row.name).strip('-')}-{split}-seed{seed}"
    config = plan_run(cache, run=run_folder(out, name), fold=fold, seed=seed, **row.options)
    return PlannedRun(row.name, name, config, row.options.get("pretrained"))
