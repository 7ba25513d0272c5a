"""Volumes and their grids, read and checked, whatever the file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import SAME_PLACE, Grid
from zeus_union.cache.terminal import warn
from zeus_union.stage1_instruct.studies.file_formats import Geometry, load_array


def read_volume(path: Path, labels: bool = False) -> tuple[NDArray[np.float32], Grid]:
    """A 3D volume float32 and its grid; voxels that are NaN or infinite become background, see `fill_non_finite`.

    Args:
        labels: it is a label map, in which such voxels stay.
    Raises:
        UserError: unreadable, not 3D, or mostly NaN or infinite.
    """
    volume, geometry = load_array(path, labels)
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    if volume.ndim == 2:
        volume = volume[..., None]
    if volume.ndim != 3:
        raise UserError(f"{path} has shape {volume.shape}, expected a 3D volume")
    return volume if labels else fill_non_finite(volume, str(path)), _grid(path, volume.shape, geometry)


def read_channels(
    paths: Sequence[Path], channels: Mapping[str, int], count: int
) -> tuple[dict[str, NDArray[np.float32]], Grid]:
    """Some channels of files (X, Y, Z, channel) whose channels are counted one after the other, by name.

    Args:
        channels: name -> index, those wanted.
        count: how many channels dataset.json promises.
    Raises:
        UserError: unreadable, another number of channels, files on different grids, or a wanted channel that is mostly
            NaN or infinite.
    """
    stacked, grids = [], []
    for path in paths:
        volume, geometry = load_array(path)
        if volume.ndim == 3 and (count == 1 or len(paths) > 1):
            volume = volume[..., None]
        if volume.ndim == 4:
            grids.append(_grid(path, volume.shape[:3], geometry))
            check_same_grid(grids[-1], path, grids[0], paths[0])
        stacked.append(volume)
    if any(volume.ndim != 4 for volume in stacked) or sum(volume.shape[3] for volume in stacked) != count:
        shapes = ", ".join(f"{path} has shape {volume.shape}" for path, volume in zip(paths, stacked))
        raise UserError(f"{shapes}, dataset.json names {count} modalities; expected (X, Y, Z, {count})")
    whole = np.concatenate(stacked, axis=3) if len(stacked) > 1 else stacked[0]
    images = {
        name: fill_non_finite(np.ascontiguousarray(whole[..., index]), f"{paths[0]}, modality {name}")
        for name, index in channels.items()
    }
    return images, grids[0]


def _grid(path: Path, shape: tuple[int, ...], geometry: Geometry) -> Grid:
    affine, header = geometry
    try:
        return Grid((shape[0], shape[1], shape[2]), affine, header=header)
    except UserError as error:
        raise UserError(f"{path}: {error}; correct its header, affine and xyzt_units") from error


def fill_non_finite(volume: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """`volume` with what is NaN or infinite set to the lowest other value, the background; says how many voxels.

    Args:
        where: names the volume in messages.
    Raises:
        UserError: more than half of the voxels are.
    """
    finite = np.isfinite(volume)
    count = int(volume.size - finite.sum())
    if not count:
        return volume
    if count > volume.size / 2:
        raise UserError(
            f"{where}: {count} of {volume.size} voxels are NaN or infinite, more than half; "
            "repair the file, or leave the modality out with --modalities"
        )
    lowest = volume[finite].min()
    warn(f"{where}: {count} of {volume.size} voxels are NaN or infinite; taken as background, {lowest:g}")
    return np.where(finite, volume, lowest)


def turn_towards(volume: NDArray[np.float32], grid: Grid, reference: Grid) -> tuple[NDArray[np.float32], Grid]:
    """A view of `volume` with its axes swapped and reversed to run as those of `reference` do, and its grid."""
    orientation = nibabel.io_orientation(np.linalg.inv(reference.affine) @ grid.affine)
    turned = nibabel.apply_orientation(volume, orientation)
    back = nibabel.orientations.inv_ornt_aff(orientation, grid.shape)
    return turned, Grid(turned.shape, grid.affine @ back)


def onto_grid(
    volume: NDArray[np.float32],
    grid: Grid,
    path: Path,
    reference: Grid,
    reference_path: Path,
    trust_voxels: bool = False,
) -> NDArray[np.float32]:
    """`volume` in the array order of `reference`: as it is, or with its axes swapped and reversed; never interpolated.

    Args:
        grid, path: where the volume lies, and its file.
        trust_voxels: lay files of one shape voxel on voxel, whatever their headers say of the place.
    Raises:
        UserError: they do not lie on one grid, saying what differs.
    """
    turned, turned_grid = turn_towards(volume, grid, reference)
    if turned_grid.same_as(reference):
        return np.ascontiguousarray(turned)
    if trust_voxels and grid.shape == reference.shape:
        warn(
            f"{path} is laid voxel on voxel on {reference_path}, though {_differences(grid, reference)} (--trust-voxels)"
        )
        return volume
    check_same_grid(grid if grid.shape == reference.shape else turned_grid, path, reference, reference_path)
    return volume


def check_same_grid(grid: Grid, path: Path, reference: Grid, reference_path: Path) -> None:
    """Raises a UserError unless both volumes have one shape and lie at one place."""
    if grid.shape != reference.shape:
        raise UserError(
            f"{path} has shape {grid.shape}, {reference_path} has {reference.shape}; "
            "all files of a study must lie on one grid, resample them first"
        )
    if not grid.same_as(reference):
        lost = " (its header looks lost)" if np.allclose(grid.affine[:3, :3], np.eye(3)) else ""
        raise UserError(
            f"{path}{lost} and {reference_path} have one shape but lie at different places: "
            f"{_differences(grid, reference)}; if they belong together voxel by voxel, build-cache --trust-voxels lays "
            f"them so, or copy the header: import nibabel as n; n.save(n.Nifti1Image(n.load('{path}').get_fdata(dtype='f4'), "
            f"n.load('{reference_path}').affine), 'corrected.nii.gz')"
        )


def _differences(grid: Grid, reference: Grid) -> str:
    """Orientation, spacing, origin and tilt where they differ: 'spacing 1 x 1 x 1 against 2 x 2 x 5 mm'."""

    def numbers(values: object, separator: str) -> str:
        return separator.join(f"{value:.4g}" for value in np.asarray(values, dtype=float))

    parts = []
    if grid.orientation != reference.orientation:
        parts.append(f"orientation {grid.orientation} against {reference.orientation}")
    if not np.allclose(grid.spacing, reference.spacing, rtol=1e-3):
        parts.append(f"spacing {numbers(grid.spacing, ' x ')} against {numbers(reference.spacing, ' x ')} mm")
    origins = grid.affine[:3, 3], reference.affine[:3, 3]
    if np.abs(origins[0] - origins[1]).max() > SAME_PLACE * min(reference.spacing):
        parts.append(f"origin ({numbers(origins[0], ', ')}) against ({numbers(origins[1], ', ')}) mm")
    return "; ".join(parts) or "their axes are tilted against one another"
