"""What texts know of the labels: a text that says it is recognised, one that says nothing is at chance."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score, roc_auc_score

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import IGNORE, DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.texts.knowledge import IMAGE, SHUFFLED, TEXT, TextKnowledge, as_csv, measure_knowledge
from zeus_union.stage1_instruct.texts.knowledge_scores import draw_subjects, score
from zeus_union.stage1_instruct.texts.knowledge_targets import AUC, R2, find_targets
from zeus_union.stage1_instruct.texts.linear_probes import grouped_splits

SIDE, SLICES, WIDTH = 24, 12, 16
Encode = Callable[[str, np.ndarray, np.random.Generator], np.ndarray]  # subject, its masks -> (n, WIDTH)


def masks_of(seed: int) -> np.ndarray:
    """uint8 (n, SIDE, SIDE): class 1 left or right, up or down, of any size, in two of three slices."""
    random = np.random.default_rng(seed)
    masks = np.zeros((SLICES, SIDE, SIDE), np.uint8)
    for mask in (mask for mask in masks if random.random() < 0.7):
        row, column = random.integers(0, SIDE - 8, 2)
        height, width = random.integers(2, 8, 2)
        mask[row : row + height, column : column + width] = 1
    masks[0] = 0
    masks[1, 2:6, 2:6] = 1
    return masks


def facts(masks: np.ndarray) -> np.ndarray:
    """Presence, place and size of class 1, as numbers: (n, 4)."""
    rows = []
    for mask in masks == 1:
        y, x = np.nonzero(mask)
        rows.append([1, y.mean() / SIDE - 0.5, x.mean() / SIDE - 0.5, np.log(len(y)) - 2.5] if len(y) else [0] * 4)
    return np.array(rows)


def says_it_all(subject: str, masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    mixing = np.random.default_rng(1).standard_normal((4, WIDTH))
    return facts(masks) @ mixing + 0.05 * random.standard_normal((len(masks), WIDTH))


def says_nothing(subject: str, masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.standard_normal((len(masks), WIDTH))


def says_one_thing(subject: str, masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The same words, encoded in batches: equal up to rounding, which differs between subjects."""
    return np.full((len(masks), WIDTH), 0.25) + 1e-7 * random.standard_normal(WIDTH)


def make_cache(
    path: Path, encode: Encode, subjects: int = 6, seed: int = 0, recipe: dict[str, Any] | None = None
) -> Path:
    names = tuple(f"s{number}" for number in range(subjects))
    card = DatasetCard("toy", ("T1",), {"T1": "MRI"}, ("tumour",), "tumour", names)
    writer = CacheWriter(path, card)
    writer.begin_layer("slices", {})
    writer.begin_layer("embeddings/tiny", {})
    writer.begin_layer("instructions/v", recipe or {})
    for number, name in enumerate(names):
        random = np.random.default_rng([seed, number])
        masks, numbers = masks_of(100 * seed + number), np.arange(SLICES, dtype=np.int32)
        images = (80 + 100 * masks)[:, None]
        grid = Grid((SIDE, SIDE, SLICES), np.eye(4))
        writer.write_slices(name, SubjectSlices(grid, numbers, images, masks, None, masks, {}))
        cells = masks.reshape(SLICES, 4, 6, 4, 6).mean((2, 4))
        writer.write_embeddings("embeddings/tiny", name, cells[:, None, None].repeat(2, 2).astype(np.float32))
        vectors = encode(name, masks, random).astype(np.float32)[:, None]
        texts = ["the same"] * SLICES if encode is says_one_thing else [f"{name} {n}" for n in numbers]
        rows = [Instruction(int(n), "T1", "", text, 0, 0, "stop", None) for n, text in zip(numbers, texts)]
        writer.write_instructions("instructions/v", name, vectors, rows)
    writer.finalize()
    return path


def measured(path: Path, encoder: str | None = "tiny", **how: Any) -> TextKnowledge:
    with Cache(path) as cache:
        return measure_knowledge(cache, "v", encoder, **how)


def mean(known: TextKnowledge, source: str, metric: str = AUC) -> float:
    line = known.mean(source, metric)
    assert line is not None
    return line.test


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache") / "c.h5", says_it_all)


@pytest.fixture(scope="module")
def known(knowing: Path) -> TextKnowledge:
    return measured(knowing)


def test_a_text_that_says_what_a_slice_shows_is_recognised(known: TextKnowledge) -> None:
    single = {line.target: line for line in known.lines if line.source == TEXT and line.target}
    assert set(single) == {"presence", "side", "third", "area"}
    assert all(line.test > 0.85 and line.surely and line.low <= line.test <= line.high for line in single.values())
    assert single["presence"].slices == 6 * SLICES and single["presence"].subjects == 6
    assert 0.3 < mean(known, SHUFFLED) < 0.65 < mean(known, IMAGE)
    assert any(note.startswith("the text of v knows 4 of 4 things") for note in known.notes)
    assert not any(note.startswith("warning") for note in known.notes)


@pytest.mark.parametrize("encode", [says_nothing, says_one_thing])
def test_a_text_that_says_nothing_is_at_chance_and_it_is_said(encode: Encode, tmp_path: Path) -> None:
    known = measured(make_cache(tmp_path / "c.h5", encode))
    assert mean(known, TEXT) < 0.65 < mean(known, IMAGE)
    said = next(note for note in known.notes if "is at chance on held-out subjects" in note)
    assert "no decoder can be expected to gain" in said
    if encode is says_one_thing:
        assert known.notes[0] == "warning: v: 72 instructions, 1 distinct: the text says nothing of the image"
        assert all(line.test == 0.5 for line in known.lines if line.source == TEXT and line.metric == AUC)


@pytest.mark.slow
def test_knowing_nothing_is_seldom_taken_for_knowing_something(tmp_path: Path) -> None:
    surely = []
    for seed in range(8):
        known = measured(make_cache(tmp_path / f"{seed}.h5", says_nothing, seed=seed), None, seed=seed)
        surely.append("is at chance" in known.notes[0])
    assert sum(surely) >= 7


def test_a_text_that_knows_the_training_subjects_alone_is_a_warning(tmp_path: Path) -> None:
    recipe = {"projection": {"trained_on": {"subjects": ["s0", "s1", "s2", "s3"]}}}

    def knows_some(subject: str, masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
        say = says_it_all if subject in recipe["projection"]["trained_on"]["subjects"] else says_nothing
        return say(subject, masks, random)

    known = measured(make_cache(tmp_path / "c.h5", knows_some, 9, recipe=recipe), None)
    assert "was trained on s0, s1, s2, s3: fitted on these, tested on the others" in known.notes[0]
    assert any("a decoder learns to trust it more than it deserves" in note for note in known.notes)
    assert {line.subjects for line in known.lines if line.target == "presence"} == {5}


def test_a_fold_s_layer_is_tested_on_the_subjects_of_its_fold(tmp_path: Path) -> None:
    from zeus_union.stage1_instruct.texts.knowledge import _splits

    path = make_cache(tmp_path / "c.h5", says_nothing)
    with Cache(path) as cache:
        of_row = cache.rows["subject"].astype(np.intp)
        cache._manifest.recipes["instructions/v@fold1"] = {}
        cache._manifest.parts["instructions/v@fold1"] = cache._manifest.parts["instructions/v"]
        ((fit, test),), _ = _splits(cache, "v@fold1", of_row)
        assert set(cache.rows["fold"][test]) == {1} and 1 not in set(cache.rows["fold"][fit])


def test_few_subjects_give_points_and_no_intervals(tmp_path: Path) -> None:
    known = measured(make_cache(tmp_path / "c.h5", says_it_all, subjects=3), None)
    assert all(math.isnan(line.low) and math.isnan(line.high) for line in known.lines)
    assert "knows 4 of 4 things" in known.notes[0]
    known = measured(make_cache(tmp_path / "d.h5", says_nothing, subjects=2), None)
    assert "2 test subjects give points, no intervals" in known.notes[0]
    with pytest.raises(UserError, match="has 1 labelled subjects to probe; two are needed"):
        measured(tmp_path / "c.h5", subjects=["s1"])


def test_the_command_writes_a_line_for_each_source_and_target(
    knowing: Path, known: TextKnowledge, tmp_path: Path
) -> None:
    out = tmp_path / "k.csv"
    done = CliRunner().invoke(main, ["probe-texts", str(knowing), "--variant", "v", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "the text of v knows" in done.output and "presence" in done.output
    lines = list(csv.DictReader(out.open()))
    assert {line["source"] for line in lines} == {TEXT, SHUFFLED, IMAGE}
    assert len(lines) == 3 * (4 + 2)
    assert as_csv(known) == out.read_text()  # seeded
    done = CliRunner().invoke(main, ["probe-texts", str(knowing), "--variant", "w"])
    assert done.exit_code == 2 and "unknown variant w; there are: v" in done.stderr


def test_targets_are_what_the_mask_shows(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", says_nothing)
    with Cache(path) as cache:
        rows = np.arange(len(cache.rows))
        masks = cache.masks(rows)
        found = {target.name: target.values for target in find_targets(cache, rows)}
    known = facts(masks)
    np.testing.assert_array_equal(found["presence"], known[:, 0])
    there = known[:, 0] == 1
    assert np.isnan(found["side"][~there]).all() and np.isnan(found["area"][~there]).all()
    centre = known[there, 1:3] + 0.5 + 0.5 / SIDE
    np.testing.assert_array_equal(found["side"][there], centre[:, 1] >= 0.5)
    np.testing.assert_array_equal(found["third"][there], (centre[:, 0] * 3).astype(int))
    np.testing.assert_allclose(found["area"][there], np.log((masks[there] == 1).sum((1, 2)) / SIDE**2))


def test_whether_a_class_is_there_is_not_known_where_pixels_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_cache(tmp_path / "c.h5", says_nothing)
    with Cache(path) as cache:
        masks = cache.masks
        monkeypatch.setattr(cache, "masks", lambda rows: np.where(masks(rows) == 0, IGNORE, 1).astype(np.uint8))
        assert all(target.name != "presence" for target in find_targets(cache, np.arange(12)))


def test_no_subject_is_fitted_on_and_tested_on() -> None:
    subjects = np.repeat(np.arange(7), 3)
    splits = grouped_splits(subjects)
    assert len(splits) == 5 and sorted(np.concatenate([test for _, test in splits])) == list(range(21))
    assert all(not set(subjects[fit]) & set(subjects[test]) for fit, test in splits)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 3))
def test_scores_of_draws_are_scikit_learn_s_of_the_drawn_rows(seed: int, count: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    subjects = np.sort(random.integers(0, count, 30)).astype(np.intp)
    truth = random.integers(0, levels, 30).astype(float)
    predicted = random.integers(0, 6, (30, levels)) / 6
    draws = draw_subjects(count, seed)[:6]
    everyone = np.ones((count, count), bool)
    for metric in (AUC, R2):
        values = score(metric, truth, predicted if metric == AUC else predicted[:, :1], subjects, draws, everyone)
        for weights, value in zip(draws, values):
            rows = np.concatenate([np.flatnonzero(subjects == s).repeat(int(w)) for s, w in enumerate(weights)])
            if len(np.unique(truth[rows])) < 2:
                assert math.isnan(value)
            elif metric == R2:
                assert value == pytest.approx(r2_score(truth[rows], predicted[rows, 0]))
            else:
                present = np.unique(truth[rows]).astype(int)
                each = [roc_auc_score(truth[rows] == level, predicted[rows, level]) for level in present]
                assert value == pytest.approx(np.mean(each))


def test_answers_of_different_probes_are_not_ranked_against_one_another() -> None:
    truth, subjects = np.array([1.0, 0, 1, 0]), np.array([0, 0, 1, 1])
    predicted = np.array([[0, 0.9], [0, 0.8], [0, 0.2], [0, 0.1]])[:, ::1]
    predicted[:, 0] = 1 - predicted[:, 1]
    everyone = np.ones((1, 2))
    assert score(AUC, truth, predicted, subjects, everyone, np.eye(2, dtype=bool))[0] == 1
    assert score(AUC, truth, predicted, subjects, everyone, np.ones((2, 2), bool))[0] == 0.75


def test_what_one_subject_alone_shows_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(tmp_path / "c.h5", says_nothing, subjects=3)
    with Cache(path) as cache:
        masks = cache.masks
        alone = np.zeros((1, SIDE, SIDE), np.uint8)
        monkeypatch.setattr(cache, "masks", lambda rows: masks(rows) if rows[0] < SLICES else alone)
        assert find_targets(cache, np.arange(3 * SLICES)) == []
        with pytest.raises(UserError, match="there is nothing to predict"):
            measure_knowledge(cache, "v")
