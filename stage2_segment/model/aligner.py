"""f_tt: an instruction's embedding becomes SAM's prompt token (Zeus, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeus_union.stage2_segment.model.decoder import WIDTH

HIDDEN = 512  # the paper's text width; with it f_tt has 393,984 parameters


class Aligner(nn.Module):
    """Text embedding (..., D) -> one sparse prompt token (..., 1, 256).

    Sentence embeddings have length 1, so each entry is about 1 / sqrt(D), where SAM's own prompt tokens are about 1:
    the text is brought to mean 0 and variance 1 first (no parameters), or the first layer's bias would drown it.

    Args:
        text_width: D.
        hidden: width between the layers.
        depth: 2 (the paper: "two-layer projection") or 1 ("a linear projection").
    """

    def __init__(self, text_width: int, hidden: int = HIDDEN, depth: int = 2) -> None:
        super().__init__()
        if depth == 1:
            self.layers = nn.Sequential(nn.Linear(text_width, WIDTH))
        else:
            self.layers = nn.Sequential(nn.Linear(text_width, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))

    def forward(self, text: Tensor) -> Tensor:
        return self.layers(F.layer_norm(text, text.shape[-1:])).unsqueeze(-2)


class LearnedToken(nn.Module):
    """One prompt token for all slices, in place of an aligned instruction: the row that text has to beat.

    Args:
        count: tokens, one for every class where each class has a prompt of its own.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(count, WIDTH))

    def forward(self, text: Tensor) -> Tensor:
        """Text (B, 0) -> (B, 1, 256); (B, count, 0) -> (B, count, 1, 256)."""
        if text.dim() == 3:
            return self.token[:, None].expand(len(text), -1, -1, -1)
        return self.token.expand(len(text), 1, -1)
