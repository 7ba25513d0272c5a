"""What an ablation would cost, row by row: `zeus ablate --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from zeus_union.cache.reader import Cache
from zeus_union.pipelines.ablation.plan import PlannedRun
from zeus_union.pipelines.ablation.timing import StepTimes, batches_an_epoch


@dataclass(frozen=True)
class Forecast:
    """Of one row: its runs, parameters of each, optimiser steps of each, and expected seconds for all of them."""

    row: str
    runs: int
    modalities: tuple[str, ...]
    parameters: int
    steps: int
    seconds: float


def forecast(cache: Cache, runs: Sequence[PlannedRun], times: StepTimes) -> list[Forecast]:
    """What the runs will take, in turn."""
    forecasts = []
    for row in dict.fromkeys(run.row for run in runs):
        of_row = [run for run in runs if run.row == row]
        seconds, steps = 0.0, 0
        for run in of_row:
            config = run.config
            steps = batches_an_epoch(cache, config) * config.recipe.epochs
            tested = len(cache.rows_of(config.split.test)) / config.recipe.batch_size
            seconds += times.of(config) * (steps + tested / 3)  # a forward pass alone is about a third
        first = of_row[0]
        forecasts.append(Forecast(row, len(of_row), first.config.inputs.modalities, first.parameters, steps, seconds))
    return forecasts


def forecast_table(forecasts: Sequence[Forecast]) -> Table:
    """What `zeus ablate --dry-run` prints."""
    table = Table(title="what would be trained")
    for name in ("row", "modalities"):
        table.add_column(name)
    for name in ("runs", "parameters", "steps each", "minutes"):
        table.add_column(name, justify="right")
    for row in forecasts:
        cells = (str(row.runs), f"{row.parameters:,}", str(row.steps), f"{row.seconds / 60:.1f}")
        table.add_row(row.row, ", ".join(row.modalities), *cells)
    table.add_section()
    total = sum(row.seconds for row in forecasts) / 60
    table.add_row("all, in turn", "", str(sum(row.runs for row in forecasts)), "", "", f"{total:.1f}")
    return table
