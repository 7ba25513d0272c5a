"""Small studies as a PACS exports them: one flat folder, series mixed, no suffixes, a localiser among them.

    series = protocol()                    # T2 (axial), FLAIR (sagittal), T1 dual echo, a localiser; one frame of reference
    export(tmp_path / "study", *series)

A voxel's value says where it lies (`numbered`, `anatomy`), so that a volume can be checked against the patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE, SPACING = (24, 20, 6), (2.0, 2.5, 5.0)
# Directions in LPS along a row, along a column and from slice to slice, as scanners write them.
PLANES: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
}
T1 = {"ScanningSequence": "SE", "EchoTime": 12.0, "RepetitionTime": 500.0}
T2 = {"ScanningSequence": "SE", "EchoTime": 100.0, "RepetitionTime": 4000.0}
FLAIR = {"ScanningSequence": ["SE", "IR"], "EchoTime": 120.0, "RepetitionTime": 9000.0, "InversionTime": 2500.0}
IN_PHASE = {"ScanningSequence": "GR", "EchoTime": 4.6, "RepetitionTime": 150.0, "MagneticFieldStrength": 1.5}
OUT_PHASE = {**IN_PHASE, "EchoTime": 2.3}


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume and what its files say.

    Attributes:
        volume: uint16 (X, Y, Z), frames along the last axis.
        affine: (4, 4), voxel indices to mm in RAS+; the first two axes at right angles.
        tags: keyword -> value, in every file; None leaves a tag out.
        series: scans of one name are of one series (the echoes of a dual-echo acquisition); None: a series of its own.
    """

    volume: NDArray[np.uint16]
    affine: NDArray[np.float64]
    tags: Mapping[str, Any] = field(default_factory=dict)
    series: str | None = None


def affine_of(
    plane: str = "axial",
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    *,
    tilt: Sequence[float] = (0.0, 0.0, 0.0),
    flipped: bool = False,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """RAS+ of a volume acquired in a plane.

    Args:
        tilt: degrees about the patient's axes (oblique).
        flipped: the slices run the other way.
        centre: of the volume, mm in RAS+.
    """
    directions = np.array(PLANES[plane], dtype=float).T * [1, 1, -1 if flipped else 1]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ np.diag([-1, -1, 1]) @ directions
    affine[:3, :3] *= spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def numbered(shape: Sequence[int] = SHAPE) -> NDArray[np.uint16]:
    """Every voxel another value."""
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint16).reshape(shape)


def anatomy(affine: NDArray[np.float64], shape: Sequence[int] = SHAPE, contrast: int = 0) -> NDArray[np.uint16]:
    """A head of blobs, sampled where the affine puts the voxels; `contrast` gives the tissues other values."""
    ras = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    grey = np.random.default_rng(100 + contrast).permutation([900.0, 500.0, 250.0, 700.0])
    image = np.zeros(ras.shape[1])
    for value, centre, axes in zip(
        grey, ((0, 0, 0), (6, 4, 2), (-7, -3, 0), (2, -8, -3)), ((21, 21, 20), (7, 6, 8), (5, 8, 6), (8, 4, 5))
    ):
        image[(((ras - np.array(centre)[:, None]) / np.array(axes)[:, None]) ** 2).sum(axis=0) < 1] = value
    return image.reshape(shape).astype(np.uint16)


def scan(plane: str = "axial", description: str = "", number: int = 1, contrast: int = 0, **options: Any) -> Scan:
    """An MR series of the anatomy; `tags`, `shape`, `spacing`, `series` and what `affine_of` takes are options."""
    tags, series = options.pop("tags", {}), options.pop("series", None)
    shape, spacing = options.pop("shape", SHAPE), options.pop("spacing", SPACING)
    affine = affine_of(plane, shape, spacing, **options)
    tags = {"SeriesDescription": description, "SeriesNumber": number, **tags}
    return Scan(anatomy(affine, shape, contrast), affine, tags, series)


def localiser(number: int = 1) -> list[Scan]:
    """One slice in each plane, in one series."""
    tags = {**T1, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    return [
        scan(plane, "3-plane loc", number, shape=(24, 20, 1), spacing=(4, 4, 8), tags=tags, series="localiser")
        for plane in PLANES
    ]


def dual_echo(number: int = 5, plane: str = "axial", **options: Any) -> list[Scan]:
    """Both echoes in one series, told apart by the echo time alone."""
    return [
        scan(plane, "T1W dual FFE", number, contrast=contrast, tags=tags, series=f"dual{number}", **options)
        for contrast, tags in ((3, IN_PHASE), (4, OUT_PHASE))
    ]


def protocol() -> list[Scan]:
    """A localiser, axial T2, sagittal FLAIR on another grid, an axial dual echo."""
    return [
        *localiser(1),
        scan("axial", "t2_tse_tra", 2, contrast=1, tags=T2),
        scan("sagittal", "FLAIR sag", 3, contrast=2, tags=FLAIR, shape=(20, 24, 8)),
        *dual_echo(5),
    ]


def export(folder: Path, *scans: Scan, patient: str = "P1", study: str = "1", seed: int = 0) -> Path:
    """Writes the scans' slices into one folder, under numbers in an order that means nothing; returns the folder.

    Files of an earlier export stay. The same scans give the same UIDs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    datasets = [
        dataset
        for index, entry in enumerate(scans)
        for dataset in slices_of(entry, patient, study, entry.series or f"{study}.{index}")
    ]
    first = len(list(folder.iterdir()))
    for place, dataset in zip(np.random.default_rng(seed).permutation(len(datasets)), datasets):
        dataset.save_as(folder / f"IM{first + place:06d}", enforce_file_format=True)
    return folder


def slices_of(entry: Scan, patient: str, study: str, series: str) -> list[Dataset]:
    """One data set a slice."""
    lps = LPS_TO_RAS @ entry.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    orientation = [decimal(v) for axis in (0, 1) for v in lps[:3, axis] / spacing[axis]]
    slices = []
    for index in range(entry.volume.shape[2]):
        data = base_dataset(MRImageStorage, patient, study, series, f"{entry.tags} {index}")
        data.Modality, data.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
        data.FrameOfReferenceUID = uid("frame", study)
        data.InstanceNumber = index + 1
        data.ImageOrientationPatient = orientation
        data.ImagePositionPatient = [decimal(v) for v in lps[:3, 3] + index * lps[:3, 2]]
        data.PixelSpacing, data.SliceThickness = [decimal(spacing[1]), decimal(spacing[0])], decimal(spacing[2])
        set_pixels(data, entry.volume[..., index])
        for keyword, value in entry.tags.items():
            if value is None:
                if keyword in data:
                    delattr(data, keyword)
            else:
                setattr(data, keyword, value)
        if data.Modality == "CT":
            data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        slices.append(data)
    return slices


def screenshot(folder: Path, patient: str = "P1", study: str = "1") -> Path:
    """A secondary capture in colours."""
    data = base_dataset(SecondaryCaptureImageStorage, patient, study, "screenshot", "0")
    data.Modality, data.SeriesDescription, data.SeriesNumber = "OT", "screenshot", 99
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 4, 3, "RGB"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PlanarConfiguration, data.PixelData = 0, bytes(48)
    data.save_as(folder / "SC000001", enforce_file_format=True)
    return folder / "SC000001"


def report(folder: Path, patient: str = "P1", study: str = "1") -> Path:
    """A PDF in DICOM."""
    data = base_dataset(EncapsulatedPDFStorage, patient, study, "report", "0")
    data.Modality, data.SeriesDescription, data.SeriesNumber = "DOC", "report", 98
    data.EncapsulatedDocument = b"%PDF-1.4"
    data.save_as(folder / "PDF00001", enforce_file_format=True)
    return folder / "PDF00001"


def base_dataset(kind: str, patient: str, study: str, series: str, instance: str) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid("instance", study, series, instance)
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study", study), uid("series", study, series)
    data.StudyDate, data.StudyDescription = "20200101", "MR"
    data.StudyTime = data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
    data.PatientID, data.PatientName = patient, f"Test^{patient}"
    data.PatientBirthDate, data.PatientSex = "19700101", "O"
    return data


def set_pixels(data: Dataset, image: NDArray[np.uint16]) -> None:
    """Args: image: uint16 (columns, rows)."""
    data.Columns, data.Rows = image.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = np.ascontiguousarray(image.T).astype("<u2").tobytes()


def uid(*parts: str) -> str:
    return generate_uid(entropy_srcs=["zeus test", *parts])


def decimal(value: float) -> str:
    """At most 16 characters, as DICOM's decimal strings allow."""
    return f"{value:.8f}"


def assert_in_the_patient(volume: NDArray[Any], affine: NDArray[np.float64], source: Scan) -> None:
    """Every voxel of a volume shows what the scan has at that point of the patient."""
    index = np.indices(volume.shape).reshape(3, -1)
    where = (np.linalg.inv(source.affine) @ affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    np.testing.assert_allclose(where, np.rint(where), atol=0.01)
    np.testing.assert_array_equal(volume.ravel(), source.volume[tuple(np.rint(where).astype(int))])
