"""A run on instructions made from the true labels is refused, unless that is wanted; then everything says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stage2_segment.conftest import TEXT, make_cache
from zeus_union.cache.errors import UserError
from zeus_union.cache.leaks import LEAK, TRUE_LABELS
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, Instruction
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.evaluate import as_table, evaluate_run
from zeus_union.stage2_segment.inputs.texts import read_text
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.train import train_run

SPLIT = {"train_subjects": ["ada"], "test_subjects": ["ben"]}


def add_layers(path: Path, recipes: dict[str, dict[str, Any]], subjects: Sequence[str]) -> None:
    with Cache(path) as cache:
        card = cache.card
        numbers = cache.rows["number"][cache.rows_of([subjects[0]])].tolist()
    writer = CacheWriter(path, card)
    for seed, (variant, recipe) in enumerate(recipes.items()):
        writer.begin_layer(f"instructions/{variant}", recipe)
        for subject in subjects:
            vectors = np.random.default_rng(seed).standard_normal((len(numbers), 2, TEXT)).astype(np.float32)
            rows = [Instruction(n, m, "", "a caption", 0, 0, "oracle", None) for n in numbers for m in card.modalities]
            writer.write_instructions(f"instructions/{variant}", subject, vectors, rows)
    writer.finalize()


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy cache, its variant 'toy', and captions from the labels: of all classes, of each, and under another name."""
    path = make_cache(tmp_path_factory.mktemp("cache") / "toy.h5", ("ada", "ben"), ())
    oracle = {LEAK: TRUE_LABELS, "instructor": "oracle"}
    recipes = {
        "oracle": {**oracle, "instance": "liver, spleen"},
        "oracle.spleen": {**oracle, "instance": "spleen"},
        "oracle.liver": {**oracle, "instance": "liver"},
        "renamed": {**oracle, "instructor": "imported"},
    }
    add_layers(path, recipes, ("ada", "ben"))
    return path


def plan(path: Path, **options: Any) -> RunConfig:
    with Cache(path) as cache:
        return plan_run(cache, run=Path("run"), epochs=1, **SPLIT, **options)


def test_a_run_on_a_leaking_layer_is_refused_by_whatever_name(leaky: Path) -> None:
    for options in (
        {"text": "oracle"},
        {"variant": ["oracle"]},
        {"variant": ["renamed"]},
        {"variant": ["renamed"], "text": "shuffled-slices"},
    ):
        with pytest.raises(UserError, match=r"were made from the true labels.*--allow-leak.*--controls oracle"):
            plan(leaky, **options)
        assert plan(leaky, allow_leak=True, **options).inputs.leaks
    assert plan(leaky, variant=["toy"]).inputs.leaks == ()
    assert plan(leaky, variant=["oracle"], text="random").inputs.leaks == ()  # reads none of it


def test_the_oracle_is_never_the_layer_that_is_taken_unasked(leaky: Path) -> None:
    assert plan(leaky).inputs.variants == ("toy",)


def test_text_oracle_reads_the_captions_of_all_classes_or_of_each(leaky: Path) -> None:
    config = plan(leaky, text="oracle", allow_leak=True)
    assert config.inputs.variants == ("oracle",)
    by_class = plan(leaky, text="oracle", allow_leak=True, instructions="class")
    assert by_class.inputs.variants == ("oracle.liver", "oracle.spleen")
    assert plan(leaky, text="oracle", variant=["renamed"], allow_leak=True).inputs.variants == ("renamed",)
    with Cache(leaky) as cache:
        rows = np.arange(len(cache.rows))
        text = read_text(cache, config, rows, config.inputs.modalities)
        np.testing.assert_array_equal(text, cache.text_embeddings("oracle", rows))
        with pytest.raises(UserError, match="toy comes from no labels: --text instruction reads it"):
            plan_run(cache, run=Path("run"), text="oracle", variant=["toy"], **SPLIT)


def test_without_the_layer_the_command_that_makes_it_is_named(toy_cache: Path) -> None:
    with pytest.raises(UserError, match=f"zeus-instruct make-oracle {toy_cache} makes them"):
        plan(toy_cache, text="oracle", allow_leak=True)


def test_the_evaluation_of_such_a_run_says_so(leaky: Path, tmp_path: Path) -> None:
    options = {"fusion": "hybrid", "modalities": ["T1"], "epochs": 1, "validate_every": 0, "device": "cpu"}
    train_run(leaky, tmp_path / "run", text="oracle", allow_leak=True, **SPLIT, **options)
    evaluation = evaluate_run(tmp_path / "run", device="cpu")
    assert evaluation.summary()["made_from_true_labels"] == ["oracle"]
    assert "an upper bound, not a result: made from the true labels are the instructions: oracle" in str(
        as_table(evaluation).caption
    )
