"""Whose captions a projection learns from, and whose texts come from which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.models.bridge.connectors import Connector
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.projection import fold
from zeus_union.stage1_instruct.projection.fold import (
    Captioned,
    FoldProjection,
    Split,
    TooLongError,
    draw,
    halves,
    train_fold_projection,
)

NAMES = [f"s{number}" for number in range(12)]


def captions_of(subjects: Sequence[str], slices: int = 2) -> list[Captioned]:
    return [
        Captioned(subject, place, 0, "what?", f"{subject}: slice {place}", place % 2 == 0)
        for subject in subjects
        for place in range(slices)
    ]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, len(NAMES)))
def test_no_text_comes_from_a_projection_that_has_seen_its_subject(count: int) -> None:
    """But that of a single training subject, which is said."""
    learned: list[set[str]] = []
    said: list[str] = []

    def fit(task: Any, rows: Sequence[int], *_: Any) -> float:
        learned.append({task.captions[row].partition(":")[0] for row in rows})
        task.connector.mean.fill_(len(learned))
        return 0.5

    llm = SimpleNamespace(digest="d", template=SimpleNamespace(name="zeus"))
    projected = SimpleNamespace(
        new_projection=lambda seed: Connector("linear", 3, 0, 4), vision_recipe=lambda: {"v": 1}, llm=llm
    )
    models = SimpleNamespace(projected_llm=projected, device=torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "fit", fit)
        patch.setattr(fold, "warn", said.append)
        patch.setattr(fold, "training_minutes", lambda *_: 1.0)
        patch.setattr(fold, "precision_name", lambda task: "fp32")
        patch.setattr(
            fold,
            "captioning",
            lambda models, connector, features, questions, captions, recipe: SimpleNamespace(
                connector=connector, captions=captions, say=lambda row: "text"
            ),
        )
        split = Split(0, tuple(NAMES[:count]))
        trained = train_fold_projection(
            models,  # type: ignore[arg-type]
            split,
            captions_of(split.train),
            lambda pairs: torch.randn(len(pairs), 2, 3),
            Path("nowhere"),
            said.append,
        )
    seen = {int(connector.mean[0]): subjects for connector, subjects in zip(
        [trained.everyone, *(half for _, half in trained.crossed)], learned
    )}  # fmt: skip
    assert learned[0] == set(split.train)
    assert set(trained.entry["trained_on"]["subjects"]) == set(split.train)
    for subject in NAMES:
        from_training = seen[int(trained.of(subject).mean[0])]
        if subject not in split.train:
            assert trained.of(subject) is trained.everyone
        elif count > 1:
            assert subject not in from_training and from_training < set(split.train)
    assert any("one training subject (s0)" in line for line in said) == (count == 1)
    assert any(line.startswith(f"{count} training subjects") for line in said) == (count in (2, 3))
    again = FoldProjection.from_constants("linear", trained.entry, trained.constants())
    assert [again.of(name).digest() for name in NAMES] == [trained.of(name).digest() for name in NAMES]
    assert again.facts == trained.facts


def test_halves_are_drawn_by_the_seed_and_equal_to_one_subject() -> None:
    one, other = halves(NAMES[:5], 0) or ((), ())
    assert sorted((*one, *other)) == NAMES[:5] and (len(one), len(other)) == (2, 3)
    assert halves(NAMES[:5], 0) == (one, other) != halves(NAMES[:5], 3)
    assert halves(NAMES[:1], 0) is None


@settings(max_examples=60, deadline=None)
@given(slices=st.integers(1, 30), count=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_training_looks_at_as_many_captions_as_it_has_steps_for_most_of_them_of_something(
    slices: int, count: int, seed: int
) -> None:
    captioned = captions_of(NAMES[:3], slices)
    places = draw(captioned, NAMES[:2], count, seed)
    assert places == draw(captioned, NAMES[:2], count, seed) == sorted(set(places))
    assert len(places) == min(count, 2 * slices)
    assert {captioned[place].subject for place in places} <= set(NAMES[:2])
    showing = sum(pair.shows for pair in captioned if pair.subject in NAMES[:2])
    if len(places) < 2 * slices:
        assert sum(captioned[place].shows for place in places) >= min(showing, round(2 / 3 * count))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "RECIPE", replace(fold.RECIPE, steps=60))


def test_the_projection_learns_and_is_the_same_again(tiny_parts: dict[str, str], tmp_path: Path, short: None) -> None:
    """One subject, half of whose slices show a tumour: the loss falls below half of an untrained projection's."""
    models = load_models(load_profile("lite", tiny_parts))
    width, count = models.projected_llm.vision.width, models.projected_llm.vision.count
    features = torch.randn(4, count, width, generator=torch.Generator().manual_seed(0))
    captioned = [replace(pair, caption="no" if pair.shows else "a tumour") for pair in captions_of(["a"], 4)]

    def train(folder: str, limit: float | None = None) -> FoldProjection:
        split, material = Split(0, ("a",)), lambda pairs: features[[pair.slice for pair in pairs]]
        return train_fold_projection(models, split, captioned, material, tmp_path / folder, lambda _: None, limit)

    one, again = train("one"), train("again")
    assert one.entry == again.entry
    with torch.no_grad():
        connector = models.projected_llm.new_projection(0)
        connector.standardise_by(features)
        untrained = fold.captioning(
            models, connector, features, ["what?"] * 4, [pair.caption for pair in captioned], fold.RECIPE
        ).mean_loss(range(4), 4)
    assert untrained is not None and one.facts["losses"]["everyone"] < untrained / 2
    with pytest.raises(TooLongError):
        train("none", limit=0.0)
