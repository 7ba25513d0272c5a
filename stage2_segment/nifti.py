"""Masks, probabilities and disagreement as NIfTI, with the geometry of the study that they are of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.grid import Grid
from zeus_union.stage2_segment.label_names import label_table

# A stored probability is a whole number of these. A power of two, so that 0, 1/2 and 1 are exact whether a program computes
# in float32 or float64; 16 bits are finer than float16 above 1/16 and half of float32's size.
PROBABILITY_STEP = 2.0**-15


def write_labels(path: Path, volume: NDArray[np.uint8], grid: Grid, classes: Sequence[str] = ()) -> Path:
    """A label map uint8 (grid.shape) as NIfTI, whole under its name or not there.

    Args:
        classes: label k is classes[k - 1]; their names and colours go into the header (`label_names`).
    """
    return _write(path, volume, grid, classes=classes)


def write_probabilities(path: Path, volume: NDArray[np.uint16], grid: Grid) -> Path:
    """Probabilities of one class, as `stored_probabilities` gives them, (grid.shape).

    The file holds uint16 with scl_slope 2^-15: nibabel (get_fdata, dataobj) and ITK both give numbers from 0 to 1.
    """
    return _write(path, volume, grid, slope=PROBABILITY_STEP)


def write_fractions(path: Path, volume: NDArray[np.float32], grid: Grid) -> Path:
    """Float32 (grid.shape)."""
    return _write(path, volume, grid)


def stored_probabilities(logits: Tensor) -> NDArray[np.uint16]:
    """Sigmoid of logits as whole numbers of `PROBABILITY_STEP`; above 1/2 exactly where the logit is above 0."""
    half = round(0.5 / PROBABILITY_STEP)
    stored = (logits.sigmoid() / PROBABILITY_STEP).round().to(torch.int32)
    stored = torch.where(logits > 0, stored.clamp(min=half + 1), stored.clamp(max=half))
    return stored.cpu().numpy().astype(np.uint16)


def to_every_slice(slices: NDArray[Any], numbers: NDArray[np.int32], grid: Grid) -> NDArray[Any]:
    """Slices (n, rows, columns) `numbers` of a grid -> all slices of its view; the other ones are 0."""
    every = np.zeros(grid.slice_shape, slices.dtype)
    every[numbers] = slices
    return every


def to_volume(slices: NDArray[Any], numbers: NDArray[np.int32], grid: Grid) -> NDArray[Any]:
    """Slices (n, rows, columns) `numbers` of a grid -> a volume in the array order of the source; other slices are 0."""
    return grid.from_slices(to_every_slice(slices, numbers, grid))


def to_fractions(differing: NDArray[Any], members: int, numbers: NDArray[np.int32], grid: Grid) -> NDArray[np.float32]:
    """How many of an ensemble's members differ, of slices as `to_volume` takes them -> the fraction, float32 (grid.shape)."""
    return to_volume(differing, numbers, grid).astype(np.float32) / np.float32(members)


def _write(
    path: Path, volume: NDArray[Any], grid: Grid, slope: float | None = None, classes: Sequence[str] = ()
) -> Path:
    """A volume in its dtype, whole under its name or not there.

    Its header says where it lies in the very fields of the NIfTI file that the study came from (both transforms, their
    codes, the unit), so that every program lays it over that file; without such a file both transforms are the affine.
    """
    if grid.header is not None:
        header = grid.header.new_header()
        header.set_data_dtype(volume.dtype)
        image = nibabel.Nifti1Image(volume, None, header)
    else:
        image = nibabel.Nifti1Image(volume, grid.affine)
        image.set_qform(grid.affine, code="scanner")
        image.set_sform(grid.affine, code="scanner")
        image.header.set_xyzt_units("mm")
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    if classes:
        image.header.extensions.append(label_table(classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nibabel.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
