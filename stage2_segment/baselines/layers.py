"""What several baselines are built of, beside MONAI's blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# MONAI's own defaults are a leaky ReLU and instance norm.
RELU = ("relu", {"inplace": True})
BATCH_RELU: dict[str, Any] = {"act": RELU, "norm": "batch", "bias": True}


def scaled(channels: int, width: float, step: int = 2) -> int:
    """`channels` times `width`, as the nearest multiple of `step`, at least one step."""
    return step * max(1, round(channels * width / step))


def channels_last(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), where linear layers and layer norms work on every pixel."""
    return maps.permute(0, 2, 3, 1)


def channels_first(maps: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return maps.permute(0, 3, 1, 2)


class DepthwiseConvolution(nn.Module):
    """3 x 3 convolution of every channel by itself: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, maps: Tensor) -> Tensor:
        return channels_last(self.convolution(channels_first(maps)))


class PatchEmbedding(nn.Module):
    """Overlapping patches: (B, C, H, W) -> (B, H / stride, W / stride, width), normalised."""

    def __init__(self, channels: int, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch, stride, padding=patch // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(channels_last(self.projection(maps)))
