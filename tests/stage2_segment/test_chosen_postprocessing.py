"""A run's post-processing: chosen on its validation subjects for its weights, and applied by everything that makes masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.stage2_segment import conftest
from tests.stage2_segment.conftest import make_cache
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint, choose_postprocessing, native
from zeus_union.stage2_segment.chosen_postprocessing import (
    FILE,
    PostProcessing,
    common_postprocessing,
    load_postprocessing,
)
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.postprocessing import HOLES, LARGEST
from zeus_union.stage2_segment.predict import predict_run
from zeus_union.stage2_segment.trained import open_cache
from zeus_union.stage2_segment.training.train import train_run

SPLIT: dict[str, Any] = {"train_subjects": ["ada"], "test_subjects": ["ben"], "validation_subjects": ["cleo", "dan"]}
QUICK: dict[str, Any] = {"fusion": "hybrid", "epochs": 1, "batch_size": 3, "device": "cpu", "validate_every": 0}


class Speckled(RunInputs):
    """In place of what a model says: the truth, and far from the liver a spot that is called liver."""

    def __init__(self, config: RunConfig, data: SliceData, available: Sequence[str] | None = None) -> None:
        super().__init__(config, data, available)
        self._labels = data.cache.images(data.rows)[:, 0] // 80
        self._labels[1:, 24:30, 0:4] = 1

    def logits(self, model: Any, positions: Any, *_: Any, **__: Any) -> torch.Tensor:
        labels = torch.from_numpy(self._labels[positions])
        return torch.stack([20.0 * (labels == label) - 10 for label in (1, 2)], dim=1)


@pytest.fixture(scope="module", autouse=True)
def speckles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "RunInputs", Speckled)
        yield


@pytest.fixture(scope="module")
def trained(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train_run(toy_cache, run, **SPLIT, **QUICK)
    return run


@pytest.fixture
def run(trained: Path) -> Iterator[Path]:
    """`trained`, with its own post-processing before and after."""
    before = (trained / FILE).read_bytes()
    yield trained
    (trained / FILE).write_bytes(before)


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / FILE).read_text())


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def test_training_ends_with_what_helped_the_validation_subjects_and_says_it(
    toy_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train_run(toy_cache, run, **SPLIT, **{**QUICK, "validate_every": 1})
    choices = record(run)["choices"]
    assert set(choices) == {"last", "best"}
    for choice in choices.values():
        assert choice["chosen_on"] == ["cleo", "dan"]
        assert choice["steps"] == {"liver": [LARGEST], "spleen": []}
        kept = next(line for line in choice["candidates"] if line["kept"])
        assert (
            kept["class"] == "liver" and kept["dsc_before"] < 0.98 < kept["dsc_after"]
        )  # pixels here are larger than voxels
        assert set(kept["subjects"]) == {"cleo", "dan"}
    said = capsys.readouterr().err
    assert "last weights, post-processing: liver largest component (chosen on cleo, dan)" in " ".join(said.split())


def test_the_test_subjects_have_no_part_in_the_choice(
    trained: Path, toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other labels and pictures of the test subject the file is the same to the byte."""
    as_drawn = conftest.native_labels

    def permuted(subject: str) -> np.ndarray:
        labels = as_drawn(subject)
        return np.array([0, 2, 1], np.uint8)[labels[:, ::-1, ::-1]] if subject == "ben" else labels

    monkeypatch.setattr(conftest, "native_labels", permuted)
    other = make_cache(tmp_path / "other.h5")
    with Cache(toy_cache) as before, Cache(other) as after:
        assert (before.native_masks("ben") != after.native_masks("ben")).any()
        assert (before.native_masks("dan") == after.native_masks("dan")).all()
    train_run(other, tmp_path / "run", **SPLIT, **QUICK)
    assert (tmp_path / "run" / FILE).read_bytes() == (trained / FILE).read_bytes()


def test_evaluation_and_written_masks_have_it_and_the_numbers_at_256_do_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate_run(run, device="cpu")
    liver = next(row for row in evaluation.rows if row["class"] == "liver")
    assert liver["dsc_raw"] < liver["dsc"] == 1 and liver["hd95_mm"] == 0 and liver["dsc_256"] < 1
    assert json.loads((run / "evaluation.json").read_text())["postprocessing"]["steps"] == {"liver": [LARGEST]}
    plain = evaluate_run(run, device="cpu", postprocess=False)
    raw = next(row for row in plain.rows if row["class"] == "liver")
    assert raw["dsc"] == raw["dsc_raw"] == liver["dsc_raw"] and raw["nsd"] < liver["nsd"] == 1
    assert [row["dsc_256"] for row in plain.rows] == [row["dsc_256"] for row in evaluation.rows]
    assert "none, as --no-postprocessing says" in capsys.readouterr().err
    with open_cache(run) as cache:
        grid, numbers, truth = (
            cache.grid("ben"),
            cache.rows["number"][cache.rows_of(["ben"])],
            cache.native_masks("ben"),
        )
        for wanted in (True, False):
            (mask,) = predict_run(
                run, cache, tmp_path / str(wanted), subjects=["ben"], device="cpu", postprocess=wanted
            )
            slices = grid.to_slices(np.asarray(nibabel.load(mask).dataobj))[numbers]
            assert (slices == truth).all() == wanted
    assert "post-processing: liver largest component (chosen on cleo, dan)" in " ".join(capsys.readouterr().err.split())


def test_the_command_turns_it_off_and_chooses_again(run: Path) -> None:
    chosen = (run / FILE).read_bytes()
    off = command("postprocess", "--run", run, "--none")
    assert off.exit_code == 0 and record(run)["off"]
    config = checkpoint.load_config(run)
    assert "turned off" in load_postprocessing(run, config, "last").summary
    again = command("postprocess", "--run", run, "--device", "cpu")
    assert again.exit_code == 0 and "largest component" in again.output and (run / FILE).read_bytes() == chosen
    shown = command("evaluate", "--run", run, "--device", "cpu", "--no-postprocessing", "--workers", 1)
    assert shown.exit_code == 0
    assert json.loads((run / "evaluation.json").read_text())["postprocessing"]["steps"] == {}


def test_a_complete_run_without_it_gets_it_and_one_that_was_turned_off_stays_so(run: Path, toy_cache: Path) -> None:
    chosen = (run / FILE).read_bytes()
    (run / FILE).unlink()
    config = checkpoint.load_config(run)
    assert "none was chosen" in load_postprocessing(run, config, "last").summary
    train_run(toy_cache, run, resume=True, **SPLIT, **QUICK)
    assert (run / FILE).read_bytes() == chosen
    command("postprocess", "--run", run, "--none")
    train_run(toy_cache, run, resume=True, **SPLIT, **QUICK)
    assert record(run)["off"]


def test_weights_that_it_was_not_chosen_for_go_without_it_and_it_is_said(run: Path) -> None:
    config = checkpoint.load_config(run)
    assert "for the last weights only" in load_postprocessing(run, config, "best").summary
    weights = checkpoint.weights_path(run, "last")
    before = weights.read_bytes()
    try:
        checkpoint.save_weights(run, "last", checkpoint.load_weights(run, "last"), epoch=7)
        other = load_postprocessing(run, config, "last")
    finally:
        weights.write_bytes(before)
    assert other.steps == {} and "other last weights than these" in other.summary


@pytest.mark.parametrize(
    ("options", "why"),
    [({"validation_subjects": None}, "the run has none"), ({"recipe": "paper"}, "as in the paper")],
)
def test_runs_without_validation_subjects_and_of_the_paper_have_none_and_say_so(
    toy_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], why: str
) -> None:
    run = tmp_path / "run"
    train_run(toy_cache, run, **{**SPLIT, **QUICK, **options})
    assert not (run / FILE).exists()
    assert why in " ".join(capsys.readouterr().err.split())
    if "recipe" in options:
        assert command("postprocess", "--run", run, "--device", "cpu").exit_code == 0
        assert record(run)["choices"]["last"]["steps"]["liver"] == [LARGEST]
    else:
        refused = command("postprocess", "--run", run, "--device", "cpu")
        assert refused.exit_code == 2 and "without validation subjects" in refused.output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"schema": 1}', "is damaged"),
        ('{"schema": 9, "off": false, "choices": {}}', "has schema 9"),
        ('{"schema": 1, "off": false, "choices": {"last": []}}', "is damaged"),
        ('{"schema": 1, "off": false, "choices": {"last": {"steps": {"liver": ["fill_holes"]}}}}', "is damaged"),
        ("class", "names the class kidney, which the run lacks (it has liver, spleen)"),
        ("step", "has the step open; there are largest_component, fill_holes"),
    ],
)
def test_a_file_that_is_none_of_this_run_is_one_line_that_says_what_to_do(run: Path, damage: str, message: str) -> None:
    if damage in ("class", "step"):
        changed = record(run)
        changed["choices"]["last"]["steps"] = {"kidney": [LARGEST]} if damage == "class" else {"liver": ["open"]}
        damage = json.dumps(changed)
    (run / FILE).write_text(damage)
    for arguments in (["evaluate"], ["predict", "--out", run.parent / "masks"]):
        refused = command(*arguments, "--run", run, "--device", "cpu")
        assert refused.exit_code == 2
        said = " ".join(refused.output.split())
        assert message in said and "zeus-segment postprocess --run" in said
    assert command("evaluate", "--run", run, "--device", "cpu", "--no-postprocessing").exit_code == 0
    assert command("postprocess", "--run", run, "--device", "cpu").exit_code == 0
    assert record(run)["choices"]["last"]["steps"]["liver"] == [LARGEST]


def test_another_cache_than_the_runs_is_no_place_to_choose_on(run: Path, tmp_path: Path) -> None:
    moved = make_cache(tmp_path / "moved.h5", shift=3)
    refused = command("postprocess", "--run", run, "--cache", moved, "--device", "cpu")
    assert refused.exit_code == 2 and "does not hold what" in " ".join(refused.output.split())


def test_chosen_on_one_subject_alone_is_said(toy_cache: Path, tmp_path: Path) -> None:
    train_run(toy_cache, tmp_path / "run", **{**SPLIT, **QUICK, "validation_subjects": ["dan"]})
    chosen = load_postprocessing(tmp_path / "run", checkpoint.load_config(tmp_path / "run"), "last")
    assert chosen.steps == {"liver": (LARGEST,)} and "chosen on dan, one subject alone" in chosen.summary


def test_no_weights_is_said_before_anything_is_chosen(tmp_path: Path, trained: Path) -> None:
    (tmp_path / checkpoint.CONFIG).write_bytes((trained / checkpoint.CONFIG).read_bytes())
    with pytest.raises(UserError, match="has not come to its first save"), open_cache(trained) as cache:
        choose_postprocessing.choose_postprocessing(tmp_path, cache, "cpu")


def test_an_ensemble_has_the_steps_that_all_its_members_chose() -> None:
    classes = ("liver", "spleen")
    first = PostProcessing("a", {"liver": (LARGEST, HOLES), "spleen": (HOLES,)}, classes, ("ann",))
    second = PostProcessing("b", {"liver": (HOLES,)}, classes, ("ann", "ben"))
    assert common_postprocessing([first]) is first
    both = common_postprocessing([first, second])
    assert both.steps == {"liver": (HOLES,)} and both.chosen_on == ("ann", "ben") and both.classes == classes
    assert both.summary == "post-processing: liver holes filled (chosen by all 2 members)"
    none = common_postprocessing([first, PostProcessing("post-processing: none")])
    assert none.steps == {} and "no step was chosen by all members" in none.summary
