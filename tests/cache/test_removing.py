"""Subjects and layers leave a cache with every byte of theirs; whatever stays is as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_cache import CARD, LLM_RECIPE, build, content, make_slices, make_texts

from zeus_union.cache import finishing
from zeus_union.cache.atomic import shutil as disk
from zeus_union.cache.claims import lock
from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.layout import lock_path, shard_folder
from zeus_union.cache.reader import Cache
from zeus_union.cache.removing import plan_removal, remove
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.cli import main

STATES = ["packed", "sharded", "added to"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "chaos.h5"


@pytest.fixture(params=STATES)
def built(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of A, B and C in each state: one file, shards, and a packed file beside shards."""
    if request.param == "added to":
        monkeypatch.setattr(finishing, "COPY_BELOW", 0)
        build(path)
        build(path, ("zeus", "other"))
    else:
        build(path, ("zeus", "other"), pack=request.param == "packed")
    return path


def without(found: dict[str, object], path: Path) -> dict[str, object]:
    """The content of a cache of A and C that never knew B, but for the folds."""
    return {name: value for name, value in found.items() if name != "rows"}


def test_a_subject_leaves_no_byte_behind(built: Path, tmp_path: Path) -> None:
    never = tmp_path / "never" / "chaos.h5"
    build(never, ("zeus", "other"), card=replace(CARD, subjects=("A", "C")))
    with Cache(built) as cache:
        folds = {name: int(cache.rows["fold"][cache.rows_of([name])[0]]) for name in ("A", "C")}
    removal = remove(built, ["B"])
    assert removal.freed > 0 and len(removal.untested) == 1
    assert without(content(built), built) == without(content(never), never)
    with Cache(built) as cache:
        assert {name: int(cache.rows["fold"][cache.rows_of([name])[0]]) for name in ("A", "C")} == folds
    assert verify(built) == []
    secret = make_slices("B").images.tobytes()[:64]
    for file in built.parent.rglob("*"):
        assert not file.is_file() or (secret not in file.read_bytes() and not file.name.startswith("B."))


def test_a_layer_leaves_and_may_be_built_again_otherwise(built: Path) -> None:
    removal = remove(built, [], ["instructions/other"])
    assert removal.freed > 0
    with Cache(built) as cache:
        assert cache.variants == ("zeus",)
        assert set(cache.instructions().to_pydict()["variant"]) == {"zeus"}
    assert verify(built) == []
    CacheWriter(built, CARD).begin_layer("instructions/other", {**LLM_RECIPE, "seed": 1})


def test_it_is_said_first_and_done_with_yes_alone(built: Path) -> None:
    before = {file: file.read_bytes() for file in built.parent.rglob("*") if file.is_file()}
    said = CliRunner().invoke(main, ["remove", str(built), "B"])
    assert said.exit_code == 2 and "would remove B of" in said.output and "add --yes" in said.output
    assert {file: file.read_bytes() for file in built.parent.rglob("*") if file.is_file()} == before
    done = CliRunner().invoke(main, ["remove", str(built), "B", "--yes"])
    assert done.exit_code == 0 and "B removed, " in done.output and "MB freed" in done.output
    assert "has no test subject left without them" in done.output
    again = CliRunner().invoke(main, ["remove", str(built), "B", "--yes"])
    assert (again.exit_code == 2 and "there is no subject B" in again.output) or "B" in again.output


@pytest.mark.parametrize(
    ("subjects", "layers", "message"),
    [
        (["X"], [], "X"),
        (["A", "B", "C"], [], "without a subject; delete it instead"),
        ([], ["slices"], "stands on its slices"),
        ([], ["instructions/none"], "instructions/none"),
    ],
)
def test_what_cannot_leave_is_refused(built: Path, subjects: list[str], layers: list[str], message: str) -> None:
    before = built.read_bytes()
    with pytest.raises(UserError, match=message):
        remove(built, subjects, layers)
    with pytest.raises(UserError, match=message):
        plan_removal(built, subjects, layers)
    assert built.read_bytes() == before


def test_a_cache_that_is_being_built_is_left_alone(path: Path) -> None:
    build(path)
    with lock(lock_path(path), shared=True), pytest.raises(UserError, match="another process builds"):
        remove(path, ["B"])
    assert Cache(path).subjects == CARD.subjects


def test_a_subject_that_cannot_be_built_leaves_an_unfinished_cache(path: Path) -> None:
    build(path, card=CARD, finalize=False)
    remove(path, ["B"])
    assert not list(shard_folder(path).rglob("B.*"))
    build(path, card=replace(CARD, subjects=("A", "C")))
    assert Cache(path).subjects == ("A", "C") and verify(path) == []


def test_a_subject_that_joins_and_is_not_finished_leaves_too(path: Path) -> None:
    build(path)
    more = replace(CARD, subjects=(*CARD.subjects, "D"))
    build(path, card=more, finalize=False)
    before = path.read_bytes()
    assert remove(path, ["D"]).freed > 0
    assert path.read_bytes() == before and not shard_folder(path).exists() and verify(path) == []


def test_a_full_disk_is_said_before_anything_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(path)
    before = path.read_bytes()
    monkeypatch.setattr(disk, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(NoSpaceError):
        remove(path, ["B"])
    assert path.read_bytes() == before and verify(path) == []


def test_a_layer_that_learned_from_who_leaves_is_named(path: Path) -> None:
    build(path)
    writer = CacheWriter(path, CARD)
    writer.begin_layer("instructions/learned", {"projection": {"sha256": "1", "trained_on": {"subjects": ["B"]}}})
    for subject in CARD.subjects:
        writer.write_instructions("instructions/learned", subject, *make_texts(subject, "learned"))
    writer.finalize()
    assert plan_removal(path, ["B"], []).learned == ("instructions/learned",)
    assert plan_removal(path, ["A"], []).learned == ()
