"""What a text encoder does not read of a text is counted, by every text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zeus_union.stage1_instruct.models.text.bert import TextEncoder, tokens_beyond


def test_bert_counts_the_tokens_beyond_its_window_and_only_they_do_not_count(tiny_bert: Path) -> None:
    """128 positions, one token a byte, one in front."""
    encoder = TextEncoder(str(tiny_bert))
    texts = ["", "a" * 127, "a" * 128, "a" * 140]
    assert encoder.dropped(texts) == [0, 0, 1, 13]
    assert encoder.dropped([]) == []
    vectors = encoder.encode(texts)
    assert np.abs(vectors[1:] - vectors[1]).max() < 1e-6


def test_batches_are_halved_when_memory_runs_out_and_no_vector_changes(tiny_bert: Path) -> None:
    import torch

    texts = [f"Text {number} {'long ' * (number % 5)}" for number in range(11)]
    expected = TextEncoder(str(tiny_bert)).encode(texts)
    encoder = TextEncoder(str(tiny_bert), batch_size=8)

    def refuse(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        if len(given["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    encoder._model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert np.abs(encoder.encode(texts) - expected).max() < 1e-6
    assert encoder.encode([]).shape == (0, 32)


def test_count_is_of_the_tokenizer_and_not_of_letters(tiny_bert: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    assert tokens_beyond(tokenizer, ["\u00e4" * 4, "abcd"], 5) == [4, 0]
