"""Parameters and operations of the baselines, beside the paper's counts (Zeus, Table 2) and the reference implementations'.

The paper does not say how many modalities its counts are for, and early fusion's hardly depends on it. With our widths
fitted to early fusion, 12 of its 14 counts of hybrid and late fusion come nearest to ours with three modalities, which
is what CHAOS has where the in-phase and out-of-phase images of T1-DUAL count as two; UNeXt late and MISSFormer hybrid
come nearest with four (`suggested_modalities`). TransUNet's 315.96 million for late fusion are three times the published
network's 105.32, so there the paper cannot have used wider networks than the published.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.baselines.networks import NETWORKS
from zeus_union.stage2_segment.choices import FUSIONS

MILLION, BILLION = 1e6, 1e9
SIDE = 256  # pixels of a picture
CLASSES = 4  # of CHAOS

# Millions of parameters.
PAPER: dict[tuple[str, str], float] = {
    ("unet", "early"): 18.31,
    ("unet", "hybrid"): 40.04,
    ("unet", "late"): 54.94,
    ("attention_unet", "early"): 27.06,
    ("attention_unet", "hybrid"): 56.38,
    ("attention_unet", "late"): 94.08,
    ("res_unet", "early"): 34.06,
    ("res_unet", "hybrid"): 70.35,
    ("res_unet", "late"): 110.82,
    ("unext", "early"): 5.04,
    ("unext", "hybrid"): 12.86,
    ("unext", "late"): 18.66,
    ("unet_plus_plus", "early"): 20.03,
    ("unet_plus_plus", "hybrid"): 42.16,
    ("unet_plus_plus", "late"): 64.48,
    ("transunet", "early"): 112.40,
    ("transunet", "hybrid"): 308.26,
    ("transunet", "late"): 315.96,
    ("missformer", "early"): 188.08,
    ("missformer", "hybrid"): 383.47,
    ("missformer", "late"): 610.88,
}


class Official(NamedTuple):
    """A reference implementation's parameters, one network, and where the number is from."""

    parameters: int
    source: str


# No code of the authors' of Res-UNet is known. A channel or class more is a few hundred parameters, of TransUNet 3,136.
OFFICIAL: dict[str, Official] = {
    "unet": Official(31_037_698, "milesial/Pytorch-UNet, UNet(3, 2), counted"),
    "attention_unet": Official(34_878_573, "LeeJunHyun/Image_Segmentation, AttU_Net(3, 1), counted"),
    "unext": Official(1_471_921, "jeya-maria-jose/UNeXt-pytorch, UNext(1), 3 channels, counted"),
    "unet_plus_plus": Official(9_040_000, "arXiv 1807.10165, rounded"),
    "transunet": Official(105_277_081, "Beckschen/TransUNet, R50-ViT-B_16, 224 x 224, 3 channels, 9 classes, counted"),
    "pretrained_unet": Official(
        7_060_712, "MONAI, FlexibleUNet(3, 4, 'efficientnet-b0'), with its classification head, counted"
    ),
    "missformer": Official(42_462_537, "ZhifangDeng/MISSFormer, MISSFormer(9), 3 channels, counted"),
}


class ParameterRow(NamedTuple):
    """Millions of parameters of one network with one fusion.

    Attributes:
        paper: None: the paper does not have the network.
        official: of the reference implementation, as often as late fusion has it; None: there is none to count.
    """

    network: str
    fusion: str
    ours: float
    paper: float | None
    official: float | None


def parameters(
    network: str, fusion: str, modalities: int, classes: int = CLASSES, preset: str = "published", merge: str = "concat"
) -> int:
    """Trainable parameters, counted without making any."""
    with torch.device("meta"):
        model = FusedNetwork(network, modalities, classes, fusion, merge, preset)
    return sum(parameter.numel() for parameter in model.parameters())


def rows(
    modalities: int, classes: int = CLASSES, preset: str = "published", merge: str = "concat"
) -> Iterator[ParameterRow]:
    """Table 2's 21 rows of baselines, in its order of fusions, and those of the networks that it does not have."""
    for network in NETWORKS:
        for fusion in FUSIONS:
            ours = parameters(network, fusion, modalities, classes, preset, merge) / MILLION
            copies = {"early": 1, "late": modalities}.get(fusion)
            official = OFFICIAL[network].parameters * copies / MILLION if copies and network in OFFICIAL else None
            yield ParameterRow(network, fusion, ours, PAPER.get((network, fusion)), official)


def operations(network: str, fusion: str, modalities: int, classes: int = CLASSES, preset: str = "published") -> float:
    """Billions of floating point operations of one slice's forward pass: two for each multiplication with addition."""
    if fusion == "late":  # as many networks of one channel
        return modalities * operations(network, "early", 1, classes, preset)
    with torch.device("meta"), torch.no_grad():
        model = FusedNetwork(network, modalities, classes, fusion, preset=preset).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, modalities, SIDE, SIDE))
    return counter.get_total_flops() / BILLION


def suggested_modalities(network: str, fusion: str, preset: str = "table2") -> int:
    """With how many modalities, 1 to 4, our count of hybrid or late fusion comes nearest to the paper's."""

    def off(modalities: int) -> float:
        return abs(parameters(network, fusion, modalities, preset=preset) / MILLION - PAPER[network, fusion])

    return min(range(1, 5), key=off)
