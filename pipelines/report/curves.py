"""How a run was trained, as a picture: its loss, its validation, and the prompt token that the text makes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zeus_union.cache.atomic import write_atomically

# Panels from left to right: title -> column of metrics.parquet -> what the line is called.
PANELS: Mapping[str, Mapping[str, str]] = {
    "training loss": {"loss": "Dice + cross-entropy", "dice_loss": "Dice", "cross_entropy": "cross-entropy"},
    "validation DSC": {"validation_dsc": "as trained", "validation_dsc_without_text": "without the text's part"},
    "prompt token, mean norm": {
        "token_norm": "token",
        "token_drift": "its way since the start",
        "text_part": "the text's part",
    },
}
COLOURS = ("#1f4e79", "#b5472f", "#8a8a8a")


def draw_curves(metrics: Sequence[Mapping[str, Any]], out: Path, title: str) -> None:
    """A panel for each of `PANELS` that the run has figures of, over its epochs.

    Args:
        metrics: the rows of the run's metrics.parquet.
        out: PNG.
    """
    wanted = {
        name: {column: label for column, label in lines.items() if any(row.get(column) is not None for row in metrics)}
        for name, lines in PANELS.items()
    }
    panels = {name: lines for name, lines in wanted.items() if lines}
    figure = Figure(figsize=(3.8 * len(panels), 3.0), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    for position, (name, lines) in enumerate(panels.items(), 1):
        _draw(figure.add_subplot(1, len(panels), position), metrics, name, lines)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_atomically(out, png.getvalue())


def _draw(axes: Axes, metrics: Sequence[Mapping[str, Any]], name: str, lines: Mapping[str, str]) -> None:
    for colour, (column, label) in zip(COLOURS, lines.items()):
        points = [(row["epoch"], row[column]) for row in metrics if row.get(column) is not None]
        axes.plot(*zip(*points), color=colour, label=label, linewidth=1.5, marker="." if len(points) < 3 else "")
    axes.set_title(name, fontsize=9)
    axes.set_xlabel("epoch", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
