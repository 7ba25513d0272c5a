"""How an instruction becomes SAM's prompt token: f_tt of Zeus (section 3.2), as a part beside a token that needs no text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeus_union.stage2_segment.model.decoder import WIDTH

HIDDEN = 512  # the paper's text width; with it the paper's f_tt has 393,984 parameters
# Largest norm of the text's part of a token. SAM's own mask tokens have norms of 1.8 to 2.6, and a token that is moved far
# beyond (a learned one without any text does so too at a high rate) costs held-out DSC: the decoder adds it in every layer.
TEXT_NORM = 2.0


class Aligner(nn.Module):
    """The paper's f_tt: text embedding (..., D) -> prompt token (..., 256).

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
        return self.layers(F.layer_norm(text, text.shape[-1:]))


class TextPart(nn.Module):
    """What an instruction adds to the token that is there without it: standardised text (..., D) -> (..., 256).

    The paper's layers without biases, the last one zero at the start: nothing at first, and never anything for text that
    is the mean of all texts. So text that says nothing of its slice moves nothing. Its norm stays below `TEXT_NORM`.

    Args: as `Aligner`.
    """

    def __init__(self, text_width: int, hidden: int = HIDDEN, depth: int = 2) -> None:
        super().__init__()
        last = nn.Linear(hidden if depth == 2 else text_width, WIDTH, bias=False)
        nn.init.zeros_(last.weight)
        first = [nn.Linear(text_width, hidden, bias=False), nn.GELU()] if depth == 2 else []
        self.layers = nn.Sequential(*first, last)

    def forward(self, text: Tensor) -> Tensor:
        part = self.layers(text).float()
        return part * TEXT_NORM / (TEXT_NORM**2 + part.square().sum(-1, keepdim=True)).sqrt()


def new_base_tokens(modalities: int, prompts: int) -> nn.ParameterList:
    """The tokens without text, (prompts, 256) a modality.

    From a generator of their own, seeded as torch is: the same whatever else of the model is drawn.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    tokens = 0.02 * torch.randn(modalities, prompts, WIDTH, generator=generator)
    return nn.ParameterList(nn.Parameter(token.clone()) for token in tokens)
