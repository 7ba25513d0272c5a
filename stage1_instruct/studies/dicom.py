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
from pydicom.errors import BytesLengthException, InvalidDicomError
from scipy import ndimage

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.stage1_instruct.studies.depth import wanted

# Share of the usual distance between slices by which one may differ: real series repeat it to 1e-3.
GAP_TOLERANCE = 0.1
SAME_DIRECTION = 1e-3
# What pydicom raises on damaged values: it converts them only when they are asked for.
_DAMAGED = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
)


@dataclass(frozen=True, eq=False)
class Series:
    """A series as a volume.

    Attributes:
        volume: float32 (columns, rows, slices), rescaled by slope and intercept.
        grid: its position; the last axis runs along the slices.
        files: the file of every slice, in the order of the last axis.
        header: the pydicom data set of the first of the files given.
    """

    volume: NDArray[np.float32]
    grid: Grid
    files: tuple[Path, ...]
    header: Any


@dataclass(frozen=True, eq=False)
class _Slice:
    """One file: where it lies in mm (LPS) and its data set."""

    path: Path
    header: Any
    position: NDArray[np.float64]  # (3,)
    directions: NDArray[np.float64]  # (2, 3): along a row, along a column
    spacing: NDArray[np.float64]  # (2,): between rows, between columns
    size: tuple[int, int]  # columns, rows


def dicom_files(folder: Path) -> list[Path]:
    """All files below `folder` that could be DICOM, by name; hidden files (macOS) and DICOMDIR are not slices."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (".dcm", ".ima", "")
        and not path.name.startswith(".")
        and path.name.upper() != "DICOMDIR"
        and path.is_file()
    )


def group_series(files: Iterable[Path]) -> dict[tuple[str, float], list[Path]]:
    """Files by series: (SeriesInstanceUID, EchoTime in ms).

    The echoes of a dual-echo acquisition often share one series number, so the echo time belongs to the key.

    Raises:
        UserError: a file that is not DICOM.
    """
    groups: dict[tuple[str, float], list[Path]] = defaultdict(list)
    for path in files:
        header = read_header(path)
        groups[
            str(header_value(path, header, "SeriesInstanceUID")), header_number(path, header, "EchoTime", 0.0)
        ].append(path)
    return dict(groups)


def read_header(path: Path) -> Any:
    """The pydicom data set of a file without its pixels.

    Raises:
        UserError: not DICOM, or damaged.
    """
    return _read(path, pixels=False)


def header_value(path: Path, header: Any, tag: str) -> Any:
    """A tag's value, None where there is none.

    Raises:
        UserError: a damaged value.
    """
    try:
        value = header.get(tag)
    except _DAMAGED as error:
        raise UserError(f"{path} has an unreadable {tag} ({_short(error)}); copy it again") from error
    return None if value is None or value == "" else value


def header_number(path: Path, header: Any, tag: str, missing: float) -> float:
    """A tag's number, `missing` where there is none.

    Raises:
        UserError: something else than one number.
    """
    return missing if header_value(path, header, tag) is None else float(_numbers(path, header, tag, 1)[0])


def read_series(files: Sequence[Path]) -> Series:
    """One volume from the files of one series.

    Raises:
        UserError: no files, a file that is truncated or no image, slices of different size or direction, a slice that is
            missing or there twice.
    """
    if not files:
        raise UserError("a DICOM series without files; is the folder empty?")
    slices = [_read_slice(path) for path in files]
    first = slices[0]
    for image in slices:
        if image.size != first.size:
            raise UserError(
                f"{image.path} is {image.size[0]} x {image.size[1]} pixels, {first.path} is {first.size[0]} x {first.size[1]}; "
                "the slices of a series must have one size"
            )
        if np.abs(image.directions - first.directions).max() > SAME_DIRECTION:
            raise UserError(f"{image.path} and {first.path} have different orientations; the folder mixes series")
        if np.abs(image.spacing - first.spacing).max() > SAME_DIRECTION:
            raise UserError(f"{image.path} and {first.path} have different pixel spacing; the folder mixes series")
    along_row, along_column = first.directions
    normal = np.cross(along_row, along_column)
    slices.sort(key=lambda image: float(image.position @ normal))
    positions = np.array([image.position for image in slices])
    paths = tuple(image.path for image in slices)
    _check_gaps(paths, positions @ normal)
    step = (positions[-1] - positions[0]) / (len(slices) - 1) if len(slices) > 1 else normal * _thickness(first)
    _check_line(paths, positions, step)

    volume = np.stack([_pixels(image) for image in slices], axis=-1)
    lps = np.eye(4)
    lps[:3, 0] = along_row * first.spacing[1]
    lps[:3, 1] = along_column * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    grid = Grid(volume.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    return Series(volume, grid, paths, first.header)


def resample_to(volume: NDArray[Any], grid: Grid, target: Grid, order: int) -> NDArray[Any]:
    """`volume` on another grid, by the positions in millimetres; 0 where it does not reach.

    Args:
        order: 1 (linear) for images, 0 (nearest) for labels.
    Returns:
        the volume's dtype, target.shape.
    """
    if not wanted(labels=order == 0):
        return np.zeros(target.shape, volume.dtype)
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
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as DICOM ({_short(error)}); remove it or copy it again") from error


def _numbers(path: Path, header: Any, tag: str, count: int) -> NDArray[np.float64]:
    """A tag's `count` numbers."""
    value = header_value(path, header, tag)
    if value is None:
        raise UserError(f"{path} has no {tag}; it is not a slice of a volume, remove it from the series")
    try:
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except _DAMAGED:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UserError(f"{path} has {tag} {str(value)[:60]!r}, expected {count} numbers; copy it again")
    return numbers


def _read_slice(path: Path) -> _Slice:
    """A file and its place.

    Raises:
        UserError: not DICOM, or without a usable position, orientation, spacing or size.
    """
    header = _read(path, pixels=wanted())
    directions = _numbers(path, header, "ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 0.01:
        raise UserError(f"{path} has ImageOrientationPatient {directions.tolist()}, which is no pair of right angles")
    spacing = _numbers(path, header, "PixelSpacing", 2)
    if (spacing <= 0).any():
        raise UserError(f"{path} has PixelSpacing {spacing.tolist()}, expected millimetres above 0; correct the file")
    columns, rows = (int(_numbers(path, header, tag, 1)[0]) for tag in ("Columns", "Rows"))
    position = _numbers(path, header, "ImagePositionPatient", 3)
    return _Slice(path, header, position, directions, spacing, (columns, rows))


def _pixels(one: _Slice) -> NDArray[np.float32]:
    """float32 (columns, rows), rescaled."""
    if not wanted():
        return np.zeros(one.size, np.float32)
    try:
        stored = one.header.pixel_array
    except (*_DAMAGED, RuntimeError) as error:
        raise UserError(
            f"the pixels of {one.path} cannot be read ({_short(error)}); the file may be truncated, copy it again"
        ) from error
    if stored.ndim != 2:
        raise UserError(f"{one.path} holds an image of shape {stored.shape}, expected one slice in grey values")
    slope = header_number(one.path, one.header, "RescaleSlope", 1.0) or 1.0
    return (stored.T * slope + header_number(one.path, one.header, "RescaleIntercept", 0.0)).astype(np.float32)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _thickness(one: _Slice) -> float:
    """Extent in mm of the only slice of a series, where no second one shows the distance."""
    thickness = header_number(one.path, one.header, "SliceThickness", 1.0)
    return abs(header_number(one.path, one.header, "SpacingBetweenSlices", thickness)) or 1.0


def _check_line(files: Sequence[Path], positions: NDArray[np.float64], step: NDArray[np.float64]) -> None:
    """Raises a UserError where a slice lies beside the line through the others: then one affine cannot place them all.

    Args:
        positions: (slices, 3) in mm, in order.
        step: (3,) mm from slice to slice.
    """
    beside = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    worst = int(beside.argmax())
    if beside[worst] > GAP_TOLERANCE * np.linalg.norm(step):
        raise UserError(
            f"{files[worst]} lies {beside[worst]:.2f} mm beside the line of the other slices; "
            "the folder mixes series, remove one"
        )


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
        lower, upper = files[index].name, files[index + 1].name
        if gap < 1e-3:
            raise UserError(
                f"{files[index].parent}: {lower} and {upper} lie at the same position ({along[index]:.2f} mm); "
                "a slice is doubled or two series are mixed, remove one"
            )
        if abs(gap - usual) > GAP_TOLERANCE * usual:
            raise UserError(
                f"{files[index].parent}: between {lower} and {upper} are {gap:.2f} mm, between other slices {usual:.2f} mm; "
                "a slice is missing, complete the series"
            )
