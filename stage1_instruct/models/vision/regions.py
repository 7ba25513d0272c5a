"""What of the image the language model is shown: a few vectors pooled from the image encoder's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor


class Vision(Protocol):
    """Frozen vision features.

    Attributes:
        width: of a feature vector.
        count: vectors (later image tokens) an image.
    """

    @property
    def width(self) -> int: ...

    @property
    def count(self) -> int: ...

    def tokens(self, images: Tensor) -> Tensor:
        """What it sees of B images -> float32 (B, count, width)."""

    def recipe(self) -> dict[str, Any]:
        """What decides the features, JSON-able, without paths."""


@dataclass(frozen=True)
class VisionFeatures:
    """Means over square regions of the embedding, row by row.

    Attributes:
        grid: regions along a side; 1 pools the whole picture into one vector.
    """

    grid: int = 4
    width: int = 256

    @property
    def count(self) -> int:
        """Tokens per image."""
        return self.grid**2

    def tokens(self, images: Tensor) -> Tensor:
        """Embeddings float32 (B, 256, 64, 64) -> (B, grid * grid, 256)."""
        return F.adaptive_avg_pool2d(images, self.grid).flatten(2).transpose(1, 2).contiguous()

    def recipe(self) -> dict[str, Any]:
        return {"source": "image encoder's embedding", "pooling": f"means over {self.grid} x {self.grid} regions"}
