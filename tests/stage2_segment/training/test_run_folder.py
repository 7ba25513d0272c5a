"""A run's folder from its first step to more epochs than it was planned with."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from tests.stage2_segment.conftest import make_cache
from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.checkpoint import load_config, load_weights
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.schedule import lr_factor
from zeus_union.stage2_segment.training.train import train_run

SPLIT: dict[str, Any] = {"train_subjects": ["ada"], "test_subjects": ["ben"], "validation_subjects": ["cleo"]}
QUICK: dict[str, Any] = {**SPLIT, "fusion": "hybrid", "modalities": ["T1"], "batch_size": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def run(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs, of which the second and the last were validated."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_run(toy_cache, folder, epochs=3, validate_every=2, **QUICK)
    return folder


def command(cache: Path, run: Path, *more: Any) -> Any:
    given = [
        "--train-subjects",
        "ada",
        "--test-subjects",
        "ben",
        "--validation-subjects",
        "cleo",
        "--fusion",
        "hybrid",
        "--modalities",
        "T1",
    ]
    arguments = ["train", "--cache", cache, "--out", run, "--batch-size", 3, "--device", "cpu", *given, *more]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_was_not_validated_is_null_and_what_was_is_there(run: Path) -> None:
    table = pq.read_table(run / "metrics.parquet").to_pydict()
    validated = [name for name in table if name.startswith("validation_")]
    assert {"validation_dsc", "validation_miou", "validation_dsc_liver"} <= set(validated)
    for name in validated:
        assert [value is None for value in table[name]] == [True, False, False], name
    assert None not in table["loss"]


def test_the_command_given_again_says_it_is_complete_and_changes_nothing(run: Path, toy_cache: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for more in ((), ("--resume",)):
        again = command(toy_cache, run, "--epochs", 3, *more)
        assert again.exit_code == 0, again.stderr
        assert f"{run} is complete (3 epochs)" in again.stderr
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = command(toy_cache, run, "--epochs", 3, "--lr", 1)
    assert other.exit_code == 2 and "was started with other options (recipe.lr_new" in other.stderr
    fewer = command(toy_cache, run, "--epochs", 2, "--resume")
    assert fewer.exit_code == 2 and "recipe.epochs: 3 -> 2" in fewer.stderr


def test_more_epochs_go_on_where_the_run_ended_at_the_rate_of_a_run_of_so_many(toy_cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(toy_cache, run, epochs=2, validate_every=0, **QUICK)
    first = load_weights(run, "last")
    unasked = command(toy_cache, run, "--epochs", 4)
    assert unasked.exit_code == 2
    assert f"{run} is complete (2 epochs); --resume with --epochs 4 trains it further" in unasked.stderr
    train_run(toy_cache, run, epochs=4, validate_every=0, resume=True, **QUICK)
    config, table = load_config(run), pq.read_table(run / "metrics.parquet").to_pylist()
    assert (config.recipe.epochs, config.extended) == (4, (2,))
    assert [row["epoch"] for row in table] == [1, 2, 3, 4]
    rates = [row["lr"] / config.recipe.lr_pretrained for row in table]
    assert rates[2:] == pytest.approx([lr_factor(config.recipe, step, 1) for step in (2, 3)])
    assert any(not torch.equal(tensor, first[name]) for name, tensor in load_weights(run, "last").items())
    train_run(toy_cache, run, epochs=5, validate_every=0, resume=True, **QUICK)
    assert load_config(run).extended == (2, 4)
    again = command(toy_cache, run, "--epochs", 5)
    assert again.exit_code == 0 and "is complete" in again.stderr


@pytest.mark.parametrize("place", ["backward", "inputs"])
def test_a_start_that_fails_leaves_no_folder(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    target = {
        "backward": "zeus_union.stage2_segment.training.step.Alone.backward",
        "inputs": "zeus_union.stage2_segment.training.train.RunInputs",
    }[place]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(target, fails)
        train_run(toy_cache, tmp_path / "run", epochs=1, **QUICK)
    assert not (tmp_path / "run").exists()
    train_run(toy_cache, tmp_path / "run", epochs=1, validate_every=0, **{**QUICK, "batch_size": 2})  # other options


def test_labels_that_were_corrected_make_another_run(toy_cache: Path, run: Path, tmp_path: Path) -> None:
    corrected = make_cache(tmp_path / "toy.h5", shift=1)
    with pytest.raises(
        UserError,
        match=r"was started on other data: the cache's embeddings/toy, slices of its subjects were built again since",
    ):
        train_run(corrected, run, epochs=3, resume=True, **QUICK)
    more = make_cache(tmp_path / "more.h5", ("ada", "ben", "cleo"), ())  # others may come and go
    train_run(more, run, epochs=3, resume=True, **QUICK)


def test_best_weights_that_are_not_there_have_a_true_reason(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    assert load_weights(run, "best")
    train_run(toy_cache, tmp_path / "run", epochs=1, validate_every=0, **QUICK)
    with pytest.raises(
        UserError, match=r"never validated \(no validation subjects, --validate-every 0.*use --weights last"
    ):
        load_weights(tmp_path / "run", "best")
    with pytest.raises(UserError, match=r"has not come to its first save.*resumes it"):
        load_weights(tmp_path / "none", "best")


def test_a_full_disk_says_how_to_go_on(toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save_state

    def full(run: Path, state: Any) -> None:
        if state["place"][0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(run / "state.pt"))
        save(run, state)

    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", float("inf"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", full)
        result = command(toy_cache, tmp_path / "run", "--epochs", 3, "--validate-every", 0)
    assert result.exit_code == 2
    assert "state.pt" in result.stderr and f"the same command resumes {tmp_path / 'run'}" in result.stderr
    done = command(toy_cache, tmp_path / "run", "--epochs", 3, "--validate-every", 0, "--resume")
    assert done.exit_code == 0, done.stderr
    assert pq.read_table(tmp_path / "run" / "metrics.parquet")["epoch"].to_pylist() == [1, 2, 3]


def test_config_is_written_once_a_step_is_taken(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bool] = []
    take = Learner.take

    def watched(self: Learner, *rest: Any) -> None:
        there.append((self.run / "config.json").exists())
        take(self, *rest)
        there.append((self.run / "config.json").exists())

    monkeypatch.setattr(Learner, "take", watched)
    train_run(toy_cache, tmp_path / "run", epochs=1, validate_every=0, **QUICK)
    assert there[:2] == [False, True]
