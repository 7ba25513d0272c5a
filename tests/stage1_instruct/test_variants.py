"""Grids are data: the paper's load, and every row of them is a profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cache.errors import UserError
from cache.reader import Cache
from stage1_instruct.cli import main
from stage1_instruct.datasets.write_demo import write_demo
from stage1_instruct.named_yaml import names_in
from stage1_instruct.profiles import load_profile
from stage1_instruct.variants import FOLDER, read_grid

ROWS = {"table3": 5, "table4": 9}


@pytest.mark.parametrize("name", names_in(FOLDER))
def test_every_row_of_the_papers_grids_is_a_profile(name: str) -> None:
    rows = read_grid(name)
    assert len(rows) == ROWS[name]
    for row in rows:
        load_profile("paper", row.parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {variant: a, set: {}}\n- {variant: a, set: {}}\n", "names a twice"),
        ("- {variant: a b, set: {}}\n", "is no layer"),
        ("- {variant: a}\n", r"row 1 is .*expected 'variant' and 'set'"),
        ("- {variant: a, set: {}, model: x}\n", "row 1"),
        ("variant: a\n", "expected a list of rows"),
        ("[", "is not YAML"),
    ],
)
def test_broken_grid_is_one_clear_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_grid(str(tmp_path / "grid.yaml"))


def test_unknown_grid_names_those_there_are() -> None:
    with pytest.raises(UserError, match="there are: table3, table4"):
        read_grid("table9")


def test_one_command_builds_a_layer_for_every_row(tiny_parts: dict[str, str], tiny_blip2: Path, tmp_path: Path) -> None:
    write_demo("nnunet", tmp_path / "data", subjects=1, seed=1)
    (tmp_path / "grid.yaml").write_text(
        "- {variant: mlp, set: {connector: mlp}}\n"
        "- {variant: linear, set: {connector: linear}}\n"
        "- {variant: qformer, set: {connector: qformer}}\n"
        "- {variant: chat, set: {template: xraygpt}}\n"
        f"- {{variant: blip2, set: {{instructor: blip2, blip2: {tiny_blip2}}}}}\n"
    )
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(tmp_path / "data"), "--slice-step", "12"]
    command += ["--modalities", "T2-SPIR", "--grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "c.h5")]
    for part, value in {**tiny_parts, "projection": "untrained"}.items():
        command += ["--set", f"{part}={value}"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    with Cache(tmp_path / "c.h5") as cache:
        assert set(cache.variants) == {"mlp", "linear", "qformer", "chat", "blip2"}
        rows = np.arange(len(cache.rows))
        texts = {variant: cache.text_embeddings(variant, rows).tobytes() for variant in cache.variants}
        assert len(set(texts.values())) > 1
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0 and "finished already" in again.output
