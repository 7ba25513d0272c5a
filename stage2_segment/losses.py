"""What training minimises: binary cross entropy plus soft Dice, per class (Zeus, section 4.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor


class Losses(NamedTuple):
    """Scalars; `total` is what is minimised."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor


def one_hot(masks: Tensor, classes: int) -> Tensor:
    """Labels (B, H, W), 0 background, to float (B, classes, H, W) without background."""
    return F.one_hot(masks.long(), classes + 1)[..., 1:].movedim(-1, 1).float()


def segmentation_losses(logits: Tensor, targets: Tensor, dice_over: str = "batch") -> Losses:
    """Mean over the classes of BCE plus soft Dice.

    Args:
        logits: (B, K, H, W).
        targets: 0 or 1, same shape.
        dice_over: 'batch' sums a class over the whole batch before the ratio; 'slice' takes the ratio slice by slice
            (the paper). Then a slice without foreground counts as won by an empty mask, and where those are most of
            the batch, training ends in empty masks.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets)
    dice = DiceLoss(sigmoid=True, batch=dice_over == "batch")(logits, targets)
    return Losses(dice + cross_entropy, dice, cross_entropy)
