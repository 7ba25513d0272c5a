"""What training minimises: binary cross entropy plus soft Dice, per class (Zeus, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zeus_union.cache.layout import IGNORE

SMOOTH = 1e-5  # above and below, as MONAI's DiceLoss


class Losses(NamedTuple):
    """Scalars; `total` is what is minimised."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor


def one_hot(masks: Tensor, classes: int) -> Tensor:
    """Labels (B, H, W), 0 background, to float (B, classes, H, W) without background; pixels to ignore are 0."""
    return F.one_hot(masks.masked_fill(masks == IGNORE, 0).long(), classes + 1)[..., 1:].movedim(-1, 1).float()


def known_pixels(masks: Tensor) -> Tensor:
    """Float (B, 1, H, W): 1 where somebody labelled the pixel, 0 where it takes no part."""
    return (masks != IGNORE).float().unsqueeze(1)


def segmentation_losses(
    logits: Tensor,
    targets: Tensor,
    dice_over: str = "batch",
    *,
    known: Tensor | None = None,
    class_weights: Tensor | None = None,
    slices: int | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Losses:
    """Mean over the classes of BCE plus soft Dice. With the defaults, MONAI's DiceLoss(sigmoid=True).

    It is made of sums over slices, so that processes that share a batch can add up theirs and have the very loss of one
    process that sees the whole batch; the mean of their losses would not be it.

    Args:
        logits: (B, K, H, W).
        targets: 0 or 1, same shape.
        dice_over: 'batch' sums a class over the whole batch before the ratio; 'slice' takes the ratio slice by slice
            (the paper). Then a slice without foreground counts as won by an empty mask, and where those are most of
            the batch, training ends in empty masks.
        known: (B, 1, H, W) of `known_pixels`; None: all pixels take part.
        class_weights: (K,), mean 1; None: equal.
        slices: of the batch over all processes; None: B.
        add_up: sums (n, K) of this process -> those of all processes, differentiable.
    """
    count = len(logits) if slices is None else slices
    pixels = logits.shape[-2] * logits.shape[-1]
    entropy = F.binary_cross_entropy_with_logits(logits, targets, weight=known, reduction="none").sum((0, 2, 3))
    probabilities = logits.sigmoid() if known is None else logits.sigmoid() * known
    # Those left out are counted, not those that take part: a batch without any has its exact number of pixels.
    ignored = torch.zeros_like(entropy) if known is None else (1 - known).sum().expand_as(entropy)
    overlap = (probabilities * targets).sum((2, 3))
    size = probabilities.sum((2, 3)) + targets.sum((2, 3))
    if dice_over == "batch":
        overlap, size, entropy, ignored = add_up(torch.stack([overlap.sum(0), size.sum(0), entropy, ignored]))
        dice = 1 - (2 * overlap + SMOOTH) / (size + SMOOTH)
    else:
        ratios = (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).sum(0)
        dice, entropy, ignored = add_up(torch.stack([ratios, entropy, ignored]))
        dice = dice / count
    cross_entropy = entropy / (count * pixels - ignored).clamp(min=1)
    if class_weights is not None:
        dice, cross_entropy = dice * class_weights, cross_entropy * class_weights
    dice, cross_entropy = dice.mean(), cross_entropy.mean()
    return Losses(dice + cross_entropy, dice, cross_entropy)
