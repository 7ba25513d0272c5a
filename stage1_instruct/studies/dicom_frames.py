"""One frame of a DICOM file: its tags, its place and its pixels, in classic files and in enhanced multi-frame ones.

A classic file holds one frame and says everything at its top level. An enhanced MR or CT file holds many; what differs
between them stands in the per-frame functional groups, what they share in the shared ones (PS3.3, C.7.6.16).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.studies.dicom_files import is_bare

# Where a functional group keeps what a classic file has at its top level: tag -> (sequence, tag in it).
FUNCTIONAL_GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "ImagePositionPatient": (("PlanePositionSequence", "ImagePositionPatient"),),
    "ImageOrientationPatient": (("PlaneOrientationSequence", "ImageOrientationPatient"),),
    "PixelSpacing": (("PixelMeasuresSequence", "PixelSpacing"),),
    "SliceThickness": (("PixelMeasuresSequence", "SliceThickness"),),
    "SpacingBetweenSlices": (("PixelMeasuresSequence", "SpacingBetweenSlices"),),
    "RescaleSlope": (("PixelValueTransformationSequence", "RescaleSlope"),),
    "RescaleIntercept": (("PixelValueTransformationSequence", "RescaleIntercept"),),
    "RescaleType": (("PixelValueTransformationSequence", "RescaleType"),),
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"),),
    "RepetitionTime": (("MRTimingAndRelatedParametersSequence", "RepetitionTime"),),
    "InversionTime": (("MRModifierSequence", "InversionTimes"),),
    "DiffusionBValue": (("MRDiffusionSequence", "DiffusionBValue"),),
    "SpectrallySelectedSuppression": (("MRFOVGeometrySequence", "SpectrallySelectedSuppression"),)
    + (("MRModifierSequence", "SpectrallySelectedSuppression"),),
    "TemporalPositionIndex": (("FrameContentSequence", "TemporalPositionIndex"),),
    "ComplexImageComponent": (("MRImageFrameTypeSequence", "ComplexImageComponent"),),
    "AcquisitionContrast": (("MRImageFrameTypeSequence", "AcquisitionContrast"),),
    "ImageType": (("MRImageFrameTypeSequence", "FrameType"), ("CTImageFrameTypeSequence", "FrameType")),
}
# Legacy converted files keep here what their classic files had and no functional group has a place for.
CONVERTED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
# What pydicom raises on damaged values: it converts them only when they are asked for.
_DAMAGED = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a file.

    Attributes:
        path: the file.
        header: its pydicom data set, without pixels; shared by the frames of the file.
        index: which of its frames, from 0.
        count: how many frames the file holds.
    """

    path: Path
    header: Any
    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """The file's name, with the number of the frame where there are several."""
        return self.path.name if self.count == 1 else f"{self.path.name} (frame {self.index + 1})"


@dataclass(frozen=True, eq=False)
class Place:
    """Where a frame lies, in DICOM's patient coordinates (LPS).

    Attributes:
        position: (3,) mm, centre of the first pixel.
        directions: (2, 3) unit vectors along a row and along a column.
        spacing: (2,) mm between rows, between columns.
        size: columns, rows.
    """

    position: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing: NDArray[np.float64]
    size: tuple[int, int]


def read_frames(path: Path) -> list[Frame]:
    """The frames of a file, without pixels. A multi-frame file that does not describe its frames one by one comes as one.

    Raises:
        UserError: not DICOM, or damaged.
    """
    header = read_dataset(path, pixels=False)
    frame = Frame(path, header)
    count = max(1, int(tag_number(frame, "NumberOfFrames", 1)))
    described = tag_value(frame, "PerFrameFunctionalGroupsSequence")
    if described is None:
        return [Frame(path, header, 0, count)]
    if len(described) != count:
        raise UserError(f"{path} holds {count} frames and describes {len(described)}; it is damaged, copy it again")
    return [Frame(path, header, index, count) for index in range(count)]


def read_dataset(path: Path, pixels: bool) -> Any:
    """A file's pydicom data set, of files without preamble too.

    Raises:
        UserError: not DICOM, or damaged.
    """
    try:
        with path.open("rb") as file:
            bare = is_bare(path, file.read(2))
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=bare)
        if dataset.file_meta.get("TransferSyntaxUID") is None:
            implicit, little = dataset.original_encoding
            plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = plain
        return dataset
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as DICOM ({_short(error)}); remove it or copy it again") from error


def tag_value(frame: Frame, tag: str) -> Any:
    """A tag's value for this frame, from its functional groups or the file's top level; None where there is none.

    Raises:
        UserError: a damaged value.
    """
    try:
        for values in _values(frame, tag):
            if values is not None and values != "":
                return values
    except _DAMAGED as error:
        raise UserError(f"{frame.path} has an unreadable {tag} ({_short(error)}); copy it again") from error
    return None


def tag_numbers(frame: Frame, tag: str, count: int) -> NDArray[np.float64]:
    """A tag's `count` numbers.

    Raises:
        UserError: no such tag, or something else.
    """
    value = tag_value(frame, tag)
    if value is None:
        raise UserError(f"{frame.path} has no {tag}; it is not a slice of a volume, remove it from the series")
    try:
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except _DAMAGED:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UserError(f"{frame.path} has {tag} {str(value)[:60]!r}, expected {count} numbers; copy it again")
    return numbers


def tag_number(frame: Frame, tag: str, missing: float) -> float:
    """A tag's number, `missing` where there is none.

    Raises:
        UserError: something else than one number.
    """
    return missing if tag_value(frame, tag) is None else float(tag_numbers(frame, tag, 1)[0])


def place_of(frame: Frame) -> Place:
    """Where a frame lies.

    Raises:
        UserError: without a usable position, orientation, spacing or size.
    """
    path = frame.path
    if frame.count > 1 and tag_value(frame, "PerFrameFunctionalGroupsSequence") is None:
        raise UserError(
            f"{path} holds {frame.count} frames and not where each of them lies; expected an enhanced multi-frame file or one "
            "file a slice, convert it"
        )
    directions = tag_numbers(frame, "ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 0.01:
        raise UserError(f"{path} has ImageOrientationPatient {directions.tolist()}, which are not at right angles")
    spacing = tag_numbers(frame, "PixelSpacing", 2)
    if (spacing <= 0).any():
        raise UserError(f"{path} has PixelSpacing {spacing.tolist()}, expected millimetres above 0; correct the file")
    columns, rows = (int(tag_numbers(frame, tag, 1)[0]) for tag in ("Columns", "Rows"))
    return Place(tag_numbers(frame, "ImagePositionPatient", 3), directions, spacing, (columns, rows))


def pixels_of(frame: Frame, dataset: Any) -> NDArray[np.float32]:
    """float32 (columns, rows): bright where the tissue gives much signal, rescaled by the frame's slope and intercept.

    Args:
        dataset: the frame's file with its pixels.
    Raises:
        UserError: compressed in a way nothing here can read, damaged, or no grey values.
    """
    path = frame.path
    _check_readable(path, dataset)
    kind = str(tag_value(frame, "PhotometricInterpretation") or "MONOCHROME2")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(f"{path} holds an image in {kind}, expected one slice in grey values")
    try:
        stored = dataset.pixel_array
        if frame.count > 1:
            stored = stored[frame.index]
        if kind == "MONOCHROME1" and not _is_physical(frame):
            # The stored range turned over, as DICOM defines it: the same in every slice, whatever it shows.
            stored = _stored_range_sum(frame) - stored.astype(np.int64)
        if "ModalityLUTSequence" in dataset:
            stored = apply_modality_lut(stored, dataset)
    except (*_DAMAGED, RuntimeError) as error:
        raise UserError(
            f"the pixels of {path} cannot be read ({_short(error)}); the file may be truncated, copy it again"
        ) from error
    if stored.ndim != 2:
        raise UserError(f"{path} holds an image of shape {stored.shape}, expected one slice in grey values")
    slope = tag_number(frame, "RescaleSlope", 1.0) or 1.0
    return (stored.T * slope + tag_number(frame, "RescaleIntercept", 0.0)).astype(np.float32)


def _values(frame: Frame, tag: str) -> Iterator[Any]:
    """The tag's values, the most specific first."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        items = frame.header.get(groups)
        if not items or groups == tag:
            continue
        group = items[frame.index if groups.startswith("PerFrame") else 0]
        for sequence, name in (*FUNCTIONAL_GROUPS.get(tag, ()), *((converted, tag) for converted in CONVERTED)):
            inside = group.get(sequence)
            if inside:
                yield inside[0].get(name)
    yield frame.header.get(tag)


def _is_physical(frame: Frame) -> bool:
    """Whether the rescaled values are a measured quantity, which no way of showing them changes (Hounsfield units).

    CT files leave out RescaleType where it is HU.
    """
    if tag_value(frame, "RescaleIntercept") is None:
        return tag_value(frame, "ModalityLUTSequence") is not None
    default = "HU" if tag_value(frame, "Modality") == "CT" else "US"
    return str(tag_value(frame, "RescaleType") or default).upper() == "HU"


def _stored_range_sum(frame: Frame) -> int:
    """Least and greatest value that the frame's bits can hold, added."""
    bits = int(tag_number(frame, "BitsStored", tag_number(frame, "BitsAllocated", 16)))
    return -1 if tag_number(frame, "PixelRepresentation", 0) else (1 << bits) - 1


def _check_readable(path: Path, dataset: Any) -> None:
    """Raises a UserError where the pixels are compressed and no decoder for them is installed."""
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            return
        readable = get_decoder(syntax).is_available
    except NotImplementedError as error:
        raise UserError(f"{path} is compressed as {syntax.name}, which cannot be read; decompress it") from error
    except _DAMAGED as error:
        raise UserError(f"{path} has an unreadable TransferSyntaxUID ({_short(error)}); copy it again") from error
    if not readable:
        raise UserError(
            f"{path} is compressed ({syntax.name}) and its decoder is not installed: pip install 'zeus-union[dicom]'"
        )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
