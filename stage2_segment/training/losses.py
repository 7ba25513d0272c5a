"""What training minimises: binary cross entropy plus soft Dice, per class (Zeus, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5  # above and below, as MONAI's DiceLoss


class Losses(NamedTuple):
    """Scalars; `total` is what is minimised."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor


def one_hot(masks: Tensor, classes: int) -> Tensor:
    """Labels (B, H, W), 0 background, to float (B, classes, H, W) without background."""
    return F.one_hot(masks.long(), classes + 1)[..., 1:].movedim(-1, 1).float()


def segmentation_losses(
    logits: Tensor,
    targets: Tensor,
    dice_over: str = "batch",
    *,
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
        class_weights: (K,), mean 1; None: equal.
        slices: of the batch over all processes; None: B.
        add_up: sums (n, K) of this process -> those of all processes, differentiable.
    """
    count = len(logits) if slices is None else slices
    pixels = logits.shape[-2] * logits.shape[-1]
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum((0, 2, 3))
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum((2, 3))
    size = probabilities.sum((2, 3)) + targets.sum((2, 3))
    if dice_over == "batch":
        overlap, size, entropy = add_up(torch.stack([overlap.sum(0), size.sum(0), entropy]))
        dice = 1 - (2 * overlap + SMOOTH) / (size + SMOOTH)
    else:
        dice, entropy = add_up(torch.stack([(1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).sum(0), entropy]))
        dice = dice / count
    cross_entropy = entropy / (count * pixels)
    if class_weights is not None:
        dice, cross_entropy = dice * class_weights, cross_entropy * class_weights
    dice, cross_entropy = dice.mean(), cross_entropy.mean()
    return Losses(dice + cross_entropy, dice, cross_entropy)
