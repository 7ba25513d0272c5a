"""A cache grows by layers and by subjects: what is there stays, and a large file is not copied."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_cache
from hypothesis import given
from hypothesis import strategies as st
from tiny_cache import CARD, build, content

from zeus_union.cache import finishing
from zeus_union.cache import pack as packing
from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import assign_folds, draw_validation
from zeus_union.cache.growing import join_folds, join_validation
from zeus_union.cache.layout import find_packed, shard_folder
from zeus_union.cache.pack import pack
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter

MORE = replace(CARD, subjects=("A", "B", "C", "D", "E"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "chaos.h5"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packed file is one that is not copied."""
    monkeypatch.setattr(finishing, "COPY_BELOW", 0)


def test_a_layer_more_renames_the_packed_file_unchanged(path: Path, large: None, tmp_path: Path) -> None:
    build(path)
    before, inode = path.read_bytes(), path.stat().st_ino
    build(tmp_path / "whole" / "chaos.h5", ("zeus", "other"))
    build(path, ("zeus", "other"))
    (name,) = find_packed(shard_folder(path))
    packed = shard_folder(path) / name
    assert packed.read_bytes() == before and packed.stat().st_ino == inode
    assert Cache(path).state == "sharded"
    assert content(path) == content(tmp_path / "whole" / "chaos.h5")
    assert verify(path) == []
    assert len(list(shard_folder(path).rglob("*.h5"))) == 1 + 3, "the packed file and the shards of the new layer"


def test_a_second_layer_more_copies_nothing_and_pack_makes_one_file_again(path: Path, large: None) -> None:
    build(path)
    build(path, ("zeus", "other"))
    packed = shard_folder(path) / find_packed(shard_folder(path))[0]
    inode = packed.stat().st_ino
    build(path, ("zeus", "other", "third"))
    assert packed.stat().st_ino == inode and verify(path) == []
    with Cache(path) as cache:
        assert cache.variants == ("other", "third", "zeus")
    pack(path, path.with_name("one.h5"))
    assert content(path.with_name("one.h5")) == content(path)
    build(path, ("zeus", "other", "third"), pack=True)
    assert not shard_folder(path).exists() and content(path) == content(path.with_name("one.h5"))


def test_a_small_packed_file_stays_one_file(path: Path) -> None:
    build(path)
    build(path, ("zeus", "other"))
    assert Cache(path).state == "packed" and not shard_folder(path).exists()


def test_who_reads_the_packed_file_goes_on(path: Path, large: None) -> None:
    build(path)
    with Cache(path) as reader, Cache(path) as closed:
        rows = np.arange(len(reader.rows))
        before = reader.images(rows)
        texts = reader.instructions().to_pylist()
        closed.close()  # its file is opened anew, as after a fork
        build(path, ("zeus", "other"))
        assert (reader.images(rows) == before).all() and (closed.images(rows) == before).all()
        assert reader.instructions().to_pylist() == texts


def test_without_hard_links_the_file_is_renamed_and_a_kill_between_is_mended(
    path: Path, large: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_links(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    build(path)
    before = content(path)
    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patch:
        patch.setattr(finishing, "write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(path, ("zeus", "other"))
    assert not path.exists()
    CacheWriter(path, CARD)
    assert content(path) == before
    build(path, ("zeus", "other"))
    assert verify(path) == [] and Cache(path).variants == ("other", "zeus")


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "sharded"])
def test_new_subjects_join_behind_the_old_ones(path: Path, packed: bool) -> None:
    build(path, pack=packed)
    with Cache(path) as cache:
        old = {layer: cache.content_digest(layer, CARD.subjects) for layer in cache.layers}
        folds = dict(zip(cache.subjects, cache.rows["fold"][cache.rows_of(cache.subjects)][::2].tolist()))
    build(path, pack=packed, card=replace(MORE, subjects=("E", "D", "C", "B", "A")))
    with Cache(path) as cache:
        assert cache.subjects == ("A", "B", "C", "E", "D")
        assert {layer: cache.content_digest(layer, CARD.subjects) for layer in cache.layers} == old
        now = dict(zip(cache.subjects, cache.rows["fold"][cache.rows_of(cache.subjects)][::2].tolist()))
        assert {name: now[name] for name in CARD.subjects} == folds
        assert sorted(now.values()) == [0, 1, 2, 3, 4]
        assert set(cache.instructions().to_pydict()["subject"]) == set("ABCDE")
    assert verify(path) == []


def test_a_cache_stays_as_it_was_until_new_subjects_are_in_all_its_layers(
    path: Path, capsys: pytest.CaptureFixture
) -> None:
    build(path, ("zeus", "other"))
    before = path.read_bytes()
    build(path, ("zeus",), card=MORE)
    said = " ".join(capsys.readouterr().err.split())
    assert "new subjects are still missing in instructions/other (D, E)" in said
    assert path.read_bytes() == before and Cache(path).subjects == CARD.subjects
    build(path, ("other",), card=MORE)
    with Cache(path) as cache:
        assert cache.subjects == MORE.subjects and cache.variants == ("other", "zeus")
    assert verify(path) == []


def test_a_cache_that_lacks_subjects_of_the_data_set_says_what_to_do(path: Path) -> None:
    build(path)
    with pytest.raises(
        UserError, match=r"holds subjects that are not chosen here \(subjects: C\); .*zeus-instruct remove"
    ):
        CacheWriter(path, replace(CARD, subjects=("A", "B")))
    with pytest.raises(UserError, match=r"build D with another --out, and zeus-instruct merge"):
        CacheWriter(path, replace(CARD, subjects=("A", "B", "D")))


def test_two_processes_that_add_different_subjects_are_told(path: Path) -> None:
    build(path)
    slow = CacheWriter(path, replace(CARD, subjects=(*CARD.subjects, "D", "E")))
    build(path, card=replace(CARD, subjects=(*CARD.subjects, "E", "F")))
    with pytest.raises(UserError, match="not chosen here"):
        slow.finalize()


@given(st.integers(1, 40), st.lists(st.integers(1, 12), max_size=4), st.randoms(use_true_random=False))
def test_folds_of_old_subjects_stay_and_all_stay_balanced(first: int, steps: list[int], random) -> None:
    names = [f"s{number}" for number in range(first + sum(steps))]
    random.shuffle(names)
    folds = assign_folds(names[:first], names[:first])
    validation = draw_validation(folds)
    for step in steps:
        new = names[len(folds) : len(folds) + step]
        joined = join_folds(folds, new)
        assert joined == join_folds(folds, reversed(new)), "the order that they are listed in is no matter"
        grown = {**folds, **joined}
        sizes = Counter(grown.values())
        assert max(sizes.values()) - min(sizes.values()) <= 1 and len(sizes) == min(5, len(grown))
        after = join_validation(grown, validation, new)
        for fold, kept in after.items():
            assert set(validation.get(fold, ())) <= set(kept)
            assert not any(grown[name] == fold for name in kept)
            others = sum(number != fold for number in grown.values())
            assert len(kept) == max(1, int(others / 8), len(validation.get(fold, ())))
        folds, validation = grown, after


def test_as_many_folds_as_the_cache_has_and_subjects_without_labels_are_in_none() -> None:
    folds = {"a": 0, "b": 1, "c": 2, "d": 0, "e": 1, "f": 2, "u": -1}
    assert Counter(join_folds(folds, [f"n{number}" for number in range(6)]).values()) == {0: 2, 1: 2, 2: 2}


def test_a_packed_cache_is_not_copied_where_a_disk_has_no_space(
    path: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise AssertionError("a packed file is copied")

    build(path)
    monkeypatch.setattr(packing, "write_packed", full)
    monkeypatch.setattr(finishing, "write_packed", full)
    build(path, ("zeus", "other"))
    assert tiny_cache.content(path)
