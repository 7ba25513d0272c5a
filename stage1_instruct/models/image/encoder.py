"""What every image encoder of the SAM family offers, and what stage 2 needs of SAM besides embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.errors import UserError


class ImageEncoder(Protocol):
    """A frozen SAM-family image encoder.

    Attributes:
        name: as a cache calls the layer, e.g. 'litemedsam'.
        input_size: side in pixels of the pictures it takes.
        device: where it computes.
        at_once: pictures of every batch through `embed`, one number for good; None on a CPU, where one picture at a time
            goes through `encode`.
    """

    name: str
    input_size: int

    @property
    def device(self) -> torch.device: ...

    @property
    def at_once(self) -> int | None: ...

    def encode(self, images: NDArray[np.uint8], device: str | torch.device | None = None) -> Tensor:
        """uint8 (B, input_size, input_size) -> float32 (B, 256, 64, 64) on the CPU."""

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, input_size, input_size) -> float32 (B, 256, 64, 64), both on its device; waits for nothing there."""

    def constants(self) -> dict[str, NDArray[np.float32]]:
        """SAM's pretrained mask decoder and prompt constants; see `prompt_constants`."""

    def recipe(self) -> dict[str, Any]:
        """What decides the embeddings, JSON-able, without paths; `recipe_of` of the class gives it without loading."""


def prompt_constants(state: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """What stage 2 needs of SAM's checkpoint, so that it needs no SAM package.

    Args:
        state: a whole SAM state dict (mask_decoder.*, prompt_encoder.*).
    Returns:
        'decoder.<key>' for each key of the mask decoder; 'dense_pe' (256, 64, 64); 'no_mask' (256,); all float32.
    """
    decoder = {key.removeprefix("mask_"): value for key, value in state.items() if key.startswith("mask_decoder.")}
    wanted = ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "prompt_encoder.no_mask_embed.weight")
    lacking = [key for key in wanted if key not in state] or ([] if decoder else ["mask_decoder.*"])
    if lacking:
        raise UserError(f"the checkpoint holds no {lacking[0]}; expected a whole SAM checkpoint, not an encoder alone")
    tensors = {
        **decoder,
        "dense_pe": dense_positional_encoding(state[wanted[0]]),
        "no_mask": state[wanted[1]].reshape(-1),
    }
    return {key: tensor.detach().to("cpu", torch.float32).contiguous().numpy() for key, tensor in tensors.items()}


def dense_positional_encoding(gaussian: Tensor, side: int = 64) -> Tensor:
    """SAM's positional encoding of every cell of the embedding (Tancik et al.'s random Fourier features).

    Args:
        gaussian: float32 (2, 128), the prompt encoder's matrix; its rows belong to x and y.
    Returns:
        float32 (256, side, side), as segment_anything's PositionEmbeddingRandom gives it.
    """
    centre = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    angle = 2 * math.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ gaussian.float())
    return torch.cat([angle.sin(), angle.cos()], dim=-1).permute(2, 0, 1).contiguous()


def check_images(images: NDArray[np.uint8], size: int) -> None:
    """ValueError unless uint8 (B, size, size)."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
        raise ValueError(f"images {images.dtype} {images.shape}, expected uint8 (B, {size}, {size})")
