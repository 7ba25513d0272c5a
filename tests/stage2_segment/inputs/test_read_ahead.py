"""Results of several threads in the order they were asked for."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.inputs import read_ahead as module
from zeus_union.stage2_segment.inputs.read_ahead import read_ahead


def test_results_come_in_order_however_long_each_takes() -> None:
    def job(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return number

    assert list(read_ahead((partial(job, n) for n in range(20)), 4, 4, "a cache")) == list(range(20))
    assert list(read_ahead([], 4, 4, "a cache")) == []


def test_no_more_is_begun_than_may_be_ahead() -> None:
    begun: list[int] = []
    results = read_ahead((partial(begun.append, n) for n in range(100)), 2, 3, "a cache")
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 4
    results.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert len(begun) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "read ahead" and not thread.daemon]


def test_several_reads_wait_at_once() -> None:
    """As those of an object store, which takes its time to answer."""
    together = threading.Barrier(4, timeout=5)
    assert len(list(read_ahead([together.wait] * 8, 4, 4, "a cache"))) == 8


def test_a_fault_is_raised_in_its_turn() -> None:
    def fail() -> int:
        raise OSError(107, "not connected")

    results = read_ahead([lambda: 1, fail, lambda: 3], 1, 2, "a cache")
    assert next(results) == 1
    with pytest.raises(OSError, match="not connected"):
        next(results)


def test_a_stalled_mount_is_named_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    monkeypatch.setattr(module, "STALLED_S", 0.05)
    monkeypatch.setattr(module, "GIVEN_UP_S", 0.1)
    with pytest.raises(UserError, match=r"/mnt/a\.h5 has not answered .*it resumes"):
        next(read_ahead([threading.Event().wait], 1, 1, "/mnt/a.h5"))
    assert len(said) == 1 and "/mnt/a.h5" in said[0]
    monkeypatch.setattr(module, "GIVEN_UP_S", 5.0)
    assert next(read_ahead([lambda: time.sleep(0.1) or 7], 1, 1, "/mnt/a.h5")) == 7  # it came back
    assert len(said) == 2
