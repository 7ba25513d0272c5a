"""The optimiser and how its learning rate goes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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
    # One pass over all weights in place of a dozen small operations on each of 240 tensors.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return kind(groups, weight_decay=recipe.weight_decay, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Goes on with the moments of `state`, of whatever device it was saved on: how a step is computed stays its own."""
    ways = [group["fused"] for group in optimizer.param_groups]
    groups = [{**group, "fused": fused} for group, fused in zip(state["param_groups"], ways)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def lr_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Share of the highest learning rate at optimiser step `step` (from 0): linear warm-up times (1 - t / T)^0.9."""
    total = recipe.epochs * steps_per_epoch
    done = step / total if recipe.decay_per == "step" else (step // steps_per_epoch) / recipe.epochs
    factor = (1 - done) ** 0.9
    if recipe.warmup:
        steps = min(max(recipe.min_warmup_steps, math.ceil(recipe.warmup * total)), math.ceil(total / 2))
        factor *= min(1.0, (step + 1) / steps)
    return factor


def ema_decay(decay: float, updates: int) -> float:
    """Decay of the running mean at its update number `updates` (from 1; the 0th copies the weights).

    It warms up, min(decay, (1 + t) / (10 + t)), so that the mean is never mostly the weights that training began with:
    with 0.999 throughout, 300 steps would leave them three quarters of it.
    """
    return min(decay, (1 + updates) / (10 + updates))


def running_mean(model: nn.Module, decay: float) -> AveragedModel:
    """The running mean of a model's weights, with `ema_decay`; `update_parameters` after each step goes on with it."""
    average = AveragedModel(model)

    @torch.no_grad()
    def update(
        averaged: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], _: Tensor | int
    ) -> None:
        # Not the count that is handed in: it lies on the weights' device, and to read it there would wait for the GPU.
        rest = 1 - ema_decay(decay, int(average.n_averaged))
        torch._foreach_lerp_(list(averaged), list(current), rest)

    average.multi_avg_fn = update
    return average
