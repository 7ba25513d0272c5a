"""The eight networks by themselves: layer shapes, parameter counts, that every part is used, and that they learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import BasicUNet, FlexibleUNet
from torch import Tensor, nn
from torch.nn import functional as F

from zeus_union.stage2_segment.baselines import missformer, pretrained_unet, transunet, unet, unext
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.baselines.layers import BATCH_RELU, scaled
from zeus_union.stage2_segment.baselines.networks import NETWORKS
from zeus_union.stage2_segment.choices import FUSIONS, PRESETS
from zeus_union.stage2_segment.training.losses import segmentation_losses

# (channels, pixels a side) of the published encoders' maps for a 256 x 256 image: from the papers' figures.
ENCODER_MAPS = {
    "unet": [(64, 256), (128, 128), (256, 64), (512, 32), (1024, 16)],
    "attention_unet": [(64, 256), (128, 128), (256, 64), (512, 32), (1024, 16)],
    "res_unet": [(64, 256), (128, 128), (256, 64), (512, 32), (1024, 16)],
    "unet_plus_plus": [(32, 256), (64, 128), (128, 64), (256, 32), (512, 16)],
    "unext": [(16, 128), (32, 64), (128, 32), (160, 16), (256, 8)],
    "transunet": [(64, 128), (256, 64), (512, 32), (768, 16)],
    "pretrained_unet": [(16, 128), (24, 64), (40, 32), (112, 16), (320, 8)],
    "missformer": [(64, 64), (128, 32), (320, 16), (512, 8)],
}
# What the stages of the decoder give, coarsest first, and in front of them what the deepest layers of the encoder do.
STAGES = {
    "unext": {
        "stages.3.embedding": (16, 16, 160),
        "stages.4.embedding": (8, 8, 256),
        "ups.0": (160, 16, 16),
        "ups.1": (128, 32, 32),
        "ups.2": (32, 64, 64),
        "ups.3": (16, 128, 128),
        "last": (16, 128, 128),
    },
    "transunet": {
        "stages.0": (256, 63, 63),
        "stages.2": (1024, 16, 16),
        "blocks.0.qkv": (256, 2304),
        "blocks.11.expand": (256, 3072),
        "neck": (512, 16, 16),
        "steps.0": (256, 32, 32),
        "steps.1": (128, 64, 64),
        "steps.2": (64, 128, 128),
        "steps.3": (16, 256, 256),
    },
    "missformer": {
        "stages.0.blocks.1.mlp.expand": (64, 64, 256),
        "stages.1.blocks.0.reduction": (128, 8, 8),
        # 64^2 + 2 * 32^2 + 5 * 16^2 + 8 * 8^2 queries; (1 + 2 + 5 + 8) * 8^2 keys and values
        "bridge.3.attention.query": (7936, 64),
        "bridge.3.attention.key_value": (1024, 128),
        "coarsest": (16, 16, 256),
        "ups.0": (32, 32, 160),
        "ups.1": (64, 64, 64),
        "ups.2": (256, 256, 64),
    },
}


def pixels(name: str) -> int:
    """A side of the smallest images that say of a network what 256 pixels say; TransUNet has as many tokens as these give."""
    return 256 if name == "transunet" else 64


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@contextmanager
def shapes_of(*modules: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes, without the batch, that every layer of the modules gives."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape[1:])

        return hook

    handles = [layer.register_forward_hook(note(name)) for part in modules for name, layer in part.named_modules()]
    yield shapes
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_shapes_of_the_published_network(name: str) -> None:
    with torch.device("meta"):
        encoder = NETWORKS[name].encoder(3)
        decoder = NETWORKS[name].decoder([channels for channels, _ in ENCODER_MAPS[name]], 4)
        with shapes_of(encoder, decoder) as shapes:
            features = encoder(torch.empty(1, 3, 256, 256))
            logits = decoder(features)
    assert [tuple(maps.shape) for maps in features] == [(1, c, side, side) for c, side in ENCODER_MAPS[name]]
    assert encoder.channels == [channels for channels, _ in ENCODER_MAPS[name]]
    assert logits.shape == (1, 4, 256, 256)
    expected = STAGES.get(name, {})
    assert {layer: shapes[layer] for layer in expected} == expected


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_preset_gives_a_mask_a_class(name: str, preset: str) -> None:
    with torch.device("meta"):
        assert FusedNetwork(name, 2, 5, "hybrid", preset=preset)(torch.empty(1, 2, 256, 256)).shape == (1, 5, 256, 256)


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward_reach_every_weight(
    name: str, fusion: str, modalities: int, narrow: Callable[..., FusedNetwork]
) -> None:
    model, side = narrow(name, modalities, fusion), pixels(name)
    logits = model(torch.randn(1, modalities, side, side, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (1, 2, side, side)
    F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward_at_the_published_width(name: str) -> None:
    torch.manual_seed(0)
    model, side = FusedNetwork(name, 2, 4, "early"), pixels(name)
    logits = model(torch.randn(1, 2, side, side))
    assert logits.shape == (1, 4, side, side)
    F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_mask_depends_on_every_map_of_the_encoder(name: str, narrow: Callable[..., FusedNetwork]) -> None:
    model, side = narrow(name, 1, "early").eval(), pixels(name)
    with torch.no_grad():
        features = model.encoders[0](torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(1)))
    features = [maps.detach().requires_grad_() for maps in features]
    model.decoders[0](features).square().sum().backward()
    assert all(maps.grad is not None and maps.grad.abs().max() > 0 for maps in features)


def convolution_biases(*modules: nn.Module) -> int:
    """Of the 3 x 3 convolutions that a batch norm follows."""
    return sum(
        layer.bias.numel()
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.bias is not None
    )


def batch_norms(*modules: nn.Module) -> int:
    return count(*(m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm2d)))


@pytest.mark.parametrize(
    ("name", "classes", "reference", "difference"),
    [
        # The references are those of table2.OFFICIAL; images have three channels there.
        ("unet", 2, 31_037_698, "biases"),  # milesial's convolutions have none
        ("attention_unet", 1, 34_878_573, "none"),
        ("unext", 1, 1_471_921, "none"),
        ("unet_plus_plus", 1, 9_040_000, "batch norms"),  # the authors' Keras network has none; rounded
        ("transunet", 9, 105_277_081, "positions"),  # of 256 tokens, there 196
        ("missformer", 9, 42_462_537, "unused"),
        ("pretrained_unet", 4, 7_060_712, "head"),  # EfficientNet's classification head, which gives no map
    ],
)
def test_parameters_are_those_of_the_reference(name: str, classes: int, reference: int, difference: str) -> None:
    with torch.device("meta"):
        encoder = NETWORKS[name].encoder(3)
        decoder = NETWORKS[name].decoder(encoder.channels, classes)  # type: ignore[arg-type]
        ours = count(encoder, decoder)
        if difference == "biases":
            ours -= convolution_biases(encoder, decoder)
        elif difference == "batch norms":
            ours = round(ours - batch_norms(encoder, decoder), -4)
        elif difference == "positions":
            ours -= (256 - 196) * 768
        elif difference == "head":
            ours += count(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.Linear(1280, 1000))
        elif difference == "unused":
            # Two more norms in every mix-FFN, and a linear layer and two blocks that the coarsest step never calls.
            norms = [
                2 * count(m.norm) for part in (encoder, decoder) for m in part.modules() if hasattr(m, "depthwise")
            ]
            block = missformer.Block(512, 8, 1)
            ours += sum(norms) + 2 * (count(block) + 2 * count(block.mlp.norm)) + count(nn.Linear(1024, 512))
    assert ours == reference


def test_unet_encoder_is_monais() -> None:
    torch.manual_seed(0)
    theirs = BasicUNet(2, 1, 2, (8, 16, 32, 64, 128, 8), **BATCH_RELU).eval()
    ours = unet.Encoder(1, 1 / 8).eval()
    stages = [theirs.conv_0, theirs.down_1.convs, theirs.down_2.convs, theirs.down_3.convs, theirs.down_4.convs]
    for mine, stage in zip(ours.units, stages):
        mine.load_state_dict(stage.state_dict())
    maps = torch.randn(1, 1, 32, 32)
    for mine, stage in zip(ours(maps), (theirs.conv_0, theirs.down_1, theirs.down_2, theirs.down_3, theirs.down_4)):
        maps = stage(maps)
        assert torch.equal(mine, maps)


def test_pretrained_unet_is_monais_flexible_unet() -> None:
    torch.manual_seed(0)
    theirs = FlexibleUNet(2, 3, "efficientnet-b0", pretrained=False).eval()
    encoder = pretrained_unet.Encoder(2).eval()
    decoder = pretrained_unet.Decoder(encoder.channels, 3).eval()
    state = theirs.encoder.state_dict()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    decoder.decoder.load_state_dict(theirs.decoder.state_dict())
    decoder.head.load_state_dict(theirs.segmentation_head.state_dict())
    images = torch.rand(1, 2, 256, 256)
    with torch.no_grad():
        assert torch.equal(decoder(encoder(images)), theirs(images))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2000), st.floats(0.01, 4), st.integers(1, 32))
def test_scaled_width_is_the_nearest_multiple(channels: int, width: float, step: int) -> None:
    ours = scaled(channels, width, step)
    assert ours % step == 0 and ours >= step
    assert ours == step or abs(ours - channels * width) <= step / 2 + 1e-6


@pytest.mark.parametrize("axis", [unext.ROWS, unext.COLUMNS])
def test_axial_shift_moves_five_groups_and_lets_zeros_in(axis: int) -> None:
    # Ten channels make five groups of two; every channel counts 1 to 6 along the axis.
    maps = torch.arange(1.0, 7).view([1, 6, 1, 1] if axis == unext.ROWS else [1, 1, 6, 1]).repeat(1, 1, 1, 10)
    lines = unext.axial_shift(maps, axis).flatten(0, 2).T  # (channels, length)
    expected = [
        [3, 4, 5, 6, 0, 0],
        [2, 3, 4, 5, 6, 0],
        [1, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5],
        [0, 0, 1, 2, 3, 4],
    ]
    assert lines.tolist() == [row for row in expected for _ in range(2)]


def test_standardized_filters_have_neither_scale_nor_offset() -> None:
    torch.manual_seed(0)
    layer = transunet.StandardizedConvolution(3, 4, 3, bias=False)
    maps = torch.randn(1, 3, 8, 8)
    before = layer(maps)
    with torch.no_grad():
        layer.weight.mul_(7).add_(3)
    torch.testing.assert_close(layer(maps), before, rtol=1e-3, atol=1e-3)


def test_transunet_tokens_know_their_place() -> None:
    torch.manual_seed(0)
    encoder = transunet.Encoder(1, 1 / 16).eval()
    blank = torch.zeros(1, 1, 256, 256)
    nn.init.normal_(encoder.positions)
    tokens = encoder(blank)[-1][0, :, 4:12, 4:12].flatten(1)  # away from the padded borders
    assert torch.cdist(tokens.T, tokens.T).add(torch.eye(64) * 1e3).min() > 0.1


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.sampled_from([2, 4, 6]), st.sampled_from([8, 16]), st.integers(0, 2**31))
def test_levels_survive_the_bridges_sequence(batch: int, channels: int, side: int, seed: int) -> None:
    sides = [side // 2**level for level in range(4)]
    random = torch.Generator().manual_seed(seed)
    levels = [
        torch.randn(batch, side, side, multiple * channels, generator=random)
        for side, multiple in zip(sides, missformer.MULTIPLES)
    ]
    tokens = missformer.join_levels(levels, channels)
    assert tokens.shape[1] == sum(multiple * side**2 for multiple, side in zip(missformer.MULTIPLES, sides))
    assert all(torch.equal(a, b) for a, b in zip(missformer.split_levels(tokens, sides), levels))


def test_patch_expansion_puts_every_patch_where_its_pixel_was() -> None:
    expansion = missformer.PatchExpansion(3, 2, times=2)
    expansion.norm = nn.Identity()  # type: ignore[assignment]
    maps = torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    expanded = expansion(maps)
    assert expanded.shape == (1, 8, 10, 2)
    patch = expansion.expand(maps[0, 2, 3]).view(2, 2, 2)
    torch.testing.assert_close(expanded[0, 4:6, 6:8], patch)


def two_slices(side: int) -> tuple[Tensor, Tensor]:
    """Two slices of two modalities, each of which shows one of two discs. Images (2, 2, ...), masks (2, 2, ...)."""
    y, x = torch.meshgrid(*2 * [torch.arange(side) * (256 / side)], indexing="ij")
    masks = torch.stack(
        [
            torch.stack(
                [(y - 80 - 40 * i) ** 2 + (x - 90) ** 2 < 45**2, (y - 150) ** 2 + (x - 180 + 20 * i) ** 2 < 40**2]
            )
            for i in range(2)
        ]
    ).float()
    return masks + 0.2 * torch.randn(masks.shape, generator=torch.Generator().manual_seed(0)), masks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fusion"), [(name, "early") for name in NETWORKS] + [("unext", "hybrid"), ("unext", "late")]
)
def test_overfits_two_slices(name: str, fusion: str) -> None:
    torch.manual_seed(0)
    images, masks = two_slices(pixels(name))
    model = FusedNetwork(name, 2, 2, fusion, width=1 / 4 if name == "unext" else 1 / 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3 if name == "transunet" else 1e-2)
    for _ in range(100):  # some 20 are enough
        logits = model(images)
        found = logits.detach() > 0
        dice = 2 * (found * masks).sum((2, 3)) / (found.sum((2, 3)) + masks.sum((2, 3)))
        if dice.min() > 0.9:
            return
        optimizer.zero_grad()
        segmentation_losses(logits, masks).total.backward()
        optimizer.step()
    pytest.fail(f"DSC of the two slices' classes after 100 steps: {dice.tolist()}")
