"""Run folders without training: a plan and random weights, to predict with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model import Zeus, build_model
from zeus_union.stage2_segment.plan import plan_run

SPLIT = {"train_subjects": ["ada", "cleo"], "test_subjects": ["ben", "dan"]}


def untrained_run(cache: Path, folder: Path, seed: int = 0, **options: Any) -> Path:
    """The folder of a run with weights from `seed`; of hybrid fusion and the split SPLIT unless `options` say otherwise."""
    split = {} if "fold" in options or "train_subjects" in options else SPLIT
    with Cache(cache) as opened:
        config = plan_run(opened, run=folder, seed=seed, **{"fusion": "hybrid", "epochs": 1, **split, **options})
        torch.manual_seed(seed)
        model = build_model(config.architecture)
        if isinstance(model, Zeus):
            model.load_pretrained(opened.constants(config.inputs.embedding_layer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        if isinstance(model, FusedNetwork):
            _show_all_classes(model.eval(), config, cache)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / checkpoint.CONFIG, config.to_json())
    checkpoint.save_weights(folder, "last", model.state_dict(), 0)
    return folder


def _show_all_classes(model: FusedNetwork, config: RunConfig, cache: Path) -> None:
    """Makes each class's logits of the first subject as often positive as negative: masks that show something."""
    with Cache(cache) as opened:
        rows = opened.rows_of(opened.subjects[:1])
        data = SliceData(opened, None, config.inputs.modalities, rows, torch.device("cpu"), labelled=False)
        inputs = RunInputs(config, data)
        logits = torch.cat([inputs.logits(model, *batch) for batch in data.in_order(4)])
    heads = [part for name, part in model.named_modules() if name.endswith("head") and isinstance(part, nn.Conv2d)]
    middle = logits.transpose(0, 1).flatten(1).median(dim=1).values
    for head in heads:
        assert head.bias is not None
        head.bias.sub_(middle)
