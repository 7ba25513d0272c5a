"""The encoder that turns an instruction into one vector: any BERT-class folder, masked mean, unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray

from zeus_union.cache.terminal import progress_bar, say
from zeus_union.stage1_instruct.models.batching import run_in_batches
from zeus_union.stage1_instruct.models.pretrained import check_ids, load_pretrained, read_config
from zeus_union.stage1_instruct.weights.store import digest_of

TEXTS_A_STEP = 256  # of the progress bar


class InstructionEncoder(Protocol):
    """A frozen text encoder: one unit vector a text.

    Attributes:
        width: D of the vectors.
    """

    @property
    def width(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Float32 (B, D), in order; what else is in the batch does not change a vector."""

    def dropped(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text are beyond what the encoder reads: they do not count in its vector."""

    def recipe(self) -> dict[str, Any]:
        """What decides the vectors, JSON-able, without paths; `recipe_of` of the class gives it without loading."""


def encode_distinct(encoder: InstructionEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Float32 (B, D), in order; a text that comes several times is encoded once."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return encoder.encode(list(rows))[[rows[text] for text in texts]]


def encode_under_bar(encoder: InstructionEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Float32 (B, D), in order, under a progress bar; texts of like length together, so that little is padding."""
    vectors = np.empty((len(texts), encoder.width), np.float32)
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    with progress_bar() as bar:
        task = bar.add_task("encoding texts", total=len(texts))
        for start in range(0, len(order), TEXTS_A_STEP):
            chosen = order[start : start + TEXTS_A_STEP]
            vectors[chosen] = encoder.encode([texts[number] for number in chosen])
            bar.advance(task, len(chosen))
    return vectors


def tokens_beyond(tokenizer: Any, texts: Sequence[str], room: int) -> list[int]:
    """How many tokens of each text, special ones included, a window of `room` tokens cuts off."""
    if not texts:
        return []
    return [max(0, len(ids) - room) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


class TextEncoder:
    """Sentence embeddings as sentence-transformers makes them for all-MiniLM-L6-v2."""

    def __init__(
        self, weights: str = "all-minilm-l6-v2", device: str | torch.device = "cpu", batch_size: int = 32
    ) -> None:
        """Args: weights: a name that `fetch` knows, or a folder with config, weights and tokenizer."""
        self._tokenizer, self._model = load_pretrained(transformers.AutoModel, weights, "text encoder")
        self._model.to(device)
        self._device = torch.device(device)
        self._batch_size = batch_size
        self._max_tokens = _max_tokens(self._model.config)
        self._digest = digest_of(weights)

    @property
    def width(self) -> int:
        return self._model.config.hidden_size

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 (B, D), in order; what else is in the batch does not change a vector."""
        # Texts of like length go together, so that little padding is computed.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts, self._batch_size = run_in_batches(
            lambda batch: self._embed([texts[i] for i in order[batch]]),
            len(texts),
            self._batch_size,
            say,
            "the text encoder",
        )
        vectors = np.empty((len(texts), self.width), np.float32)
        if parts:
            vectors[order] = np.concatenate(parts)
        return vectors

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        rows, ids = self._model.get_input_embeddings().num_embeddings, tokens["input_ids"]
        real = tokens["attention_mask"].bool()
        check_ids(self._tokenizer, ids[real].tolist(), rows)
        # A padding token may have no embedding; what stands where nothing looks does not matter.
        tokens["input_ids"] = ids.masked_fill(~real & (ids >= rows), 0)
        states = self._model(**tokens).last_hidden_state
        mask = real[..., None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        return F.normalize(mean, dim=-1).cpu().numpy()

    def dropped(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text are beyond the encoder's window: they do not count in its vector."""
        return tokens_beyond(self._tokenizer, texts, self._max_tokens)

    def recipe(self) -> dict[str, Any]:
        return _recipe(self._digest, self._max_tokens)

    @staticmethod
    def recipe_of(weights: str) -> dict[str, Any]:
        """`recipe` of the encoder in this folder; reads its configuration and no weights.

        Raises:
            UserError: no such folder; no configuration in it.
        """
        return _recipe(digest_of(weights), _max_tokens(read_config(weights, "text encoder")))


def _max_tokens(config: Any) -> int:
    """256 is what all-MiniLM-L6-v2 was made for; instructions of up to 300 tokens lose their end."""
    return min(256, config.max_position_embeddings)


def _recipe(digest: str, max_tokens: int) -> dict[str, Any]:
    return {
        "weights_sha256": digest,
        "pooling": "mean over tokens, unit length",
        "max_tokens": max_tokens,
        "precision": "fp32",
    }
