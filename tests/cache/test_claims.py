"""One subject, one process: taken, given back, and taken over when its process is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zeus_union.cache import locks
from zeus_union.cache.claims import claim, has_locks, lock
from zeus_union.cache.locks import NoLocksError, acquire

TAKE = """
import sys
from pathlib import Path
from zeus_union.cache.claims import claim
with claim(Path(sys.argv[1]), "A") as ours:
    print(ours)
"""

HOLD = """
import sys, time
from pathlib import Path
from zeus_union.cache.claims import claim
with claim(Path(sys.argv[1]), "A") as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that has taken A."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    return process


def test_what_another_process_has_is_not_ours(tmp_path: Path) -> None:
    other = hold(tmp_path)
    try:
        with claim(tmp_path, "A") as taken, claim(tmp_path, "B") as free:
            assert (taken, free) == (False, True)
    finally:
        other.kill()
        other.wait()


def test_what_a_killed_process_had_is_free_again(tmp_path: Path) -> None:
    other = hold(tmp_path)
    os.kill(other.pid, signal.SIGKILL)
    with claim(tmp_path, "A", wait=True) as ours:
        assert ours
    other.wait()


def test_what_was_given_back_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with claim(tmp_path, "A") as ours:
            assert ours


def test_a_nested_claim_is_refused(tmp_path: Path) -> None:
    with claim(tmp_path, "A") as first:
        with claim(tmp_path, "A") as nested:
            assert (first, nested) == (True, False)
        other = subprocess.run(
            [sys.executable, "-c", TAKE, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        assert other.stdout == "False\n", "the nested claim has given the lock back"
        with pytest.raises(RuntimeError, match="wait for itself"), claim(tmp_path, "A", wait=True):
            pass


def test_without_locks_a_nested_claim_is_refused_too(tmp_path: Path) -> None:
    with claim(tmp_path, "A", real=False) as first, claim(tmp_path, "A", real=False) as nested:
        assert (first, nested) == (True, False)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_shared_by_many_and_held_alone_by_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "cache.lock"
    with lock(path, shared=True) as one, lock(path, shared=True) as another, lock(path) as alone:
        assert (one, another, alone) == (True, True, False)
    with lock(path) as alone, lock(path, shared=True) as shared:
        assert (alone, shared) == (True, False)


def test_a_lock_file_that_was_removed_and_made_again_is_not_held_by_its_old_holder(tmp_path: Path) -> None:
    path = tmp_path / "cache.lock"
    with lock(path) as ours:
        assert ours
        path.unlink()
        path.touch()
        opened = acquire(path, shared=False, wait=False)
        assert opened is not None
        opened.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> bool:
        raise OSError(number, "no locks")

    assert has_locks(tmp_path / "a.lock")
    monkeypatch.setattr(locks, "_lock", refuse)
    assert not has_locks(tmp_path / "a.lock")
    with pytest.raises(NoLocksError), lock(tmp_path / "a.lock"):
        pass


WINDOWS = """
import sys, types
import click, h5py, numpy, pyarrow.compute, pyarrow.parquet, rich.progress, xxhash  # before the system seems to be another

stub = types.ModuleType("portalocker")
sys.modules |= {"portalocker": stub, "fcntl": None, "resource": None}
sys.platform = "win32"
import zeus_union.cache.writer, zeus_union.cache.reader, zeus_union.cache.verify
print(zeus_union.cache.locks.portalocker is stub)
"""


def test_nothing_of_posix_is_imported_on_windows() -> None:
    """With a stand-in for portalocker: that its locks hold can only be tried on Windows."""
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "True\n", done.stderr
