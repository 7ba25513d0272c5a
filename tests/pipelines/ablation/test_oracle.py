"""The upper bound among the controls of an ablation."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.stage2_segment.conftest import make_cache
from tests.stage2_segment.test_leaks import add_layers
from zeus_union.cache.leaks import LEAK, TRUE_LABELS
from zeus_union.pipelines.ablation import timing
from zeus_union.pipelines.cli import main

SETTINGS = ["fusion=hybrid", "batch-size=2", "modalities=T1,T2", "train-subjects=ada", "test-subjects=ben"]


def ablate(cache: Path, grid: str, *more: str | Path) -> Result:
    arguments = ["ablate", "--cache", cache, "--grid", grid, "--epochs", 1, "--device", "cpu", *more]
    arguments += [part for setting in SETTINGS for part in ("--set", setting)]
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "toy.h5", ("ada", "ben"), ())


def test_the_oracle_is_a_row_that_the_tables_call_an_upper_bound(toy: Path, tmp_path: Path) -> None:
    add_layers(toy, {"oracle": {LEAK: TRUE_LABELS}}, ("ada", "ben"))
    (tmp_path / "grid.yaml").write_text("rows: [{name: Zeus}]\n")
    done = ablate(toy, str(tmp_path / "grid.yaml"), "--controls", "none,oracle", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("warning: toy: 12 instructions, 1 distinct: the text says nothing of the image") == 1
    assert "warning: oracle" not in done.stderr  # a control
    for name in ("table.md", "classes.md"):
        table = (tmp_path / "out" / name).read_text()
        assert "upper bound, not a result" in table and "Zeus, text: oracle (oracle)" in table
        assert not any("**" in line for line in table.splitlines() if line.startswith("| Zeus, text: oracle"))
    verdict = (tmp_path / "out" / "verdict.md").read_text()
    assert "Upper bound, not a result: captions from the true labels (oracle) reach" in verdict
    assert "above the instruction (Zeus) and" in verdict and "above no text" in verdict
    assert "| oracle |" not in verdict


def test_all_controls_leave_the_oracle_out_where_its_layer_is_missing_and_say_how_to_make_it(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "_seconds_a_step", lambda *_: 1.0)
    add_layers(toy, {"prompt": {"instructor": "prompt"}}, ("ada", "ben"))
    more = ("--controls", "all", "--set", "variant=toy", "--out", tmp_path / "out", "--dry-run")
    done = ablate(toy, "controls", *more)
    assert done.exit_code == 0, done.output
    assert f"no upper bound: {toy} has no captions from the true labels; zeus-instruct make-oracle" in done.stderr
    assert "oracle" not in done.stdout
    add_layers(toy, {"oracle": {LEAK: TRUE_LABELS}}, ("ada", "ben"))
    done = ablate(toy, "controls", *more)
    assert done.exit_code == 0 and "text: oracle" in done.stdout, done.output


def test_an_oracle_that_is_asked_for_by_name_has_to_be_there(toy: Path, tmp_path: Path) -> None:
    done = ablate(toy, "controls", "--controls", "oracle", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "zeus-instruct make-oracle" in done.stderr
