"""preview.png: three slices of a study with the outlines of its classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from zeus_union.cache.colours import class_hex
from zeus_union.cache.page.drawing import LEGEND, draw_slice_on
from zeus_union.cache.page.telling import telling_slices
from zeus_union.pipelines.outputs.statistics import ClassStatistics, volume_text, voxels_by_slice
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage1_instruct.studies.intensity import CT_WINDOW, foreground, is_ct, percentile_bounds, to_grey

SLICES = 3
MODALITIES = 4  # rows; further modalities are named
_WIDTH = 3.2  # inches of a picture
_TALLEST = 2.0  # height by width, beyond which a picture gets narrower


def draw_preview(segmentation: Segmentation, path: Path) -> Path:
    """Three slices of every modality (the first four) with outlines, a legend with volumes, and the patient's sides."""
    grid = segmentation.grid
    numbers = telling_slices(voxels_by_slice(segmentation.mask, segmentation.grid, len(segmentation.classes)), SLICES)
    masks = grid.to_slices(segmentation.mask)[numbers]
    images = dict(list(segmentation.images.items())[:MODALITIES])
    aspect = grid.slice_spacing[1] / grid.slice_spacing[2]
    tall = min(_TALLEST, aspect * grid.slice_shape[1] / grid.slice_shape[2])
    figure = Figure(
        figsize=(_WIDTH * len(numbers) + 2.4, (_WIDTH * tall + 0.3) * len(images) + 0.9), layout="constrained"
    )
    _title(figure, segmentation, list(images))
    pictures = figure.subplots(len(images), len(numbers), squeeze=False)
    for line, (modality, image) in zip(pictures, images.items()):
        greys = slice_greys(grid.to_slices(image)[numbers], modality)
        for axes, number, grey, mask in zip(line, numbers, greys, masks):
            draw_slice_on(axes, grey, mask, segmentation.classes, grid)
            axes.set_title(
                f"{modality}, slice {number} of 0 to {grid.slice_shape[0] - 1}"
                + ("" if mask.any() else ": nothing predicted"),
                fontsize=8,
                parse_math=False,
            )
    _legend(figure, segmentation.statistics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font does not have
        figure.savefig(path, dpi=110)
    return path


def slice_greys(slices: NDArray[np.float32], modality: str) -> NDArray[np.uint8]:
    """The chosen slices (slices, rows, columns) of a modality in one range of grey."""
    if is_ct(modality):
        return to_grey(slices, CT_WINDOW.bounds)
    return to_grey(slices, percentile_bounds(slices, *foreground(slices)))


def _title(figure: Figure, segmentation: Segmentation, modalities: Sequence[str]) -> None:
    parts = [segmentation.study, f"{segmentation.grid.view} slices"]
    more = [name for name in segmentation.images if name not in modalities]
    if more:
        parts.append(f"also read: {', '.join(more)}")
    if segmentation.missing:
        parts.append(f"missing: {', '.join(segmentation.missing)}")
    if not segmentation.mask.any():
        parts.append("nothing predicted")
    figure.suptitle("; ".join(parts), fontsize=10, parse_math=False)


def _legend(figure: Figure, rows: Sequence[ClassStatistics]) -> None:
    """Label, name and volume of the classes, those with voxels first where there are too many for all."""
    listed = sorted(sorted(rows, key=lambda row: -row.voxels)[:LEGEND], key=lambda row: row.label)
    handles = [
        Patch(color=class_hex(row.label), label=f"{row.label} {_short(row.name)}\n{volume_text(row)}") for row in listed
    ]
    if len(rows) > LEGEND:
        handles.append(Patch(color="none", label=f"and {len(rows) - LEGEND} more"))
    legend = figure.legend(handles=handles, loc="outside right center", fontsize=7, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
