"""SAM's and MedSAM's ViT image encoders, from an official checkpoint, through the segment_anything package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import UserError
from stage1_instruct.models.image_encoder import check_images, load_strictly, prompt_constants
from stage1_instruct.weight_files import read_weights
from stage1_instruct.weights import digest_of, path_of

# SAM's normalisation, on 0..255 (segment_anything/build_sam.py).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Kind:
    """An encoder: the builder in segment_anything's registry, and how grey values are normalised.

    MedSAM (Ma et al. 2024) is ViT-B trained on slices stretched to 0..1; SAM on photographs with ImageNet's statistics.
    """

    builder: str
    intensity: str


KINDS: Mapping[str, Kind] = {
    "sam_vit_b": Kind("vit_b", "SAM's mean and standard deviation"),
    "sam_vit_l": Kind("vit_l", "SAM's mean and standard deviation"),
    "sam_vit_h": Kind("vit_h", "SAM's mean and standard deviation"),
    "medsam": Kind("vit_b", "min-max of each slice to 0..1"),
}


class SamEncoder:
    """A ViT-B/L/H image encoder of SAM, or MedSAM, in fp32."""

    input_size = 1024

    def __init__(self, name: str, weights: str, device: str | torch.device = "cpu") -> None:
        """
        Args:
            name: one of KINDS.
            weights: the official checkpoint, e.g. sam_vit_b_01ec64.pth.
        Raises:
            UserError: segment_anything (or the torchvision it needs) cannot be imported; another model's checkpoint.
        """
        registry = _registry(name)
        self.name = name
        self._kind = KINDS[name]
        state = read_weights(path_of(weights))
        sam = registry[self._kind.builder]()
        load_strictly(sam, state, name)
        self._constants = prompt_constants(state)
        self._digest = digest_of(weights)
        self._device = torch.device(device)
        self._model = sam.image_encoder.eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def encode(self, images: NDArray[np.uint8], device: str | torch.device | None = None) -> Tensor:
        """uint8 (B, 1024, 1024) -> float32 (B, 256, 64, 64) on the CPU; `device` moves the model there."""
        check_images(images, self.input_size)
        if device is not None and torch.device(device) != self._device:
            self._device = torch.device(device)
            self._model.to(self._device)
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self._device).float()
        return self._model(normalise(x, self.name)).float().contiguous().cpu()

    def constants(self) -> dict[str, NDArray[np.float32]]:
        """See `prompt_constants`."""
        return self._constants

    def recipe(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "weights_sha256": self._digest,
            "input_size": self.input_size,
            "intensity": f"{self._kind.intensity}, repeated to 3 channels",
            "precision": "fp32",
        }


def normalise(images: Tensor, name: str) -> Tensor:
    """Grey values 0..255, float32 (B, H, W), as the encoder of that name was trained on: (B, 3, H, W)."""
    if name == "medsam":
        low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
        return ((images - low) / (high - low).clamp_min(1))[:, None].repeat(1, 3, 1, 1)
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (images[:, None] - mean) / std


def _registry(name: str) -> Mapping[str, Any]:
    try:
        from segment_anything import sam_model_registry
    except (ImportError, RuntimeError) as error:
        # segment_anything imports torchvision, which fails at import beside a torch built for something else.
        raise UserError(
            f"{name} needs segment_anything and torchvision, which cannot be imported here ({error}); install the "
            "torchvision that was built for your torch (pip install torchvision), or use --models lite"
        ) from error
    return sam_model_registry
