"""A build that is killed at every single one of its writes, or meets a full disk.

The points are before each call that changes the disk, and inside each write (half of its bytes are there). HDF5's and
pyarrow's writes are among them, as both write through `AtomicFile`.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_cache
from tiny_cache import build, content

from zeus_union.cache.atomic import AtomicFile
from zeus_union.cache.verify import verify

CHANGES = ("pwrite", "ftruncate", "fsync", "fchmod", "replace", "link", "unlink", "mkdir", "rmdir")
TAKES_SPACE = ("pwrite", "fsync", "ftruncate", "mkdir")
NO_SPACE = 78
Call = Callable[[str, Callable, tuple], object]

CARD = replace(tiny_cache.CARD, subjects=("A", "B"))


def replace_calls(call: Call) -> None:
    """Sends this process's calls that change the disk through `call(name, real, arguments)`, but not those of `call`."""
    inside = False

    def replaced(name: str, real: Callable) -> Callable:
        def outer(*args: Any, **kwargs: Any) -> object:
            nonlocal inside
            if inside:
                return real(*args, **kwargs)
            inside = True
            try:
                return call(name, lambda *a: real(*a, **kwargs), args)
            finally:
                inside = False

        return outer

    for name in CHANGES:
        setattr(os, name, replaced(name, getattr(os, name)))


def in_child(work: Callable[[Callable[[str], None]], None]) -> tuple[int, list[str]]:
    """Runs `work(report)` in a forked process: its exit status and the lines it reported."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            work(lambda line: os.write(write, f"{line}\n".encode()) and None)
            status = 0
        except OSError as error:
            status = NO_SPACE if error.errno == errno.ENOSPC else 1
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines


@dataclass(frozen=True)
class Scenario:
    """A build to be interrupted.

    Attributes:
        folder: `folder/before` holds what is there before.
        variants, pack: what is built.
    """

    folder: Path
    variants: tuple[str, ...]
    pack: bool

    @property
    def path(self) -> Path:
        return self.folder / "work" / "chaos.h5"

    def build(self, path: Path, finished: Callable[[str, str], None] = lambda *_: None) -> None:
        build(path, self.variants, self.pack, finished, CARD)

    def reset(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)
        shutil.copytree(self.folder / "before", self.path.parent)

    def run(self, call: Call) -> tuple[int, list[str]]:
        """Builds in a process whose calls that change the disk go through `call`; reports what was finished."""

        def work(report: Callable[[str], None]) -> None:
            replace_calls(call)
            self.build(self.path, lambda layer, subject: report(f"{layer}/{subject}."))

        self.reset()
        return in_child(work)

    def calls(self) -> list[str]:
        """The names of the calls of an uninterrupted build, in order."""
        made: list[str] = []

        def work(report: Callable[[str], None]) -> None:
            replace_calls(lambda name, real, arguments: made.append(name) or real(*arguments))
            self.build(self.path)
            report(" ".join(made))

        self.reset()
        status, lines = in_child(work)
        assert status == 0
        return lines[0].split()

    def state(self) -> tuple[object, ...]:
        """What is on disk. Temporary files of an ended process count by name only: nothing ever reads one."""
        temporary = re.compile(r"(.*)\.[0-9a-f]{8}\.tmp")
        found = []
        for path in sorted(self.path.parent.rglob("*")):
            ended = temporary.fullmatch(path.name)
            found.append((ended[1], b"") if ended else (path.name, path.read_bytes() if path.is_file() else b""))
        return tuple(found)

    def check(self, expected: dict[str, object], finished: list[str]) -> None:
        """Nothing is unreadable, nothing finished is lost, and the restarted build equals an uninterrupted one."""
        if self.path.exists():
            assert [line for line in verify(self.path) if "is unfinished" not in line] == []
        made = []
        commit = AtomicFile.commit
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AtomicFile, "commit", lambda file, *rest: made.append(str(file.final)) or commit(file, *rest))
            patch.setattr(os, "fsync", lambda fd: None)
            self.build(self.path)
        assert [name for name in made for subject in finished if subject in name] == []
        assert content(self.path) == expected
        assert verify(self.path) == []
        assert list(self.path.parent.rglob("*.tmp")) == []
        assert self.path.with_name("chaos.h5.d").exists() != self.pack


FROM_NOTHING = "from nothing, packed"


@pytest.fixture(params=[FROM_NOTHING, "finished subjects, sharded", "variant added to a packed cache"])
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Scenario:
    before = tmp_path / "before" / "chaos.h5"
    before.parent.mkdir()
    if request.param == FROM_NOTHING:
        return Scenario(tmp_path, ("zeus",), pack=True)
    if request.param == "finished subjects, sharded":  # its subjects are built by the same calls as above
        build(before, card=CARD, finalize=False)
        return Scenario(tmp_path, ("zeus",), pack=False)
    build(before, card=CARD)
    return Scenario(tmp_path, ("other",), pack=True)


@pytest.fixture
def expected(scenario: Scenario) -> dict[str, object]:
    whole = scenario.folder / "whole"
    shutil.copytree(scenario.folder / "before", whole)
    scenario.build(whole / "chaos.h5")
    return content(whole / "chaos.h5")


@pytest.mark.slow
def test_killed_build_loses_nothing_and_resumes_equal_row_for_row(scenario: Scenario, expected: dict) -> None:
    """A kill leaves what is on disk at that moment: it is copied at each of the build's calls, and checked.

    Many points leave the same on disk (another byte of a temporary file), so that there are few states to check.
    """
    left = scenario.folder / "left"
    left.mkdir()

    def work(report: Callable[[str], None]) -> None:
        finished: list[str] = []
        states: set[tuple[object, ...]] = set()

        def killed() -> None:
            state = (*scenario.state(), *finished)
            if state not in states:
                shutil.copytree(scenario.path.parent, left / str(len(states)))
                states.add(state)
                report(f"state {' '.join(finished)}")
            report("point")

        def call(name: str, real: Callable, arguments: tuple) -> object:
            killed()
            if name == "pwrite":
                fd, data, offset = arguments
                real(fd, data[: len(data) // 2], offset)
                killed()
            return None if name == "fsync" else real(*arguments)  # a kill does not empty the page cache

        replace_calls(call)
        scenario.build(scenario.path, lambda layer, subject: finished.append(f"{layer}/{subject}."))

    scenario.reset()
    status, lines = in_child(work)
    assert status == 0
    states = [line.split()[1:] for line in lines if line.startswith("state")]
    print(f"{lines.count('point')} crash points leave {len(states)} different states")
    for number, finished in enumerate(states):
        shutil.rmtree(scenario.path.parent)
        shutil.copytree(left / str(number), scenario.path.parent)
        scenario.check(expected, finished)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [FROM_NOTHING], indirect=True)
def test_full_disk_is_told_and_resumed_from(scenario: Scenario, expected: dict) -> None:
    """At half of the calls that take space, drawn; of writes that follow one another, the first, the last and each thirtieth."""
    checked = set()
    calls = scenario.calls()
    between = ["pwrite"] * 3
    points = [
        n
        for n, name in enumerate(calls)
        if name in TAKES_SPACE and (n % 30 == 0 or calls[max(n - 1, 0) : n + 2] != between)
    ]
    points = random.Random(0).sample(points, len(points) // 2)
    for n in points:
        made = itertools.count()

        def call(name: str, real: Callable, arguments: tuple, n=n, made=made) -> object:
            if next(made) >= n and name in TAKES_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return None if name == "fsync" else real(*arguments)

        status, finished = scenario.run(call)
        assert status == NO_SPACE, "neither a crash of HDF5 nor anything else but the error itself"
        assert list(scenario.path.parent.rglob("*.tmp")) == []
        state = (scenario.state(), tuple(finished))
        if state not in checked:
            scenario.check(expected, finished)
            checked.add(state)
    print(f"{len(points)} full disks leave {len(checked)} different states")


def test_what_gets_its_name_was_on_disk_before(scenario: Scenario) -> None:
    """A power cut loses what was not synced: the file before its rename, and its folder before anything goes on."""
    unsynced: set[str] = set()
    wrong: list[str] = []

    def call(name: str, real: Callable, arguments: tuple) -> object:
        target = os.readlink(f"/proc/self/fd/{arguments[0]}") if isinstance(arguments[0], int) else str(arguments[0])
        if name == "fsync":
            unsynced.discard(target)
        elif unsynced & {str(path.parent) for path in (Path(target),)} or (
            name in ("replace", "link") and target in unsynced
        ):
            wrong.append(f"{name} {target} while {unsynced} are not synced")
        elif name in ("pwrite", "ftruncate"):
            unsynced.add(target)
        elif name in ("replace", "link"):
            unsynced.add(os.path.dirname(os.path.realpath(arguments[1])))
        return real(*arguments)

    def work(report: Callable[[str], None]) -> None:
        replace_calls(call)
        scenario.build(scenario.path)
        report(" | ".join(wrong))

    scenario.reset()
    assert in_child(work) == (0, [""])
