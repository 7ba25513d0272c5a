"""Tokens are means of regions, row by row."""

from __future__ import annotations

import torch

from zeus_union.stage1_instruct.models.vision.regions import VisionFeatures


def test_tokens_are_region_means_row_by_row() -> None:
    embeddings = torch.randn(2, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    vision = VisionFeatures(4)
    tokens = vision.tokens(embeddings)
    assert tokens.shape == (2, vision.count, vision.width) == (2, 16, 256)
    assert torch.allclose(tokens[1, 6], embeddings[1, :, 16:32, 32:48].mean((1, 2)), atol=1e-6)


def test_one_region_is_the_mean_of_the_picture() -> None:
    embeddings = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(VisionFeatures(1).tokens(embeddings)[:, 0], embeddings.mean((2, 3)), atol=1e-6)
