"""Res-UNet (Xiao et al., 2018, "Weighted Res-UNet for high-quality retina vessel segmentation", ITME), of MONAI's
residual units (Apache 2.0).

There is no code of the authors'. U-Net with every pair of 3 x 3 convolutions replaced by a residual unit: the pair,
and a 1 x 1 convolution beside it where the channels change. The channels are U-Net's, 64 to 1024.

The paper weighs the pixels of its loss by a map of the vessels; that is no part of the network, and left out. MONAI's
residual unit adds after the second ReLU, not before.
"""

from __future__ import annotations

from functools import partial

import torch
from monai.networks.blocks import ResidualUnit
from torch import Tensor, nn

from zeus_union.stage2_segment.baselines import unet
from zeus_union.stage2_segment.baselines.layers import BATCH_RELU


def residual_unit(before: int, after: int) -> nn.Module:
    return ResidualUnit(2, before, after, **BATCH_RELU)


class ResidualUp(nn.Module):
    """A coarse map and the skip of twice its size -> (B, fine, H, W)."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.unit = residual_unit(2 * fine, fine)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        return self.unit(torch.cat([skip, self.up(maps)], dim=1))


Encoder = partial(unet.Encoder, unit=residual_unit)
Decoder = partial(unet.Decoder, up=ResidualUp)
