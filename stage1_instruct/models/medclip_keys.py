"""MedCLIP's checkpoint: the names its released files use, and what of a file each half of the model takes.

The files were written under transformers 4.24 and torchvision. transformers 5 calls Swin's tensors otherwise, and its
ResNet never had torchvision's names, so a non-strict load would leave nearly every block at random without a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.weights.files import load_strictly, read_weights
from zeus_union.stage1_instruct.weights.sources import SOURCES
from zeus_union.stage1_instruct.weights.store import digest_of, path_of

# The variants, by the names they have in a profile.
BACKBONES: Mapping[str, str] = {"vit": "Swin-T", "resnet": "ResNet-50"}
# Width of the features before the projection; the projection makes 512 of either.
WIDTHS: Mapping[str, int] = {"vit": 768, "resnet": 2048}
PROJECTED = 512

_FILES = ("pytorch_model.bin", "model.safetensors")
# Buffers that follow from the sizes, or that only training reads; versions differ in whether they are saved. The
# model's own are kept, so that it does not matter whether a file has them.
_OPTIONAL = ("relative_position_index", "embeddings.position_ids", "num_batches_tracked")
_SWIN_NAMES = {
    ".attention.q_proj.": ".attention.self.query.",
    ".attention.k_proj.": ".attention.self.key.",
    ".attention.v_proj.": ".attention.self.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".attention.relative_position_bias.": ".attention.self.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
_RESNET_PART = re.compile(r"encoder\.stages\.(\d)\.layers\.(\d)\.(shortcut|layer\.\d)\.(convolution|normalization)")


def new_vision(variant: str) -> nn.ModuleDict:
    """Untrained image half: 'model' (a transformers backbone) and 'projection_head' (Linear to 512, no bias)."""
    if variant == "vit":
        # The defaults are microsoft/swin-tiny-patch4-window7-224.
        backbone: nn.Module = transformers.SwinModel(transformers.SwinConfig())
    else:
        # The defaults are ResNet-50 v1.5, torchvision's: the stride is on the 3 x 3 convolution.
        backbone = transformers.ResNetModel(transformers.ResNetConfig())
    head = nn.Linear(WIDTHS[variant], PROJECTED, bias=False)
    return nn.ModuleDict({"model": backbone, "projection_head": head})


def new_text(config: transformers.BertConfig) -> nn.ModuleDict:
    """Untrained text half: 'model' (BERT) and 'projection_head' (Linear 768 -> 512, no bias)."""
    head = nn.Linear(config.hidden_size, PROJECTED, bias=False)
    return nn.ModuleDict({"model": transformers.BertModel(config), "projection_head": head})


def checkpoint_path(weights: str) -> Path:
    """The checkpoint of a part: the file itself, or pytorch_model.bin (or model.safetensors) of the folder.

    Raises:
        UserError: no such path; a folder without either file.
    """
    path = path_of(weights)
    if path.is_file():
        return path
    files = [path / name for name in _FILES if (path / name).is_file()]
    if not files:
        raise UserError(f"no MedCLIP checkpoint in {path}: expected {_FILES[0]}, as its released zip holds it")
    return files[0]


def checkpoint_digest(weights: str) -> str:
    """`digest_of` the checkpoint alone, so that naming the file or its folder gives one recipe; nothing is loaded."""
    return digest_of(weights if weights in SOURCES else str(checkpoint_path(weights)))


def check_choice(what: str, value: str, choices: Collection[str]) -> None:
    """Raises UserError: `value` is none of `choices`."""
    if value not in choices:
        raise UserError(f"MedCLIP {what} {value}: expected one of {', '.join(choices)}")


def read_checkpoint(path: Path, variant: str | None = None) -> dict[str, Tensor]:
    """A whole MedCLIP checkpoint under its released (transformers 4.24) names.

    Args:
        variant: the variant it has to be of; None takes either.
    Raises:
        UserError: no MedCLIP checkpoint; of the other variant; a tensor missing or too many, anywhere in the file.
    """
    state = {_released(key): value for key, value in read_weights(path).items()}
    held = _variant_of(state)
    if held is None:
        raise UserError(
            f"{path} is not a MedCLIP checkpoint: it holds {next(iter(state))} and {len(state) - 1} more, "
            "expected vision_model.*, text_model.* and logit_scale"
        )
    if variant is not None and variant != held:
        raise UserError(
            f"{path} seems to be MedCLIP's {BACKBONES[held]} variant ('{held}'), expected the "
            f"{BACKBONES[variant]} one ('{variant}'); get that file, or set the vision part to medclip_{held}"
        )
    expected = _names(held)
    missing = [name for name in expected if name not in state and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in state if name not in expected and not name.endswith(_OPTIONAL)]
    if missing or unexpected:
        faults = [("missing", missing), ("unexpected", unexpected)]
        said = "; ".join(f"{len(names)} {fault}, first {names[0]}" for fault, names in faults if names)
        raise UserError(
            f"{path} is not a whole MedCLIP checkpoint ({BACKBONES[held]}): {said}; get the file from its publisher "
            "again"
        )
    return state


def load_half(module: nn.ModuleDict, state: Mapping[str, Tensor], half: str, variant: str) -> None:
    """Fills 'vision_model' or 'text_model' from a checkpoint that `read_checkpoint` gave.

    Raises:
        UserError: a tensor of another shape.
    """
    wanted = {
        key: value if key.endswith(_OPTIONAL) else state[_file_name(key, half, variant)]
        for key, value in module.state_dict().items()
    }
    load_strictly(module, wanted, f"MedCLIP's {half} ({BACKBONES[variant]})")


def variant_of(state: Mapping[str, Tensor]) -> str:
    """Which variant a checkpoint of `read_checkpoint` is of."""
    variant = _variant_of(state)
    assert variant is not None
    return variant


def _variant_of(names: Iterable[str]) -> str | None:
    for name in names:
        if name.startswith(("vision_model.model.encoder.layers.", "vision_model.projection_head.")):
            return "vit"
        if name.startswith(("vision_model.model.layer1.", "vision_model.model.fc.")):
            return "resnet"
    return None


@cache
def _names(variant: str) -> frozenset[str]:
    with torch.device("meta"):
        vision, text = new_vision(variant), new_text(transformers.BertConfig())
    vision_names = {_file_name(key, "vision_model", variant) for key in vision.state_dict()}
    text_names = {_file_name(key, "text_model", variant) for key in text.state_dict()}
    return frozenset(vision_names | text_names | {"logit_scale"})


def _file_name(key: str, half: str, variant: str) -> str:
    """A key of `new_vision` or `new_text` -> its released name."""
    if half == "text_model":
        return f"text_model.{key}"
    if variant == "vit":
        return _released(f"vision_model.{key}")
    if key == "projection_head.weight":
        # Here torchvision's classifier, replaced by a Linear without bias, is the projection.
        return "vision_model.model.fc.weight"
    return "vision_model.model." + _torchvision_name(key.removeprefix("model."))


def _released(name: str) -> str:
    """A name as transformers 4.24 wrote it; what already is one stays as it is."""
    if name.startswith("vision_model."):
        for new, old in _SWIN_NAMES.items():
            name = name.replace(new, old)
    return name


def _torchvision_name(key: str) -> str:
    """A key of transformers' ResNetModel -> torchvision's."""
    stem = key.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    match = _RESNET_PART.match(stem)
    if match is None:
        return stem
    stage, block, part, kind = match.groups()
    if part == "shortcut":
        layer = f"downsample.{0 if kind == 'convolution' else 1}"
    else:
        layer = f"{'conv' if kind == 'convolution' else 'bn'}{int(part[-1]) + 1}"
    return f"layer{int(stage) + 1}.{block}.{layer}{stem[match.end() :]}"
