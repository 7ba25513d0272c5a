"""A subject in work: what it needs, who has it, what has come of it; and the progress of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from rich.progress import Progress, TaskID

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.building.encoding import EmbeddingsOfSubject
from zeus_union.stage1_instruct.building.reading import Needs, Pictures
from zeus_union.stage1_instruct.building.threads import Worker, ends_the_job_only


@dataclass(eq=False)
class Work:
    """A subject that this process has claimed.

    Attributes:
        claimed: what to give back when it is finished.
        reading: its pictures on their way; None where it needs none, or they were taken.
        writes: jobs of the thread that writes.
        encoding: its embeddings on their way.
        error: why it cannot be built.
        count: slice-modalities; 0: not known yet.
        begun: when its turn came, as of `time.perf_counter`.
    """

    subject: str
    needs: Needs
    claimed: ExitStack
    reading: Future[Pictures | None] | None = None
    writes: list[Future[None]] = field(default_factory=list)
    encoding: list[EmbeddingsOfSubject] = field(default_factory=list)
    error: UserError | None = None
    count: int = 0
    begun: float = 0.0

    def begin(self) -> None:
        self.begun = time.perf_counter()

    def fail(self, error: UserError) -> None:
        self.error = self.error or error

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What in the block is the subject's fault costs the subject."""
        try:
            yield
        except UserError as error:
            if not ends_the_job_only(error):
                raise
            self.fail(error)

    @property
    def encoded(self) -> bool:
        """Whether the encoder has all of its pictures behind it."""
        return all(embeddings.complete for embeddings in self.encoding)

    @property
    def written(self) -> bool:
        """Whether nothing of it waits for the thread that writes."""
        return all(write.done() for write in self.writes)

    def write(self, writing: Worker, job: Callable[[], None], left_out: Callable[[], None] | None = None) -> None:
        """Hands a job to the thread that writes.

        Args:
            left_out: called in place of it where the subject has failed before.

        Raises:
            BaseException: what has ended the thread.
        """

        def guarded() -> None:
            if self.error is None:
                with self.failing():
                    job()
            elif left_out is not None:
                left_out()

        self.writes.append(writing.submit(guarded))

    def wait_written(self) -> None:
        """Raises BaseException: what has ended the thread that writes."""
        for write in self.writes:
            write.result()


class BuildBar:
    """Progress in slice-modalities, counted once for each layer that takes them through a model.

    How many a study has is known when it is read: the others are taken for as long as the mean of those that were.
    """

    def __init__(self, bar: Progress, name: str, subjects: int) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task(f"{name}, slice-modalities", total=None)
        self._unknown = subjects
        self._known: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def know(self, work: Work) -> None:
        """Its number of slice-modalities is known now."""
        if work.subject not in self._known:
            needs = work.needs
            models = needs.embeddings + sum(layer.startswith("embeddings") for layer in needs.views)
            self._known[work.subject] = work.count * max(1, models + len(needs.instructions))
            self._unknown -= 1
            self._update()

    def advance(self, work: Work, count: int) -> None:
        self._done[work.subject] = self._done.get(work.subject, 0) + count
        self._bar.advance(self._task, count)

    def end(self, subject: str) -> None:
        """It is finished, was left out, or was built by somebody else."""
        if subject in self._known:
            left = self._known[subject] - self._done.pop(subject, 0)
            self._bar.advance(self._task, left)
        else:
            self._unknown -= 1
            self._update()

    def _update(self) -> None:
        if self._known:
            total = sum(self._known.values())
            self._bar.update(self._task, total=total + round(total / len(self._known) * self._unknown))
