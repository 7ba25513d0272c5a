"""Everything that is written of a segmented study, into one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_of
from zeus_union.cache.terminal import say, some_of, warn
from zeus_union.pipelines.outputs.codes import class_code
from zeus_union.pipelines.outputs.dicom_mask import has_highdicom, write_dicom_mask
from zeus_union.pipelines.outputs.label_files import itk_snap_labels, slicer_colours
from zeus_union.pipelines.outputs.preview import draw_preview
from zeus_union.pipelines.outputs.statistics import DEFINITIONS, rounded, statistics_csv, voxel_ml
from zeus_union.pipelines.outputs.whole_folder import whole_folder
from zeus_union.pipelines.segment.segmentation import MADE_BY, Segmentation
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage2_segment.ensemble import DEFINITIONS as OF_ENSEMBLES
from zeus_union.stage2_segment.nifti import write_fractions, write_labels, write_probabilities
from zeus_union.stage2_segment.predict import DISAGREEMENT, PROBABILITY, class_file_names

MASK, DICOM_MASK, PREVIEW = "mask.nii.gz", "mask.dcm", "preview.png"
REPORT = "report.html"  # of zeus report, and of zeus segment --report
ITK_SNAP, SLICER = "labels.txt", "labels.ctbl"
_OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
STATISTICS, STATISTICS_TABLE, INSTRUCTIONS = "statistics.json", "statistics.csv", "instructions.json"
_NAMES = (
    MASK,
    DICOM_MASK,
    PREVIEW,
    REPORT,
    ITK_SNAP,
    SLICER,
    STATISTICS,
    STATISTICS_TABLE,
    INSTRUCTIONS,
    MADE_BY,
    DISAGREEMENT,
)


def write_results(
    segmentation: Segmentation,
    folder: Path,
    *,
    preview: bool = True,
    dicom: bool = True,
    replace: bool = False,
) -> list[Path]:
    """Writes a study's results into a new folder, which is whole under its name or not there; the files in it.

    Args:
        preview: also preview.png.
        dicom: also mask.dcm of a study that came as DICOM. Where it cannot be made a line says why, and all else is written.
        replace: a folder of results that has the name is replaced, once the new one is complete.

    Raises:
        UserError: something has the name and not `replace`; it holds anything but results, which nobody asked to lose.
    """
    with whole_folder(folder, replace, is_result) as partial:
        _write_volumes(segmentation, partial)
        _write_text(partial / ITK_SNAP, itk_snap_labels(segmentation.classes))
        _write_text(partial / SLICER, slicer_colours(segmentation.classes))
        _write_text(partial / STATISTICS_TABLE, statistics_csv(segmentation.statistics, tuple(segmentation.images)))
        _write_json(partial / STATISTICS, statistics_json(segmentation))
        _write_json(partial / INSTRUCTIONS, instructions_json(segmentation))
        _write_json(partial / MADE_BY, dict(segmentation.made_by))
        if dicom and segmentation.series is not None:
            _write_dicom(segmentation, partial / DICOM_MASK)
        if preview:
            draw_preview(segmentation, partial / PREVIEW)
    return sorted(folder.iterdir())


def is_result(name: str) -> bool:
    """Whether `write_results` may have written a file of this name, or a system left it beside."""
    return name in (*_NAMES, *_OF_SYSTEMS) or name.endswith(f".{PROBABILITY}")


def statistics_json(segmentation: Segmentation) -> dict[str, Any]:
    """What statistics.json holds."""
    grid = segmentation.grid
    content: dict[str, Any] = {
        "study": segmentation.study,
        "modalities": list(segmentation.images),
        "missing_modalities": list(segmentation.missing),
        "runs": list(segmentation.runs),
        "grid": {
            "shape": list(grid.shape),
            "spacing_mm": rounded(grid.spacing),
            "orientation": grid.orientation,
            "view": grid.view,
            "slices": grid.slice_shape[0],
            "segmented_slices": len(segmentation.segmented),
            "voxel_ml": voxel_ml(grid),
        },
        "classes": [row.to_json() for row in segmentation.statistics],
        "definitions": dict(DEFINITIONS),
    }
    if segmentation.agreement:
        content["ensemble"] = {"agreement": dict(segmentation.agreement), "definitions": dict(OF_ENSEMBLES)}
    return content


def instructions_json(segmentation: Segmentation) -> list[dict[str, Any]]:
    """What was asked and said of every slice and modality, in their order; empty of a run without text.

    'class' is that of a variant that asks for one class, else null.
    """
    return [
        {
            "slice": instruction.slice_number,
            "modality": instruction.modality,
            "variant": variant,
            "class": _class_of(variant, segmentation.classes),
            "prompt": instruction.prompt,
            "text": instruction.text,
            "stop_reason": instruction.stop_reason,
            "prompt_tokens": instruction.prompt_tokens,
            "output_tokens": instruction.output_tokens,
            "seed": instruction.seed,
        }
        for variant, texts in segmentation.instructions.items()
        for instruction in texts
    ]


def _class_of(variant: str, classes: Sequence[str]) -> str | None:
    """The class that a variant asks for, where it is one of `class_variants`."""
    name = base_of(variant)
    base = name.rpartition(".")[0]
    try:
        return class_variants(base, classes).get(name) if base else None
    except UserError:  # classes that cannot have a variant each
        return None


def _write_volumes(segmentation: Segmentation, folder: Path) -> None:
    grid = segmentation.grid
    write_labels(folder / MASK, segmentation.mask, grid, segmentation.classes)
    for name, file_name in zip(segmentation.classes, class_file_names(segmentation.classes)):
        if name in segmentation.probabilities:
            write_probabilities(folder / f"{file_name}.{PROBABILITY}", segmentation.probabilities[name], grid)
    if segmentation.disagreement is not None:
        write_fractions(folder / DISAGREEMENT, segmentation.disagreement, grid)


def _write_dicom(segmentation: Segmentation, path: Path) -> None:
    if not has_highdicom():
        _say_once(f"{DICOM_MASK} is not written: highdicom is not installed, pip install 'zeus-union[dicom]'")
        return
    codes = [class_code(name) for name in segmentation.classes]
    private = [name for name, code in zip(segmentation.classes, codes) if code.private]
    if private:
        _say_once(
            f"{some_of(private)}: no SNOMED CT code is known for this name; {DICOM_MASK} has a private one (99ZEUS)"
        )
    try:
        write_dicom_mask(path, segmentation, codes)
    except UserError as error:
        warn(f"{segmentation.study}: {DICOM_MASK} is not written: {error}")


@lru_cache
def _say_once(message: str) -> None:
    """What is true of every study of a run is said of the first."""
    say(message)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_json(path: Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
