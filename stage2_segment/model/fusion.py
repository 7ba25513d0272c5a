"""How the masks of several modalities become one (Zeus, section 3.3 and Table 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zeus_union.stage2_segment.model.selection import select


class Mean(nn.Module):
    """The modalities' mean logit."""

    def __init__(self, modalities: int, classes: int) -> None:
        super().__init__()

    def forward(self, logits: Tensor, present: Sequence[int]) -> Tensor:
        """As `Combine`."""
        return logits.mean(dim=1)


class Max(Mean):
    """The highest logit of any modality."""

    def forward(self, logits: Tensor, present: Sequence[int]) -> Tensor:
        """As `Combine`."""
        return logits.amax(dim=1)


class Learned(nn.Module):
    """One weight per class and modality, softmax over the modalities, equal at the start."""

    def __init__(self, modalities: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(modalities, classes))

    def forward(self, logits: Tensor, present: Sequence[int]) -> Tensor:
        """As `Combine`."""
        share = torch.softmax(select(self.weights, 0, present), dim=0)[None, :, :, None, None]
        return (logits * share).sum(dim=1)


# Of M modalities and K classes: a module that is called with the logits (B, m, K, H, W) of the modalities that are there, and
# which of the M these are, in order; it gives logits (B, K, H, W). Those that are missing have no say.
Combine = Callable[[int, int], nn.Module]

# The names are those of `choices.COMBINES`, which the commands list without loading torch.
COMBINES: dict[str, Combine] = {"mean": Mean, "max": Max, "learned": Learned}
