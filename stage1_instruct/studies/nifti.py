"""NIfTI volumes, read with nibabel and checked."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.nifti_header import NiftiHeader, affine_in_mm
from zeus_union.stage1_instruct.studies.depth import wanted

_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    zlib.error,
)


def _load(
    path: Path, labels: bool = False
) -> tuple[NDArray[np.float32], tuple[NDArray[np.float64], NiftiHeader | None]]:
    """The array as float32, any number of axes; the affine in mm, with the header's own geometry.

    Raises:
        UserError: missing, truncated, damaged, or not a NIfTI file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; expected a NIfTI file there")
    try:
        if path.suffix == ".gz" and wanted(labels):
            _check_gzip(path)
        image: Any = nibabel.load(path)
        if image.get_data_dtype().kind == "c":
            raise UserError(f"{path} holds complex numbers, expected magnitudes; write those instead")
        if not wanted(labels):
            return np.zeros(image.shape, np.float32), affine_in_mm(image)
        return np.asarray(image.dataobj, dtype=np.float32), affine_in_mm(image)
    except _UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as NIfTI ({error}); it may be truncated or damaged, copy it again"
        ) from error


def _check_gzip(path: Path) -> None:
    """Reads `path` to its end, where gzip keeps the checksum.

    nibabel stops at the last voxel and so never compares it: of 100 single flipped bytes 69 went unnoticed.
    """
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def _grid(path: Path, shape: tuple[int, ...], geometry: tuple[NDArray[np.float64], NiftiHeader | None]) -> Grid:
    affine, header = geometry
    try:
        return Grid((shape[0], shape[1], shape[2]), affine, header=header)
    except UserError as error:
        raise UserError(f"{path}: {error}; correct its header") from error


def read_volume(path: Path, labels: bool = False) -> tuple[NDArray[np.float32], Grid]:
    """A 3D volume float32 and its grid.

    Raises:
        UserError: unreadable, not 3D, or with NaN or infinite voxels.
    """
    volume, geometry = _load(path, labels)
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3:
        raise UserError(f"{path} has shape {volume.shape}, expected a 3D volume")
    check_finite(volume, str(path))
    return volume, _grid(path, volume.shape, geometry)


def read_channels(path: Path, channels: Mapping[str, int], count: int) -> tuple[dict[str, NDArray[np.float32]], Grid]:
    """Some channels of a 4D volume (X, Y, Z, channel), by name.

    Args:
        channels: name -> index, those wanted.
        count: how many channels dataset.json promises.
    Raises:
        UserError: unreadable, another number of channels, or NaN or infinite voxels in a wanted channel.
    """
    volume, geometry = _load(path)
    if volume.ndim == 3 and count == 1:
        volume = volume[..., None]
    if volume.ndim != 4 or volume.shape[3] != count:
        raise UserError(
            f"{path} has shape {volume.shape}, dataset.json names {count} modalities; expected (X, Y, Z, {count})"
        )
    images = {name: np.ascontiguousarray(volume[..., index]) for name, index in channels.items()}
    for name, image in images.items():
        check_finite(image, f"{path}, modality {name}")
    return images, _grid(path, volume.shape[:3], geometry)


def read_labels(path: Path, grid: Grid, allowed: Sequence[int], image_path: Path) -> NDArray[np.uint8]:
    """A label map on `grid`, uint8; whole numbers in a float file are fine.

    Raises:
        UserError: unreadable, on another grid than the image, or with a value that dataset.json does not name.
    """
    volume, label_grid = read_volume(path, labels=True)
    check_same_grid(label_grid, path, grid, image_path)
    values = np.unique(volume)
    unknown = [f"{value:g}" for value in values if value not in allowed]
    if unknown:
        raise UserError(
            f"{path} holds label values {', '.join(unknown[:8])} that dataset.json does not name "
            f"(it names {', '.join(map(str, allowed))}); correct one of the two"
        )
    return volume.astype(np.uint8)


def check_finite(volume: NDArray[np.float32], where: str) -> None:
    """Raises a UserError where a voxel is NaN or infinite."""
    bad = int(volume.size - np.isfinite(volume).sum())
    if bad:
        raise UserError(
            f"{where} holds {bad} voxels that are NaN or infinite of {volume.size}; "
            "repair the file, or leave the modality out with --modalities"
        )


def check_same_grid(grid: Grid, path: Path, reference: Grid, reference_path: Path) -> None:
    """Raises a UserError unless both volumes have one shape and lie at one place (to a twentieth of a voxel)."""
    if grid.shape != reference.shape:
        raise UserError(
            f"{path} has shape {grid.shape}, {reference_path} has {reference.shape}; "
            "all files of a study must lie on one grid, resample them first"
        )
    if not grid.same_as(reference):
        raise UserError(
            f"{path} and {reference_path} have one shape but lie at different places (their affines differ); "
            "all files of a study must lie on one grid, resample them first"
        )
