"""The figures of a page, as plotly has them: every subject's score with the mean, and how a run was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeus_union.cache.page.render import LINES, Chart
from zeus_union.pipelines.report.curves import PANELS
from zeus_union.pipelines.report.statistics import FEWEST
from zeus_union.stage2_segment.evaluation.metrics import is_defined

POINT, REFERENCE = "#0072B2", "#D55E00"
INK = "ink"  # the page's script puts the colour of the text in its place
ROW_HEIGHT, AROUND = 46, 90  # pixels
PANEL_DEFINITIONS: Mapping[str, str] = {
    "training loss": "Mean over the training slices of each epoch: Dice loss, cross-entropy, and their sum, which training "
    "lowers.",
    "validation DSC": "Mean DSC (256 px) over classes and validation subjects after each epoch, with the instruction and "
    "without its part.",
    "prompt token, mean norm": "Length of the token that prompts the decoder, how far it has moved since the start (drift), "
    "and the part of it that comes from the text; means over slices and modalities.",
}


@dataclass(frozen=True)
class PointRow:
    """A row of `points_chart`.

    Attributes:
        scores: subject -> score.
        low, high: interval of the mean; NaN for none.
    """

    name: str
    scores: Mapping[str, float]
    mean: float
    low: float
    high: float
    colour: str = POINT
    is_reference: bool = False


def points_chart(name: str, title: str, rows: Sequence[PointRow], label: str = "DSC") -> Chart:
    """One line per row, the first on top: a point for every subject, above them mean and interval."""
    data: list[dict[str, Any]] = []
    for position, row in enumerate(rows):
        known = sorted((item for item in row.scores.items() if is_defined(item[1])), key=lambda item: item[1])
        heights = [position + 0.14 + 0.05 * (index % 5) for index in range(len(known))]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [score for _, score in known],
                "y": heights,
                "text": [_escaped(subject) for subject, _ in known],
                "hovertemplate": "%{text}: %{x:.3f}<extra></extra>",
                "marker": {"color": row.colour, "size": 8, "opacity": 0.75, "line": {"width": 0.5, "color": INK}},
                "showlegend": False,
            }
        )
        if is_defined(row.mean):
            data.append(_mean(position, row))
    reference = next((row.mean for row in rows if row.is_reference and is_defined(row.mean)), None)
    layout = {
        "height": AROUND + ROW_HEIGHT * len(rows),
        "margin": {"l": 8, "r": 44, "t": 8, "b": 44},
        "xaxis": {"range": [0, 1.02], "title": {"text": label}},
        "yaxis": {
            "range": [len(rows) - 0.4, -0.6],
            "tickvals": list(range(len(rows))),
            "ticktext": [_wrapped(row.name) for row in rows],
            "showgrid": False,
            "zeroline": False,
        },
        "showlegend": False,
        "shapes": [
            {
                "type": "line",
                "x0": reference,
                "x1": reference,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": REFERENCE, "width": 1, "dash": "dash"},
            }
        ]
        if reference is not None
        else [],
    }
    intervals = any(is_defined(row.low) for row in rows)
    line = f" and its 95 % interval (Student's t on the logit, from {FEWEST} subjects up)" if intervals else ""
    dashed = "; dashed: the reference's mean" if reference is not None else ""
    definition = (
        f"A point is one subject; the diamond is the mean over the subjects{line}{dashed}. The axis begins at 0."
    )
    return Chart(name, title, definition, data, layout)


def _mean(position: int, row: PointRow) -> dict[str, Any]:
    bar = (
        {
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.mean],
            "arrayminus": [row.mean - row.low],
            "color": INK,
            "thickness": 2,
            "width": 0,
        }
        if is_defined(row.low)
        else {"visible": False}
    )
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [row.mean],
        "y": [position - 0.08],
        "text": [f"{row.mean:.3f}"],
        "textposition": "top center",
        "textfont": {"size": 11, "color": INK},
        "hovertemplate": "mean %{x:.3f}<extra></extra>",
        "marker": {"symbol": "diamond", "size": 11, "color": INK},
        "error_x": bar,
        "cliponaxis": False,
        "showlegend": False,
    }


def curve_charts(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """A figure for each of `curves.PANELS` that runs have numbers of.

    Args:
        metrics: run -> the rows of its metrics.parquet; of several runs the first line of each panel alone.
    """
    charts = []
    several = len(metrics) > 1
    for number, (panel, columns) in enumerate(PANELS.items()):
        lines = list(columns.items())[: 1 if several else None]
        data: list[dict[str, Any]] = []
        for run, rows in metrics.items():
            for column, label in lines:
                points = [
                    (row["epoch"], row[column])
                    for row in rows
                    if row.get(column) is not None and math.isfinite(row[column])
                ]
                if points:
                    data.append(_line(run if several else label, points, len(data)))
        if data:
            title = f"{panel}: {lines[0][1]}" if several else panel
            layout = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"rangemode": "tozero"}, "showlegend": True}
            charts.append(
                Chart(f"curves-{number}", title[0].upper() + title[1:], PANEL_DEFINITIONS[panel], data, layout)
            )
    return charts


def _line(name: str, points: Sequence[tuple[int, float]], index: int) -> dict[str, Any]:
    colour, dash = LINES[index % len(LINES)]
    if index >= len(LINES):  # a colour that is there already gets another dash
        dash = LINES[(index + index // len(LINES)) % len(LINES)][1]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) < 3 else "lines",
        "x": [epoch for epoch, _ in points],
        "y": [value for _, value in points],
        "name": _escaped(name),
        "line": {"color": colour, "dash": dash, "width": 2},
        "hovertemplate": "epoch %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
    }


def _escaped(text: str) -> str:
    """Plotly reads a few tags (<b>, <a>, <br>) in texts; a name has none."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _wrapped(text: str, width: int = 28) -> str:
    """Broken between words, for an axis."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(map(_escaped, lines[:3])) + ("…" if len(lines) > 3 else "")
