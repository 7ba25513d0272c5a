"""Slices as matplotlib draws them: grey values, outlines of the classes, the patient's sides, a scale bar, a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.colours import class_hex
from zeus_union.cache.grid import Grid
from zeus_union.cache.page.telling import sides

BAR_MM = (1, 2, 5, 10, 20, 50, 100, 200)  # lengths of a scale bar
LONGEST_BAR = 0.3  # of the picture's width
LEGEND = 24  # classes; further ones are counted
_ANCHORS = {"left": (0.02, 0.5), "right": (0.98, 0.5), "top": (0.5, 0.98), "bottom": (0.5, 0.02)}


def draw_slice_on(
    axes: Any,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    classes: Sequence[str],
    grid: Grid,
    *,
    is_square: bool = False,
) -> None:
    """One picture in grey with the outline of each class, closed at its edges too, R and L, and a scale bar.

    Args:
        axes: matplotlib's.
        image: grey values (rows, columns) of a slice.
        mask: class maps of the same shape, 0 background; None: no outlines.
        grid: of the study.
        is_square: whether the picture is `to_square` of a slice; else it has the slice's own pixels.
    """
    spacing = grid.slice_spacing[1], grid.slice_spacing[2]
    if is_square:
        side_mm = max(count * length for count, length in zip(grid.slice_shape[1:], spacing))
        spacing = (side_mm / image.shape[0], side_mm / image.shape[1])
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect=spacing[0] / spacing[1])
    axes.set_xticks([])
    axes.set_yticks([])
    rows, columns = image.shape
    labels = np.zeros(image.shape, np.uint8) if mask is None else mask
    for label in range(1, len(classes) + 1):
        inside = np.pad(labels == label, 1)
        if inside.any():
            at = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
            axes.contour(*at, inside, levels=[0.5], colors=[class_hex(label)], linewidths=1.2)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    _mark_sides(axes, grid)
    _mark_scale(axes, columns, spacing[1])


def class_patches(classes: Sequence[str]) -> list[Any]:
    """What a legend shows of the classes: each in its colour with its name; how many more beyond `LEGEND`."""
    from matplotlib.patches import Patch

    patches = [Patch(color=class_hex(label), label=name) for label, name in enumerate(classes[:LEGEND], 1)]
    if len(classes) > LEGEND:
        patches.append(Patch(color="none", label=f"and {len(classes) - LEGEND} more"))
    return patches


def _mark_sides(axes: Any, grid: Grid) -> None:
    for side, letter in sides(grid).items():
        across, up = _ANCHORS[side]
        axes.text(
            across,
            up,
            letter,
            transform=axes.transAxes,
            color="white",
            fontsize=9,
            fontweight="bold",
            ha={"left": "left", "right": "right"}.get(side, "center"),
            va={"top": "top", "bottom": "bottom"}.get(side, "center"),
            bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.5, "pad": 1.0},
        )


def _mark_scale(axes: Any, columns: int, pixel_mm: float) -> None:
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    fitting = [length for length in BAR_MM if length <= LONGEST_BAR * columns * pixel_mm]
    if not fitting:
        return
    bar = AnchoredSizeBar(
        axes.transData,
        fitting[-1] / pixel_mm,
        f"{fitting[-1]} mm",
        "lower right",
        color="white",
        frameon=True,
        pad=0.15,
        borderpad=0.3,
        sep=1,
        fontproperties={"size": 7},
    )
    bar.patch.set(facecolor="black", edgecolor="none", alpha=0.5)
    axes.add_artist(bar)
