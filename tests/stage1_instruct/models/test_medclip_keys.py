"""MedCLIP's checkpoint is loaded whole or refused, by either half."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from medclip_shapes import (
    SCALE,
    SMALL_BERT,
    WORDS,
    bert_shapes,
    hollow_state,
    random_state,
    resnet_shapes,
    swin_shapes,
    write_words,
)
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.text.medclip import MedCLIPText
from zeus_union.stage1_instruct.models.vision.medclip import MedCLIPVision


def test_released_checkpoint_has_434_tensors_and_the_published_number_of_parameters() -> None:
    shapes = swin_shapes() | bert_shapes() | {"logit_scale": ()}
    counted = {name: shape for name, shape in shapes.items() if not name.endswith(("_index", "position_ids"))}
    assert (len(shapes), len(counted)) == (434, 421)
    assert sum(math.prod(shape) for shape in counted.values()) == 136_616_059
    learned = [shape for name, shape in resnet_shapes().items() if not name.endswith(("_mean", "_var", "_tracked"))]
    assert (len(resnet_shapes()), sum(math.prod(shape) for shape in learned)) == (319, 24_556_608)


def refused(state: Mapping[str, Tensor], path: Path, words: str) -> list[str]:
    """What both halves say of a checkpoint."""
    torch.save(dict(state), path)
    said = []
    with pytest.raises(UserError) as vision:
        MedCLIPVision("vit", str(path))
    said.append(str(vision.value))
    with pytest.raises(UserError) as text:
        MedCLIPText(str(path), words)
    return [*said, str(text.value)]


def test_half_a_file_is_refused_by_either_half_naming_the_first_missing_tensor(words: str, tmp_path: Path) -> None:
    whole = hollow_state(swin_shapes() | SMALL_BERT) | SCALE
    without_text = {name: tensor for name, tensor in whole.items() if not name.startswith("text_model")}
    last = "text_model.model.encoder.layer.11.output.dense.bias"
    without_one = {name: tensor for name, tensor in whole.items() if name != last}
    for message in refused(without_text, tmp_path / "a.bin", words):
        assert "missing, first text_model.model." in message
    for message in refused(without_one, tmp_path / "b.bin", words):
        assert f"1 missing, first {last}" in message


def test_tensor_too_many_is_refused_by_either_half(words: str, tmp_path: Path) -> None:
    state = hollow_state(swin_shapes() | SMALL_BERT) | SCALE | {"vision_model.model.head.weight": torch.zeros(1)}
    for message in refused(state, tmp_path / "a.bin", words):
        assert "1 unexpected, first vision_model.model.head.weight" in message


def test_ordinary_bert_is_refused_as_no_medclip(tiny_bert: Path, words: str, tmp_path: Path) -> None:
    state = transformers.AutoModel.from_pretrained(tiny_bert).state_dict()
    for message in refused(state, tmp_path / "bert.bin", words):
        assert "is not a MedCLIP checkpoint" in message


@pytest.mark.slow
def test_checkpoint_of_full_size_loads_in_both_halves(tmp_path: Path) -> None:
    state = random_state(swin_shapes() | bert_shapes()) | SCALE
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert len(state) == 434
    words = write_words(tmp_path / "words", [*WORDS, *(f"word{i}" for i in range(28996 - len(WORDS)))])
    assert (
        MedCLIPVision("vit", str(tmp_path), "projected")
        .tokens(torch.zeros(1, 256, 256, dtype=torch.uint8))
        .isfinite()
        .all()
    )
    vectors = MedCLIPText(str(tmp_path), str(words)).encode(["The liver is a", "spleen"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
