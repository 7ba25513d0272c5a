"""U-Net (Ronneberger et al., 2015, arXiv 1505.04597), of MONAI's BasicUNet blocks (Apache 2.0).

The authors' code is a Caffe model without a licence. Five levels of two 3 x 3 convolutions, 64 to 1024 channels, max
pooling, 2 x 2 transposed convolutions that halve the channels, skips by concatenation.

It differs from the paper in what nearly every later implementation changed: zero padding, so that the mask is as large
as the image; a batch norm after every 3 x 3 convolution; no dropout; a logit per class without background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from monai.networks.nets.basic_unet import TwoConv, UpCat
from torch import Tensor, nn

from zeus_union.stage2_segment.baselines.layers import BATCH_RELU, scaled

LEVELS = 5


def two_convolutions(before: int, after: int) -> nn.Module:
    return TwoConv(2, before, after, **BATCH_RELU)


def concatenating_up(coarse: int, fine: int) -> nn.Module:
    return UpCat(2, coarse, fine, fine, **BATCH_RELU, is_pad=False)


class Encoder(nn.Module):
    """Images (B, C, 256, 256) -> five maps, 256 to 16 pixels wide.

    Args:
        channels: C.
        width: factor of the published channels.
        first: published channels of the finest level; they double with every level.
        unit: makes what stands on a level, from the channels before and after it.
    """

    def __init__(
        self,
        channels: int,
        width: float = 1.0,
        first: int = 64,
        unit: Callable[[int, int], nn.Module] = two_convolutions,
    ) -> None:
        super().__init__()
        self.channels = [scaled(first * 2**level, width) for level in range(LEVELS)]
        self.units = nn.ModuleList(unit(before, after) for before, after in pairwise([channels, *self.channels]))
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.units[0](images)]
        for unit in self.units[1:]:
            maps.append(unit(self.pool(maps[-1])))
        return maps


class Decoder(nn.Module):
    """The encoder's maps, finest first, -> logits (B, K, 256, 256).

    Args:
        up: makes what turns a coarse map and the skip of twice its size into a fine one, from the channels of both.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        classes: int,
        width: float = 1.0,
        up: Callable[[int, int], nn.Module] = concatenating_up,
    ) -> None:
        super().__init__()
        self.ups = nn.ModuleList(up(coarse, fine) for fine, coarse in pairwise(feature_channels))
        self.head = nn.Conv2d(feature_channels[0], classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, maps = features
        for up, skip in zip(reversed(self.ups), reversed(skips)):
            maps = up(maps, skip)
        return self.head(maps)
