"""Results of several threads in the order they were asked for, some of them ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet  # the built-in one from Python 3.11 on
from queue import SimpleQueue
from typing import TypeVar

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say

T = TypeVar("T")

STALLED_S = 60.0  # without an answer until a line says so; a tape or an object store takes some seconds
GIVEN_UP_S = 1800.0

_Job = tuple[Callable[[], T], "Future[T]"]


def read_ahead(jobs: Iterable[Callable[[], T]], threads: int, ahead: int, source: str) -> Iterator[T]:
    """What `jobs` return, in their order, at most `ahead` of them begun or waiting before they are asked for.

    The threads are daemons: a read that never comes back from a lost mount does not keep the process from ending.

    Args:
        source: what is read from, for the line that says that it has stalled.

    Raises:
        UserError: no answer for `GIVEN_UP_S`; and whatever a job raises, in its turn.
    """
    queue: SimpleQueue[_Job[T] | None] = SimpleQueue()
    for _ in range(threads):
        threading.Thread(target=_work, args=(queue,), name="read ahead", daemon=True).start()
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            future: Future[T] = Future()
            queue.put((job, future))
            pending.append(future)
            if len(pending) > ahead:
                yield _result(pending.popleft(), source)
        while pending:
            yield _result(pending.popleft(), source)
    finally:
        for future in pending:
            future.cancel()
        for _ in range(threads):
            queue.put(None)


def _work(queue: SimpleQueue[_Job[T] | None]) -> None:
    while (item := queue.get()) is not None:
        job, future = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)
        del item, job, future  # not kept until the next one comes


def _result(future: Future[T], source: str) -> T:
    try:
        return future.result(STALLED_S)
    except NotYet:
        if future.done():
            raise
    say(f"{source} has not answered for {STALLED_S:.0f} s; waiting (Ctrl-C stops, nothing is lost)")
    try:
        return future.result(GIVEN_UP_S - STALLED_S)
    except NotYet:
        if future.done():
            raise
        raise UserError(
            f"{source} has not answered for {GIVEN_UP_S / 60:.0f} minutes; bring its disk or mount back, then run the same "
            "command again: it resumes"
        ) from None
