"""What a grid would train on a cache: its runs, each checked before the first begins, and how long they take."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import say
from zeus_union.pipelines.ablation.grid import PROMPT, Grid, Row
from zeus_union.stage2_segment.config import RunConfig, plan_run
from zeus_union.stage2_segment.model import build_model, parameter_table
from zeus_union.stage2_segment.predict import pick_device
from zeus_union.stage2_segment.training.losses import one_hot, segmentation_losses
from zeus_union.stage2_segment.training.train import architecture

PLAN = "ablation.json"


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
            return sum(parameter_table(build_model(self.config)).values())


class StepTimes:
    """Seconds of a training step of each architecture on one device, the second of two on noise; each measured once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[Any, ...], float] = {}

    def of(self, config: RunConfig) -> float:
        """A forward and backward pass of one batch and a step of the optimiser."""
        key = (*architecture(config), config.recipe.batch_size)
        if key not in self._known:
            self._known[key] = _seconds_a_step(config, self._device)
        return self._known[key]


def plan_ablation(
    cache: Cache, grid: Grid, out: Path, skip_missing: bool = False, times: StepTimes | None = None
) -> list[PlannedRun]:
    """All runs of a grid, each checked against the cache before the first begins.

    Args:
        skip_missing: leave out rows that read a layer or modality the cache lacks, and say so.
        times: of the device that will train; for a grid with `minutes`.

    Raises:
        UserError: a row that the cache cannot serve, naming the row and what there is; an ablation in `out` that was
            begun with other minutes.
    """
    rows = cache.rows[cache.rows["labelled"]]
    folds = sorted(set(rows["fold"].tolist())) if grid.folds is None else grid.folds
    planned = []
    for row in grid.rows:
        named = row.options.get("train_subjects") or row.options.get("test_subjects")
        try:
            runs = [
                _planned(cache, row, seed, fold, out) for fold in ([None] if named else folds) for seed in grid.seeds
            ]
        except UserError as error:
            if skip_missing:
                say(f"row {row.name} is left out: {error}")
                continue
            how = f"; --set instructor={PROMPT} makes the layer" if row.options.get("variant") == (PROMPT,) else ""
            raise UserError(f"row {row.name}: {error}{how}; --skip-missing leaves such rows out") from error
        planned += runs
    if not planned:
        raise UserError("no row is left to train")
    return planned if grid.minutes is None else _equal_time(cache, planned, grid.minutes, out, times)


def _equal_time(
    cache: Cache, runs: Sequence[PlannedRun], minutes: float, out: Path, times: StepTimes | None
) -> list[PlannedRun]:
    """Each with as many epochs as fit into the minutes, at least one; a begun ablation keeps what was measured then."""
    begun: Mapping[str, Any] = {}
    if (out / PLAN).exists():
        before = json.loads((out / PLAN).read_text(encoding="utf-8"))
        if before["minutes"] != minutes:
            raise UserError(f"{out} was begun with minutes: {before['minutes']}; repeat them, or choose another --out")
        begun = before["runs"]
    times = times or StepTimes(pick_device(None))
    planned, longer = [], {}
    for run in runs:
        if run.name in begun:
            epochs = begun[run.name]["epochs"]
        else:
            epoch = _batches(cache, run.config) * times.of(run.config) / 60  # minutes
            epochs = max(1, int(minutes / epoch))
            if epoch > minutes:
                longer[run.row] = f"{run.row} ({epoch:.1f})"
        config = replace(run.config, recipe=replace(run.config.recipe, epochs=epochs))
        planned.append(replace(run, config=config))
    if longer:
        say(
            f"one epoch takes longer than {minutes:g} minutes and is trained all the same: {', '.join(longer.values())}"
        )
    return planned


def _batches(cache: Cache, config: RunConfig) -> int:
    """Of an epoch."""
    return math.ceil(len(cache.rows_of(config.train_subjects)) / config.recipe.batch_size)


def _planned(cache: Cache, row: Row, seed: int, fold: int | None, out: Path) -> PlannedRun:
    split = "named" if fold is None else f"fold{fold}"
    name = f"{re.sub(r'[^A-Za-z0-9.+=-]+', '-', row.name).strip('-')}-{split}-seed{seed}"
    config = plan_run(cache, run=out / "runs" / name, fold=fold, seed=seed, **row.options)
    return PlannedRun(row.name, name, config, row.options.get("pretrained"))


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
    found = []
    for row in dict.fromkeys(run.row for run in runs):
        own = [run for run in runs if run.row == row]
        seconds, steps = 0.0, 0
        for run in own:
            config = run.config
            steps = _batches(cache, config) * config.recipe.epochs
            tested = len(cache.rows_of(config.test_subjects)) / config.recipe.batch_size
            seconds += times.of(config) * (steps + tested / 3)  # a forward pass alone is about a third
        first = own[0]
        found.append(Forecast(row, len(own), first.config.modalities, first.parameters, steps, seconds))
    return found


def _seconds_a_step(config: RunConfig, device: torch.device) -> float:
    torch.manual_seed(0)
    model = build_model(config).to(device)
    size, count = config.recipe.batch_size, len(config.modalities)
    shape = (256, 64, 64) if config.is_zeus else (256, 256)
    images = torch.randn(size, count, *shape, device=device)
    per_class = (len(config.classes),) if config.instructions == "class" else ()
    tokens = (64,) if config.form == "tokens" else ()
    text = torch.randn(size, count, *per_class, *tokens, config.text_width, device=device)
    masks = torch.zeros(size, 256, 256, dtype=torch.uint8, device=device)
    optimizer = torch.optim.AdamW(model.parameters())
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        logits = model(images, text) if config.is_zeus else model(images)
        segmentation_losses(logits, one_hot(masks, logits.shape[1])).total.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.monotonic() - start
    return seconds
