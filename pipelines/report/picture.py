"""A run as a picture: images, instruction, truth and prediction side by side."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from zeus_union.cache.colours import class_hex
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.inspect import instruction_texts, show


def draw_run(
    cache: Cache, rows: NDArray[np.intp], predictions: NDArray[np.uint8], variant: str | None, out: Path, title: str
) -> None:
    """One line of pictures for each slice: every modality, the truth, the prediction, and what the LLM said.

    Args:
        rows: slices of the cache (n,).
        predictions: class maps (n, 256, 256).
        variant: the instruction layer to quote; None quotes none.
        out: PNG.
    """
    modalities = cache.modalities
    columns = len(modalities) + 2
    figure = Figure(figsize=(2.5 * columns + 3.4, 2.75 * len(rows) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.0] * columns + [1.35])
    figure.suptitle(title, fontsize=10)
    images = cache.images(rows)
    for line, row in enumerate(rows):
        subject = cache.subjects[cache.rows["subject"][row]]
        labelled = bool(cache.rows["labelled"][row])
        truth = cache.masks(rows[line : line + 1])[0] if labelled else None
        for column, modality in enumerate(modalities):
            axes = figure.add_subplot(grid[line, column])
            show(axes, images[line, column], None, cache.classes)
            axes.set_title(f"{subject} slice {cache.rows['number'][row]}\n{modality}", fontsize=7)
        for column, (name, mask) in enumerate((("truth", truth), ("prediction", predictions[line]))):
            axes = figure.add_subplot(grid[line, len(modalities) + column])
            show(axes, images[line, 0], mask, cache.classes)
            axes.set_title(name if mask is not None else f"{name}: no label", fontsize=7)
        axes = figure.add_subplot(grid[line, columns])
        axes.axis("off")
        texts = instruction_texts(cache, int(row), variant) if variant else {}
        said = "\n\n".join(textwrap.fill(f"{modality}: {text}", 54) for modality, text in texts.items())
        axes.text(0, 1, said, fontsize=6.5, va="top", ha="left", transform=axes.transAxes)
    handles = [Patch(color=class_hex(label), label=name) for label, name in enumerate(cache.classes, 1)]
    figure.legend(handles=handles, loc="lower right", fontsize=7, ncols=len(handles), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def telling_rows(cache: Cache, subjects: tuple[str, ...], count: int = 4) -> NDArray[np.intp]:
    """The slice with the most foreground of each of `subjects`, then the next most, up to `count`; in cache order."""
    rows = cache.rows_of(subjects)
    foreground = cache.rows["foreground"][rows]
    owner = cache.rows["subject"][rows]
    rank = np.full(len(rows), len(rows))
    for subject in np.unique(owner):
        slices = np.flatnonzero(owner == subject)
        slices = slices[foreground[slices] > 0] if (foreground[slices] > 0).any() else slices
        # Neighbouring slices look alike: the second choice of a subject lies a third of its slices away.
        order = slices[np.argsort(-foreground[slices], kind="stable")]
        spread = order[:: max(1, len(order) // 3)]
        rank[spread] = np.arange(len(spread))
    return np.sort(rows[np.argsort(rank, kind="stable")[:count]])
