"""A study as pictures: slices of every modality, their intensities and their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import THICK, to_square
from zeus_union.cache.rows import SlicePictures
from zeus_union.cache.terminal import counted
from zeus_union.stage1_instruct.studies import intensity
from zeus_union.stage1_instruct.studies.intensity import PERCENTILES, Window
from zeus_union.stage1_instruct.studies.study import Study

PICTURE_SIZE = 256


def recipe() -> dict[str, Any]:
    """What decides every picture, for the cache's recipe; `version` rises when the same study gives other pictures.

    View and windows are said beside it, since they are chosen for a cache and a modality.
    """
    return {
        "version": 2,
        "directions": "slices to top, back or right; rows to back or bottom; columns to left or back",
        "acquisition": f"across the only axis of one voxel, or the spacing that is {THICK} times both others; else axial",
        "percentiles": f"{PERCENTILES[0]} and {PERCENTILES[1]} of the voxels that are neither background (constant along the "
        "volume's sides) nor stick out of their neighbours by half the range",
        "resize": f"nearest, square field of view, {PICTURE_SIZE}",
    }


@dataclass(frozen=True, eq=False)
class Slices(SlicePictures):
    """The chosen slices of a study.

    Attributes:
        native_images: uint8 (n, M, rows, columns), intensities as in `images`; None where they come from a cache, which does
            not hold them.
    """

    native_images: NDArray[np.uint8] | None

    def images_at(self, size: int, piece: slice = slice(None)) -> NDArray[np.uint8]:
        """uint8 (k, M, size, size) of some of the slices, nearest, straight from the native resolution (1024 for SAM).

        Raises:
            ValueError: another size than that of `images`, and no native resolution.
        """
        if size == self.images.shape[-1]:
            return self.images[piece]
        if self.native_images is None:
            raise ValueError(f"pictures of {self.images.shape[-1]} pixels, expected native ones to make {size} from")
        return to_square(self.native_images[piece], self.grid.slice_spacing[1:], size)


def study_to_slices(
    study: Study,
    step: int = 1,
    skip_empty: bool = True,
    *,
    view: str | None = None,
    windows: Mapping[str, Window | None] | None = None,
) -> Slices:
    """Every `step`-th slice, counted from the first of the view.

    Args:
        skip_empty: leave out slices in which no modality shows anything and nothing is labelled.
        view: a key of `cache.grid.VIEWS`; None: the plane of acquisition.
        windows: modality -> window; the others are scaled by percentiles.
    Raises:
        UserError: no slice is left, or a window in which a modality shows nothing.
    """
    grid = study.grid.seen(view or study.grid.acquired_view)
    spacing = grid.slice_spacing[1:]
    numbers = np.arange(0, grid.slice_shape[0], step)
    labels = None if study.labels is None else grid.to_slices(study.labels)
    shows = np.zeros(grid.slice_shape[0], dtype=bool)
    native = []
    for modality, image in study.images.items():
        volume = np.ascontiguousarray(grid.to_slices(image), dtype=np.float32)
        measured, calm = intensity.foreground(volume)
        shows |= measured.any(axis=(1, 2))
        # Of the whole volume, so that they do not depend on which slices are taken.
        bounds = intensity.percentile_bounds(volume, measured, calm)
        window = (windows or {}).get(modality)
        if window is not None:
            intensity.check_window(window, bounds, study.subject, modality)
            bounds = window.bounds
        native.append(intensity.to_grey(volume[numbers], bounds))
    taken = np.arange(len(numbers))
    if skip_empty:
        if labels is not None:
            shows |= labels.any(axis=(1, 2))
        taken = np.flatnonzero(shows[numbers])
        if not len(taken):
            raise UserError(
                f"{study.subject}: nothing to see in {counted(len(numbers), 'slice')} taken of {grid.slice_shape[0]}; "
                "check its files, take a smaller --slice-step, or leave it out with --subjects"
            )
    numbers = numbers[taken]
    native_images = np.stack([grey[taken] for grey in native], axis=1)
    native_masks = None if labels is None else np.ascontiguousarray(labels[numbers])
    modality_masks = None
    if study.labels is not None and set(study.modality_labels) == set(study.images):
        masks_of_each = [grid.to_slices(study.modality_labels[name])[numbers] for name in study.images]
        modality_masks = to_square(np.stack(masks_of_each, axis=1), spacing, PICTURE_SIZE)
    return Slices(
        grid=grid,
        numbers=numbers.astype(np.int32),
        images=to_square(native_images, spacing, PICTURE_SIZE),
        masks=None if native_masks is None else to_square(native_masks, spacing, PICTURE_SIZE),
        modality_masks=modality_masks,
        native_masks=native_masks,
        native_images=native_images,
    )
