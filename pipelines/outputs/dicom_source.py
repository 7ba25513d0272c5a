"""What a DICOM segmentation object says of the series that it lies on: patient, study, and every slice's instance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage, generate_uid
from pydicom.valuerep import DA, TM, PersonName, format_number_as_ds

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.studies.dicom import Series
from zeus_union.stage1_instruct.studies.dicom_frames import Frame, tag_number, tag_value

# Identify the source; without them nothing can refer to it.
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
_SHARED = ("StudyInstanceUID", "FrameOfReferenceUID")
_UID = re.compile(r"[0-9.]{1,64}")
# What a segmentation object has to say of patient and study: copied, empty where the source has none.
_PATIENT = [
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
]
# Copied where the source has it; nothing else of it is.
_OPTIONAL = [
    "PatientAge",
    "IssuerOfPatientID",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
    "PositionReferenceIndicator",
    "LossyImageCompression",
]
_SEXES = ("M", "F", "O")


def source_headers(series: Series) -> list[Dataset]:
    """The header of a single-frame image for every slice.

    Its class is a classic one, its instance made up and its series the first one's: highdicom takes an enhanced file whole or
    not at all, and here some of its frames may be another echo; and it takes one series, where some anonymisers give every
    file its own. `refer_to_files` puts the real ones in afterwards.

    Raises:
        UserError: the source does not say what it is.
    """
    _check_can_be_referred_to(series)
    first = series.frames[0]
    about = _about_patient(first)
    normal = np.cross(*np.array(tag_value(first, "ImageOrientationPatient"), dtype=float).reshape(2, 3))
    spacing = abs(float(normal @ (series.grid.affine[:3, 2] * (-1, -1, 1))))
    headers = []
    for frame in series.frames:
        header = Dataset()
        header.update(about)
        for tag in _REQUIRED:
            setattr(header, tag, str(tag_value(first, tag)))
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, generate_uid()
        header.Rows, header.Columns = int(tag_value(frame, "Rows")), int(tag_value(frame, "Columns"))
        header.ImagePositionPatient = list(tag_value(frame, "ImagePositionPatient"))
        header.ImageOrientationPatient = list(tag_value(first, "ImageOrientationPatient"))
        header.PixelSpacing = list(tag_value(first, "PixelSpacing"))
        header.SliceThickness = format_number_as_ds(_thickness(first) or spacing)
        # Of the positions, not of the tag, which may say something else.
        header.SpacingBetweenSlices = format_number_as_ds(spacing)
        headers.append(header)
    return headers


def _check_can_be_referred_to(series: Series) -> None:
    """Raises UserError: a file without its identifiers, two of one instance, or of different studies or frames of reference."""
    first = series.frames[0]
    files: dict[str, Path] = {}
    for frame in series.frames:
        missing = [tag for tag in _REQUIRED if not _UID.fullmatch(str(tag_value(frame, tag) or ""))]
        if missing:
            raise UserError(f"{frame.path} has no {', '.join(missing)} of digits and dots, by which DICOM refers to it")
        other = files.setdefault(str(tag_value(frame, "SOPInstanceUID")), frame.path)
        if other != frame.path:
            raise UserError(f"{other} and {frame.path} have one SOPInstanceUID, so that nothing can refer to either")
        for tag in _SHARED:
            if tag_value(frame, tag) != tag_value(first, tag):
                raise UserError(
                    f"{first.path} and {frame.path} differ in {tag}, which a segmentation object has one of"
                )


def _thickness(frame: Frame) -> float:
    """SliceThickness in mm; 0 where it is no number."""
    try:
        return abs(tag_number(frame, "SliceThickness", 0.0))
    except UserError:
        return 0.0


def _about_patient(frame: Frame) -> Dataset:
    """What a file says of its patient and study, as far as it is of a form that DICOM has."""
    header = Dataset()
    for tag in (*_PATIENT, *_OPTIONAL):
        try:
            value = tag_value(frame, tag)
        except UserError:
            value = None
        valid = _is_valid(tag, value)
        if valid or tag in _PATIENT:
            setattr(header, tag, value if valid else "")
    return header


def _is_valid(tag: str, value: Any) -> bool:
    """Whether a value is one that DICOM allows; a file may hold others, e.g. 00000000 for a date that was taken out."""
    if not isinstance(value, (str, PersonName)):
        return False
    try:
        if tag.endswith("Date"):
            return re.fullmatch(r"\d{8}", str(value)) is not None and DA(str(value)) is not None
        if tag.endswith("Time"):
            return re.fullmatch(r"(\d\d){1,3}(\.\d{1,6})?", str(value)) is not None and TM(str(value)) is not None
    except ValueError:
        return False
    return tag != "PatientSex" or value in _SEXES


def refer_to_files(dataset: Any, series: Series) -> None:
    """Lets every reference to a source name its real class, and its frame where a file has several."""
    positions = np.array([tag_value(frame, "ImagePositionPatient") for frame in series.frames], dtype=float)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        frame = series.frames[int(np.linalg.norm(positions - position, axis=1).argmin())]
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        reference.ReferencedSOPClassUID = str(tag_value(frame, "SOPClassUID"))
        reference.ReferencedSOPInstanceUID = str(tag_value(frame, "SOPInstanceUID"))
        if frame.count > 1:
            reference.ReferencedFrameNumber = frame.index + 1
    files = {frame.path: frame for frame in series.frames}.values()
    dataset.SourceImageSequence = [_reference(frame) for frame in files]
    by_series: dict[str, list[Dataset]] = {}
    for frame in files:
        by_series.setdefault(str(tag_value(frame, "SeriesInstanceUID")), []).append(_reference(frame))
    dataset.ReferencedSeriesSequence = [_series_reference(*entry) for entry in by_series.items()]


def _reference(frame: Frame) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = str(tag_value(frame, "SOPClassUID"))
    reference.ReferencedSOPInstanceUID = str(tag_value(frame, "SOPInstanceUID"))
    return reference


def _series_reference(series: str, instances: Sequence[Dataset]) -> Dataset:
    reference = Dataset()
    reference.SeriesInstanceUID, reference.ReferencedInstanceSequence = series, instances
    return reference


def series_number(frame: Frame) -> int:
    """A number beside the source's: 301 for series 3, as scanners number what they derive; at most what DICOM can hold."""
    try:
        number = int(tag_number(frame, "SeriesNumber", 0))
    except UserError:
        number = 0
    return number * 100 + 1 if 0 <= number < 10_000_000 else 1
