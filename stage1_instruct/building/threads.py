"""A thread that does jobs in order, and a bounded way to hand it what another thread makes.

Errors go to whoever waits, with their type. What is one subject's fault (`UserError`) ends one job; anything else (a full
disk, a lost mount, Ctrl-C) ends the thread: later jobs are not begun, and whoever hands it one meets that error.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TypeVar

from zeus_union.cache.errors import JobError, UserError

T = TypeVar("T")

# How often a thread that waits looks whether the other one has ended; nothing that goes well waits for it.
LOOK_S = 0.1
# An orderly end: the file in work is discarded. A system call on a lost mount may never return, and is not waited for.
LEAVE_S = 20.0


class AbandonedError(Exception):
    """Whoever hands over the work has given up."""


def ends_the_job_only(error: BaseException) -> bool:
    """Whether an error is one subject's."""
    return isinstance(error, UserError) and not isinstance(error, JobError)


class Worker:
    """One thread; a context manager that waits for all its jobs, or abandons them where the block ends by an error."""

    def __init__(self, name: str, room: int) -> None:
        """Args: room: jobs that may wait for it."""
        self.error: BaseException | None = None
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(room)
        # A daemon, as a thread in a system call on a lost mount must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.error = self.error or AbandonedError()
            with suppress(queue.Empty):
                while True:
                    self._jobs.get_nowait()
        self._put(None)
        self._thread.join(None if error is None else LEAVE_S)

    @property
    def is_full(self) -> bool:
        """Whether the next `submit` waits."""
        return self._jobs.full()

    def check(self) -> None:
        """Raises what has ended the thread."""
        if self.error is not None:
            raise self.error

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Adds a job; waits where there is no room.

        Raises:
            BaseException: what has ended the thread.
        """
        future: Future[T] = Future()
        while True:
            self.check()
            with suppress(queue.Full):
                self._jobs.put((job, future), timeout=LOOK_S)
                return future

    def _put(self, end: None) -> None:
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._jobs.put(end, timeout=LOOK_S)
                return

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            self._do(*item)
            del item  # a job holds a study

    def _do(self, job: Callable[[], Any], future: Future[Any]) -> None:
        if self.error is not None:
            future.set_exception(self.error)
            return
        try:
            result = job()
        except BaseException as error:
            if not ends_the_job_only(error):
                self.error = self.error or error
            future.set_exception(error)
        else:
            future.set_result(result)


class Channel(Generic[T]):
    """What one thread makes for a job of a worker, in order, a bounded number on the way."""

    def __init__(self, consumer: Worker, room: int) -> None:
        self._consumer = consumer
        self._items: queue.Queue[Callable[[], T] | None] = queue.Queue(room)
        self._closed = threading.Event()

    def put(self, item: T) -> None:
        """Waits where there is no room; nothing happens where the job has ended.

        Raises:
            BaseException: what has ended the worker.
        """
        self._put(lambda: item)

    def fail(self, error: BaseException) -> None:
        """Raises it in the job."""

        def raising() -> T:
            raise error

        self._put(raising)

    def end(self) -> None:
        """That was all."""
        self._put(None)

    def close(self) -> None:
        """Of the job: nothing more is taken."""
        self._closed.set()

    def _put(self, item: Callable[[], T] | None) -> None:
        while not self._closed.is_set():
            self._consumer.check()
            with suppress(queue.Full):
                self._items.put(item, timeout=LOOK_S)
                return

    def __iter__(self) -> Iterator[T]:
        """Raises AbandonedError: whoever makes the items has given up."""
        while True:
            try:
                item = self._items.get(timeout=LOOK_S)
            except queue.Empty:
                if self._consumer.error is not None:
                    raise AbandonedError from None
                continue
            if item is None:
                return
            yield item()
