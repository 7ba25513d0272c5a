"""UNet++ (Zhou et al., 2018, arXiv 1807.10165; 2019, arXiv 1912.05074), of MONAI's BasicUNet blocks (Apache 2.0).

Reference: MrGiovanni/UNetPlusPlus (ASU's research licence, not for commercial use; nothing is taken from it), 9.04
million parameters. The encoder is a U-Net of 32 to 512 channels; between it and the output lie dense skips: node (i, j)
reads all nodes before it on its level i and node (i + 1, j - 1), brought up.

It differs in the batch norm after every 3 x 3 convolution and in deep supervision: the networks here give one mask, that
of the last node (0, 4), the paper's "UNet++ without deep supervision". MONAI's BasicUNetPlusPlus as a whole is not used:
it keeps all channels where it brings maps up to the finest level, the reference halves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn

from zeus_union.stage2_segment.baselines import unet
from zeus_union.stage2_segment.baselines.layers import BATCH_RELU

Encoder = partial(unet.Encoder, first=32)


class Decoder(nn.Module):
    """The encoder's maps, finest first, -> logits (B, K, 256, 256)."""

    def __init__(self, feature_channels: Sequence[int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        # columns[j - 1][i] is node (i, j).
        self.columns = nn.ModuleList(
            nn.ModuleList(
                UpCat(2, feature_channels[i + 1], j * fine, fine, **BATCH_RELU, is_pad=False)
                for i, fine in enumerate(feature_channels[:-j])
            )
            for j in range(1, len(feature_channels))
        )
        self.head = nn.Conv2d(feature_channels[0], classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        levels = [[maps] for maps in features]
        for column in self.columns:
            assert isinstance(column, nn.ModuleList)
            for i, node in enumerate(column):
                # Level i + 1 ends with node (i + 1, j - 1): its own turn comes after this one.
                levels[i].append(node(levels[i + 1][-1], torch.cat(levels[i], dim=1)))
        return self.head(levels[0][-1])
