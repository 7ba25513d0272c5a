"""One subject, one process: taken, given back, and taken over when its process is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from zeus_union.cache.claims import claim

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
