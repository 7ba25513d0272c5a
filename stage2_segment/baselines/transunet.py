"""TransUNet (Chen et al., 2021, arXiv 2102.04306), written after the paper: R50-ViT-B/16 and the cascaded up-sampler.

Reference: Beckschen/TransUNet (Apache 2.0), 105.3 million parameters. A ResNet-50 of three stages (3, 4 and 9 blocks,
group norm, standardised weights) brings the image to 1/16, a ViT-B of 12 blocks reads its pixels as tokens, and four
steps of up-sampling take them back, with the ResNet's maps as skips in the first three.

It differs from the reference in the position embeddings for 256 x 256 images, there 224 x 224; in images of any number
of channels, there three; in that query, key and value are one linear layer; and in the group norm's number of groups
where the channels are no multiple of 32 (widths other than the published).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeus_union.stage2_segment.baselines.layers import channels_first, channels_last, scaled

SIDE = 16  # tokens a side: 256 pixels / 16
BLOCKS = (3, 4, 9)
STEM, HIDDEN, HEADS, DEPTH, DROPOUT = 64, 768, 12, 12, 0.1
NECK, CUP = 512, (256, 128, 64, 16)


class StandardizedConvolution(nn.Conv2d):
    """Each filter with mean 0 and variance 1."""

    def forward(self, maps: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(maps, (self.weight - mean) * torch.rsqrt(variance + 1e-5), self.bias)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> StandardizedConvolution:
    return StandardizedConvolution(before, after, kernel, stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolution beside a shortcut; ReLU after the sum."""

    def __init__(self, before: int, inner: int, stride: int) -> None:
        super().__init__()
        after = 4 * inner
        self.conv1, self.norm1 = _convolution(before, inner, 1), _group_norm(inner)
        self.conv2, self.norm2 = _convolution(inner, inner, 3, stride), _group_norm(inner)
        self.conv3, self.norm3 = _convolution(inner, after, 1), _group_norm(after)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            # As many groups as channels, in the reference and in the pretrained weights.
            self.downsample = nn.Sequential(_convolution(before, after, 1, stride), nn.GroupNorm(after, after))

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = self.downsample(maps)
        maps = F.relu(self.norm1(self.conv1(maps)))
        maps = F.relu(self.norm2(self.conv2(maps)))
        return F.relu(shortcut + self.norm3(self.conv3(maps)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP over tokens (B, N, C)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.qkv, self.projection = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.expand, self.reduce = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.dropout = nn.Dropout(DROPOUT)
        for layer in (self.expand, self.reduce):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.projection(attended)
        inner = self.dropout(F.gelu(self.expand(self.norm2(tokens))))
        return tokens + self.dropout(self.reduce(inner))


class Encoder(nn.Module):
    """Images (B, C, 256, 256) -> the ResNet's maps, 128, 64 and 32 pixels wide, and the ViT's, 16."""

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__()
        stem, hidden = scaled(STEM, width, 8), scaled(HIDDEN, width, HEADS)
        self.channels = [stem, 4 * stem, 8 * stem, hidden]
        self.stem = nn.Sequential(_convolution(channels, stem, 7, 2), _group_norm(stem), nn.ReLU())
        stages, before = [], stem
        for level, blocks in enumerate(BLOCKS):
            inner = stem * 2**level
            shapes = [(before, 1 if level == 0 else 2)] + [(4 * inner, 1)] * (blocks - 1)
            stages.append(nn.Sequential(*(Bottleneck(width_before, inner, stride) for width_before, stride in shapes)))
            before = 4 * inner
        self.stages = nn.ModuleList(stages)
        self.embedding = nn.Conv2d(before, hidden, 1)
        self.positions = nn.Parameter(torch.zeros(1, SIDE * SIDE, hidden))
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(TransformerBlock(hidden, HEADS) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)

    def forward(self, images: Tensor) -> list[Tensor]:
        finest = self.stem(images)
        # Pooled without padding, as in the reference, the first stage is a row and a column short: 63 x 63.
        first = self.stages[0](F.max_pool2d(finest, 3, 2))
        second = self.stages[1](first)
        embedded = channels_last(self.embedding(self.stages[2](second)))
        tokens = self.dropout(embedded.flatten(1, 2) + self.positions)
        encoded = self.norm(self.blocks(tokens)).unflatten(1, (SIDE, SIDE))
        return [finest, F.pad(first, (0, 1, 0, 1)), second, channels_first(encoded)]


def _convolution_relu(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


class Decoder(nn.Module):
    """The encoder's maps, finest first, -> logits (B, K, 256, 256)."""

    def __init__(self, feature_channels: Sequence[int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        *skips, hidden = feature_channels
        neck, *cup = (scaled(published, width) for published in (NECK, *CUP))
        self.neck = _convolution_relu(hidden, neck)
        self.steps = nn.ModuleList(
            nn.Sequential(_convolution_relu(before + skip, after), _convolution_relu(after, after))
            for (before, after), skip in zip(pairwise([neck, *cup]), [*reversed(skips), 0])
        )
        self.head = nn.Conv2d(cup[-1], classes, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, maps = features
        maps = self.neck(maps)
        for step in self.steps:
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
            maps = step(torch.cat([maps, skips.pop()], dim=1) if skips else maps)
        return self.head(maps)
