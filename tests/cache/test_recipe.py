"""Recipes: one text, one digest, and every field that differs named."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest

from zeus_union.cache.folds import assign_folds
from zeus_union.cache.recipe import canonical_json, describe, differences, fingerprint, sha256_file

RECIPE = {
    "encoder": {"name": "litemedsam", "weights_sha256": "12ab", "input_size": 256},
    "steps": ["clip", {"low": 0.5, "high": 99.5}],
    "prompt": "What is <instance>?",
    "seed": None,
    "greedy": True,
}
CHANGES = {
    "encoder.name": "sam",
    "encoder.weights_sha256": "12ac",
    "encoder.input_size": 256.0,
    "steps": ["clip"],
    "prompt": "What is <instance>? ",
    "seed": 0,
    "greedy": 1,
}


def changed(name: str, value: object) -> dict:
    recipe = copy.deepcopy(RECIPE)
    *parents, last = name.split(".")
    inner = recipe
    for parent in parents:
        inner = inner[parent]  # type: ignore[assignment]
    inner[last] = value  # type: ignore[assignment]
    return recipe


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_changed_alone_is_named(name: str) -> None:
    other = changed(name, CHANGES[name])
    assert fingerprint(other) != fingerprint(RECIPE)
    assert list(differences(RECIPE, other)) == [name]
    assert name in describe(differences(RECIPE, other))


def test_a_field_added_or_removed_is_named() -> None:
    more = changed("encoder.dtype", "float32")
    assert list(differences(RECIPE, more)) == list(differences(more, RECIPE)) == ["encoder.dtype"]


def test_order_and_tuples_do_not_matter() -> None:
    again = dict(reversed(list(RECIPE.items())), steps=tuple(RECIPE["steps"]))  # type: ignore[arg-type]
    assert fingerprint(again) == fingerprint(RECIPE)
    assert differences(RECIPE, again) == {}


def test_another_process_gives_the_same_fingerprint() -> None:
    code = f"from cache.recipe import fingerprint; print(fingerprint({RECIPE!r}))"
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == fingerprint(RECIPE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("weights.pt"), {1, 2}])
def test_what_has_no_canonical_text_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json({"field": value})


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_folds_are_even_and_leave_out_the_unlabelled() -> None:
    names = [f"P{number:02}" for number in range(13)]
    folds = assign_folds(names, names[:-1])
    assert folds["P12"] == -1
    sizes = [list(folds.values()).count(fold) for fold in range(5)]
    assert sum(sizes) == 12 and max(sizes) - min(sizes) <= 1
    assert assign_folds(names, names[:-1]) == folds != assign_folds(names, names[:-1], seed=1)


def test_few_subjects_get_a_fold_each() -> None:
    assert sorted(assign_folds(["a", "b", "c"], ["a", "b", "c"]).values()) == [0, 1, 2]
