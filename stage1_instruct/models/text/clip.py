"""CLIP's text encoder (Table 4): any CLIP folder of transformers, 77 tokens, unit length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.models.batching import run_in_chosen_batches
from zeus_union.stage1_instruct.models.text.bert import tokens_beyond
from zeus_union.stage1_instruct.weights.store import digest_of, path_of

# What a whole CLIP checkpoint holds beside its text encoder (position_ids: a buffer of older versions).
_OTHER_PARTS = ("vision_model.", "visual_projection.", "logit_scale", "text_model.embeddings.position_ids")
_UNREADABLE = (OSError, ValueError, ImportError, RuntimeError)


class CLIPText:
    """Text embeddings as CLIP's get_text_features makes them, of unit length."""

    def __init__(self, folder: str, device: str | torch.device = "cpu", batch_size: int = 32) -> None:
        """A CLIP folder, e.g. openai/clip-vit-base-patch32's: a whole CLIPModel or a CLIPTextModelWithProjection.

        Raises:
            UserError: no such folder; no tokenizer; not CLIP; weights missing; a tokenizer of another model.
        """
        path = path_of(folder)
        self._tokenizer = _read_tokenizer(path)
        self._model = _read_model(path)
        self._model.to(device)
        self._device = torch.device(device)
        self._batch_size = batch_size
        config = self._model.config
        self._max_tokens = config.max_position_embeddings
        if len(self._tokenizer) != config.vocab_size:
            raise UserError(
                f"the CLIP text encoder {folder} has {config.vocab_size} embeddings but its tokenizer "
                f"{len(self._tokenizer)} tokens: not a pair"
            )
        self._digest = digest_of(folder)

    @property
    def width(self) -> int:
        return self._model.config.projection_dim

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 (B, D), in order; what else is in the batch does not change a vector."""
        vectors = np.empty((len(texts), self.width), np.float32)
        if not texts:
            return vectors
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        for alike in of_equal_length(tokens):
            parts, self._batch_size = run_in_chosen_batches(
                lambda chosen: self._embed([tokens[i] for i in chosen]),
                alike,
                self._batch_size,
                say,
                "the text encoder",
            )
            for chosen, units in parts:
                vectors[chosen] = units
        return vectors

    def dropped(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text are beyond CLIP's window: they do not count in its vector."""
        return tokens_beyond(self._tokenizer, texts, self._max_tokens)

    def _embed(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        ids = torch.tensor(tokens, device=self._device)
        return F.normalize(self._model(input_ids=ids).text_embeds, dim=-1).cpu().numpy()

    def recipe(self) -> dict[str, Any]:
        return _recipe(self._digest, self._max_tokens)

    @staticmethod
    def recipe_of(folder: str) -> dict[str, Any]:
        """`recipe` of the encoder in this folder; reads its configuration and no weights.

        Raises:
            UserError: no such folder; not CLIP.
        """
        return _recipe(digest_of(folder), _read_config(path_of(folder)).max_position_embeddings)


def _recipe(digest: str, max_tokens: int) -> dict[str, Any]:
    return {
        "source": "CLIP",
        "weights_sha256": digest,
        "pooling": "end token, projected, unit length",
        "max_tokens": max_tokens,
        "precision": "fp32",
    }


def of_equal_length(tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Positions of sequences that can be stacked without padding, each position once."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    for _, alike in groupby(order, key=lambda i: len(tokens[i])):
        yield list(alike)


def _read_tokenizer(path: Path) -> Any:
    if not ((path / "tokenizer.json").is_file() or (path / "vocab.json").is_file()):
        raise UserError(f"no CLIP tokenizer in {path}: expected tokenizer.json, or vocab.json and merges.txt")
    try:
        return transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise UserError(f"the CLIP tokenizer in {path} cannot be read: {error}") from error


def _read_config(path: Path) -> Any:
    """The text encoder's configuration in a text-only or whole CLIP folder."""
    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(path, local_files_only=True)
        kind = values.get("model_type")
        if kind not in ("clip", "clip_text_model"):
            raise UserError(f"{path} is of the type {kind}, expected CLIP: a whole model or its text encoder")
        if kind == "clip_text_model":
            return transformers.CLIPTextConfig.from_dict(values)
        whole: Any = transformers.CLIPConfig.from_dict(values)
    except _UNREADABLE as error:
        raise UserError(f"{path} is not a CLIP text encoder that transformers can read: {error}") from error
    # The width of a whole model stands beside, not inside, its text part.
    whole.text_config.projection_dim = whole.projection_dim
    return whole.text_config


def _read_model(path: Path) -> Any:
    """Frozen fp32 text encoder of a text-only or whole CLIP folder; transformers alone would let weights be missing."""
    transformers.utils.logging.disable_progress_bar()
    config = _read_config(path)
    try:
        read: Any = transformers.CLIPTextModelWithProjection.from_pretrained
        model, report = read(path, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except _UNREADABLE as error:
        raise UserError(f"{path} is not a CLIP text encoder that transformers can read: {error}") from error
    unexpected = sorted(key for key in report["unexpected_keys"] if not key.startswith(_OTHER_PARTS))
    missing = sorted(report["missing_keys"])
    if missing or unexpected:
        faults = [("missing", missing), ("unexpected", unexpected)]
        said = "; ".join(f"{len(keys)} {fault}, first {keys[0]}" for fault, keys in faults if keys)
        raise UserError(f"the weights in {path} are not a CLIP text encoder's: {said}")
    return model.eval().requires_grad_(False)
