"""What a mask measures, class by class: volume, intensities, extent, components, place, slices."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zeus_union.cache.grid import Grid
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage2_segment.ensemble import DEFINITIONS as OF_ENSEMBLES

# Corners touch, as in post-processing.
_NEIGHBOURS = np.ones((3, 3, 3), bool)
DIRECTIONS = ("right_left", "anterior_posterior", "superior_inferior")
DEFINITIONS: Mapping[str, str] = {
    "voxels": "voxels of the class in mask.nii.gz",
    "volume_ml": "voxels times the volume of one, |det| of the affine's 3 x 3 part, in ml; of the filled mask where slices "
    "were skipped",
    "intensity": "mean and standard deviation (of all voxels, not of a sample) of the image's own values over the class; of "
    "CT these are Hounsfield units; a modality on another grid was resampled first",
    "extent_mm": "sides of the box along the patient's axes that holds every voxel of the class whole",
    "centroid_ras_mm": "mean of the voxels' centres, in mm to the right, the front and the top (RAS, as NIfTI and nibabel)",
    "centroid_lps_mm": "the same point in mm to the left, the back and the top (LPS, as DICOM and ITK)",
    "components": "parts of the class whose voxels touch at a face, an edge or a corner (26 neighbours)",
    "largest_component_ml": "volume of the part with the most voxels",
    "slices": "first and last slice with the class and how many have it, counted from 0 in the order of the grid's view",
}


@dataclass(frozen=True)
class ClassStatistics:
    """One class of a mask, see `DEFINITIONS`; None in what a class without voxels does not have.

    Attributes:
        extent_mm: along `DIRECTIONS`.
        slices: first, last, number.
        intensity: modality -> mean, standard deviation.
    """

    label: int
    name: str
    voxels: int
    volume_ml: float
    components: int
    largest_component_ml: float | None
    extent_mm: tuple[float, float, float] | None
    centroid_ras_mm: tuple[float, float, float] | None
    slices: tuple[int, int, int] | None
    intensity: Mapping[str, tuple[float, float] | None]

    def to_json(self) -> dict[str, Any]:
        extent = None if self.extent_mm is None else dict(zip(DIRECTIONS, self.extent_mm))
        ras = self.centroid_ras_mm
        return {
            "label": self.label,
            "class": self.name,
            "voxels": self.voxels,
            "volume_ml": self.volume_ml,
            "components": self.components,
            "largest_component_ml": self.largest_component_ml,
            "extent_mm": extent,
            "centroid_ras_mm": None if ras is None else list(ras),
            "centroid_lps_mm": None if ras is None else [-ras[0] + 0.0, -ras[1] + 0.0, ras[2]],
            "slices": None if self.slices is None else dict(zip(("first", "last", "number"), self.slices)),
            "intensity": {
                name: None if values is None else {"mean": values[0], "sd": values[1]}
                for name, values in self.intensity.items()
            },
        }


def statistics(segmentation: Segmentation) -> tuple[ClassStatistics, ...]:
    """The statistics of every class, in the order of the labels."""
    boxes = ndimage.find_objects(segmentation.mask, max_label=max(1, len(segmentation.classes)))
    in_slices = voxels_by_slice(segmentation)
    return tuple(
        _measure(segmentation, label, name, boxes[label - 1], in_slices[:, label - 1])
        for label, name in enumerate(segmentation.classes, 1)
    )


def voxels_by_slice(segmentation: Segmentation) -> NDArray[np.intp]:
    """(slices, classes): how many voxels of each class every slice of the grid's view has."""
    count = len(segmentation.classes) + 1
    slices = segmentation.grid.to_slices(segmentation.mask)
    return np.stack([np.bincount(labels.ravel(), minlength=count)[1:count] for labels in slices])


def voxel_ml(grid: Grid) -> float:
    """Volume of a voxel in ml; of skewed axes too."""
    return float(abs(np.linalg.det(grid.affine[:3, :3]))) / 1000


def summary_lines(rows: Sequence[ClassStatistics]) -> list[str]:
    """One line a class: 'liver 1,412 ml'."""
    return [f"{row.name} {volume_text(row)}" for row in rows]


def volume_text(row: ClassStatistics) -> str:
    """'1,412 ml', '12.3 ml', '0.42 ml'."""
    if not row.voxels:
        return "0 ml, nothing predicted"
    digits = 0 if row.volume_ml >= 100 else 1 if row.volume_ml >= 10 else 2 if row.volume_ml >= 0.1 else 4
    return f"{row.volume_ml:,.{digits}f} ml"


def statistics_json(segmentation: Segmentation, rows: Sequence[ClassStatistics]) -> dict[str, Any]:
    """What statistics.json holds."""
    grid = segmentation.grid
    content: dict[str, Any] = {
        "study": segmentation.study,
        "modalities": list(segmentation.images),
        "missing_modalities": list(segmentation.missing),
        "runs": list(segmentation.runs),
        "grid": {
            "shape": list(grid.shape),
            "spacing_mm": _rounded(grid.spacing),
            "orientation": grid.orientation,
            "view": grid.view,
            "slices": grid.slice_shape[0],
            "segmented_slices": len(segmentation.segmented),
            "voxel_ml": voxel_ml(grid),
        },
        "classes": [row.to_json() for row in rows],
        "definitions": dict(DEFINITIONS),
    }
    if segmentation.agreement:
        content["ensemble"] = {"agreement": dict(segmentation.agreement), "definitions": dict(OF_ENSEMBLES)}
    return content


def statistics_csv(rows: Sequence[ClassStatistics], modalities: Sequence[str]) -> str:
    """One row a class; what a class without voxels does not have is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["label", "class", "voxels", "volume_ml", "components", "largest_component_ml"]
        + [f"extent_{direction}_mm" for direction in DIRECTIONS]
        + [f"centroid_ras_{axis}_mm" for axis in "xyz"]
        + ["first_slice", "last_slice", "slices"]
        + [f"{name}_{what}" for name in modalities for what in ("mean", "sd")]
    )
    for row in rows:
        writer.writerow(
            [row.label, row.name, row.voxels, row.volume_ml, row.components, row.largest_component_ml]
            + [value for three in (row.extent_mm, row.centroid_ras_mm, row.slices) for value in three or (None,) * 3]
            + [value for name in modalities for value in row.intensity[name] or (None, None)]
        )
    return text.getvalue()


def _measure(
    segmentation: Segmentation,
    label: int,
    name: str,
    box: tuple[slice, slice, slice] | None,
    in_slices: NDArray[np.intp],
) -> ClassStatistics:
    """The statistics of a class.

    Args:
        box: part of the array that holds it; None where it has no voxels.
        in_slices: its voxels in each slice.
    """
    grid, ml = segmentation.grid, voxel_ml(segmentation.grid)
    if box is None:
        nowhere = dict.fromkeys(segmentation.images)
        return ClassStatistics(label, name, 0, 0.0, 0, None, None, None, None, nowhere)
    inside = segmentation.mask[box] == label
    parts, count = ndimage.label(inside, _NEIGHBOURS)
    voxels = int(np.count_nonzero(inside))
    low, high, mean = _places(inside, box, grid)
    numbers = np.flatnonzero(in_slices)
    return ClassStatistics(
        label=label,
        name=name,
        voxels=voxels,
        volume_ml=_digits(voxels * ml),
        components=count,
        largest_component_ml=_digits(int(np.bincount(parts[inside]).max()) * ml),
        extent_mm=_rounded(high - low),
        centroid_ras_mm=_rounded(mean),
        slices=(int(numbers[0]), int(numbers[-1]), len(numbers)),
        intensity={modality: _intensity(image[box][inside]) for modality, image in segmentation.images.items()},
    )


def _places(
    inside: NDArray[np.bool_], box: tuple[slice, slice, slice], grid: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner of the voxels, and the mean of their centres, (3,) in mm, RAS."""
    index = np.argwhere(inside).astype(np.float64) + [part.start for part in box]
    axes, origin = grid.affine[:3, :3], grid.affine[:3, 3]
    centres = index @ axes.T + origin
    reach = np.abs(axes).sum(axis=1) / 2  # from a voxel's centre to the sides of the box around it
    return centres.min(axis=0) - reach, centres.max(axis=0) + reach, centres.mean(axis=0)


def _intensity(values: NDArray[np.float32]) -> tuple[float, float]:
    return _digits(values.mean(dtype=np.float64)), _digits(values.std(dtype=np.float64))


def _rounded(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    """To a thousandth of a millimetre."""
    return tuple(round(float(value), 3) + 0.0 for value in values)


def _digits(value: float) -> float:
    """Eight significant digits: what float32 images hold, without the tail of binary fractions."""
    return float(f"{value:.8g}")
