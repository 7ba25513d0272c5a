"""A cache that grows, loses a subject or is merged, killed at every single one of the calls that change the disk.

At each of these points the cache is the old one or the new one, and the same command again ends as if never killed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_cache
from test_crash import TAKES_SPACE, in_child, replace_calls
from tiny_cache import CARD, build, content, make_slices

from zeus_union.cache import finishing
from zeus_union.cache.layout import find_packed, shard_folder
from zeus_union.cache.merging import merge
from zeus_union.cache.removing import remove
from zeus_union.cache.verify import verify

SMALL = replace(CARD, subjects=("A", "B"))
GROWN = replace(CARD, subjects=("A", "B", "C"))
OTHER = replace(CARD, subjects=("D",))
MOST_FULL_DISKS = 25


def add_layer(folder: Path) -> None:
    build(folder / "chaos.h5", ("other",), card=SMALL)


def add_subject(folder: Path) -> None:
    build(folder / "chaos.h5", card=GROWN)


def remove_subject(folder: Path) -> None:
    remove(folder / "chaos.h5", ["B"])


def merge_packed(folder: Path) -> None:
    if not (folder / "both.h5").exists():
        merge(folder / "chaos.h5", folder / "second.h5", folder / "both.h5", pack=True)


def merge_sharded(folder: Path) -> None:
    if not (folder / "both.h5").exists():
        merge(folder / "chaos.h5", folder / "second.h5", folder / "both.h5", pack=False)


CASES: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "layer beside a packed file": (add_layer, "chaos.h5", True),
    "layer beside a packed file, no hard links": (add_layer, "chaos.h5", False),
    "subject joins a packed file": (add_subject, "chaos.h5", True),
    "subject joins shards": (add_subject, "chaos.h5", True),
    "subject leaves a packed file": (remove_subject, "chaos.h5", True),
    "subject leaves shards": (remove_subject, "chaos.h5", True),
    "subject leaves a packed file beside shards": (remove_subject, "chaos.h5", True),
    "merged into one file": (merge_packed, "both.h5", True),
    "merged into shards": (merge_sharded, "both.h5", True),
}


class Case:
    """A change to be interrupted: `folder/before` holds what is there before."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.change, result, self.links = CASES[name]
        self.work = folder / "work"
        self.result = self.work / result
        before = folder / "before"
        build(before / "chaos.h5", card=SMALL, pack="shards" not in name or "beside" in name)
        if "beside shards" in name:
            build(before / "chaos.h5", ("zeus", "other"), card=SMALL)
            assert find_packed(shard_folder(before / "chaos.h5"))
        if "merged" in name:
            build(before / "second.h5", card=OTHER)
        self.old = content(before / result) if (before / result).exists() else None
        self.reset()
        self.change(self.work)
        self.new = content(self.result)

    def reset(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.folder / "before", self.work)

    def check(self) -> None:
        """The cache that is there is sound, the old one or the new one; then the change ends as if never interrupted."""
        if self.result.exists() and self.old is not None:
            left = "subject B: left of a subject that is not in the cache; zeus-instruct remove"
            findings = [line for line in verify(self.result) if left not in line]
            assert findings == [] and content(self.result) in (self.old, self.new)
        else:
            assert self.old is None or not self.links, (
                "only without hard links a cache is without its file for a moment"
            )
            if self.old is not None:
                assert find_packed(shard_folder(self.result))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd: None)
            self.again()
        assert content(self.result) == self.new and verify(self.result) == []
        # A file that got its name by a second one has both for a moment; whoever builds on it takes the first away.
        left = [file for file in self.work.rglob("*.tmp") if file.read_bytes() != self.result.read_bytes()]
        assert left == []
        if self.change is remove_subject:
            secret = make_slices("B").images.tobytes()[:64]
            kept = [file for file in self.work.rglob("*") if file.is_file() and secret in file.read_bytes()]
            assert kept == []

    def again(self) -> None:
        if self.change is remove_subject:
            try:
                self.change(self.work)
            except Exception as error:  # nothing is left of the subject
                assert "B" in str(error)
        else:
            self.change(self.work)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    slices = make_slices
    monkeypatch.setattr(
        tiny_cache, "make_slices", lambda name: replace(slices(name), sources={f"{name}/T1": f"{name}1"})
    )
    monkeypatch.setattr(finishing, "COPY_BELOW", 0)
    if not CASES[request.param][2]:
        monkeypatch.setattr(os, "link", no_link)
    return Case(request.param, tmp_path)


def no_link(*arguments: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def state(folder: Path) -> tuple[object, ...]:
    files = (file for file in sorted(folder.rglob("*")) if not file.name.endswith(".tmp"))
    return tuple((str(file), file.read_bytes() if file.is_file() else b"") for file in files)


@pytest.mark.slow
def test_killed_anywhere_it_is_the_old_or_the_new_one_and_goes_on(case: Case) -> None:
    left = case.folder / "left"
    left.mkdir()

    def work(report: Callable[[str], None]) -> None:
        states: set[tuple[object, ...]] = set()

        def call(name: str, real: Callable, arguments: tuple) -> object:
            now = state(case.work)
            if now not in states:
                shutil.copytree(case.work, left / str(len(states)))
                states.add(now)
                report("state")
            return None if name == "fsync" else real(*arguments)

        replace_calls(call)
        case.change(case.work)

    case.reset()
    status, lines = in_child(work)
    assert status == 0 and lines
    print(f"{case.name}: {len(lines)} states")
    for number in range(len(lines)):
        shutil.rmtree(case.work)
        shutil.copytree(left / str(number), case.work)
        case.check()


@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle_leaves_the_old_one(case: Case) -> None:
    """At calls that take space, of writes that follow one another at each tenth; at `MOST_FULL_DISKS` of them, drawn."""
    made: list[str] = []

    def count(report: Callable[[str], None]) -> None:
        replace_calls(lambda name, real, arguments: made.append(name) or real(*arguments))
        case.change(case.work)
        report(" ".join(made))

    case.reset()
    calls = in_child(count)[1][0].split()
    points = [
        n
        for n, name in enumerate(calls)
        if name in TAKES_SPACE and (n % 10 == 0 or calls[max(n - 1, 0) : n + 2] != ["pwrite"] * 3)
    ]
    checked = set()
    for point in random.Random(0).sample(points, min(len(points), MOST_FULL_DISKS)):

        def work(report: Callable[[str], None], point: int = point) -> None:
            number = -1

            def call(name: str, real: Callable, arguments: tuple) -> object:
                nonlocal number
                number += 1
                if number >= point and name in TAKES_SPACE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return None if name == "fsync" else real(*arguments)

            replace_calls(call)
            case.change(case.work)

        case.reset()
        assert in_child(work)[0] != 0
        left = state(case.work), any(case.work.rglob("*.tmp"))
        if left not in checked:
            case.check()
            checked.add(left)
