"""MedCLIP's text half: unit vectors of the windows of a text, lower-cased as it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from medclip_shapes import WORDS, write_words

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.text.medclip import MedCLIPText

# [CLS] and [SEP] stand for 2 of the 77 tokens of a window.
LONG = " ".join(["liver", "is", "spleen"] * 40)
TEXTS = ["The liver is a", "", "spleen spleen spleen", "liver.", LONG, "a b c d e f g h i j k l m"]


@pytest.mark.parametrize("window", ["truncate", "extended", "mean"])
def test_vectors_are_of_unit_length_in_order_whatever_else_is_in_the_batch(text: str, words: str, window: str) -> None:
    encoder = MedCLIPText(text, words, window, batch_size=2)
    together = encoder.encode(TEXTS)
    assert (together.dtype, together.shape, encoder.width) == (np.float32, (6, 512), 512)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert np.abs(together - np.concatenate([encoder.encode([one]) for one in TEXTS])).max() < 1e-5
    assert np.abs(together[0] - together[2]).max() > 1e-3
    assert encoder.encode([]).shape == (0, 512)


def test_truncate_keeps_75_words_and_extended_510(text: str, words: str) -> None:
    many = ["liver", "is", "spleen"] * 200
    truncate, extended = MedCLIPText(text, words), MedCLIPText(text, words, "extended")
    whole = " ".join(many)
    assert np.abs(truncate.encode([whole]) - extended.encode([" ".join(many[:75])])).max() < 1e-6
    assert np.abs(truncate.encode([whole]) - extended.encode([" ".join(many[:76])])).max() > 1e-5
    assert np.abs(extended.encode([whole]) - extended.encode([" ".join(many[:510])])).max() < 1e-6
    assert np.abs(extended.encode([whole]) - extended.encode([" ".join(many[:509])])).max() > 1e-6


@pytest.mark.parametrize(
    ("window", "dropped"), [("truncate", [0, 0, 1, 525]), ("extended", [0, 0, 0, 90]), ("mean", [0] * 4)]
)
def test_tokens_beyond_the_window_are_counted(text: str, words: str, window: str, dropped: list[int]) -> None:
    encoder = MedCLIPText(text, words, window)
    assert encoder.dropped([" ".join(["liver"] * count) for count in (1, 75, 76, 600)]) == dropped


def test_mean_averages_consecutive_windows(text: str, words: str) -> None:
    many = LONG.split()
    encoder = MedCLIPText(text, words, "mean")
    parts = encoder.encode([" ".join(many[:75]), " ".join(many[75:])]).mean(0)
    assert np.abs(encoder.encode([LONG])[0] - parts / np.linalg.norm(parts)).max() < 1e-6
    assert np.abs(encoder.encode(["liver"]) - MedCLIPText(text, words).encode(["liver"])).max() < 1e-6


def test_text_is_lower_cased_as_medclip_does_unless_the_folder_says_otherwise(
    text: str, words: str, tmp_path: Path
) -> None:
    encoder = MedCLIPText(text, words)
    assert encoder.recipe()["lower_case"] is True
    assert np.array_equal(encoder.encode(["Liver A"]), encoder.encode(["liver a"]))
    cased = write_words(tmp_path / "cased", WORDS)
    (cased / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert MedCLIPText(text, str(cased)).recipe()["lower_case"] is False


def test_tokenizer_json_gives_the_same_vectors_and_recipe(text: str, words: str, tmp_path: Path) -> None:
    transformers.BertTokenizer.from_pretrained(words, do_lower_case=True).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    first, second = MedCLIPText(text, words), MedCLIPText(text, str(tmp_path))
    assert np.array_equal(first.encode(TEXTS), second.encode(TEXTS))
    assert first.recipe() == second.recipe()
    assert text not in json.dumps(first.recipe())


def test_missing_and_foreign_tokenizers_are_one_clear_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer in .*expected vocab\.txt or tokenizer\.json"):
        MedCLIPText(text, str(tmp_path))
    with pytest.raises(UserError, match=f"has {len(WORDS)} embeddings but the tokenizer .* {len(WORDS) - 1} tokens"):
        MedCLIPText(text, str(write_words(tmp_path / "fewer", WORDS[:-1])))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        MedCLIPText(text, str(tmp_path))


def test_unknown_windows_are_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match="window all: expected one of truncate, extended, mean"):
        MedCLIPText(text, words, "all")
