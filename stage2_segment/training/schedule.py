"""The optimiser and how its learning rate goes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zeus_union.stage2_segment.model import Zeus
from zeus_union.stage2_segment.recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Two groups: Zeus's pretrained decoders, and what starts from nothing. 'highest_lr' is what the schedule scales."""
    decoder = list(model.decoders.parameters()) if isinstance(model, Zeus) else []
    known = {id(parameter) for parameter in decoder}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [
        {"params": decoder, "lr": recipe.lr_pretrained, "highest_lr": recipe.lr_pretrained},
        {"params": rest, "lr": recipe.lr_new, "highest_lr": recipe.lr_new},
    ]
    groups = [group for group in groups if group["params"]]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=recipe.weight_decay)


def lr_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Share of the highest learning rate at optimiser step `step` (from 0): linear warm-up times (1 - t / T)^0.9."""
    total = recipe.epochs * steps_per_epoch
    done = step / total if recipe.decay_per == "step" else (step // steps_per_epoch) / recipe.epochs
    factor = (1 - done) ** 0.9
    if recipe.warmup:
        steps = min(max(recipe.min_warmup_steps, math.ceil(recipe.warmup * total)), math.ceil(total / 2))
        factor *= min(1.0, (step + 1) / steps)
    return factor
