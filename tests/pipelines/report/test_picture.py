"""The pictures of a run: slices that show every class, and what there is to know of each on it."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from zeus_union.cache.grid import Grid
from zeus_union.cache.page.drawing import LEGEND, class_patches, draw_slice_on
from zeus_union.pipelines.report.picture import _of_prediction, _of_truth


def axes_of(rows: int, columns: int, grid: Grid, is_square: bool) -> object:
    axes = Figure().add_subplot()
    mask = np.zeros((rows, columns), np.uint8)
    mask[1:3, 1:3] = 2
    draw_slice_on(axes, np.zeros((rows, columns), np.uint8), mask, ("liver", "spleen"), grid, is_square=is_square)
    return axes


@pytest.mark.parametrize(
    ("is_square", "pixel_mm", "aspect"),
    [(False, 2.0, 1.5), (True, 200 / 256, 1.0)],  # the longer side is 100 voxels of 2 mm
)
def test_a_scale_bar_is_as_long_as_it_says(is_square: bool, pixel_mm: float, aspect: float) -> None:
    grid = Grid((100, 40, 8), np.diag([2.0, 3.0, 5.0, 1.0]))
    axes = axes_of(*((256, 256) if is_square else (40, 100)), grid, is_square)
    (bar,) = [artist for artist in axes.artists if isinstance(artist, AnchoredSizeBar)]
    (said,) = [text.get_text() for text in bar.txt_label.get_children()]
    length = bar.size_bar.get_children()[0].get_width() * pixel_mm
    assert said == f"{length:.0f} mm" == "50 mm"
    assert axes.get_aspect() == pytest.approx(aspect)
    assert {text.get_text() for text in axes.texts} == {"R", "L", "A", "P"}
    assert len(axes.collections) == 1  # the outline


def test_a_legend_names_the_classes_and_counts_those_beyond_it() -> None:
    assert [patch.get_label() for patch in class_patches(("liver", "spleen"))] == ["liver", "spleen"]
    labels = [patch.get_label() for patch in class_patches([f"class {number}" for number in range(30)])]
    assert len(labels) == LEGEND + 1 and labels[-1] == f"and {30 - LEGEND} more"


def test_it_says_what_a_mask_is_worth_and_where_there_is_none() -> None:
    empty, half, whole = (np.zeros((4, 4), np.uint8) for _ in range(3))
    whole[:2], half[:1] = 1, 1
    assert _of_prediction(whole, whole, 2) == "prediction, DSC here 1.00"
    assert _of_prediction(half, whole, 2) == "prediction, DSC here 0.67"
    assert _of_prediction(empty, whole, 2) == "prediction, DSC here 0.00\nnothing predicted"
    assert _of_prediction(empty, empty, 2) == _of_prediction(empty, None, 2) == "prediction\nnothing predicted"
    assert [_of_truth(mask) for mask in (None, empty, whole)] == ["truth: no labels", "truth: no class here", "truth"]
