"""zeus-segment from the terminal: what works, and one clear line with exit code 2 for what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.stage2_segment.conftest import make_cache
from zeus_union.stage2_segment.cli import main


def zeus_segment(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_train_evaluate_predict(toy_cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [
        "--train-subjects",
        "ada",
        "--test-subjects",
        "ben",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--modalities",
        "T2",
    ]
    trained = zeus_segment("train", "--cache", toy_cache, "--out", run, "--fusion", "hybrid", *options)
    assert trained.exit_code == 0, trained.output
    evaluated = zeus_segment("evaluate", "--run", run)
    assert evaluated.exit_code == 0, evaluated.output
    assert "HD95" in evaluated.output and "mean DSC" in evaluated.output
    predicted = zeus_segment("predict", "--run", run, "--out", tmp_path / "masks", "--subjects", "eve")
    assert predicted.exit_code == 0, predicted.output
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["eve.nii.gz"]


def test_params_stand_beside_the_papers(toy_cache: Path) -> None:
    shown = zeus_segment("params", "--cache", toy_cache)
    assert shown.exit_code == 0
    for figure in ("393,984", "3,925,472", "3,740,416", "8,059,872", "12,379,328", "8.06M", "12.44M"):
        assert figure in shown.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--modalities", "T1,CT"], "unknown modality CT; there are: T1, T2"),
        (["--fold", 9], "there is no fold 9; folds of this cache: 0, 1, 2, 3"),
        (["--train-subjects", "zoe"], "unknown subject zoe; there are: ada, ben, cleo, dan"),
        (["--train-subjects", "eve"], "subject eve has no labels"),
        (["--train-subjects", "ada,ben", "--test-subjects", "ben"], "ben would be trained on and tested on"),
        (["--fold", 1, "--test-subjects", "ben"], "exclude one another"),
        (["--encoder", "sam_vit_h"], "the cache has no layer embeddings/sam_vit_h; it has toy"),
        (
            ["--variant", "vicuna"],
            "the cache has no layer instructions/vicuna; it has toy",
        ),
        (["--device", "tpu9"], "device tpu9 cannot be used"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    toy_cache: Path, tmp_path: Path, options: list[object], says: str
) -> None:
    result = zeus_segment("train", "--cache", toy_cache, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_cache_without_labels_cannot_be_trained_on(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "bare.h5", ("ada", "ben"), unlabelled=("ada", "ben"))
    result = zeus_segment("train", "--cache", path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "none of the cache's subjects has labels" in result.stderr


def test_a_truncated_cache_is_refused(toy_cache: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.h5"
    short.write_bytes(toy_cache.read_bytes()[:-1000])
    result = zeus_segment("train", "--cache", short, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "truncated" in result.stderr


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: str) -> None:
    result = zeus_segment(command, "--run", tmp_path, *(["--out", tmp_path] if command == "predict" else []))
    assert result.exit_code == 2
    assert "is not a run folder" in result.stderr


def test_existing_folders_of_something_else_are_left_alone(toy_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    result = zeus_segment("train", "--cache", toy_cache, "--out", tmp_path)
    assert result.exit_code == 2
    assert "is not a run folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
