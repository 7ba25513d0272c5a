"""A subject's fold never changes: not with what is finished, nor with what is built beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cache import CARD, SLICES_RECIPE, make_slices

from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import assign_folds, draw_validation, folds_of_labelled, subjects_of_fold
from zeus_union.cache.layout import IGNORE, DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter

LETTERS = tuple("ABCDEFGHIJKL")
LARGE = DatasetCard("phantom", CARD.modalities, CARD.terms, CARD.classes, CARD.instance, LETTERS)


NAMES = [f"s{number}" for number in range(24)]


def folds(cache: Cache) -> dict[str, int]:
    return {cache.subjects[row["subject"]]: int(row["fold"]) for row in cache.rows}


def write(path: Path, subjects: tuple[str, ...], unlabelled: tuple[str, ...] = (), **given: object) -> CacheWriter:
    writer = CacheWriter(path, LARGE, **given)  # type: ignore[arg-type]
    writer.begin_layer("slices", SLICES_RECIPE)
    for subject in subjects:
        if not writer.finished("slices", subject):
            writer.write_slices(subject, make_slices(subject, labelled=subject not in unlabelled))
    return writer


def test_a_partial_cache_has_the_folds_of_the_finished_one(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    seen = {}
    for count in (1, 3, 4, 9):
        write(path, LETTERS[:count])
        with Cache(path, allow_partial=True) as cache:
            seen[count] = folds(cache)
    write(path, LETTERS).finalize()
    with Cache(path) as cache:
        whole = folds(cache)
    for count, partial in seen.items():
        assert partial == {name: whole[name] for name in LETTERS[:count]}
    drawn = sorted(LETTERS, key=lambda name: hashlib.sha256(f"0:{name}".encode()).digest())
    assert whole == {name: index % 5 for index, name in enumerate(drawn)}


def test_folds_are_even_over_the_subjects_that_are_said_to_be_labelled(tmp_path: Path) -> None:
    unlabelled = LETTERS[::2]
    labelled = [name for name in LETTERS if name not in unlabelled]
    path = tmp_path / "c.h5"
    write(path, LETTERS[:5], unlabelled, labelled=labelled)
    with Cache(path, allow_partial=True) as cache:
        partial = folds(cache)
    write(path, LETTERS, unlabelled, labelled=labelled).finalize()
    with Cache(path) as cache:
        whole = folds(cache)
    assert whole == assign_folds(LETTERS, labelled) and sorted(whole.values()) == [-1] * 6 + [0, 0, 1, 2, 3, 4]
    assert partial == {name: whole[name] for name in LETTERS[:5]}


def test_given_folds_win_and_stay(tmp_path: Path) -> None:
    given_folds = {name: index // 4 for index, name in enumerate(LETTERS[:-1])}
    path = tmp_path / "c.h5"
    write(path, LETTERS[:6], folds=given_folds)
    with Cache(path, allow_partial=True) as cache:
        assert folds(cache) == {name: given_folds[name] for name in LETTERS[:6]}
    with pytest.raises(UserError, match=r"started with other folds \(E 1 -> 0\).*give another --out"):
        CacheWriter(path, LARGE, {**given_folds, "E": 0})
    write(path, LETTERS, folds=given_folds).finalize()
    write(path, LETTERS).finalize()  # the same command without them, e.g. for another layer
    with Cache(path) as cache:
        assert folds(cache) == {**given_folds, "L": -1}


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(LETTERS)), st.sets(st.sampled_from(LETTERS)))
def test_who_has_labels_changes_nobody_elses_fold(first: set[str], second: set[str]) -> None:
    decided = assign_folds(LETTERS, LETTERS)
    one, other = (folds_of_labelled(LETTERS, labelled, decided) for labelled in (first, second))
    assert all(one[name] == other[name] for name in first & second)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.integers(-1, 4)), st.data())
def test_a_fold_has_every_labelled_subject_in_one_group_and_spares_some_where_there_are_five(
    folds: dict[str, int], data: st.DataObject
) -> None:
    drawn = draw_validation(folds)
    assert drawn == draw_validation(dict(reversed(folds.items())))
    labelled = data.draw(st.sets(st.sampled_from(sorted(folds)) if folds else st.nothing()))
    kept = {name: number for name, number in folds.items() if name in labelled}
    for fold in sorted({*kept.values()} - {-1}):
        groups = subjects_of_fold(fold, kept, drawn)
        assert sorted(groups.train + groups.validation + groups.test) == sorted(kept)
        assert groups.test == tuple(name for name, number in kept.items() if number == fold)
        assert len(groups.validation) <= len(groups.train)
        others = len(groups.train) + len(groups.validation)
        if others < 5:
            assert not groups.validation
        elif len(labelled) == len(folds):
            assert len(groups.validation) == max(1, others // 8)


def test_validation_subjects_are_recorded_when_the_cache_is_created(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write(path, LETTERS[:6])
    with Cache(path, allow_partial=True) as cache:
        begun = {fold: cache.validation(fold) for fold in range(5)}
    write(path, LETTERS).finalize()
    with Cache(path) as cache:
        assert {fold: cache.validation(fold) for fold in range(5)} == begun == draw_validation(folds(cache))
        assert all(len(names) == 1 for names in begun.values())


def test_ignored_pixels_are_no_foreground(tmp_path: Path) -> None:
    slices = make_slices("A")
    masks = np.zeros_like(slices.masks)
    masks[0, 0, :3] = IGNORE
    masks[1, 0, :3] = IGNORE, 1, 2
    writer = CacheWriter(tmp_path / "c.h5", DatasetCard(**{**LARGE.to_json(), "subjects": ("A",)}))
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.write_slices("A", type(slices)(**{**vars(slices), "masks": masks}))
    writer.finalize()
    with Cache(tmp_path / "c.h5") as cache:
        assert cache.rows["foreground"].tolist() == [0, 2]
        np.testing.assert_array_equal(cache.masks([0, 1]), masks)
