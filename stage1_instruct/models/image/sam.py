"""SAM's and MedSAM's ViT image encoders, from an official checkpoint, on segment_anything's modules."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.models.batching import run_in_batches
from zeus_union.stage1_instruct.models.image.encoder import check_images, prompt_constants
from zeus_union.stage1_instruct.models.image.sam_attention import use_sdpa
from zeus_union.stage1_instruct.weights.files import load_strictly, read_weights
from zeus_union.stage1_instruct.weights.store import digest_of, path_of

# SAM's normalisation, on 0..255 (segment_anything/build_sam.py).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

PRECISIONS: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Live floats per token and channel in a block with global attention: input, qkv, widened queries and
# keys (3 times the width each), output, or the MLP's hidden layer twice. An estimate, not measured on a GPU.
NUMBERS_PER_TOKEN_CHANNEL = 24
TOKENS = 4096
# One slice's 4096 tokens fill a GPU already; more than 16 slices at a time only take memory.
LARGEST_BATCH = 16


@dataclass(frozen=True)
class Size:
    """A ViT as build_sam.py of segment_anything 1.0 builds it; the last attribute lists the global-attention blocks."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


SIZES: Mapping[str, Size] = {
    "vit_b": Size(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Size(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Size(1280, 32, 16, (7, 15, 23, 31)),
}


@dataclass(frozen=True)
class Kind:
    """An encoder: which of SIZES, and how grey values are normalised.

    MedSAM (Ma et al. 2024) is ViT-B trained on slices stretched to 0..1; SAM on photographs with ImageNet's statistics.
    """

    size: str
    intensity: str


KINDS: Mapping[str, Kind] = {
    "sam_vit_b": Kind("vit_b", "SAM's mean and standard deviation"),
    "sam_vit_l": Kind("vit_l", "SAM's mean and standard deviation"),
    "sam_vit_h": Kind("vit_h", "SAM's mean and standard deviation"),
    "medsam": Kind("vit_b", "min-max of each slice to 0..1"),
}


class SamEncoder:
    """A ViT-B/L/H image encoder of SAM, or MedSAM."""

    input_size = 1024

    def __init__(
        self,
        name: str,
        weights: str,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        batch_size: int | None = None,
    ) -> None:
        """
        Args:
            name: one of KINDS.
            weights: the official checkpoint, e.g. sam_vit_b_01ec64.pth.
            precision: one of PRECISIONS, of weights and activations.
            batch_size: slices at a time, at most; None finds it from the free memory. Not part of the recipe.
        Raises:
            UserError: no segment_anything; another model's checkpoint; an unknown precision.
        """
        if precision not in PRECISIONS:
            raise UserError(f"precision = {precision!r} is unknown; there are: {', '.join(PRECISIONS)}")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size = {batch_size}, expected 1 or more, or none to find it")
        self.name = name
        self._size = SIZES[KINDS[name].size]
        sam = build_sam(self._size, name)
        state = read_weights(path_of(weights))
        load_strictly(sam, state, name)
        self._constants = prompt_constants(state)
        self._recipe = self.recipe_of(name, weights, precision)
        self._precision = precision
        self._dtype = PRECISIONS[precision]
        self._device = torch.device(device)
        self._model = use_sdpa(sam.image_encoder).eval().requires_grad_(False).to(self._device, self._dtype)
        self._wanted_batch = batch_size
        self._batch: int | None = None

    @torch.inference_mode()
    def encode(self, images: NDArray[np.uint8], device: str | torch.device | None = None) -> Tensor:
        """Embeddings of slices, in batches that shrink when memory runs out.

        Args:
            images: uint8 (B, 1024, 1024).
            device: where to compute; moves the model there.
        Returns:
            float32 (B, 256, 64, 64) on the CPU.
        Raises:
            UserError: a single slice does not fit; fp16 that this CPU's torch lacks, or whose numbers overflow.
        """
        check_images(images, self.input_size)
        if device is not None and torch.device(device) != self._device:
            self._device = torch.device(device)
            self._model.to(self._device)
            self._batch = None
        if self._batch is None:
            self._batch = self._wanted_batch or fitting_batch(self._size, self._device, self._dtype)
        parts, self._batch = run_in_batches(
            lambda batch: self._encode(images[batch]), len(images), self._batch, say, self.name
        )
        return torch.cat(parts) if parts else torch.empty(0, 256, 64, 64)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def at_once(self) -> int | None:
        """Pictures of every batch through `embed`; None on a CPU."""
        if self._device.type != "cuda":
            return None
        return self._wanted_batch or fitting_batch(self._size, self._device, self._dtype)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 1024, 1024) -> float32 (B, 256, 64, 64), both on the model's device.

        Raises:
            UserError: fp16 that this CPU's torch lacks.
        """
        try:
            return self._model(normalise(images.float(), self.name).to(self._dtype)).float().contiguous()
        except RuntimeError as error:
            if "not implemented for" not in str(error):
                raise
            raise UserError(
                f"torch {torch.__version__} cannot compute {self.name} in {self._precision} on "
                f"{self._device.type} ({error}); use precision fp32 or bf16, or a GPU"
            ) from error

    def _encode(self, images: NDArray[np.uint8]) -> Tensor:
        embeddings = self.embed(torch.from_numpy(np.ascontiguousarray(images)).to(self._device)).cpu()
        if not torch.isfinite(embeddings).all():
            raise UserError(
                f"{self.name} in {self._precision} gives numbers that are not finite; "
                + ("fp16 overflows, use bf16 or fp32" if self._precision == "fp16" else "get the checkpoint again")
            )
        return embeddings

    def constants(self) -> dict[str, NDArray[np.float32]]:
        """See `prompt_constants`."""
        return self._constants

    def recipe(self) -> dict[str, Any]:
        return self._recipe

    @classmethod
    def recipe_of(cls, name: str, weights: str, precision: str = "fp32") -> dict[str, Any]:
        """`recipe` of the encoder with these weights, which are not loaded."""
        return {
            "model": name,
            "weights_sha256": digest_of(weights),
            "input_size": cls.input_size,
            "intensity": f"{KINDS[name].intensity}, repeated to 3 channels",
            "precision": precision,
        }


def normalise(images: Tensor, name: str) -> Tensor:
    """Grey values 0..255, float32 (B, H, W), as the encoder of that name was trained on: (B, 3, H, W).

    SAM: segment_anything's Sam.preprocess. MedSAM: bowang-lab/MedSAM, MedSAM_Inference.py, which stretches the resized
    uint8 picture by its own extremes; a constant picture counts as black there too.
    """
    if name == "medsam":
        low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
        return ((images - low) / (high - low).clamp_min(1))[:, None].repeat(1, 3, 1, 1)
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (images[:, None] - mean) / std


def fitting_batch(size: Size, device: torch.device, dtype: torch.dtype) -> int:
    """Slices at a time that should fit into a quarter of a GPU's memory; 1 on a CPU, where more only takes memory.

    Of all of its memory, not of what is free: the size is to be the same when a build goes on.
    """
    if device.type != "cuda":
        return 1
    _, total = torch.cuda.mem_get_info(device)
    per_slice = NUMBERS_PER_TOKEN_CHANNEL * TOKENS * size.width * dtype.itemsize
    return int(min(max(total // 4 // per_slice, 1), LARGEST_BATCH))


def build_sam(size: Size, name: str = "SAM") -> nn.Module:
    """segment_anything's Sam, as build_sam.py puts it together, with uninitialised weights on the CPU.

    Raises:
        UserError: see `sam_modeling`.
    """
    modeling = sam_modeling(name)
    # Built without storage first: random weights that a checkpoint overwrites would cost ViT-H seconds.
    with torch.device("meta"):
        sam = modeling.Sam(
            image_encoder=modeling.ImageEncoderViT(
                img_size=1024,
                patch_size=16,
                embed_dim=size.width,
                depth=size.depth,
                num_heads=size.heads,
                mlp_ratio=4,
                out_chans=256,
                qkv_bias=True,
                norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=14,
                global_attn_indexes=size.global_blocks,
            ),
            prompt_encoder=modeling.PromptEncoder(
                embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
            ),
            mask_decoder=modeling.MaskDecoder(
                num_multimask_outputs=3,
                transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
                transformer_dim=256,
                iou_head_depth=3,
                iou_head_hidden_dim=256,
            ),
            pixel_mean=list(PIXEL_MEAN),
            pixel_std=list(PIXEL_STD),
        )
    return sam.to_empty(device="cpu").eval()


def sam_modeling(name: str = "SAM") -> ModuleType:
    """segment_anything.modeling, which needs torch alone; the package's own __init__ would import torchvision.

    Raises:
        UserError: no segment_anything is installed, or one that cannot be imported.
    """
    try:
        return _modeling()
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"{name} needs segment_anything, which cannot be imported here ({error}); "
            "pip install segment-anything, or use --models lite"
        ) from error


@functools.cache
def _modeling() -> ModuleType:
    package = "segment_anything"
    if package in sys.modules:
        return importlib.import_module(f"{package}.modeling")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    before = {key for key in sys.modules if key.startswith(f"{package}.")}
    sys.modules[package] = bare
    try:
        return importlib.import_module(f"{package}.modeling")
    finally:
        # Left in place, the bare package would hide the real one from a later `import segment_anything`.
        for key in [key for key in sys.modules if key == package or key.startswith(f"{package}.")]:
            if key not in before:
                del sys.modules[key]
