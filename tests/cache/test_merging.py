"""Two caches become one; what does not belong together is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_cache
from click.testing import CliRunner
from tiny_cache import CARD, LLM_RECIPE, build, content, make_slices

from zeus_union.cache import finishing
from zeus_union.cache.atomic import shutil as disk
from zeus_union.cache.claims import lock
from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.layout import lock_path, shard_folder
from zeus_union.cache.merging import merge
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.cli import main

OTHER = replace(CARD, subjects=("D", "E", "F", "G", "H", "I"))


@pytest.fixture(autouse=True)
def files_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subject is read from files of its own."""
    slices = make_slices

    def own(subject: str, labelled: bool = True) -> object:
        made = slices(subject, labelled)
        return replace(made, sources={f"{subject}/{name}": f"{subject}{name}" for name in ("T1", "T2")})

    monkeypatch.setattr(tiny_cache, "make_slices", own)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    build(path := tmp_path / "a" / "first.h5", ("zeus", "other"))
    return path


@pytest.fixture
def second(tmp_path: Path) -> Path:
    build(path := tmp_path / "b" / "second.h5", ("zeus", "other"), card=OTHER, pack=False)
    return path


def folds(path: Path) -> dict[str, int]:
    with Cache(path) as cache:
        return {name: int(cache.rows["fold"][cache.rows_of([name])[0]]) for name in cache.subjects}


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "sharded"])
def test_all_subjects_of_both_stand_in_their_folds_row_for_row(
    first: Path, second: Path, tmp_path: Path, pack: bool
) -> None:
    before = [content(path) for path in (first, second)]
    merged = merge(first, second, out := tmp_path / "both.h5", pack)
    assert merged == CARD.subjects + OTHER.subjects
    assert verify(out) == [] and [content(path) for path in (first, second)] == before
    now = content(out)
    for name in ("images", "masks", "values", "scale", "offset", "text of zeus", "text of other"):
        assert now[name] == [*before[0][name], *before[1][name]]
    assert folds(out) == {**folds(first), **folds(second)}
    with Cache(out) as cache, Cache(second) as part:
        assert cache.state == ("packed" if pack else "sharded")
        for layer in part.layers:
            assert cache.content_digest(layer, OTHER.subjects) == part.content_digest(layer, OTHER.subjects)
        for fold in range(5):
            assert set(part.validation(fold)) <= set(cache.validation(fold))
            assert not set(cache.validation(fold)) & {name for name, number in folds(out).items() if number == fold}


def test_a_merged_cache_grows_and_is_built_on(first: Path, second: Path, tmp_path: Path) -> None:
    merge(first, second, out := tmp_path / "both.h5")
    build(out, ("zeus", "other"), card=replace(CARD, subjects=(*CARD.subjects, *OTHER.subjects, "J")))
    assert Cache(out).subjects[-1] == "J" and verify(out) == []


def test_a_packed_file_beside_shards_is_merged(
    first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing, "COPY_BELOW", 0)
    build(first, ("zeus", "other", "third"))
    build(second, ("zeus", "other", "third"), card=OTHER, pack=False)
    for pack in (True, False):
        merge(first, second, out := tmp_path / f"{pack}.h5", pack)
        assert verify(out) == [] and Cache(out).variants == ("other", "third", "zeus")


def built(path: Path, change: Callable[[CacheWriter], None], **card: object) -> Path:
    build(path, ("zeus", "other"), card=replace(OTHER, **card))
    change(CacheWriter(path, replace(OTHER, **card)))
    return path


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"classes": ("liver",)}, "classes"),
        ({"terms": {"T1": "MRI-T1", "T2": "CT"}}, r"terms\.T2: MRI-T2 -> CT"),
        ({"name": "another"}, "name: phantom -> another"),
        ({"slice_step": 2}, "slice_step"),
        ({"subjects": ("C", "D")}, r"C is in both .*zeus-instruct remove"),
    ],
)
def test_another_kind_of_data_is_refused(first: Path, tmp_path: Path, card: dict, message: str) -> None:
    build(other := tmp_path / "other.h5", ("zeus", "other"), card=replace(OTHER, **card))
    with pytest.raises(UserError, match=message):
        merge(first, other, tmp_path / "both.h5")
    assert not (tmp_path / "both.h5").exists() and not shard_folder(tmp_path / "both.h5").exists()


def test_layers_that_one_lacks_and_other_recipes_are_refused(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(fewer := tmp_path / "fewer.h5", card=OTHER)
    with pytest.raises(UserError, match=r"fewer\.h5 lacks instructions/other of .*first\.h5; build it there too"):
        merge(first, fewer, tmp_path / "both.h5")
    with pytest.raises(UserError, match=r"fewer\.h5 lacks instructions/other"):
        merge(fewer, first, tmp_path / "both.h5")
    monkeypatch.setattr(tiny_cache, "LLM_RECIPE", {**LLM_RECIPE, "seed": 3})
    build(other := tmp_path / "other.h5", ("zeus", "other"), card=OTHER)
    with pytest.raises(UserError, match=r"instructions/(zeus|other) of .* different recipes \(seed: \(absent\) -> 3\)"):
        merge(first, other, tmp_path / "both.h5")


def test_other_fold_counts_are_refused(first: Path, tmp_path: Path) -> None:
    names = ("D", "E", "F", "G")
    card = replace(CARD, subjects=names)
    writer = CacheWriter(path := tmp_path / "two.h5", card, folds=dict(zip(names, (0, 1, 0, 1))))
    assert writer.folds == (0, 1)
    build(path, ("zeus", "other"), card=card)
    with pytest.raises(UserError, match=r"3 folds and .* 2; build one of them again with --splits"):
        merge(first, path, tmp_path / "both.h5")


def test_one_study_under_two_names_is_refused(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = tiny_cache.make_slices
    monkeypatch.setattr(
        tiny_cache,
        "make_slices",
        lambda name: replace(slices(name), sources={"again/T1": "BT1"}) if name == "E" else slices(name),
    )
    build(other := tmp_path / "other.h5", ("zeus", "other"), card=OTHER)
    with pytest.raises(UserError, match=r"B of .*first\.h5 and E of .*other\.h5 were read from the same file"):
        merge(first, other, tmp_path / "both.h5")


def test_itself_unfinished_damaged_and_taken_names_are_refused(first: Path, second: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are one cache"):
        merge(first, first, tmp_path / "both.h5")
    (tmp_path / "link.h5").symlink_to(first)
    with pytest.raises(UserError, match="are one cache"):
        merge(first, tmp_path / "link.h5", tmp_path / "both.h5")
    with pytest.raises(UserError, match="which stay as they are"):
        merge(first, second, second)
    with pytest.raises(UserError, match="does not exist"):
        merge(first, tmp_path / "none.h5", tmp_path / "both.h5")
    CacheWriter(tmp_path / "begun.h5", OTHER)
    with pytest.raises(UserError, match="is unfinished: 0 of 6 subjects"):
        merge(first, tmp_path / "begun.h5", tmp_path / "both.h5")
    (tmp_path / "taken.h5").write_bytes(b"")
    with pytest.raises(UserError, match="exists; choose another name"):
        merge(first, second, tmp_path / "taken.h5")
    with lock(lock_path(tmp_path / "busy.h5")), pytest.raises(UserError, match="is being written by another process"):
        merge(first, second, tmp_path / "busy.h5")
    data = bytearray(first.read_bytes())
    data[data.index(make_slices("A").images.tobytes()[:64]) + 5] ^= 1
    first.chmod(0o644)
    first.write_bytes(data)
    with pytest.raises(UserError, match=r"first\.h5 is damaged \(1 findings?; .*subject A, slice 2"):
        merge(first, second, tmp_path / "both.h5")


@pytest.mark.parametrize("pack", [True, False])
def test_a_full_disk_leaves_nothing(
    first: Path, second: Path, tmp_path: Path, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(NoSpaceError):
        merge(first, second, tmp_path / "both.h5", pack)
    assert not (tmp_path / "both.h5").exists()


def test_the_command_says_what_comes_next(first: Path, second: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["merge", str(first), str(second), "--out", str(tmp_path / "both.h5")])
    assert done.exit_code == 0, done.output
    assert "both.h5 holds 9 subjects. Next: zeus-segment train --cache" in done.output
    with Cache(tmp_path / "both.h5") as cache:
        assert np.unique(cache.rows["fold"]).tolist() == [0, 1, 2, 3, 4]
