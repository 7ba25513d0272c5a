"""The picture of an ablation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from zeus_union.pipelines.report.forest import draw_forest
from zeus_union.pipelines.report.statistics import subject_scores, summarise


def results(rows: int, subjects: int = 5) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"row": f"row {row}", "seed": 0, "fold": 0, "subject": f"s{subject}", "class": "liver", "dsc": dsc}
        for row in range(rows)
        for subject, dsc in enumerate(rng.random(subjects))
    ]


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def pixels(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(image - colour).max(axis=-1) < 12).sum())


def test_picture_is_of_sensible_size_and_grows_with_its_rows(tmp_path: Path) -> None:
    sizes = []
    for rows in (1, 12):
        draw_forest(summarise(results(rows)), tmp_path / "new" / f"{rows}.png", "a title")
        sizes.append(picture(tmp_path / "new" / f"{rows}.png").shape)
    (low, narrow, _), (high, wide, _) = sizes
    assert narrow == wide == 960
    assert 150 < low < 400 < high < 1000


def test_picture_is_the_same_bytes_twice_whatever_the_order_of_subjects(tmp_path: Path) -> None:
    lines = results(4)
    for name, own in (("one", lines), ("other", sorted(lines, key=lambda line: (line["row"], -line["dsc"])))):
        scores = subject_scores(own, "dsc", None)
        draw_forest(summarise(own, reference="row 1"), tmp_path / name, "a title", scores)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_reference_and_subjects_are_drawn_only_where_given(tmp_path: Path) -> None:
    lines, red, grey = results(3), (181, 71, 47), (185, 185, 185)
    draw_forest(summarise(lines), tmp_path / "bare.png", "a title")
    draw_forest(summarise(lines, reference="row 1"), tmp_path / "line.png", "a title")
    draw_forest(summarise(lines), tmp_path / "dots.png", "a title", subject_scores(lines, "dsc", None))
    bare, line, dots = (picture(tmp_path / f"{name}.png") for name in ("bare", "line", "dots"))
    assert pixels(bare, red) == 0 and pixels(line, red) > 100
    inside = slice(40, 200), slice(200, None)  # without title, names and key
    assert pixels(dots[inside], grey) >= pixels(bare[inside], grey) + 3 * 5


def test_rows_without_numbers_and_names_of_any_kind_draw_without_complaint(tmp_path: Path) -> None:
    lines = [
        {"row": "$\\frac{_& 100 %", "seed": 0, "fold": 0, "subject": "s", "class": "liver", "dsc": 0.5},
        {"row": "nothing " * 20, "seed": 0, "fold": 0, "subject": "s", "class": "liver", "dsc": None},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reference in (lines[0]["row"], lines[1]["row"]):
            scores = subject_scores(lines, "dsc", None)
            draw_forest(summarise(lines, reference=reference), tmp_path / "odd.png", "a $ title\\", scores)
    assert picture(tmp_path / "odd.png").std() > 5


def test_the_axis_begins_at_zero_and_the_values_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    lines = [*results(2), {"row": "none", "seed": 0, "fold": 0, "subject": "s", "class": "liver", "dsc": None}]
    summaries = summarise(lines)
    draw_forest(summaries, tmp_path / "a.png", "chaos: table 2")
    (axes,) = figures[0].axes
    assert axes.get_xlim() == (0, 1) and axes.get_title() == "chaos: table 2"
    first = summaries[0]
    said = f"{first.mean:.3f} [{first.low:.3f}, {first.high:.3f}]"
    assert axes.texts[0].get_text() == said
    assert axes.texts[-1].get_text() == "nothing measured"
