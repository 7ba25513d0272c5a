"""The mask as a DICOM segmentation object (DICOM-SEG, PS3.3 A.51) that lies on its source series frame by frame.

highdicom writes it; what it needs of the source is handed to it as headers of single-frame images, one a slice, whatever
files the slices are from.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage, generate_uid
from pydicom.valuerep import PersonName, format_number_as_ds

from zeus_union.cache.colours import class_colour
from zeus_union.cache.errors import UserError, first_line
from zeus_union.pipelines.outputs.codes import PRIVATE_SCHEME, ClassCode, Code, class_code, dicom_text
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage1_instruct.studies.dicom import Series
from zeus_union.stage1_instruct.studies.dicom_frames import Frame, tag_number, tag_value
from zeus_union.stage1_instruct.studies.nifti import onto_grid

PROGRAM = "zeus-union"
# Identify the source; without them nothing can refer to it.
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
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
# Values that a file may hold and DICOM does not allow are left out, not passed on.
_FORMS = {
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2,6}(\.\d{1,6})?",
    "PatientSex": "[MFO]",
}


def has_highdicom() -> bool:
    """Whether the library that writes segmentation objects is installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        return False
    return True


def write_dicom_mask(path: Path, segmentation: Segmentation, codes: Sequence[ClassCode] | None = None) -> Path:
    """The mask of a study that came as DICOM as a segmentation object, one segment a class, label k as segment k.

    A mask of nothing has one empty frame a segment, of the first slice.

    Args:
        codes: of the classes, where they are known already.

    Raises:
        UserError: the source lacks what a segmentation object has to say of it.
    """
    series = segmentation.series
    assert series is not None
    codes = [class_code(name) for name in segmentation.classes] if codes is None else codes
    frames = np.ascontiguousarray(_on_series_grid(segmentation, series).T)  # (slices, rows, columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names and values that are the source's
        sources = _source_headers(series)
        if not frames.any():
            frames, sources = frames[:1], sources[:1]
        try:
            dataset = _segmentation_object(segmentation, codes, frames, sources)
            dataset.ContentCreatorName = ""  # a program's, and the field has to be there
            _refer_to_files(dataset, series)
            dataset.save_as(path)
        except (ValueError, TypeError, LookupError) as error:  # values that DICOM does not allow
            raise UserError(
                f"the header of {series.files[0]} cannot be carried into a segmentation object ({first_line(error)})"
            ) from error
    return path


def _on_series_grid(segmentation: Segmentation, series: Series) -> np.ndarray:
    """The mask in the series' own array order (columns, rows, slices)."""
    file = series.files[0]
    return onto_grid(segmentation.mask, segmentation.grid, Path("mask"), series.grid, file)  # type: ignore[arg-type]


def _segmentation_object(
    segmentation: Segmentation, codes: Sequence[ClassCode], frames: np.ndarray, sources: Sequence[Dataset]
) -> Any:
    """highdicom's data set."""
    import highdicom
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    private = any(code.private for code in codes)
    scheme = CodingSchemeIdentificationItem(PRIVATE_SCHEME, name="zeus-union's class names")
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segments(segmentation, codes),
        series_instance_uid=generate_uid(),
        series_number=_series_number(segmentation.series.frames[0]),  # type: ignore[union-attr]
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=PROGRAM,
        manufacturer_model_name=PROGRAM,
        software_versions=version(PROGRAM),
        device_serial_number=dicom_text(", ".join(segmentation.runs) or PROGRAM),
        omit_empty_frames=bool(frames.any()),
        content_label="ZEUS_UNION",
        content_description="Segmentation by zeus-union, not a medical device",
        series_description="zeus-union segmentation",
        specific_character_set="ISO_IR 192",  # the classes' names, in any language
        coding_schemes=[scheme] if private else None,
    )


def _segments(segmentation: Segmentation, codes: Sequence[ClassCode]) -> list[Any]:
    """A description of every class, as highdicom has them."""
    import highdicom
    from pydicom.sr.codedict import codes as dictionary

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=PROGRAM,
        family=dictionary.DCM.ArtificialIntelligence,
        version=dicom_text(" ".join((version(PROGRAM), *segmentation.runs))),
        parameters={f"run{number}": dicom_text(run) for number, run in enumerate(segmentation.runs, 1)} or None,
    )
    segments = []
    for label, (name, code) in enumerate(zip(segment_labels(segmentation.classes), codes), 1):
        segment = highdicom.seg.SegmentDescription(
            segment_number=label,
            segment_label=name,
            segmented_property_category=_concept(code.category),
            segmented_property_type=_concept(code.type),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*class_colour(label)),
        )
        if code.side is not None:
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                _concept(code.side)
            ]
        segments.append(segment)
    return segments


def segment_labels(classes: Sequence[str]) -> list[str]:
    """The classes' names as DICOM can hold them; those that are cut off to the same text get their label."""
    names = [dicom_text(name) for name in classes]
    return [
        dicom_text(name, 60) + f" {label}" if names.count(name) > 1 else name for label, name in enumerate(names, 1)
    ]


def _concept(code: Code) -> Any:
    import highdicom

    return highdicom.sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _source_headers(series: Series) -> list[Dataset]:
    """The header of a single-frame image for every slice.

    Its class is a classic one and its instance made up: highdicom takes an enhanced file whole or not at all, and here some
    of its frames may be another series (another echo). `_refer_to_files` puts the real ones in afterwards.

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
            setattr(header, tag, str(tag_value(frame, tag)))
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
    """Raises UserError: a file without its identifiers, or two of one instance."""
    files: dict[str, Path] = {}
    for frame in series.frames:
        missing = [tag for tag in _REQUIRED if not _UID.fullmatch(str(tag_value(frame, tag) or ""))]
        if missing:
            raise UserError(f"{frame.path} has no {', '.join(missing)} of digits and dots, by which DICOM refers to it")
        other = files.setdefault(str(tag_value(frame, "SOPInstanceUID")), frame.path)
        if other != frame.path:
            raise UserError(f"{other} and {frame.path} have one SOPInstanceUID, so that nothing can refer to either")


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
        valid = isinstance(value, (str, PersonName)) and re.fullmatch(_FORMS.get(tag, ".*"), str(value), re.DOTALL)
        if valid or tag in _PATIENT:
            setattr(header, tag, value if valid else "")
    return header


def _refer_to_files(dataset: Any, series: Series) -> None:
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
    files = {str(tag_value(frame, "SOPInstanceUID")): str(tag_value(frame, "SOPClassUID")) for frame in series.frames}
    dataset.SourceImageSequence = [_reference(instance, of_class) for instance, of_class in files.items()]
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = dataset.SourceImageSequence


def _reference(instance: str, of_class: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = of_class, instance
    return reference


def _series_number(frame: Frame) -> int:
    """A number beside the source's: 301 for series 3, as scanners number what they derive; at most what DICOM can hold."""
    try:
        number = int(tag_number(frame, "SeriesNumber", 0))
    except UserError:
        number = 0
    return number * 100 + 1 if 0 <= number < 10_000_000 else 1
