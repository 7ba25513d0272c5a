"""Published weights for the encoders that have some: the ResNet and ViT of TransUNet, which the paper fine-tunes (Zeus,
section 3.4), and the EfficientNet-b0 of the pretrained U-Net.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.choices import WITH_PRETRAINED

POSITIONS, EMBEDDING = "positions", "embedding.weight"  # of TransUNet


class NoWeights(UserError):
    """A model that begins from published weights has none: a row of a table is then marked as not run."""


# Ours are counted from 0, torchvision's layers and Google's blocks and units from 1.
TORCHVISION = (
    (r"^conv1\.", r"stem.0."),
    (r"^bn1\.", r"stem.1."),
    (r"^layer(\d+)\.(\d+)\.(.*)$", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.{re.sub('^bn', 'norm', m[3])}"),
)
TIMM = (
    (r"^patch_embed\.backbone\.", r""),
    (r"^stem\.conv\.", r"stem.0."),
    (r"^stem\.norm\.", r"stem.1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.downsample\.conv\.", r".downsample.0."),
    (r"\.downsample\.norm\.", r".downsample.1."),
    (r"^patch_embed\.proj\.", r"embedding."),
    (r"^pos_embed$", POSITIONS),
    (r"\.attn\.qkv\.", r".qkv."),
    (r"\.attn\.proj\.", r".projection."),
    (r"\.mlp\.fc1\.", r".expand."),
    (r"\.mlp\.fc2\.", r".reduce."),
)
GOOGLE = (
    (r"/(kernel|scale)$", r"/weight"),
    (r"^conv_root/", r"stem/0/"),
    (r"^gn_root/", r"stem/1/"),
    (r"^block(\d+)/unit(\d+)/", lambda m: f"stages/{int(m[1]) - 1}/{int(m[2]) - 1}/"),
    (r"/conv_proj/", r"/downsample/0/"),
    (r"/gn_proj/", r"/downsample/1/"),
    (r"/gn(\d)/", r"/norm\1/"),
    (r"^Transformer/posembed_input/pos_embedding$", POSITIONS),
    (r"^Transformer/encoder_norm/", r"norm/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks/\1/"),
    (r"/LayerNorm_0/", r"/norm1/"),
    (r"/LayerNorm_2/", r"/norm2/"),
    (r"/MlpBlock_3/Dense_0/", r"/expand/"),
    (r"/MlpBlock_3/Dense_1/", r"/reduce/"),
    (r"/MultiHeadDotProductAttention_1/out/", r"/projection/"),
    (r"/MultiHeadDotProductAttention_1/", r"/"),
    (r"/", r"."),
)

# EfficientNet's blocks are counted through there, within a stage here; the number in front of a name is the block's.
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # of EfficientNet-b0's stages, as in `pretrained_unet.STAGES`
FIRST_BLOCKS = (0, *accumulate(REPEATS))
EFFICIENTNET_PYTORCH = ((r"^_blocks\.(\d+)\.(_.*)$", lambda m: f"_blocks.{_stage_of(int(m[1]))}.{int(m[1])}.{m[2]}"),)
TORCHVISION_EFFICIENTNET = (
    (r"^features\.0\.0\.", r"_conv_stem."),
    (r"^features\.0\.1\.", r"_bn0."),
    (
        r"^features\.(\d+)\.(\d+)\.block\.(\d)\.(.*)$",
        lambda m: _torchvision_block(int(m[1]) - 1, int(m[2]), int(m[3]), m[4]),
    ),
)
TIMM_EFFICIENTNET = (
    (r"^conv_stem\.", r"_conv_stem."),
    (r"^bn1\.", r"_bn0."),
    (r"^blocks\.(\d+)\.(\d+)\.(.*)$", lambda m: _timm_block(int(m[1]), int(m[2]), m[3])),
)


def _stage_of(block: int) -> int:
    return max(stage for stage, first in enumerate(FIRST_BLOCKS[:-1]) if first <= block)


def _block(stage: int, number: int, rest: str) -> str:
    """Our name of what stands in a stage's block; both counted from 0."""
    return f"_blocks.{stage}.{FIRST_BLOCKS[min(stage, len(REPEATS))] + number}.{rest}"


def _torchvision_block(stage: int, number: int, layer: int, rest: str) -> str:
    """Expansion, depthwise convolution, squeeze and excitation, projection; the first stage has no expansion."""
    part = layer + 1 if stage == 0 else layer
    if part == 2:
        return _block(stage, number, rest.replace("fc1.", "_se_reduce.").replace("fc2.", "_se_expand."))
    convolution, norm = {0: ("_expand_conv", "_bn0"), 1: ("_depthwise_conv", "_bn1")}.get(
        part, ("_project_conv", "_bn2")
    )
    return _block(stage, number, re.sub(r"^1\.", f"{norm}.", re.sub(r"^0\.", f"{convolution}.", rest)))


def _timm_block(stage: int, number: int, rest: str) -> str:
    names = {
        "conv_dw.": "_depthwise_conv.",
        "se.conv_reduce.": "_se_reduce.",
        "se.conv_expand.": "_se_expand.",
        "conv_pwl.": "_project_conv.",
    }
    # The first stage has no expansion: its conv_pw projects.
    if stage == 0:
        names |= {"conv_pw.": "_project_conv.", "bn1.": "_bn1.", "bn2.": "_bn2."}
    else:
        names |= {"conv_pw.": "_expand_conv.", "bn1.": "_bn0.", "bn2.": "_bn1.", "bn3.": "_bn2."}
    for theirs, ours in names.items():
        if rest.startswith(theirs):
            return _block(stage, number, ours + rest.removeprefix(theirs))
    return _block(stage, number, rest)


@dataclass(frozen=True)
class Published:
    """The weights that a network's encoder can begin from.

    Attributes:
        expected: which, for messages.
        rules: patterns of the files' names and what stands for them in ours.
        stem: our first convolution.
        whole: a tensor in another shape than ours is that of another network; otherwise it is left out.
        scaled: whether the scale of the first filters matters; TransUNet standardises them.
    """

    expected: str
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
    stem: str
    whole: bool
    scaled: bool


PUBLISHED: Mapping[str, Published] = {
    "transunet": Published(
        "expected torchvision's ResNet-50, timm's vit_base_r50_s16 or vit_base_patch16 (.safetensors, .pth), "
        "or Google's R50+ViT-B_16.npz",
        (*TORCHVISION, *TIMM),
        "stem.0.weight",
        whole=False,
        scaled=False,
    ),
    "pretrained_unet": Published(
        "expected an EfficientNet-b0 of efficientnet-pytorch, torchvision or timm (.safetensors, .pth)",
        (*EFFICIENTNET_PYTORCH, *TORCHVISION_EFFICIENTNET, *TIMM_EFFICIENTNET),
        "_conv_stem.weight",
        whole=True,
        scaled=True,
    ),
}


def load_pretrained(model: FusedNetwork, path: Path) -> tuple[int, int]:
    """Starts all encoders from a file of published weights.

    Images here have other channels than red, green and blue: the mean over those three is each one's first filter, scaled
    so that a picture in all channels gives what it gave in those three. TransUNet's position
    embeddings are interpolated to our 16 x 16 tokens, without the class token's; a batch norm's scale and offset become
    those of its group norm, and what does not fit in name and shape stays as it was.

    Args:
        path: for TransUNet a ResNet-50 as torchvision names it (.pth, .safetensors); timm's vit_base_r50_s16 or
            vit_base_patch16, the latter for the transformer alone; Google's R50+ViT-B_16.npz, which the authors start
            from. For the pretrained U-Net an EfficientNet-b0 as efficientnet-pytorch, torchvision or timm names it.
    Returns:
        tensors taken, tensors of the encoders in all.
    Raises:
        UserError: as `fitting_weights`.
    """
    fitting = fitting_weights(model, path)
    for encoder, tensors in zip(model.encoders, fitting):
        encoder.load_state_dict(tensors, strict=False)
    return sum(map(len, fitting)), sum(len(encoder.state_dict()) for encoder in model.encoders)


def fitting_weights(model: FusedNetwork, path: Path) -> list[dict[str, Tensor]]:
    """For each encoder of a model, which may be without memory (meta), the tensors of a file that fit it.

    Raises:
        UserError: a network without published weights; no such file, damaged, or one that holds more than arrays; nothing
            in it fits; of the pretrained U-Net a tensor of another shape.
    """
    if model.network not in WITH_PRETRAINED:
        raise UserError(
            f"there are no published weights for the encoder of {model.network}; --pretrained is for "
            f"{', '.join(WITH_PRETRAINED)}, leave it out"
        )
    published = PUBLISHED[model.network]
    weights = _read(path, published)
    fitting = []
    for encoder in model.encoders:
        state = encoder.state_dict()
        tensors = {name: t for name in state if (t := _fitted(name, weights, state[name], published)) is not None}
        other = [name for name, tensor in tensors.items() if tensor.shape != state[name].shape]
        if other and published.whole:
            raise UserError(
                f"{path} has {other[0]} of shape {tuple(tensors[other[0]].shape)}, this {model.network} one of "
                f"{tuple(state[other[0]].shape)}: another network, or a --preset of other widths; {published.expected}"
            )
        for name in other:
            del tensors[name]
        if EMBEDDING not in tensors:  # its bias alone would be that of other patches
            tensors.pop("embedding.bias", None)
        fitting.append(tensors)
    if not any(fitting):
        raise UserError(
            f"nothing in {path} fits the encoder of {model.network} ({len(weights)} tensors); {published.expected}"
        )
    return fitting


def _fitted(name: str, weights: Mapping[str, Tensor], ours: Tensor, published: Published) -> Tensor | None:
    """What a file has for one of our tensors, brought to its shape where that can be; None: nothing."""
    tensor = weights.get(name)
    if tensor is None:
        return None
    if name == published.stem and tensor.dim() == 4:
        before, channels = tensor.shape[1], ours.shape[1]
        tensor = tensor.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
        if published.scaled:
            tensor = tensor * (before / channels)
    if name == POSITIONS and tensor.dim() == 3:
        tensor = _resampled(tensor, math.isqrt(ours.shape[1]))
    return tensor


def _resampled(positions: Tensor, side: int) -> Tensor:
    """Embeddings (1, n^2 or 1 + n^2, C) of a square of tokens -> (1, side^2, C), bilinear, corners kept."""
    before = math.isqrt(positions.shape[1])
    grid = positions[:, positions.shape[1] - before**2 :].unflatten(1, (before, before)).permute(0, 3, 1, 2)
    resampled = F.interpolate(grid, (side, side), mode="bilinear", align_corners=True)
    return resampled.flatten(2).transpose(1, 2)


def _read(path: Path, published: Published) -> dict[str, Tensor]:
    """A file's tensors, float32, under the encoder's names where they have one."""
    expected = published.expected
    if not path.is_file():
        raise UserError(f"no weights at {path}; {expected}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _from_google({name: torch.from_numpy(arrays[name]).float() for name in arrays.files})
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a plain weights file: it would run code, or is none at all; {expected}"
        ) from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        SafetensorError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(f"{path} cannot be read as weights ({' '.join(str(error).split())}); {expected}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds {type(state).__name__}, not a state dict of tensors; {expected}")
    return {_renamed(name, published.rules): tensor.float() for name, tensor in state.items()}


def _renamed(name: str, rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]) -> str:
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    return name


def _from_google(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions are (H, W, in, out) there, linear layers (in, out); attention splits one side into heads."""
    state = {}
    for name, array in arrays.items():
        ours = name
        for pattern, replacement in GOOGLE:
            ours = re.sub(pattern, replacement, ours)
        if ours.endswith(".weight") and array.dim() == 4 and name.endswith("kernel"):
            array = array.permute(3, 2, 0, 1)
        elif name.endswith("kernel"):
            array = (array.flatten(0, -2) if ours.endswith("projection.weight") else array.flatten(1)).T
        elif ours != POSITIONS:
            array = array.flatten()
        state[ours] = array
    for name in [name for name in state if ".query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[name.replace(".query.", ".qkv.")] = torch.cat([state[part] for part in parts])
    return state
