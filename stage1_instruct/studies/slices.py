"""A study as pictures: axial slices of every modality, their intensities and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import to_square
from zeus_union.stage1_instruct.studies.study import Study

PICTURE_SIZE = 256
PERCENTILES = (0.5, 99.5)


def recipe() -> dict[str, Any]:
    """What decides a picture, for the cache's recipe; `version` rises when the same study gives other pictures."""
    return {
        "version": 1,
        "view": "axial in the native array, from inferior to superior, rows to posterior, columns to left",
        "intensity": f"clip to percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of the voxels above the volume's minimum",
        "resize": f"nearest, square field of view, {PICTURE_SIZE}",
    }


@dataclass(frozen=True, eq=False)
class Slices:
    """The chosen slices of a study.

    Attributes:
        numbers: int32 (n,), slice numbers in the axial view.
        images: uint8 (n, M, 256, 256).
        masks: uint8 (n, 256, 256), or None.
        modality_masks: uint8 (n, M, 256, 256) where every modality was labelled on its own, or None.
        native_masks: uint8 (n, rows, columns), the masks at the native resolution, or None.
        native_images: uint8 (n, M, rows, columns), intensities as in `images`.
        spacing: mm of (rows, columns).
    """

    numbers: NDArray[np.int32]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    modality_masks: NDArray[np.uint8] | None
    native_masks: NDArray[np.uint8] | None
    native_images: NDArray[np.uint8]
    spacing: tuple[float, float]

    def images_at(self, size: int) -> NDArray[np.uint8]:
        """uint8 (n, M, size, size), nearest, straight from the native resolution (1024 for SAM)."""
        return to_square(self.native_images, self.spacing, size)


def study_to_slices(study: Study, step: int = 1, skip_empty: bool = True) -> Slices:
    """Every `step`-th axial slice, counted from the lowest.

    Args:
        skip_empty: leave out slices in which no modality shows anything and nothing is labelled.
    Raises:
        UserError: no slice is left.
    """
    grid = study.grid
    spacing = grid.slice_spacing[1:]
    numbers = np.arange(0, grid.slice_shape[0], step)
    volumes = {name: grid.to_slices(volume) for name, volume in study.images.items()}
    labels = None if study.labels is None else grid.to_slices(study.labels)
    if skip_empty:
        has_content = np.zeros(grid.slice_shape[0], dtype=bool)
        for volume in volumes.values():
            has_content |= (volume > volume.min()).any(axis=(1, 2))
        if labels is not None:
            has_content |= labels.any(axis=(1, 2))
        taken, numbers = len(numbers), numbers[has_content[numbers]]
        if not len(numbers):
            raise UserError(
                f"{study.subject}: none of the {taken} slices taken (of {grid.slice_shape[0]}) shows anything; "
                "check its files, take a smaller --slice-step, or leave it out with --subjects"
            )
    native = np.stack([to_grey(volume, numbers) for volume in volumes.values()], axis=1)
    native_masks = None if labels is None else np.ascontiguousarray(labels[numbers])
    modality_masks = None
    if study.labels is not None and set(study.modality_labels) == set(study.images):
        masks_of_each = [grid.to_slices(study.modality_labels[name])[numbers] for name in study.images]
        modality_masks = to_square(np.stack(masks_of_each, axis=1), spacing, PICTURE_SIZE)
    return Slices(
        numbers=numbers.astype(np.int32),
        images=to_square(native, spacing, PICTURE_SIZE),
        masks=None if native_masks is None else to_square(native_masks, spacing, PICTURE_SIZE),
        modality_masks=modality_masks,
        native_masks=native_masks,
        native_images=native,
        spacing=spacing,
    )


def to_grey(volume: NDArray[np.float32], numbers: NDArray[np.int_]) -> NDArray[np.uint8]:
    """The slices `numbers` with intensities 0 to 255; a constant volume is black.

    The bounds are those of the whole volume, so that they do not depend on which slices are taken.
    """
    foreground = volume[volume > volume.min()]
    if foreground.size == 0:
        return np.zeros((len(numbers), *volume.shape[1:]), dtype=np.uint8)
    low, high = np.percentile(foreground, PERCENTILES)
    if high <= low:
        low, high = float(volume.min()), float(volume.max())
    scaled = np.clip((volume[numbers] - low) / (high - low), 0, 1)
    return np.rint(scaled * 255).astype(np.uint8)
