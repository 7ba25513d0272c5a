"""The seven baselines of Zeus, Table 2, and a pretrained U-Net.

Each is an encoder and a decoder that know nothing of modalities or fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from zeus_union.stage2_segment.baselines import (
    attention_unet,
    missformer,
    pretrained_unet,
    res_unet,
    transunet,
    unet,
    unet_plus_plus,
    unext,
)


@dataclass(frozen=True)
class Network:
    """One baseline.

    Attributes:
        title: as Table 2 has those that it has.
        make_encoder: (channels C of the image, factor of the published widths) -> a module from images
            (B, C, 256, 256) to feature maps, finest first, with `channels`: how many each map has.
        make_decoder: (the maps' channels, classes K, factor) -> a module from those maps to logits (B, K, 256, 256).
        table2: factor of the published widths in the preset 'table2'; 1 where the table does not have the network.
    """

    title: str
    make_encoder: Callable[[int, float], nn.Module]
    make_decoder: Callable[[Sequence[int], int, float], nn.Module]
    table2: float

    def width(self, preset: str) -> float:
        return {"published": 1.0, "table2": self.table2, "quarter": 0.25}[preset]

    def encoder(self, channels: int, preset: str = "published", width: float | None = None) -> nn.Module:
        """`width`: a factor of the published widths instead of the preset's."""
        return self.make_encoder(channels, self.width(preset) if width is None else width)

    def decoder(
        self,
        feature_channels: Sequence[int],
        classes: int,
        preset: str = "published",
        width: float | None = None,
    ) -> nn.Module:
        return self.make_decoder(feature_channels, classes, self.width(preset) if width is None else width)


# Early fusion's count hardly depends on the number of modalities, so the factors are fitted to it: CHAOS with 2
# modalities and 4 classes.
NETWORKS: Mapping[str, Network] = {
    "unet": Network("U-Net", unet.Encoder, unet.Decoder, 0.768),
    "attention_unet": Network("AttUNet", attention_unet.Encoder, attention_unet.Decoder, 0.88),
    "res_unet": Network("ResUNet", res_unet.Encoder, res_unet.Decoder, 1.025),
    "unext": Network("UNeXt", unext.Encoder, unext.Decoder, 1.856),
    "unet_plus_plus": Network("UNet++", unet_plus_plus.Encoder, unet_plus_plus.Decoder, 1.487),
    "transunet": Network("TransUNet", transunet.Encoder, transunet.Decoder, 1.038),
    "missformer": Network("MISSFormer", missformer.Encoder, missformer.Decoder, 2.297),
    # Other widths than the published ones have no weights.
    "pretrained_unet": Network("Pretrained U-Net", pretrained_unet.Encoder, pretrained_unet.Decoder, 1.0),
}
