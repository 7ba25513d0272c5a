"""The training's picture: a panel for each kind of figure that the run has."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from zeus_union.pipelines.report.curves import draw_curves


def test_a_run_with_text_has_its_token_and_its_masks_without_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), original(self, *a, **k))[1])
    metrics = [
        {"epoch": e, "loss": 1 / e, "dice_loss": 0.5 / e, "cross_entropy": 0.5 / e, "text_part": 0.1 * e}
        | ({"validation_dsc": 0.8, "validation_dsc_without_text": 0.7} if e % 2 == 0 else {})
        for e in range(1, 5)
    ]
    draw_curves(metrics, tmp_path / "curves.png", "a $run_1$")
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[1] > 1000
    lines = {axes.get_title(): {line.get_label(): line for line in axes.lines} for axes in drawn[0].axes}
    assert list(lines) == ["training loss", "validation DSC", "prompt token, mean norm"]
    assert list(lines["validation DSC"]["without the text's part"].get_xdata()) == [2, 4]
    assert list(lines["prompt token, mean norm"]) == ["the text's part"]


def test_a_run_that_was_never_validated_has_no_panel_for_it(tmp_path: Path) -> None:
    draw_curves([{"epoch": 1, "loss": 1.0}], tmp_path / "curves.png", "run")
    assert 400 < matplotlib.image.imread(tmp_path / "curves.png").shape[1] < 500
