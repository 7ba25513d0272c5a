"""BLIP-2 (Li et al. 2023) as a whole instruction generator: Table 3's first two rows.

Its parts go where the others' go: the vision tower, Q-Former and projection are the vision features, at the width of its
language model; that model answers as any other does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.models.batching import run_in_batches
from zeus_union.stage1_instruct.models.language.llm import LoadedLLM
from zeus_union.stage1_instruct.models.pretrained import Loading, load_pretrained, read_config
from zeus_union.stage1_instruct.weights.store import digest_of, path_of

# CLIP's, with which BLIP-2's tower was trained (preprocessor_config.json of the released folders).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Blip2:
    """A frozen BLIP-2 with a decoder-only language model (OPT).

    Attributes:
        loaded: its language model, for `InstructionLLM`.
        width, count: of the image tokens: the language model's width, 32 an image.
    """

    def __init__(
        self, folder: str, loading: Loading | None = None, device: str | torch.device = "cpu", batch_size: int = 8
    ) -> None:
        """Args: folder: a name that `fetch` knows, or a BLIP-2 folder of transformers.

        Raises:
            UserError: no such folder; not a BLIP-2 with a decoder-only language model; weights missing.
        """
        path = path_of(folder)
        _check_kind(path)
        tokenizer, model = load_pretrained(
            transformers.Blip2ForConditionalGeneration, folder, "BLIP-2 model", loading, device
        )
        self._model = model
        self._digest = digest_of(folder)
        self._side = model.config.vision_config.image_size
        self._batch_size = batch_size
        self.loaded = LoadedLLM(tokenizer, model.language_model, self._digest)
        self.count = model.config.num_query_tokens
        self.width = model.config.text_config.hidden_size

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W), grey -> image tokens float32 (B, count, width) on the device."""
        weight = self._model.language_projection.weight
        pictures = images.cpu().numpy()

        def look(batch: slice) -> Tensor:
            pixels = preprocess(pictures[batch], self._side).to(weight.device, weight.dtype)
            return self._model.get_image_features(pixels, return_dict=True).pooler_output.float()

        parts, self._batch_size = run_in_batches(look, len(pictures), self._batch_size, say, "BLIP-2's image encoder")
        return torch.cat(parts) if parts else torch.empty(0, self.count, self.width, device=weight.device)

    def recipe(self) -> dict[str, Any]:
        return _recipe(self._digest, self._side)

    @staticmethod
    def recipe_of(folder: str) -> dict[str, Any]:
        """`recipe` of the BLIP-2 in this folder; reads its configuration and no weights.

        Raises:
            UserError: no such folder; not a BLIP-2 with a decoder-only language model.
        """
        return _recipe(digest_of(folder), _read_config(folder).vision_config.image_size)

    @staticmethod
    def widths_of(folder: str) -> tuple[int, int]:
        """Width of the image tokens, and of the token embeddings of its language model; loads no weights."""
        text = _read_config(folder).text_config
        # OPT's token embeddings may be narrower than its layers (OPT 350M).
        return text.hidden_size, getattr(text, "word_embed_proj_dim", text.hidden_size)


def _recipe(digest: str, side: int) -> dict[str, Any]:
    return {
        "source": "BLIP-2",
        "weights_sha256": digest,
        "preprocessing": f"bicubic to {side}, CLIP's mean and standard deviation, repeated to 3 channels",
    }


def _read_config(folder: str) -> Any:
    _check_kind(path_of(folder))
    return read_config(folder, "BLIP-2 model")


def preprocess(images: NDArray[np.uint8], side: int) -> Tensor:
    """BlipImageProcessor's: bicubic to side x side, scaled to 0..1, CLIP's mean and spread; float32 (B, 3, side, side)."""
    resized = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    values = torch.from_numpy(np.stack(resized)).float()[:, None] / 255
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    return (values - mean) / std


def _check_kind(path: Path) -> None:
    try:
        config = json.loads((path / "config.json").read_text())
        kind, decoder_only = config["model_type"], config["use_decoder_only_language_model"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a BLIP-2 folder: its config.json is missing or another model's") from error
    if kind != "blip-2" or not decoder_only:
        raise UserError(
            f"{path} is a {kind} with an encoder-decoder language model, expected BLIP-2 with OPT (blip2-opt-2.7b)"
        )
