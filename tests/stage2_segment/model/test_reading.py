"""Training with the written-out backward pass of attention, against segment_anything's transformer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from zeus_union.stage1_instruct.models.image.sam import sam_modeling
from zeus_union.stage2_segment.model.transformer import TwoWayTransformer

SIDE, WIDTH, STEPS = 6, 64, 20


def transformers(**more: int) -> tuple[nn.Module, TwoWayTransformer]:
    torch.manual_seed(0)
    sam = sam_modeling().TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=2, mlp_dim=48).double()
    ours = TwoWayTransformer(width=WIDTH, heads=2, hidden=48, **more).double()
    ours.load_state_dict(sam.state_dict())
    return sam, ours


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, T, C), image and positional encoding (B, C, h, w)."""
    random = torch.Generator().manual_seed(1)
    shapes = (2, 3, WIDTH), (2, WIDTH, SIDE, SIDE), (1, WIDTH, SIDE, SIDE)
    tokens, image, place = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return tokens, image, place.expand_as(image)


def rows(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)


def test_weights_after_20_steps_are_those_of_segment_anything() -> None:
    sam, ours = transformers()
    tokens, image, place = inputs()
    for model, call in (
        (sam, lambda: sam(image, place, tokens)),
        (ours, lambda: ours(tokens, rows(image), rows(place)[0])),
    ):
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
        for _ in range(STEPS):
            read, seen = call()
            (read.pow(2).mean() + seen.pow(3).mean()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    before, expected = transformers()[0].state_dict(), sam.state_dict()
    for name, weight in ours.state_dict().items():
        assert (weight - expected[name]).abs().max() < 1e-6, name
    assert max(float((expected[name] - before[name]).abs().max()) for name in before) > 1e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [3, 40])  # 40 tokens are more than are worth folding
def test_key_biases_have_a_gradient_of_nought_where_rounding_would_move_them(
    count: int, precision: torch.dtype
) -> None:
    ours = transformers()[1].float()
    _, image, place = (tensor.float() for tensor in inputs())
    tokens = torch.randn(2, count, WIDTH, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        read, seen = ours(tokens, rows(image), rows(place)[0])
    (read.float().pow(2).mean() + seen.float().pow(3).mean()).backward()
    for name, weight in ours.named_parameters():
        assert weight.grad is not None and bool(weight.grad.any()) != name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("image_learns", [True, False])
def test_models_side_by_side_have_the_gradients_of_each(image_learns: bool) -> None:
    """vmap over weights, as `Stack` does, also where the image of the first layer wants no gradient."""
    tokens, image, place = inputs()
    _, first = transformers()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    stacked = {
        name: torch.stack([p.detach(), second.get_parameter(name).detach()]).requires_grad_()
        for name, p in first.named_parameters()
    }
    shared = rows(image).clone().requires_grad_(image_learns)
    valid = torch.tensor([[True, True, True], [True, True, False]])

    def forward(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return functional_call(first, weights, (tokens, shared, rows(place)[0], valid))

    read, seen = vmap(forward)(stacked)
    (read.pow(2).sum() + seen.pow(3).sum()).backward()
    of_image = shared.grad
    shared.grad = None
    for index, model in enumerate((first, second)):
        read, seen = model(tokens, shared, rows(place)[0], valid)
        (read.pow(2).sum() + seen.pow(3).sum()).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(stacked[name].grad[index], parameter.grad, rtol=1e-8, atol=1e-8)
    if image_learns:
        torch.testing.assert_close(of_image, shared.grad, rtol=1e-8, atol=1e-8)


def test_bf16_autocast_gives_what_it_gave_within_its_rounding() -> None:
    _, ours = transformers()
    ours = ours.float()
    tokens, image, place = (part.float() for part in inputs())
    plain = ours(tokens, rows(image), rows(place)[0])
    with torch.autocast("cpu", torch.bfloat16):
        low = ours(tokens, rows(image), rows(place)[0])
    for a, b in zip(plain, low):
        assert (a - b).abs().max() / a.abs().max() < 0.05
    low[1].square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in ours.parameters())
