"""DICOM series: read with pydicom, ordered and spaced by position, never by file name or by the spacing tags."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from cache.errors import UserError
from cache.grid import Grid

# Share of the usual distance between slices by which one may differ: real series repeat it to 1e-3.
GAP_TOLERANCE = 0.1
SAME_DIRECTION = 1e-3


@dataclass(frozen=True, eq=False)
class Series:
    """A series as a volume.

    Attributes:
        volume: float32 (columns, rows, slices), rescaled by slope and intercept.
        grid: its position; the last axis runs along the slices.
        files: the file of every slice, in the order of the last axis.
        header: the data set of the first slice, without pixels' meaning.
    """

    volume: NDArray[np.float32]
    grid: Grid
    files: tuple[Path, ...]
    header: Any


def dicom_files(folder: Path) -> list[Path]:
    """All files below `folder` that could be DICOM, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in (".dcm", ".ima", ""))


def group_series(files: Iterable[Path]) -> dict[tuple[str, float], list[Path]]:
    """Files by series: (SeriesInstanceUID, EchoTime in ms).

    The echoes of a dual-echo acquisition often share one series number, so the echo time belongs to the key.

    Raises:
        UserError: a file that is not DICOM.
    """
    groups: dict[tuple[str, float], list[Path]] = defaultdict(list)
    for path in files:
        header = _read(path, pixels=False)
        echo = header.get("EchoTime")
        groups[str(header.get("SeriesInstanceUID", "")), float(echo) if echo not in (None, "") else 0.0].append(path)
    return dict(groups)


def read_series(files: Sequence[Path]) -> Series:
    """One volume from the files of one series.

    Raises:
        UserError: no files, a file that is truncated or no image, slices of different size or direction, a slice that is
            missing or there twice.
    """
    if not files:
        raise UserError("a DICOM series without files; is the folder empty?")
    slices = [(path, _read(path, pixels=True)) for path in files]
    first_path, first = slices[0]
    for path, header in slices:
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
            if header.get(tag) is None:
                raise UserError(f"{path} has no {tag}; it is not a slice of a volume, remove it from the series")
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            raise UserError(
                f"{path} is {header.Columns} x {header.Rows} pixels, {first_path} is {first.Columns} x {first.Rows}; "
                "the slices of a series must have one size"
            )
        if np.abs(np.subtract(header.ImageOrientationPatient, first.ImageOrientationPatient)).max() > SAME_DIRECTION:
            raise UserError(f"{path} and {first_path} have different orientations; the folder mixes series")
        if np.abs(np.subtract(header.PixelSpacing, first.PixelSpacing)).max() > SAME_DIRECTION:
            raise UserError(f"{path} and {first_path} have different pixel spacing; the folder mixes series")
    column_direction, row_direction = np.reshape(np.asarray(first.ImageOrientationPatient, dtype=float), (2, 3))
    normal = np.cross(column_direction, row_direction)
    slices.sort(key=lambda item: float(np.dot(item[1].ImagePositionPatient, normal)))
    positions = np.array([header.ImagePositionPatient for _, header in slices], dtype=float)  # mm, LPS
    _check_gaps([path for path, _ in slices], positions @ normal)

    volume = np.stack([_pixels(path, header) for path, header in slices], axis=-1)
    step = (positions[-1] - positions[0]) / (len(slices) - 1) if len(slices) > 1 else normal * _thickness(first)
    lps = np.eye(4)
    lps[:3, 0] = column_direction * float(first.PixelSpacing[1])
    lps[:3, 1] = row_direction * float(first.PixelSpacing[0])
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    grid = Grid(volume.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    return Series(volume, grid, tuple(path for path, _ in slices), first)


def resample_to(volume: NDArray[Any], grid: Grid, target: Grid, order: int) -> NDArray[Any]:
    """`volume` on another grid, by the positions in millimetres; 0 where it does not reach.

    Args:
        order: 1 (linear) for images, 0 (nearest) for labels.
    Returns:
        the volume's dtype, target.shape.
    """
    matrix = np.linalg.inv(grid.affine) @ target.affine
    index = np.indices(target.shape, dtype=np.float64).reshape(3, -1)
    where = matrix[:3, :3] @ index + matrix[:3, 3:]
    # A voxel reaches half its size beyond its centre; further out there is no measurement.
    limits = np.array(grid.shape)[:, None] - 0.5
    inside = ((where >= -0.5 - 1e-6) & (where <= limits + 1e-6)).all(axis=0)
    values = np.zeros(index.shape[1], dtype=volume.dtype)
    values[inside] = ndimage.map_coordinates(volume, where[:, inside], order=order, mode="nearest")
    return values.reshape(target.shape)


def _read(path: Path, pixels: bool) -> Any:
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (InvalidDicomError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as DICOM ({error}); remove it or copy it again") from error


def _pixels(path: Path, header: Any) -> NDArray[np.float32]:
    """float32 (columns, rows), rescaled."""
    try:
        stored = header.pixel_array
    except (AttributeError, ValueError, KeyError, RuntimeError, NotImplementedError, EOFError) as error:
        raise UserError(
            f"the pixels of {path} cannot be read ({' '.join(str(error).split())[:120]}); "
            "the file may be truncated, copy it again"
        ) from error
    if stored.ndim != 2:
        raise UserError(f"{path} holds an image of shape {stored.shape}, expected one slice in grey values")
    slope, intercept = float(header.get("RescaleSlope", 1) or 1), float(header.get("RescaleIntercept", 0) or 0)
    return (stored.T * slope + intercept).astype(np.float32)


def _thickness(header: Any) -> float:
    return float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)


def _check_gaps(files: Sequence[Path], along: NDArray[np.float64]) -> None:
    """Raises a UserError where a slice is missing or doubled.

    Args:
        along: position of every slice along the normal in mm, ascending.
    """
    gaps = np.diff(along)
    if not len(gaps):
        return
    usual = float(np.median(gaps))
    for index, gap in enumerate(gaps):
        one, two = files[index].name, files[index + 1].name
        if gap < 1e-3:
            raise UserError(
                f"{files[index].parent}: {one} and {two} lie at the same position ({along[index]:.2f} mm); "
                "a slice is doubled or two series are mixed, remove one"
            )
        if abs(gap - usual) > GAP_TOLERANCE * usual:
            raise UserError(
                f"{files[index].parent}: between {one} and {two} are {gap:.2f} mm, between other slices {usual:.2f} mm; "
                "a slice is missing, complete the series"
            )
