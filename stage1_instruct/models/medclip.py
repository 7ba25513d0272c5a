"""MedCLIP (Wang et al., EMNLP 2022): what of a picture the LLM is shown, and the encoder of the instruction.

Equal to the package medclip 0.0.3 (modeling_medclip.py, dataset.py); the networks themselves are transformers'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.medclip_keys import (
    BACKBONES,
    PROJECTED,
    WIDTHS,
    checkpoint_path,
    load_half,
    new_text,
    new_vision,
    read_checkpoint,
    variant_of,
)
from zeus_union.stage1_instruct.models.text.clip import batches_of_equal_length
from zeus_union.stage1_instruct.weights.sources import SOURCES
from zeus_union.stage1_instruct.weights.store import digest_of, path_of

FEATURES = ("pooled", "projected", "tokens")
SIDE = 224
# One pair for all channels (medclip/constants.py).
MEAN, STD = 0.5862785803043838, 0.27950088968644304
# Both backbones divide the side by 32: 7 x 7 places.
_PLACES = (SIDE // 32) ** 2
# 77: the length MedCLIP was trained with; 512: BERT's last position.
_MAX_TOKENS = {"truncate": 77, "extended": 512, "mean": 77}
_LAYERS = (1, 2, -1)


def preprocess(images: NDArray[np.uint8]) -> Tensor:
    """MedCLIPFeatureExtractor: centred on a black square of at least 224, bicubic to 224, scaled by one mean and std.

    Args:
        images: uint8 (B, H, W), grey.
    Returns:
        float32 (B, 3, 224, 224) on the CPU, the three channels alike.
    """
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"images {images.dtype} {images.shape}, expected uint8 (B, H, W)")
    height, width = images.shape[1:]
    side = max(SIDE, height, width)
    values = np.empty((len(images), SIDE, SIDE), np.float32)
    for i, image in enumerate(images):
        canvas = Image.new("L", (side, side))
        canvas.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
        values[i] = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    scaled = (values / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(scaled)[:, None].expand(-1, 3, -1, -1)


class MedCLIPVision:
    """MedCLIP's frozen image half.

    Attributes:
        width, count: of the features an image: 768 (ResNet 2048) and 1 pooled, 512 and 1 projected, 768 (2048) and 49
            tokens, row by row.
    """

    def __init__(
        self,
        variant: str,
        weights: str,
        feature: str = "pooled",
        device: str | torch.device = "cpu",
        batch_size: int = 32,
    ) -> None:
        """Args: variant: 'vit' (Swin-T) or 'resnet' (ResNet-50).
            weights: a name that `fetch` knows, the released pytorch_model.bin, or its folder.
            feature: 'pooled' is before MedCLIP's projection, 'projected' after it and not of unit length.

        Raises:
            UserError: no such file; not a whole MedCLIP checkpoint; one of the other variant.
        """
        _check("variant", variant, BACKBONES)
        _check("feature", feature, FEATURES)
        path = checkpoint_path(weights)
        self._net = new_vision(variant)
        load_half(self._net, read_checkpoint(path, variant), "vision_model", variant)
        self._net.eval().requires_grad_(False).to(device)
        self._device = torch.device(device)
        self._batch_size = batch_size
        self._variant, self._feature = variant, feature
        self._digest = _digest(weights, path)
        self.width = PROJECTED if feature == "projected" else WIDTHS[variant]
        self.count = _PLACES if feature == "tokens" else 1

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W), grey, of any size -> float32 (B, count, width) on the device."""
        pictures = images.cpu().numpy()
        parts = [
            self._features(preprocess(pictures[start : start + self._batch_size]).to(self._device))
            for start in range(0, len(pictures), self._batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.count, self.width, device=self._device)

    def recipe(self) -> dict[str, Any]:
        return {
            "source": f"MedCLIP {self._variant}",
            "weights_sha256": self._digest,
            "feature": self._feature,
            "preprocessing": f"black square, bicubic to {SIDE}, (x / 255 - {MEAN}) / {STD}",
            "precision": "fp32",
        }

    def _features(self, pixels: Tensor) -> Tensor:
        # Swin in transformers 5 sets the shift of its last stage at the first forward, for good, by the size it sees;
        # at 256 it would differ from MedCLIP's by 0.09. It must never see another size than the one it was trained at.
        assert pixels.shape[1:] == (3, SIDE, SIDE)
        output = self._net["model"](pixels)
        if self._feature == "tokens":
            states = output.last_hidden_state
            return states if states.ndim == 3 else states.flatten(2).transpose(1, 2).contiguous()
        pooled = output.pooler_output.flatten(1)
        return (self._net["projection_head"](pooled) if self._feature == "projected" else pooled)[:, None]


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
        _check("window", window, _MAX_TOKENS)
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
        self._digest = _digest(weights, path)

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
        for chosen in batches_of_equal_length([tokens for _, tokens in windows], self._batch_size):
            ids = torch.tensor([windows[i][1] for i in chosen], device=self._device)
            units[chosen] = self._embed(ids).cpu().numpy()
        np.add.at(vectors, owners, units)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def recipe(self) -> dict[str, Any]:
        vocabulary = json.dumps(sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1]))
        return {
            "source": "MedCLIP",
            "weights_sha256": self._digest,
            "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "lower_case": self._tokenizer.tokenize("A") == self._tokenizer.tokenize("a"),
            "pooling": "layers 1, 2 and last, mean over tokens, projected, unit length",
            "window": self._window,
            "max_tokens": _MAX_TOKENS[self._window],
            "precision": "fp32",
        }

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

    def _embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, L), none of them padding -> unit vectors (B, 512)."""
        states = self._net["model"](input_ids=ids, output_hidden_states=True).hidden_states
        pooled = torch.stack([states[layer].mean(1) for layer in _LAYERS]).mean(0)
        return F.normalize(self._net["projection_head"](pooled), dim=-1)


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


def _digest(weights: str, path: Path) -> str:
    """Of the checkpoint alone, so that naming the file or its folder gives one recipe."""
    return digest_of(weights if weights in SOURCES else str(path))


def _check(what: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"MedCLIP {what} {value}: expected one of {', '.join(choices)}")
