"""zeus-instruct at the terminal: bad input is one line and exit code 2."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.phantom.write import write_demo


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for part in said:
        assert part in lines[0]


def test_bad_options_of_build_cache_are_one_line(tmp_path: Path):
    data = tmp_path / "data"
    write_demo("nnunet", data, subjects=1)
    build = ("build-cache", "--dataset", "nnunet", "--out", tmp_path / "c.h5", "--data-root")
    fails(run(*build, tmp_path / "nowhere"), "nowhere", "--data-root")
    fails(run(*build, data, "--modalities", "PET"), "unknown modality PET", "T2-SPIR")
    fails(run(*build, data, "--subjects", "nobody"), "unknown subject nobody", "phantom_001")
    fails(run(*build, data, "--layers", "soul"), "unknown layer soul", "embeddings")
    fails(run(*build, data, "--set", "llm"), "--set", "part=value")
    fails(run(*build, data, "--set", "brain=large"), "unknown part brain", "llm")
    fails(run(*build, data, "--models", "nonsense"), "no profile nonsense", "lite")
    assert not (tmp_path / "c.h5").exists()


def test_a_pickle_where_sams_weights_should_be_is_never_run_and_leaves_no_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights = tmp_path / "sam.pth"
    weights.write_bytes(pickle.dumps(Bomb()))
    write_demo("nnunet", tmp_path / "data", subjects=1)
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path / "home"))
    result = run(
        *("build-cache", "--dataset", "nnunet", "--data-root", tmp_path / "data", "--out", tmp_path / "c.h5"),
        *("--layers", "embeddings", "--set", "encoder=sam_vit_b", "--set", f"encoder_weights={weights}"),
        *("--set", f"llm={tmp_path}", "--set", f"text_encoder={tmp_path}", "--device", "cpu"),
    )
    fails(result, "sam.pth", "plain weights file")
    assert not (tmp_path / "c.h5.d" / "embeddings").exists()


class Bomb:
    """Would end the test run if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


@pytest.mark.parametrize("command", ["inspect", "verify", "make-pairs"])
def test_a_file_that_is_no_cache_is_named(command: str, tmp_path: Path):
    (tmp_path / "notes.h5").write_text("not a cache at all" * 100)
    more = ("--out", tmp_path / "p.jsonl") if command == "make-pairs" else ()
    fails(run(command, tmp_path / "nowhere.h5", *more), "nowhere.h5", "does not exist")
    if command != "verify":
        fails(run(command, tmp_path / "notes.h5", *more), "notes.h5", "not a Zeus cache")


def test_make_demo_writes_what_the_readers_read(tmp_path: Path):
    assert run("make-demo", "--layout", "msd", "--out", tmp_path / "msd", "--subjects", "1").exit_code == 0
    assert (tmp_path / "msd" / "imagesTr" / "phantom_001.nii.gz").is_file()
    fails(run("make-demo", "--layout", "chaos", "--out", tmp_path / "msd", "--subjects", "1"), "another phantom")
