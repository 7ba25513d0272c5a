"""Small studies for the tests of this room: of DICOM files on disk, and of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.stage1_instruct.studies.test_series import affine_of, names_of, write_slices
from zeus_union.cache.grid import Grid
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage1_instruct.studies.dicom import Series, read_series

SHAPE = (9, 7, 6)  # columns, rows, slices: no multiple of eight pixels, which one-bit frames are packed into
SPACING = (0.7, 1.3, 2.9)

# How slices lie in the patient: along a row, along a column, from slice to slice, in LPS.
TURNS: dict[str, NDArray[np.float64]] = {
    "axial": np.eye(3),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": Rotation.from_euler("xyz", (17, -33, 52), degrees=True).as_matrix(),
    "flipped": np.diag([-1.0, 1, -1]),
    "left-handed": np.diag([1.0, 1, -1]),
}


def patient(header: Any, index: int) -> None:
    """What a scanner says of patient and study."""
    header.StudyInstanceUID, header.FrameOfReferenceUID = "1.2.840.1", "1.2.840.2"
    header.SpecificCharacterSet = "ISO_IR 100"
    header.PatientName, header.PatientID, header.PatientSex = "Müller^Jörg", "4711", "O"
    header.PatientBirthDate, header.StudyDate, header.StudyTime = "19500102", "20240229", "235959.5"
    header.AccessionNumber, header.StudyID, header.SeriesNumber = "A1", "7", 3
    header.PatientAddress = "Somewhere 1"  # nothing a segmentation has to repeat


def dicom_series(
    folder: Path,
    affine: NDArray[np.float64],
    shape: Sequence[int] = SHAPE,
    edit: Callable[[Any, int], None] = lambda header, index: None,
) -> Series:
    """A series as it is read from files whose numbers say nothing of their order."""

    def describe(header: Any, index: int) -> None:
        patient(header, index)
        edit(header, index)

    volume = np.arange(np.prod(shape)).reshape(shape) % 4000
    names = names_of(shape[2])
    return read_series(write_slices(folder, names, volume, affine, describe)[::-1])


def turned(name: str) -> NDArray[np.float64]:
    """Voxel (column, row, slice) to LPS mm, of one of `TURNS`."""
    return affine_of(TURNS[name], SPACING)


def of_series(series: Series, mask: NDArray[np.uint8], classes: Sequence[str], **fields: Any) -> Segmentation:
    """The segmentation of a study that came as DICOM."""
    return Segmentation("study", tuple(classes), mask, series.grid, {"T2": series.volume}, series=series, **fields)


def random_mask(shape: Sequence[int], classes: int, seed: int = 0) -> NDArray[np.uint8]:
    """Every label somewhere, and slices without any."""
    mask = np.random.default_rng(seed).integers(0, classes + 1, tuple(shape)).astype(np.uint8)
    mask[..., :: max(2, shape[2])] = 0
    return mask


def abdomen(view: str = "axial", **fields: Any) -> Segmentation:
    """Two boxes of known size on a grid of 2 x 3 x 4 mm, in two modalities, and a class without voxels."""
    shape = (20, 16, 12)
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    mask = np.zeros(shape, np.uint8)
    mask[2:12, 3:9, 4:8] = 1
    mask[14:16, 3:5, 4:5] = 3
    mask[18, 15, 11] = 3
    images = {"T1": np.full(shape, 100, np.float32), "T2": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    classes = ("liver", "spleen", "left kidney")
    return Segmentation("patient 7", classes, mask, Grid(shape, affine, view), images, **fields)
