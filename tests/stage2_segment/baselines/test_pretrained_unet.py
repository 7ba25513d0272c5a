"""Published EfficientNet weights in the pretrained U-Net: three ways to name them, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import EfficientNetBN
from safetensors.torch import save_file
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.baselines.pretrained import NoWeights, load_pretrained
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.train import train_run

# kernel, expansion, channels, blocks: table 1 of arXiv 1905.11946.
TABLE_1 = (
    (3, 1, 16, 1),
    (3, 6, 24, 2),
    (5, 6, 40, 2),
    (3, 6, 80, 3),
    (5, 6, 112, 3),
    (5, 6, 192, 4),
    (3, 6, 320, 1),
)
# The layers of a block with expansion and without, as the three packages name them; {n} counts blocks through.
NAMES: dict[str, dict[str, Any]] = {
    "efficientnet-pytorch": {
        "block": "_blocks.{n}.",
        "stem": ("_conv_stem", "_bn0"),
        "expanding": ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"),
        "first": ("_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"),
    },
    "torchvision": {
        "block": "features.{stage_from_1}.{b}.block.",
        "stem": ("features.0.0", "features.0.1"),
        "expanding": ("0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1"),
        "first": ("0.0", "0.1", "1.fc1", "1.fc2", "2.0", "2.1"),
    },
    "timm": {
        "block": "blocks.{stage}.{b}.",
        "stem": ("conv_stem", "bn1"),
        "expanding": ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"),
        "first": ("conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"),
    },
}  # fmt: skip


def published(package: str, seed: int = 0) -> dict[str, Tensor]:
    """An EfficientNet-b0's state dict of random numbers, as that package names it; the same numbers for all three."""
    names, state, random = NAMES[package], {}, torch.Generator().manual_seed(seed)

    def convolution(name: str, *shape: int, bias: bool = False) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=random)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=random)

    def batch_norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(channels, generator=random)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution(names["stem"][0], 32, 3, 3, 3)
    batch_norm(names["stem"][1], 32)
    before, number = 32, 0
    for stage, (kernel, expansion, after, blocks) in enumerate(TABLE_1):
        for b in range(blocks):
            prefix = names["block"].format(n=number, stage=stage, stage_from_1=stage + 1, b=b)
            layers = [prefix + layer for layer in names["first" if expansion == 1 else "expanding"]]
            inner, squeezed = before * expansion, before // 4
            if expansion > 1:
                convolution(layers.pop(0), inner, before, 1, 1)
                batch_norm(layers.pop(0), inner)
            depthwise, norm, reduce, expand, project, last = layers
            convolution(depthwise, inner, 1, kernel, kernel)
            batch_norm(norm, inner)
            convolution(reduce, squeezed, inner, 1, 1, bias=True)
            convolution(expand, inner, squeezed, 1, 1, bias=True)
            convolution(project, after, inner, 1, 1)
            batch_norm(last, after)
            before, number = after, number + 1
    state["classifier.weight"] = torch.zeros(1000, 1280)
    return state


def network(fusion: str = "early", modalities: int = 2, **options: Any) -> FusedNetwork:
    torch.manual_seed(0)
    return FusedNetwork("pretrained_unet", modalities, 2, fusion, **options)


@pytest.mark.parametrize("package", NAMES)
@pytest.mark.parametrize("fusion", ["early", "hybrid"])
def test_every_tensor_of_every_encoder_is_taken(package: str, fusion: str, tmp_path: Path) -> None:
    weights, model = published(package), network(fusion)
    save_file(weights, tmp_path / "b0.safetensors")
    taken, of = load_pretrained(model, tmp_path / "b0.safetensors")
    assert taken == of == len(model.encoders) * (len(weights) - 1)
    ours = published("efficientnet-pytorch")
    for encoder in model.encoders:
        state = encoder.state_dict()
        # MONAI's own loader: a stage's number stands before the block's.
        for name in state:
            if name != "_conv_stem.weight":
                assert torch.equal(state[name].float(), ours[re.sub(r"(.+)\.\d+(\.\d+\..+)", r"\1\2", name)].float())


def test_a_picture_in_all_channels_gives_what_it_gave_in_red_green_and_blue(tmp_path: Path) -> None:
    weights = published("timm")
    torch.save({"state_dict": weights}, tmp_path / "b0.pth")
    picture = torch.rand(1, 1, 16, 16)
    before = torch.nn.functional.conv2d(picture.expand(-1, 3, -1, -1), weights["conv_stem.weight"])
    for modalities in (1, 2, 3, 4):
        model = network(modalities=modalities)
        load_pretrained(model, tmp_path / "b0.pth")
        stem = model.encoders[0].state_dict()["_conv_stem.weight"]
        after = torch.nn.functional.conv2d(picture.expand(-1, modalities, -1, -1), stem)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def _of_b4(path: Path) -> Path:
    """MONAI's own EfficientNet-b4, in its names."""
    with torch.device("meta"):
        names = EfficientNetBN("efficientnet-b4", pretrained=False).state_dict()
    pattern = re.compile(r"(.+)\.\d+(\.\d+\..+)")
    save_file({pattern.sub(r"\1\2", n): torch.zeros(t.shape) for n, t in names.items()}, path / "b4.safetensors")
    return path / "b4.safetensors"


def _of_resnet(path: Path) -> Path:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, path / "resnet.pth")
    return path / "resnet.pth"


def _of_words(path: Path) -> Path:
    (path / "words.pth").write_text("no weights")
    return path / "words.pth"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_of_b4, r"b4.safetensors has _conv_stem.weight of shape \(48, 2, 3, 3\), this pretrained_unet one of \(32, "),
        (_of_resnet, "nothing in .*resnet.pth fits the encoder of pretrained_unet"),
        (_of_words, "words.pth is not a plain weights file"),
        (lambda path: path / "absent.pth", "no weights at .*absent.pth"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    write: Callable[[Path], Path], message: str, tmp_path: Path, toy_cache: Path
) -> None:
    file = write(tmp_path)
    options: dict[str, Any] = {"model": "pretrained_unet", "fusion": "early", "pretrained": file}
    with pytest.raises(UserError, match=message) as error:
        train_run(toy_cache, tmp_path / "run", device="cpu", **options)
    assert "expected an EfficientNet-b0" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_other_widths_have_no_weights(tmp_path: Path, toy_cache: Path) -> None:
    save_file(published("timm"), tmp_path / "b0.safetensors")
    with Cache(toy_cache) as cache:
        options: dict[str, Any] = {"model": "pretrained_unet", "fusion": "early"}
        with pytest.raises(UserError, match="or a --preset of other widths"):
            plan_run(cache, run=tmp_path, preset="quarter", pretrained=tmp_path / "b0.safetensors", **options)
        with pytest.raises(NoWeights, match="--model unet begins from nothing"):
            plan_run(cache, run=tmp_path, **options)
        assert plan_run(cache, run=tmp_path, pretrained=tmp_path / "b0.safetensors", **options).recipe.augment


@pytest.mark.slow
def test_it_trains_from_them(tmp_path: Path, toy_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(published("efficientnet-pytorch"), tmp_path / "b0.safetensors")
    split: dict[str, Any] = {"train_subjects": ["ada"], "test_subjects": ["ben"], "epochs": 1, "batch_size": 3}
    options: dict[str, Any] = {"model": "pretrained_unet", "fusion": "early", **split}
    train_run(toy_cache, tmp_path / "run", device="cpu", pretrained=tmp_path / "b0.safetensors", **options)
    assert load_config(tmp_path / "run").inputs.pretrained
    assert "tensors of the encoders taken" in capsys.readouterr().err.replace("\n", " ")
