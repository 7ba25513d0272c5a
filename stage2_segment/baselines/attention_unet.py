"""Attention U-Net (Oktay et al., 2018, arXiv 1804.03999), of MONAI's blocks (Apache 2.0).

Reference: the authors' ozan-oktay/Attention-Gated-Networks (MIT), which is 3D; as 2D network the usual one is AttU_Net
of LeeJunHyun/Image_Segmentation (no licence; nothing is taken from it), 34.88 million parameters. U-Net's encoder; on
the way up an additive attention gate weighs every skip before it is concatenated.

As in that 2D network and in MONAI's, the gate reads the map that has been brought up to the skip's resolution, not the
coarser one, and there is no deep supervision. A 3 x 3 transposed convolution of MONAI's brings it up, where AttU_Net
repeats pixels and convolves 3 x 3. MONAI's AttentionUnet as a whole is not used: it halves by strides and has a single
convolution with instance norm after every gate.
"""

from __future__ import annotations

from functools import partial

import torch
from monai.networks.nets.attentionunet import AttentionBlock, UpConv
from torch import Tensor, nn

from zeus_union.stage2_segment.baselines import unet
from zeus_union.stage2_segment.baselines.unet import two_convolutions


class GatedUp(nn.Module):
    """A coarse map and the skip of twice its size -> (B, fine, H, W)."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.up = UpConv(2, coarse, fine)
        self.gate = AttentionBlock(2, f_int=fine // 2, f_g=fine, f_l=fine)
        self.unit = two_convolutions(2 * fine, fine)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        maps = self.up(maps)
        return self.unit(torch.cat([self.gate(g=maps, x=skip), maps], dim=1))


Encoder = unet.Encoder
Decoder = partial(unet.Decoder, up=GatedUp)
