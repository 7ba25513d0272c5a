"""MedCLIP's image half (Wang et al., EMNLP 2022): what of a picture the language model is shown.

Equal to the package medclip 0.0.3 (modeling_medclip.py, dataset.py); the networks themselves are transformers'.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.models.batching import run_in_batches
from zeus_union.stage1_instruct.models.medclip_keys import (
    BACKBONES,
    PROJECTED,
    WIDTHS,
    check_choice,
    checkpoint_digest,
    checkpoint_path,
    load_half,
    new_vision,
    read_checkpoint,
)

FEATURES = ("pooled", "projected", "tokens")
SIDE = 224
# One pair for all channels (medclip/constants.py).
MEAN, STD = 0.5862785803043838, 0.27950088968644304
# Both backbones divide the side by 32: 7 x 7 places.
_PLACES = (SIDE // 32) ** 2


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
        check_choice("variant", variant, BACKBONES)
        check_choice("feature", feature, FEATURES)
        self._net = new_vision(variant)
        load_half(self._net, read_checkpoint(checkpoint_path(weights), variant), "vision_model", variant)
        self._net.eval().requires_grad_(False).to(device)
        self._device = torch.device(device)
        self._batch_size = batch_size
        self._feature = feature
        self._recipe = self.recipe_of(variant, weights, feature)
        self.width = PROJECTED if feature == "projected" else WIDTHS[variant]
        self.count = _PLACES if feature == "tokens" else 1

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W), grey, of any size -> float32 (B, count, width) on the device."""
        pictures = images.cpu().numpy()
        parts, self._batch_size = run_in_batches(
            lambda batch: self._features(preprocess(pictures[batch]).to(self._device)),
            len(pictures),
            self._batch_size,
            say,
            "MedCLIP's image encoder",
        )
        return torch.cat(parts) if parts else torch.empty(0, self.count, self.width, device=self._device)

    def recipe(self) -> dict[str, Any]:
        return self._recipe

    @staticmethod
    def recipe_of(variant: str, weights: str, feature: str = "pooled") -> dict[str, Any]:
        """`recipe` of the image half of this checkpoint, which is not loaded."""
        return {
            "source": f"MedCLIP {variant}",
            "weights_sha256": checkpoint_digest(weights),
            "feature": feature,
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
