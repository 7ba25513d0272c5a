"""The mask as a DICOM segmentation object (DICOM-SEG, PS3.3 A.51) that lies on its source series frame by frame.

highdicom writes it; what it needs of the source is handed to it as headers of single-frame images, one a slice, whatever
files the slices are from.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from zeus_union.cache.colours import class_colour
from zeus_union.cache.errors import UserError, first_line
from zeus_union.pipelines.outputs.codes import PRIVATE_SCHEME, ClassCode, Code, class_code, dicom_text
from zeus_union.pipelines.outputs.dicom_source import refer_to_files, series_number, source_headers
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage1_instruct.studies.dicom import Series
from zeus_union.stage1_instruct.studies.nifti import onto_grid

PROGRAM = "zeus-union"


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
        sources = source_headers(series)
        if not frames.any():
            frames, sources = frames[:1], sources[:1]
        try:
            dataset = _segmentation_object(segmentation, codes, frames, sources)
            dataset.ContentCreatorName = ""  # a program's, and the field has to be there
            refer_to_files(dataset, series)
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
        series_number=series_number(segmentation.series.frames[0]),  # type: ignore[union-attr]
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
