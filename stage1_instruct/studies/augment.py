"""The augmented copies of a subject's slices that a cache keeps: each decided by subject, slice and view alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.augmentation import change, move
from zeus_union.cache.augmentation_draws import draw_geometry, draw_intensity
from zeus_union.stage1_instruct.seeds import view_random


def augmented(
    subject: str,
    numbers: NDArray[np.int32],
    view: int,
    modalities: Sequence[str],
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8] | None = None,
    mirror: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """The view-th copy of some slices of a subject, at whatever size they are given in.

    Args:
        numbers: (n,), of the slices.
        view: from 1.
        modalities: the M names.
        images: (n, M, S, S).
        masks: (n, S, S).
        mirror: see `draw_geometry`.
    """
    new_images = np.empty_like(images)
    new_masks = None if masks is None else np.empty_like(masks)
    for index, number in enumerate(numbers.tolist()):
        geometry = draw_geometry(view_random(subject, number, view, "geometry"), mirror)
        moved, mask = move(geometry, images[index], None if masks is None else masks[index])
        for channel, modality in enumerate(modalities):
            intensity = draw_intensity(view_random(subject, number, view, f"modality {modality}"))
            new_images[index, channel] = change(intensity, moved[channel])
        if new_masks is not None and mask is not None:
            new_masks[index] = mask
    return new_images, new_masks
