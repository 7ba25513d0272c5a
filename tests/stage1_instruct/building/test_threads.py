"""Threads of a build: errors keep their type, nothing waits for ever, one subject's fault costs that subject."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import pytest

from zeus_union.cache.errors import JobError, NoSpaceError, UserError
from zeus_union.stage1_instruct.building import threads
from zeus_union.stage1_instruct.building.threads import AbandonedError, Channel, Worker


def raising(error: BaseException) -> None:
    raise error


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_jobs_are_done_in_order() -> None:
    done: list[int] = []
    with Worker("w", 2) as worker:
        for number in range(20):
            worker.submit(lambda number=number: done.append(number))
    assert done == list(range(20))


def test_a_subjects_fault_ends_its_job_only() -> None:
    with Worker("w", 2) as worker:
        failed = worker.submit(lambda: raising(UserError("damaged")))
        after = worker.submit(lambda: 1)
    assert isinstance(failed.exception(), UserError) and after.result() == 1


@pytest.mark.parametrize(
    "error",
    [
        JobError("x"),
        NoSpaceError("full"),
        OSError(errno.ENOSPC, "full"),
        KeyboardInterrupt(),
        ValueError(),
        MemoryError(),
    ],
    ids=repr,
)
def test_any_other_error_ends_the_thread_and_reaches_everyone_with_its_type(error: BaseException) -> None:
    begun: list[int] = []
    with pytest.raises(type(error)) as raised, Worker("w", 4) as worker:
        held = threading.Event()
        worker.submit(lambda: held.wait() and None)
        failed, after = worker.submit(lambda: raising(error)), worker.submit(lambda: begun.append(1))
        held.set()
        assert failed.exception() is after.exception() is error
        worker.submit(lambda: begun.append(2))
    assert raised.value is error and not begun


def test_a_full_worker_that_ends_lets_go_whoever_waits_for_room() -> None:
    held = threading.Event()
    threading.Timer(0.2, held.set).start()

    def lost() -> None:
        held.wait()
        raise OSError(errno.EIO, "lost mount")

    with pytest.raises(OSError, match="lost mount"), Worker("w", 1) as worker:
        for _ in range(9):
            worker.submit(lost)


def test_a_channel_keeps_order_and_a_bounded_number_on_the_way() -> None:
    taken: list[int] = []
    most, on_the_way = 0, 0

    def slowly(channel: Channel[int]) -> None:
        nonlocal on_the_way
        for item in channel:
            on_the_way -= 1
            taken.append(item)

    with Worker("w", 1) as worker:
        channel: Channel[int] = Channel(worker, 3)
        worker.submit(lambda: slowly(channel))
        for number in range(200):
            channel.put(number)
            on_the_way += 1
            most = max(most, on_the_way)
        channel.end()
    assert taken == list(range(200)) and most <= 5


def test_what_the_maker_meets_is_raised_in_the_job() -> None:
    with Worker("w", 1) as worker:
        channel: Channel[int] = Channel(worker, 3)
        job = worker.submit(lambda: list(channel))
        channel.put(1)
        channel.fail(UserError("not finite"))
    assert str(job.exception()) == "not finite"


def test_a_maker_is_let_go_by_a_job_that_closes_and_by_a_worker_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker("w", 1) as worker:
        closed: Channel[int] = Channel(worker, 1)
        worker.submit(closed.close)
        for number in range(9):
            closed.put(number)
    with pytest.raises(NoSpaceError), Worker("w", 1) as worker:
        channel: Channel[int] = Channel(worker, 1)
        worker.submit(lambda: raising(NoSpaceError("full")))
        for number in range(9):
            channel.put(number)


def test_a_job_is_abandoned_where_the_maker_is_interrupted() -> None:
    seen: list[object] = []

    def job(channel: Channel[int]) -> None:
        try:
            seen.extend(channel)
        except AbandonedError as error:
            seen.append(type(error))
            raise

    with pytest.raises(KeyboardInterrupt), Worker("w", 4) as worker:
        channel: Channel[int] = Channel(worker, 4)
        worker.submit(lambda: job(channel))
        worker.submit(lambda: seen.append("begun"))
        channel.put(1)
        time.sleep(0.05)
        raise KeyboardInterrupt
    assert seen[-1] is AbandonedError and "begun" not in seen


def test_a_thread_in_a_system_call_that_never_returns_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "LEAVE_S", 0.1)
    hung = threading.Event()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), Worker("w", 4) as worker:
        worker.submit(lambda: hung.wait() and None)
        raise KeyboardInterrupt
    assert time.perf_counter() - start < 5
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "w")
    hung.set()
    time.sleep(0.3)
