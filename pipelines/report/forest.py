"""The rows of an ablation as a picture: mean, interval and subjects of each."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zeus_union.cache.atomic import write_atomically
from zeus_union.pipelines.report.statistics import Summary
from zeus_union.stage2_segment.evaluation.metrics import is_defined

MEAN, REFERENCE, SUBJECT = "#1f4e79", "#b5472f", "#8a8a8a"


def draw_forest(
    summaries: Sequence[Summary],
    out: Path,
    title: str,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    label: str = "DSC",
) -> None:
    """One line per row, the first on top: dot = mean, bar = 95 % interval, from `FEWEST` subjects up; dashed: the
    reference's mean.

    Args:
        out: PNG.
        scores: row -> subject -> score, of `subject_scores`: a small dot each, below the bar.
        label: of the horizontal axis, which is a share from 0 to 1.
    """
    names = [textwrap.fill(summary.row, 36) for summary in summaries]
    height = sum(0.34 + 0.16 * (name.count("\n")) for name in names)
    figure = Figure(figsize=(8.0, 1.5 + height), layout="constrained")
    axes = figure.add_subplot()
    for position, summary in enumerate(summaries):
        colour = REFERENCE if summary.is_reference else MEAN
        if summary.is_reference and not math.isnan(summary.mean):
            axes.axvline(summary.mean, color=REFERENCE, linestyle="--", linewidth=1, zorder=0)
        points = [score for _, score in sorted((scores or {}).get(summary.row, {}).items())]
        axes.plot(
            points, [position + 0.24] * len(points), ".", color=SUBJECT, alpha=0.6, markersize=4, markeredgewidth=0
        )
        axes.plot([summary.low, summary.high], [position, position], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(summary.mean, position, "o", color=colour, markersize=6)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, position, _value(summary), transform=beside, fontsize=8, va="center", color=colour)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    # A share of 1: an axis that begins elsewhere would make a small difference look large.
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(label, fontsize=9)
    axes.set_title(textwrap.fill(title, 80), fontsize=10, parse_math=False)
    figure.legend(handles=_key(summaries, bool(scores)), loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_atomically(out, png.getvalue())


def _value(summary: Summary) -> str:
    if not is_defined(summary.mean):
        return "nothing measured"
    interval = f" [{summary.low:.3f}, {summary.high:.3f}]" if is_defined(summary.low) else ""
    return f"{summary.mean:.3f}{interval}"


def _key(summaries: Sequence[Summary], subjects: bool) -> list[Line2D]:
    key = [
        Line2D([], [], color=MEAN, marker="o", linestyle="", label="mean over the subjects"),
    ]
    if any(is_defined(summary.low) for summary in summaries):
        key.append(Line2D([], [], color=MEAN, linewidth=2, label="95 % interval"))
    if subjects:
        key.append(Line2D([], [], color=SUBJECT, marker=".", linestyle="", label="a subject"))
    reference = [summary.row for summary in summaries if summary.is_reference]
    if reference:
        key.append(Line2D([], [], color=REFERENCE, linestyle="--", linewidth=1, label="reference"))
    return key
