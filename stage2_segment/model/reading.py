"""Few tokens and an image read one another: scores, softmax and weighted sum, with the backward pass written out.

The image (B, N, C) is by far the largest array here, and autograd would go over it once for every part of its gradient and
once more for each sum of two. Written out, a reading gives one gradient, made by one matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokensReadImage(torch.autograd.Function):
    """What R token heads see of an image: softmax over the positions of (placed . folded + shift), times the image.

    The shift is the same at all positions, so the softmax takes it out again: it is not added, and its gradient is zero.
    Computed, it would be rounding, which Adam scales up to steps of full size.

    Args of `apply`:
        placed: (B, N, C), the image with a positional encoding that is constant: what is wanted of it, the image gets.
        image: (B, N, C).
        folded: (B, R, C); shift: (B, R, 1).
    Returns:
        seen (B, R, C), and the attention (B, R, N), for the backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(placed: Tensor, image: Tensor, folded: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.softmax(scores_of(placed, folded), dim=-1)
        return attention @ image, attention

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        placed, image, folded, shift = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(placed, image, folded, shift, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        placed, image, folded, shift, attention = ctx.saved_tensors
        of_scores = _softmax_backward(wanted @ image.transpose(1, 2), attention, -1)
        of_image = None
        if ctx.needs_input_grad[1]:
            of_image = torch.cat([of_scores, attention], 1).transpose(1, 2) @ torch.cat([folded, wanted], 1)
        return None, of_image, of_scores @ placed, torch.zeros_like(shift)


class ImageReadsTokens(torch.autograd.Function):
    """The image plus what its positions read: softmax over a head's tokens of (placed . folded + shift), times `said`.

    Args of `apply`:
        placed, image, folded, shift: as of `TokensReadImage`, with R = heads x tokens.
        said: (B, R, C).
        heads: number of heads.
    Returns:
        (B, N, C), and the attention (B, R, N), for the backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        placed: Tensor, image: Tensor, folded: Tensor, shift: Tensor, said: Tensor, heads: int
    ) -> tuple[Tensor, Tensor]:
        scores = scores_of(placed, folded) + shift
        attention = torch.softmax(scores.unflatten(1, (heads, -1)), dim=2).flatten(1, 2)
        return torch.baddbmm(image, attention.transpose(1, 2), said), attention

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        placed, _, folded, _, said, ctx.heads = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(placed, folded, said, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        placed, folded, said, attention = ctx.saved_tensors
        by_head = (1, (ctx.heads, -1))
        of_attention = scores_of(wanted, said).unflatten(*by_head)
        of_scores = _softmax_backward(of_attention, attention.unflatten(*by_head), 2).flatten(1, 2)
        of_image = torch.baddbmm(wanted, of_scores.transpose(1, 2), folded) if ctx.needs_input_grad[1] else None
        return None, of_image, of_scores @ placed, of_scores.sum(-1, keepdim=True), attention @ wanted, None


def scores_of(image: Tensor, folded: Tensor) -> Tensor:
    """image (B, N, C), folded tokens (B, R, C) -> (B, R, N); in this order it is twice as fast on a CPU."""
    return (image @ folded.transpose(1, 2)).transpose(1, 2).contiguous()


def _softmax_backward(wanted: Tensor, output: Tensor, dim: int) -> Tensor:
    return torch.ops.aten._softmax_backward_data(wanted, output, dim, output.dtype)
