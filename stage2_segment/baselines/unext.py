"""UNeXt (Valanarasu and Patel, 2022, arXiv 2203.04967), written after the paper.

Reference: jeya-maria-jose/UNeXt-pytorch (MIT), 1.47 million parameters. Three convolutional levels of 16, 32 and 128
channels, two tokenised MLP levels of 160 and 256, and the way back; skips are added, not concatenated. A tokenised MLP
mixes along an axis by shifting five groups of channels by -2 to 2 pixels along it before a linear layer.

It differs from the reference in that images have any number of channels, there three; dropout and stochastic depth,
which have rate 0 there, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeus_union.stage2_segment.baselines.layers import (
    DepthwiseConvolution,
    PatchEmbedding,
    channels_first,
    channels_last,
    scaled,
)

WIDTHS = (16, 32, 128, 160, 256)
GROUPS = 5  # shifted by -2, -1, 0, 1, 2 pixels
ROWS, COLUMNS = 1, 2  # axes of (B, H, W, C)


def axial_shift(maps: Tensor, axis: int) -> Tensor:
    """(B, H, W, C): the channels in five groups, moved along the axis by -2 to 2 pixels; zeros come in."""
    reach, length = GROUPS // 2, maps.shape[axis]
    padding = [0] * 6
    padding[2 * (3 - axis)] = padding[2 * (3 - axis) + 1] = reach
    groups = F.pad(maps, padding).chunk(GROUPS, dim=3)
    return torch.cat([group.narrow(axis, 2 * reach - i, length) for i, group in enumerate(groups)], dim=3)


class TokenizedMLP(nn.Module):
    """(B, H, W, C) -> (B, H, W, C), a residual block: shift, linear, depthwise convolution, GELU, shift, linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.over_rows = nn.Linear(channels, channels)
        self.depthwise = DepthwiseConvolution(channels)
        self.over_columns = nn.Linear(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        mixed = self.depthwise(self.over_rows(axial_shift(self.norm(maps), ROWS)))
        return maps + self.over_columns(axial_shift(F.gelu(mixed), COLUMNS))


class ConvolutionStage(nn.Module):
    """3 x 3 convolution and batch norm, half the size, ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(self.norm(self.convolution(maps)), 2))


class TokenStage(nn.Module):
    """Patches of half the resolution through a tokenised MLP."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(before, after, patch=3, stride=2)
        self.block = TokenizedMLP(after)
        self.norm = nn.LayerNorm(after)
        _initialise(self)

    def forward(self, maps: Tensor) -> Tensor:
        return channels_first(self.norm(self.block(self.embedding(maps))))


class UpStage(nn.Module):
    """3 x 3 convolution and batch norm, twice the size, ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, maps: Tensor) -> Tensor:
        return _twice(self.norm(self.convolution(maps)))


class Encoder(nn.Module):
    """Images (B, C, 256, 256) -> five maps, 128 to 8 pixels wide."""

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__()
        self.channels = [scaled(published, width) for published in WIDTHS]
        before = [channels, *self.channels]
        self.stages = nn.ModuleList(ConvolutionStage(a, b) for a, b in zip(before[:3], self.channels[:3]))
        self.stages.extend(TokenStage(a, b) for a, b in zip(before[3:], self.channels[3:]))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class Decoder(nn.Module):
    """The encoder's maps, finest first, -> logits (B, K, 256, 256)."""

    def __init__(self, feature_channels: Sequence[int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        coarsest_first = list(reversed(feature_channels))
        self.ups = nn.ModuleList(UpStage(a, b) for a, b in pairwise(coarsest_first))
        tokens = coarsest_first[1:3]  # the levels that have an MLP on the way up too
        self.blocks = nn.ModuleList(TokenizedMLP(channels) for channels in tokens)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in tokens)
        for block in self.blocks:
            _initialise(block)
        self.last = nn.Conv2d(feature_channels[0], feature_channels[0], 3, padding=1)
        self.head = nn.Conv2d(feature_channels[0], classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, maps = features
        for level, (up, skip) in enumerate(zip(self.ups, reversed(skips))):
            maps = up(maps) + skip
            if level < len(self.blocks):
                maps = channels_first(self.norms[level](self.blocks[level](channels_last(maps))))
        return self.head(_twice(self.last(maps)))


def _twice(maps: Tensor) -> Tensor:
    return F.relu(F.interpolate(maps, scale_factor=2, mode="bilinear"))


def _initialise(tokens: nn.Module) -> None:
    """The token blocks' weights at the start: linear layers normal, 0.02; convolutions normal, by what they fan out."""
    for module in tokens.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            taps = module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, std=(2 * module.groups / (taps * module.out_channels)) ** 0.5)
        else:
            continue
        assert module.bias is not None
        nn.init.zeros_(module.bias)
