"""A slice as another patient or scanner could have shown it: pictures and mask changed at random, by MONAI's transforms.

The changes and their chances are nnU-Net's for 2D (Isensee et al., 2021, supplementary note 4), with less rotation, shifts
in place of its random crops, and a bias field. Nothing is mirrored and no grey values are inverted: a class can have a
side, and an instruction names side and contrast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    AffineGrid,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
    RandSimulateLowResolution,
    Resample,
)
from monai.utils import convert_to_tensor
from numpy.random import RandomState
from torch import Tensor
from torch.nn import functional as F

# Grey values are 0 to 1; where nnU-Net's are in standard deviations, one is taken to be 0.2. What it draws for each
# channel with chance one half has half its chance here. `AUGMENTATION` is the recipe of what is computed from it.
AUGMENTATION: dict[str, float] = {
    "version": 1,
    "rotation_chance": 0.2,
    "rotation_degrees": 15.0,
    "zoom_chance": 0.2,
    "zoom_low": 0.7,
    "zoom_high": 1.4,
    "shift_chance": 0.5,
    "shift_share": 0.05,
    "elastic_chance": 0.2,
    "elastic_spacing": 32,
    "elastic_low": 1.0,
    "elastic_high": 4.0,
    "noise_chance": 0.1,
    "noise_sd": 0.06,
    "blur_chance": 0.1,
    "blur_low": 0.5,
    "blur_high": 1.0,
    "brightness_chance": 0.15,
    "brightness_share": 0.25,
    "contrast_chance": 0.15,
    "contrast_share": 0.25,
    "low_resolution_chance": 0.125,
    "low_resolution_low": 0.5,
    "gamma_chance": 0.3,
    "gamma_low": 0.7,
    "gamma_high": 1.5,
    "bias_field_chance": 0.15,
    "bias_field_degree": 3,
    "bias_field_coefficient": 0.2,
}


def augment(
    pictures: Tensor, masks: Tensor | None, seed: Sequence[int], modalities: Sequence[int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """One slice changed at random: all pictures and masks deformed alike, the grey values of each picture by themselves.

    Args:
        pictures: float32 (M, H, W) from 0 to 1, on the CPU.
        masks: uint8 (..., H, W); values stay what they are, `layout.IGNORE` too; 0 comes in from outside.
        seed: numbers from 0 that alone decide what is drawn.
        modalities: a number for each picture; with `seed` it decides how the picture's grey values change, whichever
            others are beside it; None: 0, 1, ...
    Returns:
        pictures and masks of the same shapes and dtypes.
    """
    modalities = range(len(pictures)) if modalities is None else modalities
    grid = _sampling_grid(pictures.shape[-2:], _random_state([*seed, 0]))
    if grid is not None:
        pictures = _resampled(pictures, grid, "bilinear")
        masks = None if masks is None else _resampled(masks, grid, "nearest")
    changed = [
        _grey_values_changed(picture, _random_state([*seed, 1 + number]))
        for picture, number in zip(pictures, modalities)
    ]
    return torch.stack(changed).clamp_(0, 1), masks


def _random_state(seed: Sequence[int]) -> RandomState:
    return RandomState(np.random.MT19937(np.random.SeedSequence(seed)))


def _sampling_grid(size: Sequence[int], random: RandomState) -> Tensor | None:
    """Where each pixel is taken from, float32 (3, H, W), in pixels from the centre; None: nothing moves."""
    values = AUGMENTATION
    rotates, zooms, shifts, deforms = (
        random.random_sample() < values[f"{name}_chance"] for name in ("rotation", "zoom", "shift", "elastic")
    )
    if not (rotates or zooms or shifts or deforms):
        return None
    degrees = random.uniform(-1, 1) * values["rotation_degrees"] if rotates else 0.0
    # As often larger as smaller.
    zoom = math.exp(random.uniform(math.log(values["zoom_low"]), math.log(values["zoom_high"]))) if zooms else 1.0
    offsets = [random.uniform(-1, 1) * values["shift_share"] * side if shifts else 0.0 for side in size]
    affine = AffineGrid(rotate_params=math.radians(degrees), scale_params=[1 / zoom] * 2, translate_params=offsets)
    grid = convert_to_tensor(affine(spatial_size=size)[0], track_meta=False)
    if deforms:
        # Offsets alone are brought to every pixel: of coordinates, as MONAI's Rand2DElastic has it, torch's bicubic
        # interpolation makes waves of two pixels where nothing is to be deformed.
        control = [math.ceil(side / values["elastic_spacing"]) + 1 for side in size]
        magnitude = random.uniform(values["elastic_low"], values["elastic_high"])
        coarse = torch.from_numpy(random.normal(scale=magnitude, size=(1, 2, *control))).float()
        grid[:2] += F.interpolate(coarse, size=tuple(size), mode="bicubic", align_corners=True)[0]
    return grid


def _resampled(values: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(..., H, W) of any dtype, read where the grid says; 0 outside."""
    planes = values.reshape(-1, *values.shape[-2:]).float()
    moved = Resample(mode=mode, padding_mode="zeros", dtype=np.float32)(planes, grid)
    return convert_to_tensor(moved, track_meta=False).to(values.dtype).reshape(values.shape)


def _grey_values_changed(picture: Tensor, random: RandomState) -> Tensor:
    """One picture (H, W) with noise, blur, brightness, contrast, low resolution, gamma and bias field, each by chance."""
    values = AUGMENTATION
    blur, coefficient = (values["blur_low"], values["blur_high"]), values["bias_field_coefficient"]
    changed: Any = picture[None]
    for transform in (
        RandGaussianNoise(values["noise_chance"], std=values["noise_sd"], sample_std=True),
        RandGaussianSmooth(sigma_x=blur, sigma_y=blur, prob=values["blur_chance"]),
        RandScaleIntensity(values["brightness_share"], values["brightness_chance"]),
        RandScaleIntensityFixedMean(values["contrast_chance"], values["contrast_share"], preserve_range=True),
        RandSimulateLowResolution(
            values["low_resolution_chance"], upsample_mode="bilinear", zoom_range=(values["low_resolution_low"], 1)
        ),
        RandAdjustContrast(values["gamma_chance"], (values["gamma_low"], values["gamma_high"]), retain_stats=True),
        RandBiasField(int(values["bias_field_degree"]), (-coefficient, coefficient), prob=values["bias_field_chance"]),
    ):
        transform.set_random_state(state=random)
        changed = transform(changed)
    return convert_to_tensor(changed, track_meta=False)[0]
