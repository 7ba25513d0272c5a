"""Runs of patients whose names would be recognised in a file, trained on caches that are gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result

from tests.stage2_segment.conftest import SUBJECTS, make_cache
from tests.stage2_segment.untrained import untrained_run
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.carried import PROFILE, PROJECTION
from zeus_union.stage2_segment.checkpoint import load_config, write_json
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
from zeus_union.stage2_segment.evaluation.missing import evaluate_missing

# What a name may be; each holds letters that stand nowhere else.
NAMES = {
    "ada": "Lovelace-Ada",
    "ben": "BENNU.1969-12-31",
    "cleo": "CLEOPATRA_vii",
    "dan": "pat.00417731",
    "eve": "zz-9-Plural-Z",
}
SALT, DAY = "0f" * 16, date(2026, 1, 2)
MACHINE = "/home/jdoe42/weights"
LLM = {
    "llm": {"weights_sha256": "ab" * 32},
    "projection": {
        "sha256": "cd" * 32,
        "trained_on": {
            "fold": 0,
            "subjects": [NAMES["ada"], NAMES["cleo"]],
            "digests": ["digest of ada"],
            "crossed": [{"subjects": [NAMES["ada"]], "sha256": "ef" * 32}],
        },
    },
    "imported_file": f"{MACHINE}/{NAMES['dan']}.csv",
}


@dataclass(frozen=True)
class Cohort:
    """A cache and two runs on it, of two folds, measured on their held-out subjects."""

    cache: Path
    runs: tuple[Path, ...]
    other: Path


def run(command: Any, *words: str | Path) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def said(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("jdoe42")
    cache = make_cache(folder / "trained.h5", names=NAMES, sources=True, llm=LLM)
    splits = ("ada", "cleo", "ben", "dan"), ("ben", "dan", "ada", "cleo")
    runs = tuple(folder / "runs" / f"fold{fold}" for fold in range(2))
    for fold, (run, (first, second, test, validation)) in enumerate(zip(runs, splits)):
        split = {"train_subjects": [NAMES[first], NAMES[second]], "test_subjects": [NAMES[test]]}
        split["validation_subjects"] = [NAMES[validation]]
        untrained_run(cache, run, seed=fold, aligner="mlp", allow_seen=True, **split)
        shutil.copy(run / "weights" / "last.safetensors", run / "weights" / "best.safetensors")
        write_json(run / PROFILE, {"name": "mine", "llm": f"{MACHINE}/vicuna-7b", "address": "http://host.jdoe42"})
        facts = {"kind": "mlp", "inputs": 2, "hidden": 3, "outputs": 4, "vision": {}, "llm_sha256": "ab"}
        facts |= {"subjects": [NAMES["ada"]], "sample": {"caption": NAMES["ada"]}, "pairs": f"{MACHINE}/pairs.jsonl"}
        (run / PROJECTION).write_bytes(
            safetensors.numpy.save({"weight": np.ones(3, np.float32)}, {"projection": json.dumps(facts)})
        )
        write_postprocessing(run)
        (run / "state.pt").write_bytes(b"pickled")
    with Cache(cache) as opened:
        evaluate_run(runs[0], opened, device="cpu")
        evaluate_missing(runs[0], opened, device="cpu")
    people = {subject: NAMES[subject] for subject in SUBJECTS} | {"dan": "new"}
    other = make_cache(folder / "other.h5", ("ada", "dan"), names=people | {"ada": "renamed"}, sources=True, llm=LLM)
    return Cohort(cache, runs, other)


def write_postprocessing(run: Path) -> None:
    """As training chooses it, on the validation subject."""
    from zeus_union.cache.recipe import sha256_file

    subjects = list(load_config(run).split.validation)
    candidate = {"class": "liver", "step": "largest_component", "dsc_before": 0.5, "dsc_after": 0.6, "kept": True}
    scores = {name: {"dsc_before": 0.5, "dsc_after": 0.6} for name in subjects}
    choices = {
        which: {
            "weights": {"name": which, "sha256": sha256_file(run / "weights" / f"{which}.safetensors")},
            "chosen_on": subjects,
            "steps": {"liver": ["largest_component"]},
            "unseen": [],
            "candidates": [{**candidate, "subjects": scores}],
        }
        for which in ("last", "best")
    }
    write_json(run / "postprocessing.json", {"schema": 1, "off": False, "choices": choices})
