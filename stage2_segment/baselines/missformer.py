"""MISSFormer (Huang et al., 2021, arXiv 2109.07162; 2022, TMI), written after the paper.

Reference: ZhifangDeng/MISSFormer (no licence; nothing is taken from it), 42.46 million parameters. A hierarchical
transformer of four levels (64, 128, 320 and 512 channels) with efficient self-attention and the enhanced mix-FFN; the
enhanced transformer context bridge, four blocks over the tokens of all levels at once; a decoder of the same blocks with
patch expanding.

It differs from the reference in what never reaches its mask and is left out: two of the three layer norms of every
mix-FFN, and the merging layer and blocks of the decoder's coarsest step, which only expands. That is 7.0 million
parameters, so 35.5 million remain of the 42.46. Images are 256 x 256 with any number of channels, there 224 x 224 and
three.
"""

from __future__ import annotations

from collections.abc import Sequence

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

FIRST = 64
MULTIPLES = (1, 2, 5, 8)  # of the first level's channels; also the heads of a level's attention
REDUCTIONS = (8, 4, 2, 1)  # every level's keys and values come from a map of 8 x 8
DEPTH = 2  # blocks a level, on the way down and on the way up
BRIDGE = 4  # blocks


class MixFFN(nn.Module):
    """Enhanced mix-FFN: (B, H, W, C) -> (B, H, W, C), four times as wide within, a norm over the inner skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 4 * channels)
        self.depthwise = DepthwiseConvolution(4 * channels)
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        expanded = self.expand(maps)
        return self.reduce(F.gelu(self.norm(self.depthwise(expanded) + expanded)))


class Attention(nn.Module):
    """Queries (B, N, C) over keys and values from other tokens (B, n, C)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, reduced: Tensor) -> Tensor:
        query = self.query(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(reduced).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.projection(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Enhanced transformer block: (B, H, W, C) -> (B, H, W, C).

    Args:
        heads: of the efficient self-attention.
        reduction: side of the patches that its keys and values are made of.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.reduction = None
        if reduction > 1:
            self.reduction = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.reduction_norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads)
        self.mlp = MixFFN(channels)

    def forward(self, maps: Tensor) -> Tensor:
        reduced = normed = self.norm1(maps)
        if self.reduction is not None:
            reduced = self.reduction_norm(channels_last(self.reduction(channels_first(normed))))
        attended = self.attention(normed.flatten(1, 2), reduced.flatten(1, 2))
        maps = maps + attended.unflatten(1, maps.shape[1:3])
        return maps + self.mlp(self.norm2(maps))


class BridgeBlock(nn.Module):
    """Attention over the tokens of all levels, then each level's own mix-FFN.

    A pixel of a level with m times the first level's channels counts as m tokens.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.reductions = nn.ModuleList(
            nn.Conv2d(multiple * channels, multiple * channels, side, stride=side) if side > 1 else nn.Identity()
            for multiple, side in zip(MULTIPLES, REDUCTIONS)
        )
        self.reduction_norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads=1)
        self.mlps = nn.ModuleList(MixFFN(multiple * channels) for multiple in MULTIPLES)

    def forward(self, tokens: Tensor, sides: Sequence[int]) -> Tensor:
        """Tokens (B, N, C) of levels that are `sides` pixels wide -> (B, N, C)."""
        channels = tokens.shape[2]
        normed = self.norm1(tokens)
        reduced = [
            _reduced_tokens(reduction, maps, channels)
            for reduction, maps in zip(self.reductions, split_levels(normed, sides))
        ]
        tokens = tokens + self.attention(normed, self.reduction_norm(torch.cat(reduced, dim=1)))
        levels = split_levels(self.norm2(tokens), sides)
        return tokens + join_levels([mlp(maps) for mlp, maps in zip(self.mlps, levels)], channels)


def _reduced_tokens(reduction: nn.Module, maps: Tensor, channels: int) -> Tensor:
    """The reference makes m neighbouring channels of a reduced map m tokens' values of one channel."""
    if isinstance(reduction, nn.Identity):
        return maps.reshape(len(maps), -1, channels)
    return reduction(channels_first(maps)).reshape(len(maps), channels, -1).transpose(1, 2)


def join_levels(levels: Sequence[Tensor], channels: int) -> Tensor:
    """Maps (B, H, W, m C) of all levels -> tokens (B, N, C)."""
    return torch.cat([maps.reshape(len(maps), -1, channels) for maps in levels], dim=1)


def split_levels(tokens: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """The inverse of `join_levels`."""
    batch, _, channels = tokens.shape
    counts = [multiple * side**2 for multiple, side in zip(MULTIPLES, sides)]
    return [
        part.reshape(batch, side, side, multiple * channels)
        for part, side, multiple in zip(tokens.split(counts, dim=1), sides, MULTIPLES)
    ]


class Stage(nn.Module):
    """One level on the way down: (B, C, H, W) -> (B, width, H / stride, W / stride)."""

    def __init__(self, before: int, level: int, first: int) -> None:
        super().__init__()
        channels = MULTIPLES[level] * first
        patch, stride = (7, 4) if level == 0 else (3, 2)
        self.embedding = PatchEmbedding(before, channels, patch, stride)
        self.blocks = nn.Sequential(*(Block(channels, MULTIPLES[level], REDUCTIONS[level]) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return channels_first(self.norm(self.blocks(self.embedding(maps))))


class Encoder(nn.Module):
    """Images (B, C, 256, 256) -> four maps, 64 to 8 pixels wide."""

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__()
        first = scaled(FIRST, width)
        self.channels = [multiple * first for multiple in MULTIPLES]
        before = [channels, *self.channels]
        self.stages = nn.ModuleList(Stage(before[level], level, first) for level in range(len(MULTIPLES)))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class PatchExpansion(nn.Module):
    """(B, H, W, C) -> (B, times H, times W, after)."""

    def __init__(self, channels: int, after: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.expand = nn.Linear(channels, times * times * after, bias=False)
        self.norm = nn.LayerNorm(after)

    def forward(self, maps: Tensor) -> Tensor:
        patches = self.expand(maps).unflatten(3, (self.times, self.times, -1))  # (B, H, W, t, t, after)
        return self.norm(patches.transpose(2, 3).flatten(3, 4).flatten(1, 2))


class UpStage(nn.Module):
    """One level on the way up: what comes from below and the bridge's map, both (B, H, W, ...), -> twice the size.

    Args:
        below: channels of what comes from below.
        after, times: of the patch expansion.
    """

    def __init__(self, below: int, level: int, first: int, after: int, times: int) -> None:
        super().__init__()
        channels = MULTIPLES[level] * first
        self.merge = nn.Linear(below + channels, channels)
        self.blocks = nn.Sequential(*(Block(channels, MULTIPLES[level], REDUCTIONS[level]) for _ in range(DEPTH)))
        self.expansion = PatchExpansion(channels, after, times)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        return self.expansion(self.blocks(self.merge(torch.cat([below, skip], dim=3))))


class Decoder(nn.Module):
    """The encoder's maps, finest first, -> logits (B, K, 256, 256). The context bridge is its first part."""

    def __init__(self, feature_channels: Sequence[int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        first = feature_channels[0]
        self.bridge = nn.ModuleList(BridgeBlock(first) for _ in range(BRIDGE))
        halves = [channels // 2 for channels in feature_channels]  # what expansion leaves of a level
        self.coarsest = PatchExpansion(feature_channels[3], halves[3], 2)
        self.ups = nn.ModuleList(
            [
                UpStage(halves[3], 2, first, halves[2], 2),
                UpStage(halves[2], 1, first, halves[1], 2),
                UpStage(halves[1], 0, first, first, 4),
            ]
        )
        self.head = nn.Conv2d(first, classes, 1)
        for part in (self.coarsest, self.ups, self.head):
            part.apply(_initialise)

    def forward(self, features: list[Tensor]) -> Tensor:
        sides = [maps.shape[2] for maps in features]
        tokens = join_levels([channels_last(maps) for maps in features], features[0].shape[1])
        for block in self.bridge:
            tokens = block(tokens, sides)
        *skips, maps = split_levels(tokens, sides)
        maps = self.coarsest(maps)
        for up, skip in zip(self.ups, reversed(skips)):
            maps = up(maps, skip)
        return self.head(channels_first(maps))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
