"""A run on another cache than its own: who is measured, where the numbers go, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.stage2_segment.conftest import make_cache
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.compatibility import check_cache, check_instructions
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.evaluate import (
    as_table,
    evaluate_run,
    is_runs_cache,
    results_path,
    subjects_to_measure,
)
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.trained import open_cache
from zeus_union.stage2_segment.training.train import train_run

LLM = {
    "llm": {"weights_sha256": "12", "template": "zeus"},
    "projection": {"sha256": "34", "kind": "mlp"},
    "terms": {"T1": "MRI-T1", "T2": "MRI-T2"},
    "instance": "liver, spleen",
    "text_encoder": {"weights_sha256": "56"},
    "slices": "fingerprint",
}
SPLIT = {"train_subjects": ["ada", "cleo"], "test_subjects": ["ben"]}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("own") / "own.h5", sources=True, llm=LLM)


@pytest.fixture(scope="module")
def run(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    how = {"fusion": "hybrid", "modalities": ["T1"], "epochs": 1, "validate_every": 0, "device": "cpu"}
    train_run(own, folder, **SPLIT, **how)
    return folder


@pytest.fixture(scope="module")
def relabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same patients with other labels; ada goes by another name, cleo's files are others."""
    path = tmp_path_factory.mktemp("other") / "relabelled.h5"
    return make_cache(path, shift=2, sources=True, llm=LLM, names={"ada": "pat-7"})


def test_training_subjects_are_known_by_name_and_by_their_files_and_never_measured_unnamed(
    run: Path, own: Path, relabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(run)
    with Cache(own) as cache:
        assert is_runs_cache(config, cache)
        assert subjects_to_measure([config], cache, None) == ("ben",)
    with Cache(relabelled) as cache:
        assert not is_runs_cache(config, cache)
        assert subjects_to_measure([config], cache, None) == ("ben", "dan")
        assert (
            "not measured, because they were trained on (name them with --subjects to measure them anyway): pat-7, cleo"
            in capsys.readouterr().err
        )
        assert subjects_to_measure([config], cache, ["pat-7"]) == ("pat-7",)
        everyone = replace(config, split=replace(config.split, train=("ada", "ben", "cleo", "dan")))
        with pytest.raises(UserError, match=r"was trained on every labelled subject of .*relabelled.h5: pat-7, ben"):
            subjects_to_measure([everyone], cache, None)


def test_numbers_of_another_cache_stand_in_files_of_their_own_that_name_it(
    run: Path, own: Path, relabelled: Path
) -> None:
    arguments = ["evaluate", "--run", str(run), "--device", "cpu"]
    first = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert first.exit_code == 0 and "own.h5" in first.stdout
    before = (run / "evaluation.json").read_bytes(), (run / "evaluation.parquet").read_bytes()
    assert json.loads(before[0])["cache"].endswith("own.h5")
    other = CliRunner().invoke(
        main, [*arguments, "--cache", str(relabelled), "--subjects", "pat-7,ben"], catch_exceptions=False
    )
    assert "relabelled.h5" in other.stdout and "the run was trained on: pat-7" in other.stdout
    assert before == ((run / "evaluation.json").read_bytes(), (run / "evaluation.parquet").read_bytes())
    (written,) = run.glob("evaluation-relabelled-*.json")
    summary = json.loads(written.read_text())
    assert summary["cache"].endswith("relabelled.h5") and summary["trained_on"] == ["pat-7"]
    assert summary["subjects"] == ["pat-7", "ben"] and written.with_suffix(".parquet").exists()
    with Cache(own) as mine, Cache(relabelled) as cache:
        config = load_config(run)
        assert summary["content"] == cache.content_digest("slices", ["pat-7", "ben"])
        for name in ("missing.parquet", "probe.parquet", "sentences.parquet"):
            assert results_path(run, [config], mine, name) == run / name
            assert results_path(run, [config], cache, name).name.startswith(f"{name.split('.')[0]}-relabelled-")


def test_a_cache_that_is_not_where_it_was_is_asked_for(run: Path, own: Path, tmp_path: Path) -> None:

    shutil.copytree(run, tmp_path / "deep" / "run")
    with pytest.raises(UserError, match=r"was trained on .*own\.h5, which is not there.*give --cache FILE"):
        open_cache(tmp_path / "deep" / "run")
    with open_cache(tmp_path / "deep" / "run", own) as cache:
        assert cache.subjects


CHANGES: dict[str, Mapping[str, Any]] = {
    "llm.weights_sha256": {"llm": {"weights_sha256": "other", "template": "zeus"}},
    "llm.template": {"llm": {"weights_sha256": "12", "template": "vicuna"}},
    "projection": {"projection": "untrained"},
    "terms.T1": {"terms": {"T1": "MRI-T1Gd", "T2": "MRI-T2"}},
    "instance": {"instance": "tumour"},
    "text_encoder.weights_sha256": {"text_encoder": {"weights_sha256": "other"}},
    "lora": {"lora": "78"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_instructions_of_another_model_or_question_are_refused_both_ways(name: str) -> None:
    other = {**LLM, **CHANGES[name]}
    for of_run, now in ((LLM, other), (other, LLM)):
        with pytest.raises(UserError, match=f"the instructions of c.h5 are by other models.*{name}"):
            check_instructions(of_run, now, "c.h5")


@pytest.mark.parametrize(
    "same",
    [
        {"slices": "others"},
        {"embeddings": "others"},
        {"seed": 3},
        {"terms": {"T1": "MRI-T1"}},
        {"terms": {"T1": "MRI-T1", "T2": "MRI-T2", "CT": "CT"}},
        {"projection": {"sha256": "34", "kind": "mlp", "trained_on": {"subjects": ["x"]}}},
    ],
)
def test_other_patients_seeds_and_modalities_are_no_other_instructions(same: Mapping[str, Any]) -> None:
    check_instructions(LLM, {**LLM, **same}, "c.h5")
    check_instructions({**LLM, **same}, LLM, "c.h5")


def test_evaluate_and_predict_refuse_a_cache_of_another_llm_or_of_pictures_prepared_otherwise(
    run: Path, tmp_path: Path
) -> None:
    other = make_cache(tmp_path / "llm.h5", ("ben", "dan"), llm={**LLM, "llm": {"weights_sha256": "vicuna"}})
    for command in (["evaluate"], ["predict", "--out", str(tmp_path / "masks")]):
        result = CliRunner().invoke(main, [*command, "--run", str(run), "--cache", str(other), "--device", "cpu"])
        assert result.exit_code == 2 and "by other models" in result.stderr and "vicuna" in result.stderr
    assert not (tmp_path / "masks").exists() and not list(run.glob("evaluation-llm*"))
    config = load_config(run)
    grey = make_cache(tmp_path / "grey.h5", ("ben", "dan"), llm=LLM, slices={"preprocessing": {"version": 2}})
    with Cache(grey) as cache, pytest.raises(UserError, match=r"the pictures of .*grey\.h5 were prepared otherwise"):
        check_cache(config, cache)
    silent = replace(config, inputs=replace(config.inputs, text="none"))
    with Cache(other) as cache:
        assert check_cache(silent, cache) == ("T1",)  # a run that reads no text


def seen_cache(path: Path, trained_on: Mapping[str, Any]) -> Path:
    projection = {"sha256": "34", "kind": "mlp", "trained_on": trained_on}
    return make_cache(path, ("ada", "ben", "cleo"), (), sources=True, llm={**LLM, "projection": projection})


@pytest.mark.parametrize(
    "trained_on",
    [{"subjects": ["ben", "x"]}, {"subjects": ["y"], "digests": ["digest of ben"]}],
    ids=["by name", "by file"],
)
def test_a_run_that_would_test_on_what_its_projection_has_seen_is_refused(
    tmp_path: Path, trained_on: Mapping[str, Any]
) -> None:
    def plan(**options: Any) -> RunConfig:
        with Cache(path) as cache:
            return plan_run(cache, run=tmp_path / "run", epochs=1, fusion="hybrid", modalities=["T1"], **options)

    path = seen_cache(tmp_path / "seen.h5", trained_on)
    with pytest.raises(UserError, match=r"was trained on ben, which this run would be tested on.*--allow-seen"):
        plan(**SPLIT)
    assert plan(train_subjects=["ben"], test_subjects=["ada"]).inputs.seen == ()
    assert plan(**SPLIT, text="random").inputs.seen == ()  # reads none of it
    assert plan(**SPLIT, allow_seen=True).inputs.seen == ("ben",)
    insisting = {"allow_seen": True, "fusion": "hybrid", "modalities": ["T1"], "epochs": 1, "validate_every": 0}
    train_run(path, tmp_path / "run", device="cpu", **SPLIT, **insisting)
    evaluation = evaluate_run(tmp_path / "run", device="cpu")
    assert evaluation.seen == ("ben",)
    assert "projection was trained on: ben" in str(as_table(evaluation).caption)
    assert np.isfinite(evaluation.miou_256["ben"])
