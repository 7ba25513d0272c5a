"""zeus-segment train given again: it resumes, starts again with --overwrite, and can be said by a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from zeus_union.cache.terminal import progress
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.checkpoint import load_config, load_weights, only_trainer
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.training import step
from zeus_union.stage2_segment.training.train import train_run

FEW: dict[str, Any] = {"fusion": "hybrid", "modalities": ["T1"], "batch_size": 3, "epochs": 2, "validate_every": 0}
OPTIONS = ["--fusion", "hybrid", "--modalities", "T1", "--batch-size", "3", "--validate-every", "0", "--device", "cpu"]


def train(cache: Path, *more: object) -> Result:
    return CliRunner().invoke(main, ["train", "--cache", str(cache), *OPTIONS, *map(str, more)])


@pytest.fixture(scope="module")
def run(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_run(toy_cache, folder, device="cpu", fold=1, lr=1e-4, **FEW)
    return folder


def test_stopped_it_resumes_by_the_same_command(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy_cache, "--out", tmp_path / "whole", "--epochs", 2)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", float("inf"))
    steps, backward = [], step.Alone.backward

    def stops_at_the_third(self: step.Alone, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return backward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(step.Alone, "backward", stops_at_the_third)
        stopped = train(toy_cache, "--out", tmp_path / "run", "--epochs", 2)
    assert f"interrupted; run the same command again to resume {tmp_path / 'run'}" in stopped.stderr
    again = train(toy_cache, "--out", tmp_path / "run", "--epochs", 2)
    assert again.exit_code == 0 and "resumes in epoch" in again.stderr
    resumed, whole = (load_weights(tmp_path / name, "last") for name in ("run", "whole"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_overwrite_starts_again_and_only_a_run_is_overwritten(toy_cache: Path, tmp_path: Path) -> None:
    train(toy_cache, "--out", tmp_path / "run", "--epochs", 1)
    other = train(toy_cache, "--out", tmp_path / "run", "--epochs", 1, "--lr", 1e-3)
    assert other.exit_code == 2 and "--overwrite starts again" in other.stderr
    assert train(toy_cache, "--out", tmp_path / "run", "--epochs", 1, "--lr", 1e-3, "--overwrite").exit_code == 0
    assert load_config(tmp_path / "run").recipe.lr_pretrained == 1e-3
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    refused = train(toy_cache, "--out", tmp_path / "letters", "--overwrite")
    assert refused.exit_code == 2 and "is not a run folder" in refused.stderr
    assert (tmp_path / "letters" / "letter.txt").exists()


def test_two_processes_never_train_one_run(toy_cache: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    held = (
        "import sys; from pathlib import Path; from zeus_union.stage2_segment.checkpoint import only_trainer\n"
        "with only_trainer(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", held, tmp_path / "run"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        refused = train(toy_cache, "--out", tmp_path / "run", "--epochs", 1)
        process.communicate()
    assert refused.exit_code == 2 and "another process is training" in refused.stderr
    with only_trainer(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_runs_config_is_a_file_of_options_and_what_is_said_beside_it_wins(
    toy_cache: Path, run: Path, tmp_path: Path
) -> None:
    again = CliRunner().invoke(
        main,
        ["train", "--config", str(run / "config.json"), "--validate-every", "0", "--device", "cpu", "--out", str(run)],
    )
    assert again.exit_code == 0 and "is complete (2 epochs)" in again.stderr, again.stderr
    out = tmp_path / "other"
    other = CliRunner().invoke(
        main,
        [
            "train",
            "--config",
            str(run / "config.json"),
            "--fold",
            "2",
            "--epochs",
            "1",
            "--out",
            str(out),
            "--device",
            "cpu",
        ],
    )
    assert other.exit_code == 0, other.stderr
    config, before = load_config(out), load_config(run)
    assert (config.split.fold, config.recipe.epochs) == (2, 1)
    assert config.recipe.lr_pretrained == before.recipe.lr_pretrained == 1e-4
    assert config.inputs.modalities == ("T1",)


def test_a_yaml_of_options_is_read_relative_to_itself(toy_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "hybrid.yaml"
    file.write_text(f"cache: {toy_cache}\nfusion: hybrid\nmodalities: [T1]\nbatch-size: 3\nepochs: 1\n")
    result = CliRunner().invoke(
        main, ["train", "--config", str(file), "--out", str(tmp_path / "run"), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.stderr
    assert load_config(tmp_path / "run").architecture.fusion == "hybrid"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fussion: hybrid", "unknown option fussion; did you mean fusion?"),
        ("- fusion", "expected a mapping of options"),
        ("fusion: [", "cannot be read"),
        ("fusion: sideways", "'sideways' is not one of"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(toy_cache: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    result = (
        train(toy_cache, "--config", file)
        if "sideways" not in text
        else CliRunner().invoke(main, ["train", "--cache", str(toy_cache), "--config", str(file)])
    )
    assert result.exit_code == 2 and says in result.stderr


def test_the_run_folder_keeps_what_was_said(run: Path) -> None:
    log = (run / "log.txt").read_text()
    assert "hybrid fusion of T1" in log and "epoch 2/2: loss" in log
    assert "torch " in log  # a detail, which the terminal shows with --verbose alone


def test_default_folders_do_not_collide(toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Path] = []
    monkeypatch.setattr("zeus_union.stage2_segment.training.train.train_run", lambda _, run, **__: runs.append(run))
    rows = (
        [],
        ["--text", "none"],
        ["--lr", "0.001"],
        ["--train-subjects", "ada,ben"],
        ["--train-subjects", "ada,cleo"],
    )
    for row in rows:
        assert train(toy_cache, "--epochs", 1, *row).exit_code == 0
    names = [run.name for run in runs]
    assert len({*names}) == len(rows) and {run.parent for run in runs} == {Path("runs")}
    assert "toy-hybrid-fold0-seed0-modalities-T1-batch-size-3" in names
    assert "toy-hybrid-fold0-seed0-text-none-modalities-T1-batch-size-3" in names


def test_quiet_says_results_alone_and_verbose_more(toy_cache: Path, run: Path, tmp_path: Path) -> None:
    quiet = train(toy_cache, "--out", tmp_path / "quiet", "--epochs", 1, "-q")
    assert quiet.exit_code == 0 and quiet.stdout.startswith(f"{tmp_path / 'quiet'} is trained")
    assert "epoch" not in quiet.stderr
    verbose = CliRunner().invoke(
        main, ["-v", "train", "--cache", str(toy_cache), *OPTIONS, "--out", str(tmp_path / "loud"), "--epochs", "1"]
    )
    assert "torch " in verbose.stderr and "epoch 1/1" in verbose.stderr


def test_verbose_names_the_weights_and_how_long_they_took(run: Path) -> None:
    asked, unasked = (
        CliRunner().invoke(main, ["evaluate", "--run", str(run), "--device", "cpu", *more]) for more in (["-v"], [])
    )
    said = f"{run / 'weights' / 'last.safetensors'} loaded in "
    assert asked.exit_code == unasked.exit_code == 0
    assert said in asked.stderr and said not in unasked.stderr


def test_evaluate_prints_its_results_as_json(run: Path) -> None:
    result = CliRunner().invoke(main, ["evaluate", "--run", str(run), "--device", "cpu", "--json"])
    assert result.exit_code == 0
    results = json.loads(result.stdout)
    assert results["subjects"] == list(load_config(run).split.test)
    assert {row["class"] for row in results["rows"]} == {"liver", "spleen"}


def test_progress_in_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("zeus_union.cache.terminal.time.monotonic", lambda: now[0])
    for _ in progress(range(100), "encoding"):
        now[0] += 4
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("encoding: ")]
    assert 8 <= len(lines) <= 13
    assert lines[0].startswith("encoding: 8 of 100")
