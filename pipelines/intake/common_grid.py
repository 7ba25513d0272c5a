"""A modality on the grid of the reference: as it is, turned, resampled by position, or registered; or refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.nifti_header import NiftiHeader
from zeus_union.pipelines.intake.file_names import LEFT_OUT
from zeus_union.pipelines.intake.overlap import overlap_of
from zeus_union.stage1_instruct.studies.depth import wanted
from zeus_union.stage1_instruct.studies.dicom import Series, resample_to
from zeus_union.stage1_instruct.studies.nifti import turn_towards

# Share of the reference that a modality has to cover: of DICOM, one frame of reference says where it lies; of files, the
# overlap is part of the evidence that their headers mean one world.
COVERED_IN_FRAME, COVERED_BY_HEADERS = 0.25, 0.5
_COMPLETE = 0.995
# An image with values below is in Hounsfield units: air is -1000.
HOUNSFIELD = -500.0


@dataclass(frozen=True, eq=False)
class Image:
    """A modality as it was read.

    Attributes:
        name: the modality.
        source: what it was read from, in messages.
        volume: float32 (grid.shape).
        grid: where it lies.
        series: of DICOM; None of a file.
        frame_of_reference: of DICOM, its UID; ''.
    """

    name: str
    source: str
    volume: NDArray[np.float32]
    grid: Grid
    series: Series | None = None
    frame_of_reference: str = ""


def onto_reference(image: Image, reference: Image, register: bool) -> tuple[NDArray[np.float32], str]:
    """The image on the reference's grid, and what was done to it in plain words ('' where nothing was).

    Args:
        register: move what lies in another frame of reference, or whose header cannot be trusted, by registration.
    Raises:
        UserError: they do not lie in one world, or hardly meet.
    """
    turned, turned_grid = turn_towards(image.volume, image.grid, reference.grid)
    apart = _other_frame(image, reference)
    if not apart and turned_grid.same_as(reference.grid):
        return np.ascontiguousarray(turned), ""
    covered = overlap_of(image.grid, reference.grid)
    doubt = apart or _doubt(image, reference, covered)
    if not doubt:
        size = f"resampled from {size_of(image.grid)}"
        partly = f", which covers {covered:.0%} of {reference.name}" if covered < _COMPLETE else ""
        return _resampled(image, image.grid, reference.grid), size + partly
    if not register:
        raise UserError(
            f"{image.source} ({image.name}) cannot be laid on {reference.source} ({reference.name}): {doubt}; --register moves "
            f"it by registration (rigid, mutual information), --modality {image.name}={LEFT_OUT} leaves it out"
        )
    return _registered(image, reference)


def size_of(grid: Grid) -> str:
    """'84 x 128 x 19 at 2 x 2 x 3 mm'."""
    shape = " x ".join(str(count) for count in grid.shape)
    return f"{shape} at {' x '.join(f'{side:.3g}' for side in grid.spacing)} mm"


def _resampled(image: Image, grid: Grid, target: Grid) -> NDArray[np.float32]:
    """Linear; where the image does not reach 0, as in the training data; in a CT, where 0 is water, its lowest value."""
    lowest = np.nanmin(image.volume)
    floor = np.float32(lowest if lowest < HOUNSFIELD else 0)
    volume: NDArray[np.float32] = resample_to(image.volume - floor, grid, target, order=1)
    return volume + floor


def _registered(image: Image, reference: Image) -> tuple[NDArray[np.float32], str]:
    if not wanted():
        return np.zeros(reference.grid.shape, np.float32), "to be registered"
    from zeus_union.pipelines.intake.register import moved_grid, register_rigidly

    what = f"{image.source} ({image.name}) onto {reference.source} ({reference.name})"
    motion = register_rigidly(image.volume, image.grid, reference.volume, reference.grid, what)
    volume = _resampled(image, moved_grid(image.grid, motion), reference.grid)
    motion_in_words = f"registered, moved by {motion.shift_mm:.1f} mm and {motion.degrees:.1f} degrees"
    return volume, f"{motion_in_words}; resampled from {size_of(image.grid)}"


def _other_frame(image: Image, reference: Image) -> str:
    """Why positions in the two mean different places, of two DICOM series; '' where they do not."""
    frames = image.frame_of_reference, reference.frame_of_reference
    if image.series and reference.series and all(frames) and frames[0] != frames[1]:
        return "they have different frames of reference (FrameOfReferenceUID), so that positions in one say nothing of the other"
    return ""


def _doubt(image: Image, reference: Image, covered: float) -> str:
    """Why the headers' positions are no ground to resample by; '' where they are."""
    for each in (image, reference):
        if each.series is None and (untrusted := _untrusted(each.grid)):
            return f"they have different grids ({size_of(image.grid)}; {size_of(reference.grid)}), and {each.source} {untrusted}"
    by_frame = image.series is not None and reference.series is not None
    least = COVERED_IN_FRAME if by_frame else COVERED_BY_HEADERS
    if covered < least:
        return f"it covers {covered:.0%} of it, expected {least:.0%} or more"
    return ""


def _untrusted(grid: Grid) -> str:
    """Why a file's header does not say where its voxels lie; '' where it does."""
    header = grid.header
    if np.allclose(np.abs(grid.affine), np.eye(4)):
        return "says no position (1 mm a voxel, from 0)"
    if header is None:
        return ""
    if header.sform_code <= 0 and header.qform_code <= 0:
        return "says no position (qform_code and sform_code are 0)"
    if header.sform_code > 0 and header.qform_code > 0 and not _agree(header, grid):
        return "says two positions (its qform and sform differ)"
    return ""


def _agree(header: NiftiHeader, grid: Grid) -> bool:
    """Whether both transforms of a NIfTI header place every voxel within half of one."""
    forms = [header.new_header().get_sform(), header.new_header().get_qform()]
    scale = np.diag([*[header.mm_per_unit] * 3, 1.0])
    sform, qform = (Grid(grid.shape, scale @ form) for form in forms)
    return sform.same_as(qform, tolerance_mm=0.5 * min(grid.spacing))
