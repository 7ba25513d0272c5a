"""An image encoder that takes no time: a tiny ViT takes a second a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class QuickEncoder:
    """Each 64th part of a picture's mean grey value, times a number a channel."""

    name, at_once = "litemedsam", None

    def __init__(self, input_size: int = 256) -> None:
        self.input_size = input_size
        self.seen: list[NDArray[np.uint8]] = []

    def encode(self, images: NDArray[np.uint8], device: Any = None) -> Tensor:
        self.seen.append(images)
        cells = torch.from_numpy(images.astype(np.float32)).unfold(1, self.input_size // 64, self.input_size // 64)
        cells = cells.unfold(2, self.input_size // 64, self.input_size // 64).mean(dim=(-1, -2))
        return cells[:, None] * torch.linspace(0.5, 2, 256)[None, :, None, None]

    def constants(self) -> dict[str, NDArray[np.float32]]:
        return {"no_mask": np.zeros(256, np.float32)}
