"""A Q-Former as connector: learned queries that look at all vision features of a picture (Table 3's second pair)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

QUERIES = 32  # BLIP-2's


class QFormer(nn.Module):
    """transformers' Blip2QFormerModel at BLIP-2's size (768 wide, 12 layers), then a linear layer to the LLM's width.

    With MedCLIP's 49 tokens of 768 it has 99,239,424 parameters, without the queries and the last layer.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # Dropout would make two trainings with one seed differ between one process and several.
        config = Blip2QFormerConfig(
            encoder_hidden_size=inputs, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        self.queries = nn.Parameter(torch.zeros(1, QUERIES, config.hidden_size))
        self.model = Blip2QFormerModel(config)
        self.out = nn.Linear(config.hidden_size, outputs)

    def begin(self, generator: torch.Generator) -> None:
        """Seeded queries, spread as BERT's embeddings are (0.02)."""
        self.queries.data.copy_(0.02 * torch.randn(self.queries.shape, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, 32, outputs)."""
        queries = self.queries.expand(len(features), -1, -1)
        return self.out(self.model(query_embeds=queries, encoder_hidden_states=features).last_hidden_state)
