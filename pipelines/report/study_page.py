"""A segmented study as a page: volumes, slices to leaf through, and what the language model said of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid, to_square
from zeus_union.cache.page.pictures import class_legend
from zeus_union.cache.page.render import KeyFigure, PageTable, render_page, write_page
from zeus_union.cache.page.slices import MOST_SLICES, Said, Sentence, SliceView, SubjectView, subjects_json
from zeus_union.cache.page.telling import telling_slices
from zeus_union.cache.terminal import counted
from zeus_union.cache.text_statistics import CUT
from zeus_union.pipelines.intake.study import open_study
from zeus_union.pipelines.outputs.preview import slice_greys
from zeus_union.pipelines.outputs.results import INSTRUCTIONS, MASK, REPORT, STATISTICS
from zeus_union.pipelines.outputs.statistics import DEFINITIONS, voxels_by_slice
from zeus_union.pipelines.segment.segmentation import MADE_BY
from zeus_union.stage1_instruct.studies.nifti import read_volume

TEMPLATE = Path(__file__).with_name("templates") / "study.html.j2"
SIDE = 256  # pixels of a picture


def is_study(folder: Path) -> bool:
    """Whether a folder holds the results of a study that zeus segment wrote."""
    return all((folder / name).is_file() for name in (MASK, STATISTICS, MADE_BY))


def read_images(study: Path, folder: Path) -> dict[str, NDArray[np.float32]]:
    """The images of a study that a folder holds the results of, by their modalities' names, on the mask's grid.

    Raises:
        UserError: as `open_study`; a modality that the results name is not recognised in the study.
    """
    wanted = tuple(_read(folder / STATISTICS)["modalities"])
    with open_study(study, wanted, channels={}) as opened:
        if opened.missing:
            raise UserError(
                f"{study}: {', '.join(opened.missing)} is not recognised; zeus segment --overwrite --report writes the page "
                "with what it reads"
            )
        return dict(opened.images)


def write_study_page(folder: Path, images: Mapping[str, NDArray[np.float32]] | None = None) -> Path:
    """FOLDER/report.html of a study's results.

    Args:
        images: modality -> volume on the mask's grid; the results do not hold them, so that None leaves them out.

    Raises:
        UserError: a file of the results that is missing or damaged; images of another shape.
    """
    statistics, said, made_by = (_read(folder / name) for name in (STATISTICS, INSTRUCTIONS, MADE_BY))
    volume, grid = read_volume(folder / MASK, labels=True)
    grid = grid.seen(statistics["grid"]["view"])
    mask = volume.astype(np.uint8)
    for name, image in (images or {}).items():
        if image.shape != mask.shape:
            raise UserError(
                f"{name} has {image.shape} voxels and {folder / MASK} {mask.shape}: give the study that was segmented"
            )
    view = _view(statistics, said, mask, grid, images or {})
    html = render_page(
        TEMPLATE,
        charts=False,
        kind="Segmented study",
        title=statistics["study"],
        lead=_lead(statistics),
        reservations=_reservations(statistics, mask),
        figures=_figures(statistics),
        classes=_class_table(statistics),
        subject=subjects_json([view])[0],
        has_images=bool(images),
        has_texts=bool(said),
        class_legend=class_legend(view.classes),
        agreement=_agreement(statistics),
        facts=_facts(statistics, made_by),
        members=made_by["members"],
        definitions=DEFINITIONS,
    )
    return write_page(folder / REPORT, html)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); zeus segment --overwrite writes it again") from error


def _view(
    statistics: Mapping[str, Any],
    said: Sequence[Mapping[str, Any]],
    mask: NDArray[np.uint8],
    grid: Grid,
    images: Mapping[str, NDArray[np.float32]],
) -> SubjectView:
    classes = tuple(row["class"] for row in statistics["classes"])
    numbers = telling_slices(voxels_by_slice(mask, grid, len(classes)), MOST_SLICES)
    spacing = grid.slice_spacing[1], grid.slice_spacing[2]
    masks = to_square(grid.to_slices(mask)[numbers], spacing, SIDE)
    pictures = [
        to_square(slice_greys(grid.to_slices(image)[numbers], name), spacing, SIDE) for name, image in images.items()
    ]
    black = np.zeros((1, SIDE, SIDE), np.uint8)  # for the mask to lie on
    return SubjectView(
        name=statistics["study"],
        role="",
        note="" if images else "The mask alone: the results of a study do not hold its images.",
        modalities=tuple(images),
        classes=classes,
        slices=tuple(
            SliceView(
                number=number,
                images=np.stack([picture[index] for picture in pictures]) if pictures else black[:0],
                truth=None,
                prediction=masks[index],
                said=_said(said, number),
            )
            for index, number in enumerate(numbers)
        ),
        grid=grid,
        left_out=grid.slice_shape[0] - len(numbers),
    )


def _said(said: Sequence[Mapping[str, Any]], number: int) -> tuple[Said, ...]:
    return tuple(
        Said(
            line["modality"] if line["class"] is None else f"{line['modality']}, {line['class']}",
            (Sentence(line["text"]),) if line["text"].strip() else (),
            line["stop_reason"] == CUT,
        )
        for line in said
        if line["slice"] == number
    )


def _lead(statistics: Mapping[str, Any]) -> str:
    grid = statistics["grid"]
    shape = " x ".join(map(str, grid["shape"]))
    spacing = " x ".join(f"{mm:g}" for mm in grid["spacing_mm"])
    return (
        f"{', '.join(statistics['modalities'])}; {grid['slices']} {grid['view']} slices, {shape} voxels of {spacing} mm, "
        f"segmented by {', '.join(statistics['runs'])}."
    )


def _reservations(statistics: Mapping[str, Any], mask: NDArray[np.uint8]) -> list[str]:
    grid, lines = statistics["grid"], []
    if statistics["missing_modalities"]:
        lines.append(f"Segmented without {', '.join(statistics['missing_modalities'])}, which the study does not have.")
    if grid["segmented_slices"] < grid["slices"]:
        lines.append(
            f"{grid['segmented_slices']} of {counted(grid['slices'], 'slice')} segmented; those between are interpolated."
        )
    if not mask.any():
        lines.append("Nothing was predicted.")
    return lines


def volume(ml: float) -> str:
    """'1,412 ml', '12.3 ml', '0.42 ml'."""
    digits = 0 if ml >= 100 else 1 if ml >= 10 else 2
    return f"{ml:,.{digits}f} ml"


def _figures(statistics: Mapping[str, Any]) -> list[KeyFigure]:
    largest = sorted(statistics["classes"], key=lambda row: -row["voxels"])[:6]
    return [
        KeyFigure(row["class"], volume(row["volume_ml"]) if row["voxels"] else "nothing predicted", "volume")
        for row in sorted(largest, key=lambda row: row["label"])
    ]


def _class_table(statistics: Mapping[str, Any]) -> PageTable:
    modalities = statistics["modalities"]
    rows = tuple(
        (
            row["class"],
            volume(row["volume_ml"]) if row["voxels"] else "nothing predicted",
            str(row["components"]),
            "-" if row["largest_component_ml"] is None else volume(row["largest_component_ml"]),
            "-" if row["extent_mm"] is None else " x ".join(f"{mm:.0f}" for mm in row["extent_mm"].values()),
            "-" if row["slices"] is None else f"{row['slices']['first']} to {row['slices']['last']}",
            *(
                "-" if row["intensity"][name] is None else "{mean:.1f} ± {sd:.1f}".format(**row["intensity"][name])
                for name in modalities
            ),
        )
        for row in statistics["classes"]
    )
    columns = ("class", "volume", "components", "largest", "extent mm (R-L x A-P x S-I)", "slices", *modalities)
    notes = tuple(
        f"{name[0].upper() + name[1:].replace('_', ' ')}: {DEFINITIONS[name]}."
        for name in ("volume_ml", "components", "extent_mm", "slices", "intensity")
    )
    return PageTable(columns, rows, notes=notes)


def _agreement(statistics: Mapping[str, Any]) -> PageTable | None:
    """How far the members of an ensemble agree; None of one run."""
    ensemble = statistics.get("ensemble")
    if ensemble is None:
        return None
    rows = tuple((name, "-" if score is None else f"{score:.3f}") for name, score in ensemble["agreement"].items())
    return PageTable(("class", "mean DSC between the members"), rows, notes=tuple(ensemble["definitions"].values()))


def _facts(statistics: Mapping[str, Any], made_by: Mapping[str, Any]) -> dict[str, str]:
    grid = statistics["grid"]
    return {
        "orientation": grid["orientation"],
        "view": grid["view"],
        "slices segmented": f"{grid['segmented_slices']} of {grid['slices']}",
        "slice step": str(made_by["slice_step"]),
        "post-processing": made_by["postprocessing"]["summary"].removeprefix("post-processing: "),
    }
