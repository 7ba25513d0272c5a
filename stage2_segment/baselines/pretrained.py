"""Published weights for TransUNet's encoder: the paper fine-tunes a pretrained ResNet and ViT (Zeus, section 3.4)."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
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

FITTING = ("transunet",)
EXPECTED = (
    "expected torchvision's ResNet-50, timm's vit_base_r50_s16 or vit_base_patch16 (.safetensors, .pth), "
    "or Google's R50+ViT-B_16.npz"
)
STEM, POSITIONS, EMBEDDING = "stem.0.weight", "positions", "embedding.weight"

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


def load_pretrained(model: FusedNetwork, path: Path) -> tuple[int, int]:
    """Starts all encoders of a TransUNet from a file; what does not fit in name and shape stays as it was.

    Images here have other channels than red, green and blue: the mean over those three is each one's first filter.
    Position embeddings are interpolated to our 16 x 16 tokens, without the class token's. A batch norm's scale and
    offset become those of our group norm.

    Args:
        path: a ResNet-50 as torchvision names it (.pth, .safetensors); timm's vit_base_r50_s16 or vit_base_patch16,
            the latter for the transformer alone; Google's R50+ViT-B_16.npz, which the authors start from.
    Returns:
        tensors taken, tensors of the encoders in all.
    Raises:
        UserError: another network than TransUNet; no such file, damaged, or one that holds more than arrays; nothing
            in it fits.
    """
    if model.network not in FITTING:
        raise UserError(
            f"there are no published weights for the encoder of {model.network}; --pretrained is for "
            f"{', '.join(FITTING)}, leave it out"
        )
    weights = _read(path)
    taken = 0
    for encoder in model.encoders:
        state = encoder.state_dict()
        fitting = {name: t for name in state if (t := _fitted(name, weights, state[name])) is not None}
        if EMBEDDING not in fitting:  # its bias alone would be that of other patches
            fitting.pop("embedding.bias", None)
        encoder.load_state_dict(fitting, strict=False)
        taken += len(fitting)
    if not taken:
        raise UserError(f"nothing in {path} fits the encoder of {model.network} ({len(weights)} tensors); {EXPECTED}")
    return taken, sum(len(encoder.state_dict()) for encoder in model.encoders)


def _fitted(name: str, weights: Mapping[str, Tensor], ours: Tensor) -> Tensor | None:
    """What a file has for one of our tensors, in its shape; None: nothing."""
    tensor = weights.get(name)
    if tensor is None:
        return None
    if name == STEM and tensor.dim() == 4:
        tensor = tensor.mean(dim=1, keepdim=True).expand(-1, ours.shape[1], -1, -1)
    if name == POSITIONS and tensor.dim() == 3:
        tensor = _resampled(tensor, math.isqrt(ours.shape[1]))
    return tensor if tensor.shape == ours.shape else None


def _resampled(positions: Tensor, side: int) -> Tensor:
    """Embeddings (1, n^2 or 1 + n^2, C) of a square of tokens -> (1, side^2, C), bilinear, corners kept."""
    before = math.isqrt(positions.shape[1])
    grid = positions[:, positions.shape[1] - before**2 :].unflatten(1, (before, before)).permute(0, 3, 1, 2)
    resampled = F.interpolate(grid, (side, side), mode="bilinear", align_corners=True)
    return resampled.flatten(2).transpose(1, 2)


def _read(path: Path) -> dict[str, Tensor]:
    """A file's tensors, float32, under the encoder's names where they have one."""
    if not path.is_file():
        raise UserError(f"no weights at {path}; {EXPECTED}")
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
            f"{path} is not a plain weights file: it would run code, or is none at all; {EXPECTED}"
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
        raise UserError(f"{path} cannot be read as weights ({' '.join(str(error).split())}); {EXPECTED}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds {type(state).__name__}, not a state dict of tensors; {EXPECTED}")
    return {_renamed(name): tensor.float() for name, tensor in state.items()}


def _renamed(name: str) -> str:
    for rules in (TORCHVISION, TIMM):
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
