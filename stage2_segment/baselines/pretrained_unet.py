"""A U-Net whose encoder begins from ImageNet weights: MONAI's FlexibleUNet on EfficientNet-b0 (Apache 2.0).

Not of the paper: it is what the field takes where patients are few. Reference: FlexibleUNet(C, K, "efficientnet-b0"),
after qubvel's segmentation_models.pytorch (MIT). EfficientNet-b0 (Tan and Le, 2019, arXiv 1905.11946) gives five maps, 128
to 8 pixels wide; a U-Net decoder of 256 to 16 channels brings them up, the last step without a skip.

It differs from the reference in what never reaches its mask and is left out: EfficientNet's classification head.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.efficientnet import EfficientNet
from monai.networks.nets.flexible_unet import SegmentationHead, UNetDecoder
from torch import Tensor, nn

from zeus_union.stage2_segment.baselines.layers import RELU, scaled

# repeats, kernel, stride, expansion, channels before and after, squeeze: EfficientNet-b0's stages, as MONAI writes them.
STAGES = (
    "r1_k3_s11_e1_i32_o16_se0.25",
    "r2_k3_s22_e6_i16_o24_se0.25",
    "r2_k5_s22_e6_i24_o40_se0.25",
    "r3_k3_s22_e6_i40_o80_se0.25",
    "r3_k5_s11_e6_i80_o112_se0.25",
    "r4_k5_s22_e6_i112_o192_se0.25",
    "r1_k3_s11_e6_i192_o320_se0.25",
)
GIVING = (0, 1, 2, 4, 6)  # the stages whose maps the decoder reads: the last ones of their size
DROP_CONNECT = 0.2
CUP = (256, 128, 64, 32, 16)


class Encoder(EfficientNet):
    """Images (B, C, 256, 256) -> five maps, 128 to 8 pixels wide.

    Pictures need not have ImageNet's mean and deviation: the first convolution has no bias, and the batch norm after it
    takes both out.
    """

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__(
            list(STAGES),
            in_channels=channels,
            width_coefficient=width,
            image_size=256,
            drop_connect_rate=DROP_CONNECT,
        )
        for head in ("_conv_head", "_conv_head_padding", "_bn1", "_avg_pooling", "_dropout", "_fc"):
            delattr(self, head)
        self.channels = [_channels_after(self._blocks[stage]) for stage in GIVING]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(images))))
        features = []
        for stage, blocks in enumerate(self._blocks):
            maps = blocks(maps)
            if stage in GIVING:
                features.append(maps)
        return features


def _channels_after(blocks: nn.Module) -> int:
    *_, last = blocks.children()
    return last.out_channels  # type: ignore[return-value]


class Decoder(nn.Module):
    """The encoder's maps, finest first, -> logits (B, K, 256, 256)."""

    def __init__(self, feature_channels: Sequence[int], classes: int, width: float = 1.0) -> None:
        super().__init__()
        cup = [scaled(channels, width) for channels in CUP]
        self.decoder = UNetDecoder(
            spatial_dims=2,
            encoder_channels=[1, *feature_channels],  # the image itself is no skip, so its channels are not read
            decoder_channels=cup,
            act=RELU,
            norm=("batch", {"eps": 1e-3, "momentum": 0.1}),
            dropout=0.0,
            bias=False,
            upsample="nontrainable",
            pre_conv="default",
            interp_mode="nearest",
            align_corners=None,
            is_pad=False,
        )
        self.head = SegmentationHead(2, cup[-1], classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.head(self.decoder(features, skip_connect=len(features) - 1))
