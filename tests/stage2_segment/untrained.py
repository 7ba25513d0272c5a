"""Run folders without training: a plan and random weights, to predict with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.plan import plan_run

SPLIT = {"train_subjects": ["ada", "cleo"], "test_subjects": ["ben", "dan"]}


def untrained_run(cache: Path, folder: Path, seed: int = 0, **options: Any) -> Path:
    """The folder of a run with weights from `seed`; of hybrid fusion and the split SPLIT unless `options` say otherwise."""
    split = {} if "fold" in options or "train_subjects" in options else SPLIT
    with Cache(cache) as opened:
        config = plan_run(opened, run=folder, seed=seed, **{"fusion": "hybrid", "epochs": 1, **split, **options})
    torch.manual_seed(seed)
    model = build_model(config.architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / checkpoint.CONFIG, config.to_json())
    checkpoint.save_weights(folder, "last", model.state_dict(), 0)
    return folder
