"""Published weights into TransUNet's encoders, from synthetic files that are named and shaped as the published ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.baselines import transunet
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.baselines.pretrained import load_pretrained

STEM, HIDDEN, HEADS = 8, 48, 12  # of a TransUNet of a sixteenth
Make = Callable[..., FusedNetwork]


def bottlenecks(blocks: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """(stage, block, channels before, inner channels), counted from 0."""
    found, before = [], STEM
    for stage, count in enumerate(blocks):
        for block in range(count):
            found.append((stage, block, before, STEM * 2**stage))
            before = 4 * STEM * 2**stage
    return found


def torchvision_resnet50() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (STEM, 3, 7, 7), "fc.weight": (1000, 32 * STEM)}

    def batch_norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    batch_norm("bn1", STEM)
    for stage, block, before, inner in bottlenecks((3, 4, 6, 3)):
        layer = f"layer{stage + 1}.{block}"
        shapes[f"{layer}.conv1.weight"] = (inner, before, 1, 1)
        shapes[f"{layer}.conv2.weight"] = (inner, inner, 3, 3)
        shapes[f"{layer}.conv3.weight"] = (4 * inner, inner, 1, 1)
        for number, channels in enumerate((inner, inner, 4 * inner), start=1):
            batch_norm(f"{layer}.bn{number}", channels)
        if block == 0:
            shapes[f"{layer}.downsample.0.weight"] = (4 * inner, before, 1, 1)
            batch_norm(f"{layer}.downsample.1", 4 * inner)
    random = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def timm_r50_s16(tokens: int = 14 * 14) -> dict[str, Tensor]:
    backbone = "patch_embed.backbone"
    shapes: dict[str, tuple[int, ...]] = {
        f"{backbone}.stem.conv.weight": (STEM, 3, 7, 7),
        f"{backbone}.stem.norm.weight": (STEM,),
        f"{backbone}.stem.norm.bias": (STEM,),
        "patch_embed.proj.weight": (HIDDEN, 16 * STEM, 1, 1),
        "patch_embed.proj.bias": (HIDDEN,),
        "cls_token": (1, 1, HIDDEN),
        "pos_embed": (1, tokens + 1, HIDDEN),
        "norm.weight": (HIDDEN,),
        "norm.bias": (HIDDEN,),
        "head.weight": (1000, HIDDEN),
    }
    for stage, block, before, inner in bottlenecks((3, 4, 9)):
        layer = f"{backbone}.stages.{stage}.blocks.{block}"
        kernels = {"conv1": (inner, before, 1, 1), "conv2": (inner, inner, 3, 3), "conv3": (4 * inner, inner, 1, 1)}
        norms = {"norm1": inner, "norm2": inner, "norm3": 4 * inner}
        if block == 0:
            kernels["downsample.conv"], norms["downsample.norm"] = (4 * inner, before, 1, 1), 4 * inner
        shapes.update({f"{layer}.{name}.weight": shape for name, shape in kernels.items()})
        shapes.update({f"{layer}.{name}.{part}": (n,) for name, n in norms.items() for part in ("weight", "bias")})
    for i in range(12):
        for name, before, after in (
            ("attn.qkv", HIDDEN, 3 * HIDDEN),
            ("attn.proj", HIDDEN, HIDDEN),
            ("mlp.fc1", HIDDEN, 4 * HIDDEN),
            ("mlp.fc2", 4 * HIDDEN, HIDDEN),
        ):
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = (after, before), (after,)
        shapes.update({f"blocks.{i}.norm{n}.{part}": (HIDDEN,) for n in (1, 2) for part in ("weight", "bias")})
    random = torch.Generator().manual_seed(6)
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def google_r50_b16() -> dict[str, NDArray[np.float32]]:
    """Flax's layout: convolutions (H, W, in, out), linear layers (in, out), heads an axis of their own."""
    per_head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "conv_root/kernel": (7, 7, 3, STEM),
        "gn_root/scale": (1, 1, 1, STEM),
        "gn_root/bias": (1, 1, 1, STEM),
        "embedding/kernel": (1, 1, 16 * STEM, HIDDEN),
        "embedding/bias": (HIDDEN,),
        "cls": (1, 1, HIDDEN),
        "Transformer/posembed_input/pos_embedding": (1, 197, HIDDEN),
        "Transformer/encoder_norm/scale": (HIDDEN,),
        "Transformer/encoder_norm/bias": (HIDDEN,),
        "head/kernel": (HIDDEN, 1000),
        "head/bias": (1000,),
    }
    for stage, block, before, inner in bottlenecks((3, 4, 9)):
        unit = f"block{stage + 1}/unit{block + 1}"
        shapes[f"{unit}/conv1/kernel"] = (1, 1, before, inner)
        shapes[f"{unit}/conv2/kernel"] = (3, 3, inner, inner)
        shapes[f"{unit}/conv3/kernel"] = (1, 1, inner, 4 * inner)
        norms = {"gn1": inner, "gn2": inner, "gn3": 4 * inner}
        if block == 0:
            shapes[f"{unit}/conv_proj/kernel"], norms["gn_proj"] = (1, 1, before, 4 * inner), 4 * inner
        shapes.update(
            {f"{unit}/{name}/{part}": (1, 1, 1, n) for name, n in norms.items() for part in ("scale", "bias")}
        )
    for i in range(12):
        block_name = f"Transformer/encoderblock_{i}"
        attention = f"{block_name}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (HIDDEN, HEADS, per_head)
            shapes[f"{attention}/{part}/bias"] = (HEADS, per_head)
        shapes[f"{attention}/out/kernel"], shapes[f"{attention}/out/bias"] = (HEADS, per_head, HIDDEN), (HIDDEN,)
        for name, before, after in (("Dense_0", HIDDEN, 4 * HIDDEN), ("Dense_1", 4 * HIDDEN, HIDDEN)):
            shapes[f"{block_name}/MlpBlock_3/{name}/kernel"] = (before, after)
            shapes[f"{block_name}/MlpBlock_3/{name}/bias"] = (after,)
        for name in ("LayerNorm_0", "LayerNorm_2"):
            shapes[f"{block_name}/{name}/scale"] = shapes[f"{block_name}/{name}/bias"] = (HIDDEN,)
    random = np.random.default_rng(7)
    return {name: 0.3 * random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def encoder_of(model: FusedNetwork, index: int = 0) -> transunet.Encoder:
    encoder = model.encoders[index]
    assert isinstance(encoder, transunet.Encoder)
    return encoder


@pytest.mark.parametrize("fusion", ["early", "hybrid", "late"])
def test_torchvision_resnet_starts_the_convolutions_of_every_encoder(fusion: str, tmp_path: Path, narrow: Make) -> None:
    weights = torchvision_resnet50()
    torch.save(weights, tmp_path / "resnet50.pth")
    model = narrow("transunet", 2, fusion)
    before = encoder_of(model).blocks.state_dict()
    encoders = len(model.encoders)
    # 3 of the stem, 9 a block (3 + 4 + 6 of its 16 fit), 3 a downsampling; TransUNet's third stage has 9 blocks.
    taken, of = load_pretrained(model, tmp_path / "resnet50.pth")
    assert (taken, of) == (encoders * (3 + 13 * 9 + 3 * 3), encoders * len(encoder_of(model).state_dict()))
    for encoder in model.encoders:
        state = encoder.state_dict()
        mean = weights["conv1.weight"].mean(dim=1)
        assert all(torch.equal(state["stem.0.weight"][:, c], mean) for c in range(2 if fusion == "early" else 1))
        assert torch.equal(state["stages.2.5.conv2.weight"], weights["layer3.5.conv2.weight"])
        assert torch.equal(state["stages.1.0.downsample.1.bias"], weights["layer2.0.downsample.1.bias"])
        assert torch.equal(state["stages.0.2.norm3.weight"], weights["layer1.2.bn3.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder_of(model).blocks.state_dict().items())


def test_timm_hybrid_starts_the_whole_encoder(tmp_path: Path, narrow: Make) -> None:
    weights = timm_r50_s16()
    save_file(weights, tmp_path / "r50_s16.safetensors")
    model = narrow("transunet", 3, "early")
    taken, of = load_pretrained(model, tmp_path / "r50_s16.safetensors")
    assert taken == of == len(encoder_of(model).state_dict())
    state = encoder_of(model).state_dict()
    assert torch.equal(state["blocks.11.qkv.weight"], weights["blocks.11.attn.qkv.weight"])
    assert torch.equal(state["embedding.weight"], weights["patch_embed.proj.weight"])
    assert torch.equal(
        state["stages.0.0.downsample.0.weight"],
        weights["patch_embed.backbone.stages.0.blocks.0.downsample.conv.weight"],
    )


def test_plain_vit_starts_the_transformer_alone(tmp_path: Path, narrow: Make) -> None:
    weights = {name: tensor for name, tensor in timm_r50_s16().items() if "backbone" not in name}
    weights["patch_embed.proj.weight"] = torch.randn(HIDDEN, 3, 16, 16)
    torch.save({"model": weights}, tmp_path / "vit.pth")
    model = narrow("transunet", 1, "early")
    bias = encoder_of(model).embedding.bias
    assert bias is not None
    before = bias.clone()
    # 12 tensors a block, the last norm and the positions; the bias of other patches is not taken.
    assert load_pretrained(model, tmp_path / "vit.pth")[0] == 12 * 12 + 2 + 1
    assert torch.equal(bias, before)


def test_positions_are_interpolated_without_the_class_tokens(tmp_path: Path, narrow: Make) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 14), torch.linspace(-1, 2, 14), indexing="ij")
    plane = torch.stack([y, x], dim=-1).flatten(0, 1).repeat(1, HIDDEN // 2)[None]
    torch.save({"pos_embed": torch.cat([torch.full((1, 1, HIDDEN), 9.0), plane], dim=1)}, tmp_path / "positions.pth")
    model = narrow("transunet", 1, "early")
    assert load_pretrained(model, tmp_path / "positions.pth")[0] == 1
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(-1, 2, 16), indexing="ij")
    found = encoder_of(model).positions.detach()[0, :, :2].unflatten(0, (16, 16))
    torch.testing.assert_close(found, torch.stack([y, x], dim=-1))


def test_google_npz_starts_the_whole_encoder(tmp_path: Path, narrow: Make) -> None:
    arrays = google_r50_b16()
    np.savez(tmp_path / "R50+ViT-B_16.npz", **arrays)  # type: ignore[arg-type]
    model = narrow("transunet", 2, "early")
    taken, of = load_pretrained(model, tmp_path / "R50+ViT-B_16.npz")
    assert taken == of

    encoder = encoder_of(model).eval()
    state = encoder.state_dict()
    kernel = arrays["block2/unit3/conv2/kernel"]
    assert state["stages.1.2.conv2.weight"][3, 4, 0, 2] == kernel[0, 2, 4, 3]
    assert state["stages.2.0.downsample.1.weight"][5] == arrays["block3/unit1/gn_proj/scale"][0, 0, 0, 5]

    # The first transformer block as Flax computes it, heads and all.
    block = "Transformer/encoderblock_0"
    tokens = np.random.default_rng(8).standard_normal((1, 5, HIDDEN))

    def norm(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = values - values.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
        return scaled * arrays[f"{block}/{name}/scale"] + arrays[f"{block}/{name}/bias"]

    def head(part: str) -> NDArray[np.float64]:
        name = f"{block}/MultiHeadDotProductAttention_1/{part}"
        return (
            np.einsum("btc,chd->bhtd", norm(tokens, "LayerNorm_0"), arrays[f"{name}/kernel"])
            + (arrays[f"{name}/bias"][None, :, None])
        )

    scores = np.einsum("bhqd,bhkd->bhqk", head("query"), head("key")) / np.sqrt(HIDDEN // HEADS)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    out = f"{block}/MultiHeadDotProductAttention_1/out"
    attended = np.einsum("bhqk,bhkd,hdc->bqc", shares, head("value"), arrays[f"{out}/kernel"])
    middle = tokens + attended + arrays[f"{out}/bias"]
    dense = [arrays[f"{block}/MlpBlock_3/Dense_{n}/{part}"] for n in (0, 1) for part in ("kernel", "bias")]
    inner = torch.nn.functional.gelu(torch.from_numpy(norm(middle, "LayerNorm_2") @ dense[0] + dense[1])).numpy()
    expected = middle + inner @ dense[2] + dense[3]
    with torch.no_grad():
        found = encoder.blocks[0].double()(torch.from_numpy(tokens))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", ["unet", "unext", "missformer"])
def test_other_networks_are_refused_by_name(network: str, tmp_path: Path, narrow: Make) -> None:
    torch.save(torchvision_resnet50(), tmp_path / "resnet50.pth")
    with pytest.raises(UserError, match=f"{network}.*for transunet"):
        load_pretrained(narrow(network, 1, "early"), tmp_path / "resnet50.pth")


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("1/0",)


def _write_missing(path: Path) -> Path:
    return path / "absent.pth"


def _write_text(path: Path) -> Path:
    (path / "weights.pth").write_text("not weights")
    return path / "weights.pth"


def _write_code(path: Path) -> Path:
    (path / "weights.pth").write_bytes(pickle.dumps({"conv1.weight": Malicious()}))
    return path / "weights.pth"


def _write_cut_checkpoint(path: Path) -> Path:
    torch.save(torchvision_resnet50(), path / "weights.pth")
    whole = (path / "weights.pth").read_bytes()
    (path / "weights.pth").write_bytes(whole[: len(whole) // 2])
    return path / "weights.pth"


def _write_cut_safetensors(path: Path) -> Path:
    save_file(timm_r50_s16(), path / "weights.safetensors")
    whole = (path / "weights.safetensors").read_bytes()
    (path / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    return path / "weights.safetensors"


def _write_objects(path: Path) -> Path:
    np.savez(path / "weights.npz", conv_root=np.array([Malicious()], dtype=object))
    return path / "weights.npz"


def _write_cut_npz(path: Path) -> Path:
    np.savez(path / "weights.npz", **google_r50_b16())  # type: ignore[arg-type]
    whole = (path / "weights.npz").read_bytes()
    (path / "weights.npz").write_bytes(whole[: len(whole) // 2])
    return path / "weights.npz"


def _write_words(path: Path) -> Path:
    np.savez(path / "weights.npz", names=np.array(["conv_root"]))
    return path / "weights.npz"


def _write_list(path: Path) -> Path:
    torch.save([torch.zeros(3)], path / "weights.pth")
    return path / "weights.pth"


def _write_numbers(path: Path) -> Path:
    torch.save({"epoch": 3, "lr": 0.1}, path / "weights.pth")
    return path / "weights.pth"


def _write_other_width(path: Path) -> Path:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, path / "weights.pth")
    return path / "weights.pth"


@pytest.mark.parametrize(
    "write",
    [
        _write_missing,
        _write_text,
        _write_code,
        _write_cut_checkpoint,
        _write_cut_safetensors,
        _write_objects,
        _write_cut_npz,
        _write_words,
        _write_list,
        _write_numbers,
        _write_other_width,
    ],
    ids=lambda write: write.__name__.removeprefix("_write_"),
)
def test_file_without_fitting_weights_is_refused_and_changes_nothing(
    write: Callable[[Path], Path], tmp_path: Path, narrow: Make
) -> None:
    model = narrow("transunet", 1, "early")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"weights|absent") as error:
        load_pretrained(model, write(tmp_path))
    assert "\n" not in str(error.value) and "expected torchvision's ResNet-50" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
