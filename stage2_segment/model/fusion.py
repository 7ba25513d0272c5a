"""How the masks of several modalities become one (Zeus, section 3.3 and Table 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zeus_union.stage2_segment.model.selection import select


class Combine(nn.Module):
    """Logits per modality (B, M, K, H, W) -> logits (B, K, H, W).

    Args:
        how: mean, max, or learned: one weight per class and modality, softmax over the modalities, equal at the start.
    """

    def __init__(self, how: str, modalities: int, classes: int) -> None:
        super().__init__()
        self.how = how
        if how == "learned":
            self.weights = nn.Parameter(torch.zeros(modalities, classes))

    def forward(self, logits: Tensor, present: Sequence[int]) -> Tensor:
        """`present`: which of the modalities `logits` has, in order; those that are missing have no say."""
        if self.how == "max":
            return logits.amax(dim=1)
        if self.how == "learned":
            share = torch.softmax(select(self.weights, 0, present), dim=0)[None, :, :, None, None]
            return (logits * share).sum(dim=1)
        return logits.mean(dim=1)
