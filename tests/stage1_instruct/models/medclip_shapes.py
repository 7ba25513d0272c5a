"""MedCLIP's checkpoint as it is published: the name and shape of every tensor, filled with noise or with nothing."""

from __future__ import annotations

import math
import string
from pathlib import Path

import torch
from torch import Tensor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, "liver", "spleen", "is", "The", "."]

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def swin_shapes() -> Shapes:
    """vision_model.* of the ViT variant as transformers 4.24 writes it."""
    top = "vision_model.model"
    shapes: Shapes = {f"{top}.embeddings.patch_embeddings.projection.weight": (96, 3, 4, 4)}
    shapes |= {f"{top}.embeddings.patch_embeddings.projection.bias": (96,)} | norm(f"{top}.embeddings.norm", 96)
    for stage, (depth, heads) in enumerate([(2, 3), (2, 6), (6, 12), (2, 24)]):
        width = 96 * 2**stage
        layer = f"{top}.encoder.layers.{stage}"
        for block in (f"{layer}.blocks.{i}" for i in range(depth)):
            attention = f"{block}.attention.self"
            shapes |= norm(f"{block}.layernorm_before", width) | norm(f"{block}.layernorm_after", width)
            for part in ("query", "key", "value"):
                shapes |= linear(f"{attention}.{part}", width, width)
            shapes[f"{attention}.relative_position_bias_table"] = (169, heads)
            shapes[f"{attention}.relative_position_index"] = (49, 49)
            shapes |= linear(f"{block}.attention.output.dense", width, width)
            shapes |= linear(f"{block}.intermediate.dense", 4 * width, width)
            shapes |= linear(f"{block}.output.dense", width, 4 * width)
        if stage < 3:
            shapes[f"{layer}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= norm(f"{layer}.downsample.norm", 4 * width)
    return shapes | norm(f"{top}.layernorm", 768) | {"vision_model.projection_head.weight": (512, 768)}


def resnet_shapes() -> Shapes:
    """vision_model.* of the ResNet variant as torchvision writes it."""
    top = "vision_model.model"
    shapes: Shapes = {}

    def convolution(place: str, number: str, outputs: int, inputs: int, side: int) -> None:
        conv, bn = ("0", "1") if place.endswith("downsample.") else (f"conv{number}", f"bn{number}")
        shapes[f"{place}{conv}.weight"] = (outputs, inputs, side, side)
        shapes.update(norm(place + bn, outputs))
        shapes.update({f"{place}{bn}.running_mean": (outputs,), f"{place}{bn}.running_var": (outputs,)})
        shapes[f"{place}{bn}.num_batches_tracked"] = ()

    convolution(f"{top}.", "1", 64, 3, 7)
    inputs = 64
    for stage, depth in enumerate([3, 4, 6, 3]):
        inner = 64 * 2**stage
        for block in range(depth):
            place = f"{top}.layer{stage + 1}.{block}."
            convolution(place, "1", inner, inputs, 1)
            convolution(place, "2", inner, inner, 3)
            convolution(place, "3", 4 * inner, inner, 1)
            if block == 0:
                convolution(f"{place}downsample.", "", 4 * inner, inputs, 1)
            inputs = 4 * inner
    return shapes | {f"{top}.fc.weight": (512, 2048)}


def bert_shapes(words: int = 28996, inner: int = 3072) -> Shapes:
    """text_model.* as transformers 4.24 writes it."""
    top = "text_model.model"
    shapes: Shapes = {f"{top}.embeddings.position_ids": (1, 512)}
    shapes |= {f"{top}.embeddings.{name}_embeddings.weight": (rows, 768) for name, rows in _tables(words)}
    shapes |= norm(f"{top}.embeddings.LayerNorm", 768)
    for layer in (f"{top}.encoder.layer.{i}" for i in range(12)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", 768, 768)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", 768) | norm(f"{layer}.output.LayerNorm", 768)
        shapes |= linear(f"{layer}.intermediate.dense", inner, 768) | linear(f"{layer}.output.dense", 768, inner)
    return shapes | linear(f"{top}.pooler.dense", 768, 768) | {"text_model.projection_head.weight": (512, 768)}


def _tables(words: int) -> list[tuple[str, int]]:
    return [("word", words), ("position", 512), ("token_type", 2)]


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    """Noise that keeps activations of order 1; buffers that are counted, not learned, are zeros of int64."""
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith(("relative_position_index", "position_ids", "num_batches_tracked")):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif len(shape) > 1:
            state[name] = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
        else:
            around = 1 if name.endswith(("weight", "running_var")) else 0
            state[name] = around + 0.05 * torch.randn(shape)
    return state


def hollow_state(shapes: Shapes) -> dict[str, Tensor]:
    """Zeros of the right shapes that need hardly any room in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


SMALL_BERT = bert_shapes(words=len(WORDS), inner=16)
SCALE = {"logit_scale": torch.tensor(2.6593)}


def write_words(folder: Path, words: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder
