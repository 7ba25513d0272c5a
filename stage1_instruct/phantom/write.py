"""Writes the phantom to disk as real DICOM + PNG or NIfTI, so that it comes in through the same door as a patient's data."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.stage1_instruct.phantom import anatomy as phantom
from zeus_union.stage1_instruct.studies.ground import GREY

MARK = "phantom.json"
VERSION = 1
T1_SHAPE, T1_SPACING = (128, 128, 12), (2.8, 2.8, 8.0)
# T2-SPIR has a frame of its own, as in CHAOS: other pixels, other slices, another tilt.
T2_SHAPE, T2_SPACING, T2_TILT = (144, 144, 11), (2.5, 2.5, 9.0), 2.0


@dataclass(frozen=True, eq=False)
class Scan:
    """An image uint16 and its labels uint8, both (grid.shape)."""

    image: NDArray[np.uint16]
    labels: NDArray[np.uint8]
    grid: Grid


def write_demo(layout: str, out: Path, subjects: int = 6, seed: int = 0) -> None:
    """Writes `subjects` phantoms in the layout 'chaos', 'msd' or 'nnunet'; the same seed gives the same bytes.

    Raises:
        UserError: `out` exists and is not this very phantom, or is no folder.
    """
    mark = {"layout": layout, "subjects": subjects, "seed": seed, "version": VERSION}
    if _holds(out, mark):
        return
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        WRITERS[layout](temporary, subjects, seed)
        (temporary / MARK).write_text(json.dumps(mark, indent=2) + "\n")
        with suppress(OSError):  # an empty folder, which not every system lets a folder replace
            out.rmdir()
        try:
            temporary.rename(out)
        except OSError:
            if not _holds(out, mark):  # else another process was quicker, with the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _holds(out: Path, mark: Mapping[str, object]) -> bool:
    """Whether this very phantom is in `out`; False where nothing is.

    Raises:
        UserError: something else is there.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the phantom")
    if not out.exists() or not any(out.iterdir()):
        return False
    if not is_demo(out):
        raise UserError(f"{out} is not empty and holds no phantom; give another folder")
    try:
        existing = json.loads((out / MARK).read_text())
    except ValueError:
        existing = f"{MARK} is damaged"
    if existing != mark:
        raise UserError(f"{out} holds another phantom ({existing}); delete it or give another folder")
    return True


def is_demo(folder: Path) -> bool:
    """Whether `write_demo` wrote it."""
    return (folder / MARK).is_file()


def _scan(subject: int, seed: int, modality: str, own_frame: bool) -> Scan:
    """One modality of one subject; T2-SPIR in its own frame or on the T1 grid."""
    anatomy = phantom.draw_anatomy(np.random.default_rng([seed, subject]))
    if own_frame and modality == "T2-SPIR":
        grid = phantom.tilted_grid(T2_SHAPE, T2_SPACING, T2_TILT)
    else:
        grid = phantom.tilted_grid(T1_SHAPE, T1_SPACING, tilt_degrees=0.5 * (subject % 5 - 2))
    tissue = phantom.tissue_map(anatomy, grid)
    random = np.random.default_rng([seed, subject, phantom.MODALITIES.index(modality)])
    return Scan(phantom.acquire(tissue, modality, random), phantom.labels_of(tissue), grid)


def _write_chaos(out: Path, subjects: int, seed: int) -> None:
    folders = {
        "T1-DUAL-in": ("T1DUAL", "InPhase"),
        "T1-DUAL-out": ("T1DUAL", "OutPhase"),
        "T2-SPIR": ("T2SPIR", ""),
    }
    for subject in range(1, subjects + 1):
        for number, (modality, (sequence, phase)) in enumerate(folders.items(), start=1):
            scan = _scan(subject, seed, modality, own_frame=True)
            base = out / "MR" / str(subject) / sequence
            _write_series(base / "DICOM_anon" / phase, scan, modality, (seed, subject, number))
            if modality != "T1-DUAL-out":
                _write_ground(base / "Ground", scan)


def _write_series(folder: Path, scan: Scan, modality: str, key: tuple[int, int, int]) -> None:
    """One DICOM file a slice, numbered from superior to inferior as CHAOS's are."""
    folder.mkdir(parents=True)
    seed, subject, number = key
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.grid.affine
    columns, rows, slices = scan.grid.shape
    spacing = scan.grid.spacing
    for index in range(slices):
        position = slices - index
        uid = generate_uid(entropy_srcs=["zeus phantom", str(key), str(index)])
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = DicomDataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID, data.Modality = MRImageStorage, uid, "MR"
        data.PatientID = data.PatientName = f"phantom{subject:02d}"
        data.StudyInstanceUID = generate_uid(entropy_srcs=["zeus study", str((seed, subject))])
        data.FrameOfReferenceUID = generate_uid(entropy_srcs=["zeus frame", str((seed, subject))])
        # Both echoes of a dual-echo acquisition come as one series.
        series = "dual" if modality.startswith("T1") else "spir"
        data.SeriesInstanceUID = generate_uid(entropy_srcs=["zeus series", str((seed, subject)), series])
        data.SeriesDescription, data.SeriesNumber, data.InstanceNumber = modality, number, position
        data.MagneticFieldStrength, data.EchoTime = 1.5, phantom.ECHO_TIMES[modality]
        data.ImageOrientationPatient = [
            _decimal(v) for v in (lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]) for v in v
        ]
        data.ImagePositionPatient = [_decimal(v) for v in lps[:3, 3] + index * lps[:3, 2]]
        data.PixelSpacing, data.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = np.ascontiguousarray(scan.image[..., index].T).astype("<u2").tobytes()
        data.save_as(folder / f"IMG-{number:04d}-{position:05d}.dcm", enforce_file_format=True)


def _decimal(value: float) -> str:
    """At most 16 characters, as DICOM's decimal strings allow."""
    return f"{value:.8f}"


def _write_ground(folder: Path, scan: Scan) -> None:
    folder.mkdir(parents=True)
    grey = np.zeros(256, dtype=np.uint8)
    for label, (value, _, _) in GREY.items():
        grey[label] = value
    slices = scan.grid.shape[2]
    for index in range(slices):
        Image.fromarray(grey[scan.labels[..., index].T]).save(folder / f"IMG-{slices - index:05d}.png")


def _write_msd(out: Path, subjects: int, seed: int) -> None:
    _make(out, "imagesTr", "labelsTr")
    training = []
    for subject in range(1, subjects + 1):
        scans = [_scan(subject, seed, modality, own_frame=False) for modality in phantom.MODALITIES]
        name = f"phantom_{subject:03d}.nii.gz"
        _save(
            out / "imagesTr" / name, np.stack([scan.image for scan in scans], axis=-1).astype(np.int16), scans[0].grid
        )
        _save(out / "labelsTr" / name, scans[0].labels, scans[0].grid)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    _write_json(
        out / "dataset.json",
        {
            "name": "phantom",
            "tensorImageSize": "4D",
            "modality": {str(i): name for i, name in enumerate(phantom.MODALITIES)},
            "labels": {str(k): name for k, name in enumerate(("background", *phantom.CLASSES))},
            "numTraining": subjects,
            "numTest": 0,
            "training": training,
            "test": [],
        },
    )


def _write_nnunet(out: Path, subjects: int, seed: int) -> None:
    _make(out, "imagesTr", "labelsTr")
    for subject in range(1, subjects + 1):
        name = f"phantom_{subject:03d}"
        for channel, modality in enumerate(phantom.MODALITIES):
            scan = _scan(subject, seed, modality, own_frame=False)
            _save(out / "imagesTr" / f"{name}_{channel:04d}.nii.gz", scan.image.astype(np.int16), scan.grid)
            if channel == 0:
                _save(out / "labelsTr" / f"{name}.nii.gz", scan.labels, scan.grid)
    _write_json(
        out / "dataset.json",
        {
            "channel_names": {str(i): name for i, name in enumerate(phantom.MODALITIES)},
            "labels": {name: k for k, name in enumerate(("background", *phantom.CLASSES))},
            "numTraining": subjects,
            "file_ending": ".nii.gz",
        },
    )


def _make(out: Path, *folders: str) -> None:
    for folder in folders:
        (out / folder).mkdir()


def _save(path: Path, array: NDArray[np.generic], grid: Grid) -> None:
    image = nibabel.Nifti1Image(array, grid.affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


WRITERS: Mapping[str, Callable[[Path, int, int], None]] = {
    "chaos": _write_chaos,
    "msd": _write_msd,
    "nnunet": _write_nnunet,
}
