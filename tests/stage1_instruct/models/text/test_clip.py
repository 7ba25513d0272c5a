"""CLIP's text vectors are transformers', of unit length, and of a text alone whatever else is in the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.text.clip import CLIPText, of_equal_length

TEXTS = [
    "The liver is bright.",
    "",
    "spleen",
    "A large, dark spleen lies at the back left of this slice." * 3,
    "kidney",
]


def write_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """CLIP's kind of tokenizer with a letter a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_config(words: int) -> transformers.CLIPConfig:
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # As in openai's published files, the width of a text-only model is stated twice and the end token's id is 2.
    text = {**body, "vocab_size": words, "eos_token_id": 2, "bos_token_id": 0}
    return transformers.CLIPConfig(
        text_config=text, vision_config={**body, "image_size": 32, "patch_size": 8}, projection_dim=24
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIPModel of random weights, in openai's layout."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = write_tokenizer(folder)
    model = transformers.CLIPModel(tiny_config(len(tokenizer)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_only(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text encoder alone of the same."""
    folder = tmp_path_factory.mktemp("clip_text")
    write_tokenizer(folder)
    model = transformers.CLIPModel.from_pretrained(whole)
    config = model.config.text_config
    config.projection_dim = 24
    part = transformers.CLIPTextModelWithProjection(config)
    state = {key: value for key, value in model.state_dict().items() if key.startswith("text_")}
    part.load_state_dict(state)
    part.save_pretrained(folder)
    return folder


@torch.inference_mode()
def test_vectors_are_those_of_the_whole_clip_model(whole: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(whole).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(whole)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    hidden = model.text_model(**tokens).pooler_output
    expected = torch.nn.functional.normalize(model.text_projection(hidden), dim=-1).numpy()
    vectors = CLIPText(str(whole)).encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 24))
    assert np.abs(vectors - expected).max() < 1e-5
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-2


def test_text_encoder_alone_gives_the_same_vectors_as_the_whole_model(whole: Path, text_only: Path) -> None:
    assert np.abs(CLIPText(str(whole)).encode(TEXTS) - CLIPText(str(text_only)).encode(TEXTS)).max() < 1e-6


def test_batch_does_not_change_a_vector(whole: Path) -> None:
    encoder = CLIPText(str(whole), batch_size=2)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.abs(encoder.encode(TEXTS) - alone).max() < 1e-5
    assert encoder.encode([]).shape == (0, encoder.width) == (0, 24)


def test_text_beyond_77_tokens_is_cut(whole: Path) -> None:
    encoder = CLIPText(str(whole))
    assert np.abs(encoder.encode(["a " * 75]) - encoder.encode(["a " * 75 + "b " * 20])).max() < 1e-6
    assert np.abs(encoder.encode(["a " * 74]) - encoder.encode(["a " * 74 + "b"])).max() > 1e-5


def test_tokens_beyond_77_are_counted(whole: Path) -> None:
    encoder = CLIPText(str(whole))
    assert encoder.dropped(["a", "a " * 75, "a " * 76, "a " * 100]) == [0, 0, 1, 25]


def test_recipe_tells_the_length_and_not_the_place(whole: Path) -> None:
    recipe = CLIPText(str(whole)).recipe()
    assert recipe["max_tokens"] == 77
    assert str(whole) not in json.dumps(recipe)


def test_sequences_are_batched_by_equal_length() -> None:
    tokens = [[1], [1, 2], [3], [4], [5, 6]]
    assert list(of_equal_length(tokens)) == [[0, 2, 3], [1, 4]]


def test_folder_without_tokenizer_or_model_is_one_clear_error(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CLIP tokenizer in"):
        CLIPText(str(tmp_path))
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match="CLIP"):
        CLIPText(str(tmp_path))
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    with pytest.raises(UserError, match="is not a CLIP text encoder"):
        CLIPText(str(tmp_path))


def test_ordinary_bert_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match="is of the type bert, expected CLIP"):
        CLIPText(str(tmp_path))


def test_weights_without_a_tensor_are_refused_naming_it(text_only: Path, tmp_path: Path) -> None:
    model = transformers.CLIPTextModelWithProjection.from_pretrained(text_only)
    state = {key: value for key, value in model.state_dict().items() if key != "text_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"1 missing, first text_projection\.weight"):
        CLIPText(str(tmp_path))


def test_tokenizer_of_another_model_is_refused(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.CLIPModel(tiny_config(100)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"has 100 embeddings but its tokenizer \d+ tokens: not a pair"):
        CLIPText(str(tmp_path))
