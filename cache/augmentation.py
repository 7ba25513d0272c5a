"""Augmented copies of slices, by MONAI's transforms, as `augmentation_draws` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    AdjustContrast,
    AffineGrid,
    GaussianSmooth,
    RandBiasField,
    RandGaussianNoise,
    RandSimulateLowResolution,
    Resample,
    ScaleIntensity,
    ScaleIntensityFixedMean,
)
from monai.transforms.smooth_field.array import SmoothField
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.augmentation_draws import (
    BIAS_DEGREE,
    ELASTIC_POINTS,
    Geometry,
    Intensity,
    draw_geometry,
    draw_intensity,
)

PICTURE_SIZE = 256  # that blur, noise and low resolution are drawn for


def augment(
    images: NDArray[np.uint8], mask: NDArray[np.uint8] | None, seed: Sequence[int], modalities: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """One slice changed at random: all modalities and the mask moved alike, the grey values of each modality by themselves.

    Args:
        images, mask: see `move`.
        seed: numbers from 0 that alone decide what is drawn.
        modalities: a number for each picture; with `seed` it decides how the picture's grey values change, whichever
            others are beside it.
    """
    moved, moved_mask = move(draw_geometry(_random([*seed, 0])), images, mask)
    changed = [change(draw_intensity(_random([*seed, 1 + number])), image) for image, number in zip(moved, modalities)]
    return np.stack(changed), moved_mask


def _random(seed: Sequence[int]) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(list(seed))))


def move(
    geometry: Geometry, images: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """All modalities of a slice, and its mask with them: images bilinear, mask nearest, 0 where nothing was.

    Args:
        images: (M, S, S).
        mask: (S, S); its values are only moved, never mixed, 255 (`IGNORE`) like any other.
    """
    grid = _grid(geometry, images.shape[-1])
    moved = _as_grey(Resample("bilinear", "zeros")(torch.from_numpy(images.astype(np.float32) / 255), grid))
    if mask is None:
        return moved, None
    moved_mask = Resample("nearest", "zeros")(torch.from_numpy(mask.astype(np.float32))[None], grid)
    return moved, np.asarray(moved_mask[0]).astype(np.uint8)


def _grid(geometry: Geometry, size: int) -> Tensor:
    """(3, size, size): where each pixel of the copy is in the picture, in pixels from its centre.

    Not MONAI's Rand2DElastic: its control points pass through torch's bicubic interpolation, which does not reproduce a
    straight line, so that even a copy that is not deformed comes out wavy.
    """
    pixels = [share * size for share in geometry.shift]
    scales = [geometry.scale, geometry.scale * (-1 if geometry.mirrored else 1)]
    affine = AffineGrid(np.deg2rad(geometry.rotation), translate_params=pixels, scale_params=scales)
    grid = torch.as_tensor(np.asarray(affine(spatial_size=(size, size))[0]))
    if geometry.elastic:
        field = SmoothField(ELASTIC_POINTS, pad=1, channels=2, spatial_size=(size, size), mode="bicubic")
        field.set_random_state(geometry.seed)
        grid[:2] += geometry.elastic * size * field(randomize=True)
    return grid


def change(intensity: Intensity, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One modality of a slice, (S, S), with other grey values."""
    size = image.shape[-1]
    picture = torch.from_numpy(image.astype(np.float32) / 255)[None]
    if intensity.bias:
        picture = _apply(_bias_field(intensity.bias), picture)
    if intensity.noise:
        picture = picture + _noise(intensity.noise * float(picture.std()), intensity.seed, size)
    if intensity.blur:
        picture = _apply(GaussianSmooth(intensity.blur * size / PICTURE_SIZE), picture)
    if intensity.brightness != 1:
        picture = _apply(ScaleIntensity(minv=None, maxv=None, factor=intensity.brightness - 1), picture)
    if intensity.contrast != 1:
        picture = _apply(ScaleIntensityFixedMean(intensity.contrast - 1, preserve_range=True), picture)
    if intensity.resolution != 1:
        left = round(PICTURE_SIZE * intensity.resolution) / size
        picture = _apply(RandSimulateLowResolution(1.0, "nearest", "bicubic", (left, left)), picture)
    if intensity.gamma != 1:
        picture = _apply(AdjustContrast(intensity.gamma, retain_stats=True), picture)
    return _as_grey(picture)[0]


def _apply(transform: Callable[[Tensor], Any], picture: Tensor) -> Tensor:
    """MONAI's transforms give tensors that carry a file's metadata; there is none here."""
    return torch.as_tensor(np.asarray(transform(picture)))


def _bias_field(coefficients: Sequence[float]) -> RandBiasField:
    """MONAI draws the coefficients anew in every call, unless it is told not to: they are drawn as all the rest here."""

    class Field(RandBiasField):
        def randomize(self, img_size: Sequence[int]) -> None:
            self._do_transform, self._coeff = True, list(coefficients)

    return Field(degree=BIAS_DEGREE, prob=1.0)


def _noise(deviation: float, seed: int, size: int) -> Tensor:
    """(1, size, size): the noise of a 256 x 256 picture, enlarged where the picture is larger."""
    transform = RandGaussianNoise(prob=1.0, std=deviation, sample_std=False)
    transform.set_random_state(seed)
    noise = _apply(transform, torch.zeros(1, PICTURE_SIZE, PICTURE_SIZE))
    return torch.nn.functional.interpolate(noise[None], size=(size, size), mode="nearest")[0]


def _as_grey(pictures: Tensor) -> NDArray[np.uint8]:
    """From 0 to 1 -> 0 to 255."""
    return np.round(np.clip(np.asarray(pictures), 0, 1) * 255).astype(np.uint8)
