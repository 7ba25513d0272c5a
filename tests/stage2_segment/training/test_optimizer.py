"""One fused optimiser step is the plain one, and goes on with a state of either."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from zeus_union.stage2_segment.recipe import RECIPES
from zeus_union.stage2_segment.training.schedule import build_optimizer, load_optimizer


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()


@pytest.mark.parametrize("recipe", list(RECIPES.values()), ids=list(RECIPES))
def test_fused_steps_are_the_plain_ones_and_resume_from_either(recipe) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    fused = nn.Linear(7, 5)
    plain = copy.deepcopy(fused)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    reference = kind(plain.parameters(), lr=recipe.lr_new, weight_decay=recipe.weight_decay, fused=False)
    optimizer = build_optimizer(fused, recipe)
    assert all(group["fused"] for group in optimizer.param_groups)
    steps(fused, optimizer, 20, seed=1)
    steps(plain, reference, 20, seed=1)
    for a, b in zip(fused.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    again = build_optimizer(fused, recipe)
    load_optimizer(again, copy.deepcopy(reference.state_dict()))  # of a run that was begun without
    assert all(group["fused"] for group in again.param_groups)
    steps(fused, again, 20, seed=2)
    steps(plain, reference, 20, seed=2)
    for a, b in zip(fused.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_device_without_fused_steps_gets_plain_ones() -> None:
    model = nn.Linear(3, 2).to("meta")
    assert not any(group["fused"] for group in build_optimizer(model, RECIPES["stable"]).param_groups)
