"""DICOM series: read with pydicom, ordered and spaced by position, never by file name or by the spacing tags."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.stage1_instruct.studies.depth import wanted
from zeus_union.stage1_instruct.studies.dicom_files import dicom_files
from zeus_union.stage1_instruct.studies.dicom_frames import (
    Frame,
    Place,
    pixels_of,
    place_of,
    read_dataset,
    read_frames,
    tag_number,
    tag_value,
)

__all__ = ["Frame", "Series", "dicom_files", "group_series", "read_frames", "read_series", "resample_to"]

# Share of the usual distance between slices by which one may differ: real series repeat it to 1e-3.
GAP_TOLERANCE = 0.1
# Slices nearer than this share of the largest distance lie at one place.
SAME_POSITION = 1e-3
SAME_DIRECTION = 1e-3
# Share of a pixel by which spacings may differ.
SAME_SPACING = 1e-3


@dataclass(frozen=True, eq=False)
class Series:
    """A series as a volume.

    Attributes:
        volume: float32 (columns, rows, slices), rescaled by slope and intercept.
        grid: its position; the last axis runs along the slices.
        frames: the frame of every slice, in the order of the last axis.
        header: the pydicom data set of the first of the files given.
    """

    volume: NDArray[np.float32]
    grid: Grid
    frames: tuple[Frame, ...]
    header: Any

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of every slice, in the order of the last axis; a multi-frame file once for each of its slices."""
        return tuple(frame.path for frame in self.frames)


def group_series(files: Iterable[Path]) -> dict[tuple[str, float], list[Frame]]:
    """The frames of files by series: (SeriesInstanceUID, EchoTime in ms).

    The echoes of a dual-echo acquisition often share one series number, so the echo time belongs to the key.

    Raises:
        UserError: a file that is not DICOM.
    """
    groups: dict[tuple[str, float], list[Frame]] = defaultdict(list)
    for path in files:
        for frame in read_frames(path):
            groups[str(tag_value(frame, "SeriesInstanceUID")), tag_number(frame, "EchoTime", 0.0)].append(frame)
    return dict(groups)


def read_series(images: Sequence[Path] | Sequence[Frame]) -> Series:
    """One volume from the files of one series, or from their frames.

    Raises:
        UserError: no files, a file that is truncated or no image, slices of different size or direction, a slice that is
            missing or there twice.
    """
    frames = [frame for image in images for frame in ([image] if isinstance(image, Frame) else read_frames(image))]
    if not frames:
        raise UserError("a DICOM series without files; is the folder empty?")
    header = frames[0].header
    places = [place_of(frame) for frame in frames]
    for frame, place in zip(frames, places):
        _check_alike(frame, place, frames[0], places[0])
    first = places[0]
    along_row, along_column = first.directions
    normal = np.cross(along_row, along_column)
    order = sorted(range(len(frames)), key=lambda index: float(places[index].position @ normal))
    frames, places = [frames[index] for index in order], [places[index] for index in order]
    positions = np.array([place.position for place in places])
    _check_gaps(frames, positions @ normal)
    step = (positions[-1] - positions[0]) / (len(frames) - 1) if len(frames) > 1 else normal * _thickness(frames[0])
    _check_line(frames, positions, step)

    lps = np.eye(4)
    lps[:3, 0] = along_row * first.spacing[1]
    lps[:3, 1] = along_column * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    grid = Grid((*first.size, len(frames)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    return Series(_read_volume(frames, grid.shape), grid, tuple(frames), header)


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
    # A voxel reaches half its size beyond its centre; further out there is no measurement.
    limits = np.array(grid.shape)[:, None] - 0.5
    values = np.zeros(target.shape, dtype=volume.dtype)
    # Slab by slab: the positions of all voxels at once take 24 times the memory of a byte a voxel.
    for slab in range(target.shape[0]):
        index = np.indices((1, *target.shape[1:]), dtype=np.float64).reshape(3, -1)
        index[0] = slab
        where = matrix[:3, :3] @ index + matrix[:3, 3:]
        inside = ((where >= -0.5 - 1e-6) & (where <= limits + 1e-6)).all(axis=0)
        row = values[slab].reshape(-1)
        row[inside] = ndimage.map_coordinates(volume, where[:, inside], order=order, mode="nearest")
    return values


def _read_volume(frames: Sequence[Frame], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """The frames' pixels, float32 (columns, rows, slices), reading every file once."""
    if not wanted():
        return np.zeros(shape, dtype=np.float32)
    volume = np.empty(shape, dtype=np.float32)
    by_file = sorted(range(len(frames)), key=lambda index: str(frames[index].path))
    for path, indices in groupby(by_file, key=lambda index: frames[index].path):
        dataset = read_dataset(path, pixels=True)
        for index in indices:
            pixels = pixels_of(frames[index], dataset)
            if pixels.shape != shape[:2]:
                raise UserError(f"the pixels of {path} are {pixels.shape}, its header says {shape[:2]}; copy it again")
            volume[..., index] = pixels
    return volume


def _check_alike(frame: Frame, place: Place, first: Frame, reference: Place) -> None:
    """Raises a UserError where a frame has another size, orientation or pixel spacing than the first one."""
    if place.size != reference.size:
        raise UserError(
            f"{frame.path} is {place.size[0]} x {place.size[1]} pixels, {first.path} is {reference.size[0]} x "
            f"{reference.size[1]}; the slices of a series must have one size"
        )
    names = (
        f"{frame.path} and {first.path}" if frame.path != first.path else f"{frame.path}: {frame.name} and {first.name}"
    )
    if np.abs(place.directions - reference.directions).max() > SAME_DIRECTION:
        raise UserError(f"{names} have different orientations; the folder mixes series")
    if np.abs(place.spacing / reference.spacing - 1).max() > SAME_SPACING:
        raise UserError(f"{names} have different pixel spacing; the folder mixes series")


def _thickness(frame: Frame) -> float:
    """Extent in mm of the only slice of a series, where no second one shows the distance."""
    return abs(tag_number(frame, "SpacingBetweenSlices", tag_number(frame, "SliceThickness", 1.0))) or 1.0


def _check_line(frames: Sequence[Frame], positions: NDArray[np.float64], step: NDArray[np.float64]) -> None:
    """Raises a UserError where a slice lies beside the line through the others: then one affine cannot place them all.

    Args:
        positions: (slices, 3) in mm, in order.
        step: (3,) mm from slice to slice.
    """
    beside = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    worst = int(beside.argmax())
    if beside[worst] > GAP_TOLERANCE * np.linalg.norm(step):
        raise UserError(
            f"{frames[worst].path.with_name(frames[worst].name)} lies {beside[worst]:.2f} mm beside the line of the other "
            "slices; the folder mixes series, remove one"
        )


def _check_gaps(frames: Sequence[Frame], along: NDArray[np.float64]) -> None:
    """Raises a UserError where a slice is missing or doubled.

    Args:
        along: position of every slice along the normal in mm, ascending.
    """
    gaps = np.diff(along)
    if not len(gaps):
        return
    usual = float(np.median(gaps))
    for index, gap in enumerate(gaps):
        folder, lower, upper = frames[index].path.parent, frames[index].name, frames[index + 1].name
        if gap <= SAME_POSITION * gaps.max():
            raise UserError(
                f"{folder}: {lower} and {upper} lie at the same position ({along[index]:.2f} mm); "
                "a slice is doubled or two series are mixed, remove one"
            )
        if abs(gap - usual) > GAP_TOLERANCE * usual:
            raise UserError(
                f"{folder}: between {lower} and {upper} are {gap:.2f} mm, between other slices {usual:.2f} mm; "
                "a slice is missing, complete the series"
            )
