"""A run as a picture: images, truth, prediction and instruction side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zeus_union.cache.layout import IGNORE
from zeus_union.cache.page.drawing import class_patches, draw_slice_on
from zeus_union.cache.page.telling import telling_rows
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.inspect import instruction_texts
from zeus_union.stage2_segment.evaluation.metrics import dsc, is_defined, mean_defined, overlap_counts


def draw_run(
    cache: Cache,
    rows: NDArray[np.intp],
    predictions: NDArray[np.uint8],
    variant: str | None,
    out: Path,
    title: str,
    modalities: Sequence[str] | None = None,
) -> None:
    """One line of pictures for each slice: every modality, the truth, the prediction with its DSC, and what the LLM said.

    Args:
        rows: slices of the cache (n,).
        predictions: class maps (n, 256, 256).
        variant: the instruction layer to quote; None quotes none.
        out: PNG.
        modalities: that the run reads; None: all of the cache.
    """
    shown = tuple(name for name in cache.modalities if modalities is None or name in modalities)
    columns = len(shown) + 2
    figure = Figure(figsize=(2.5 * columns + 3.4, 2.75 * len(rows) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.0] * columns + [1.35])
    figure.suptitle(title, fontsize=10, parse_math=False)
    images = cache.images(rows)[:, [cache.modalities.index(name) for name in shown]]
    for line, row in enumerate(rows):
        subject = cache.subjects[cache.rows["subject"][row]]
        labelled = bool(cache.rows["labelled"][row])
        truth = cache.masks(rows[line : line + 1])[0] if labelled else None
        pictures = [(f"{subject} slice {cache.rows['number'][row]}\n{name}", None) for name in shown]
        pictures.append((_of_truth(truth), truth))
        pictures.append((_of_prediction(predictions[line], truth, len(cache.classes)), predictions[line]))
        for column, (name, mask) in enumerate(pictures):
            axes = figure.add_subplot(grid[line, column])
            image = images[line, column if column < len(shown) else 0]
            draw_slice_on(axes, image, mask, cache.classes, cache.grid(subject), is_square=True)
            axes.set_title(name, fontsize=7, parse_math=False)
        axes = figure.add_subplot(grid[line, columns])
        axes.axis("off")
        texts = instruction_texts(cache, int(row), variant) if variant else {}
        said = "\n\n".join(textwrap.fill(f"{name}: {texts[name]}", 54) for name in shown if name in texts)
        axes.text(0, 1, said, fontsize=6.5, va="top", ha="left", transform=axes.transAxes, parse_math=False)
    figure.legend(handles=class_patches(cache.classes), loc="outside lower center", fontsize=8, ncols=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _of_truth(truth: NDArray[np.uint8] | None) -> str:
    if truth is None:
        return "truth: no labels"
    return "truth" if ((truth > 0) & (truth != IGNORE)).any() else "truth: no class here"


def _of_prediction(prediction: NDArray[np.uint8], truth: NDArray[np.uint8] | None, classes: int) -> str:
    """What stands over a prediction: the mean DSC of the classes that this slice shows, or that there is nothing."""
    empty = "" if prediction.any() else "\nnothing predicted"
    if truth is None:
        return f"prediction{empty}"
    mean = mean_defined(dsc(overlap_counts(prediction, truth, classes))[1:].tolist())
    return f"prediction{f', DSC here {mean:.2f}' if is_defined(mean) else ''}{empty}"


def slices_of(cache: Cache, subjects: Sequence[str], count: int = 4) -> NDArray[np.intp]:
    """`count` rows that show as much of every class as so many can, shared among the subjects; in the cache's order."""
    chosen = []
    for index, subject in enumerate(subjects[:count]):
        share = count // len(subjects) + (index < count % len(subjects))
        chosen.append(telling_rows(cache, cache.rows_of([subject]), share))
    return np.sort(np.concatenate(chosen))
