"""MedCLIP's text half (Wang et al., EMNLP 2022): the encoder of the instruction.

Equal to the package medclip 0.0.3 (modeling_medclip.py); the network itself is transformers'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
from zeus_union.stage1_instruct.models.medclip_keys import (
    PROJECTED,
    check_choice,
    checkpoint_digest,
    checkpoint_path,
    load_half,
    new_text,
    read_checkpoint,
    variant_of,
)
from zeus_union.stage1_instruct.models.text.bert import tokens_beyond
from zeus_union.stage1_instruct.models.text.clip import of_equal_length
from zeus_union.stage1_instruct.weights.store import path_of

# 77: the length MedCLIP was trained with; 512: BERT's last position.
_MAX_TOKENS = {"truncate": 77, "extended": 512, "mean": 77}
_LAYERS = (1, 2, -1)


class MedCLIPText:
    """MedCLIP's frozen text half: Bio_ClinicalBERT and a projection, unit vectors of 512."""

    width = PROJECTED

    def __init__(
        self,
        weights: str,
        tokenizer_folder: str,
        window: str = "truncate",
        device: str | torch.device = "cpu",
        batch_size: int = 32,
    ) -> None:
        """Args: weights: as for MedCLIPVision, of either variant.
            tokenizer_folder: a name that `fetch` knows, or a folder with Bio_ClinicalBERT's vocab.txt or tokenizer.json.
            window: what becomes of a long text: 'truncate' keeps its first 77 tokens, 'extended' its first 512, 'mean'
                averages the unit vectors of its consecutive windows of 77 ([CLS] and [SEP] included).

        Raises:
            UserError: no such file; not a whole MedCLIP checkpoint; no tokenizer, or one of another vocabulary.
        """
        check_choice("window", window, _MAX_TOKENS)
        self._tokenizer = _read_tokenizer(path_of(tokenizer_folder))
        path = checkpoint_path(weights)
        state = read_checkpoint(path)
        # Of the sizes only these are read from the file; the tokenizer has to agree with the first.
        words = len(state["text_model.model.embeddings.word_embeddings.weight"])
        inner = len(state["text_model.model.encoder.layer.0.intermediate.dense.bias"])
        if len(self._tokenizer) != words:
            raise UserError(
                f"MedCLIP's text encoder {path} has {words} embeddings but the tokenizer {tokenizer_folder} "
                f"{len(self._tokenizer)} tokens: not a pair; expected Bio_ClinicalBERT's tokenizer"
            )
        config = transformers.BertConfig(vocab_size=words, intermediate_size=inner)
        self._net = new_text(config)
        load_half(self._net, state, "text_model", variant_of(state))
        self._net.eval().requires_grad_(False).to(device)
        self._device = torch.device(device)
        self._batch_size = batch_size
        self._window = window
        self._digest = checkpoint_digest(weights)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 (B, 512), in order; what else is in the batch does not change a vector.

        As MedCLIPModel.encode_text of one unpadded text: its token mean ignores the attention mask, so padding would
        change a vector (cosine 0.96 for 5 pads on 7 tokens).
        """
        vectors = np.zeros((len(texts), self.width), np.float32)
        if not texts:
            return vectors
        windows = [(i, tokens) for i, text in enumerate(self._tokens(texts)) for tokens in text]
        owners = np.array([owner for owner, _ in windows])
        units = np.empty((len(windows), self.width), np.float32)
        for alike in of_equal_length([tokens for _, tokens in windows]):
            parts, self._batch_size = run_in_chosen_batches(
                lambda chosen: self._embed([windows[i][1] for i in chosen]),
                alike,
                self._batch_size,
                say,
                "the text encoder",
            )
            for chosen, of_batch in parts:
                units[chosen] = of_batch
        np.add.at(vectors, owners, units)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def dropped(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text do not count in its vector; none where it is the mean over windows."""
        if self._window == "mean":
            return [0] * len(texts)
        return tokens_beyond(self._tokenizer, texts, _MAX_TOKENS[self._window])

    def recipe(self) -> dict[str, Any]:
        return _recipe(self._digest, self._tokenizer, self._window)

    @staticmethod
    def recipe_of(weights: str, tokenizer_folder: str, window: str = "truncate") -> dict[str, Any]:
        """`recipe` of the text half of this checkpoint; reads the tokenizer and no weights.

        Raises:
            UserError: no such file; no tokenizer.
        """
        return _recipe(checkpoint_digest(weights), _read_tokenizer(path_of(tokenizer_folder)), window)

    def _tokens(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Windows of token ids a text, each between [CLS] and [SEP]; a text without tokens has one, empty."""
        room = _MAX_TOKENS[self._window] - 2
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        windows = []
        for ids in self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
            pieces = [ids[at : at + room] for at in range(0, max(len(ids), 1), room)]
            kept = pieces if self._window == "mean" else pieces[:1]
            windows.append([[start, *piece, end] for piece in kept])
        return windows

    def _embed(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        """Token ids (B, L), none of them padding -> unit vectors (B, 512)."""
        ids = torch.tensor(tokens, device=self._device)
        states = self._net["model"](input_ids=ids, output_hidden_states=True).hidden_states
        pooled = torch.stack([states[layer].mean(1) for layer in _LAYERS]).mean(0)
        return F.normalize(self._net["projection_head"](pooled), dim=-1).cpu().numpy()


def _recipe(digest: str, tokenizer: Any, window: str) -> dict[str, Any]:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return {
        "source": "MedCLIP",
        "weights_sha256": digest,
        "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "lower_case": tokenizer.tokenize("A") == tokenizer.tokenize("a"),
        "pooling": "layers 1, 2 and last, mean over tokens, projected, unit length",
        "window": window,
        "max_tokens": _MAX_TOKENS[window],
        "precision": "fp32",
    }


def _read_tokenizer(folder: Path) -> Any:
    """Bio_ClinicalBERT's tokenizer as MedCLIP used it.

    Its folder has no tokenizer_config.json, so the transformers of the time lower-cased although the vocabulary is
    cased, and MedCLIP was trained so (versions since differ: 5.0.0 does not, 5.23 does again). A folder with a
    tokenizer_config.json that says otherwise is believed, and the recipe tells.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"no tokenizer in {folder}: expected vocab.txt or tokenizer.json of Bio_ClinicalBERT")
    config = folder / "tokenizer_config.json"
    try:
        lower = bool(json.loads(config.read_text()).get("do_lower_case", True)) if config.is_file() else True
        tokenizer = transformers.BertTokenizer.from_pretrained(folder, local_files_only=True, do_lower_case=lower)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise UserError(f"the tokenizer in {folder} cannot be read: {error}") from error
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in (tokenizer.cls_token, tokenizer.sep_token) if token not in vocabulary]
    if lacking:
        raise UserError(f"the tokenizer in {folder} has no {lacking[0]}: expected that of Bio_ClinicalBERT")
    return tokenizer
