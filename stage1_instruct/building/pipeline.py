"""Stage 1 as a pipeline: studies are read ahead, pictures are encoded across subjects, results are written behind.

    reader thread           this thread                                         writer thread
    read, slice (2 ahead)   encoder, one subject ahead of the language model    quantise (on a CPU), hash, write, verify

What a subject gets does not depend on when: embeddings and texts are the same whatever is computed beside them, and each
goes to its subject by name. A claim is held from before a subject is read until all of it is written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted, progress_bar, say, warn
from zeus_union.cache.view_layers import view_layer, view_of
from zeus_union.stage1_instruct.building.encoding import (
    EmbeddingsOfSubject,
    Picture,
    PictureLine,
    computing,
)
from zeus_union.stage1_instruct.building.reading import Pictures, needs_of, read_pictures
from zeus_union.stage1_instruct.building.texts import Texts
from zeus_union.stage1_instruct.building.threads import Worker, ends_the_job_only
from zeus_union.stage1_instruct.building.views import copies_of, pictures_of_view
from zeus_union.stage1_instruct.building.work import BuildBar, Work
from zeus_union.stage1_instruct.building.writing import write_embeddings, write_slices

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.building.job import Build

# Studies in memory beside the one that is encoded: the next one is there although every other one is slow to read.
READ_AHEAD = 2
# Jobs that may wait for the thread that writes, a subject's pictures each at most.
WRITES_WAITING = 8


def build_waiting(build: Build, waiting: Sequence[str]) -> None:
    """Builds the subjects that nobody else builds, and waits for the others; those that fail are in the report.

    Raises:
        BaseException: what is no subject's fault, from whichever thread; all that was finished before is kept.
    """
    start = time.perf_counter()
    with progress_bar() as bar, ExitStack() as claims:
        try:
            with Worker("reader", READ_AHEAD + 1) as reader, Worker("writer", WRITES_WAITING) as writing:
                pipeline = Pipeline(
                    build, BuildBar(bar, build.options.out.name, len(waiting)), waiting, reader, writing
                )
                claims.callback(pipeline.give_back)
                pipeline.run(waiting)
        finally:
            build.report.elapsed += time.perf_counter() - start


class Pipeline:
    """Everything between the two threads."""

    def __init__(self, build: Build, bar: BuildBar, subjects: Sequence[str], reader: Worker, writing: Worker) -> None:
        """Args: subjects: all that `run` is given, for messages."""
        self._build = build
        self._bar = bar
        self._count, self._finished, self._built = len(subjects), 0, 0
        self._missing = set(subjects)
        self._reader = reader
        self._writing = writing
        self._open: list[Work] = []
        self._left: list[str] = []  # that others have in work
        self._line: PictureLine | None = None
        self._started = time.perf_counter()
        self._ended_by: BaseException | None = None  # of the reader, raised when what was read before is finished

    def run(self, waiting: Sequence[str]) -> None:
        """Builds subjects; those of others when these are done, or lost."""
        texts, wait = Texts(self._build, self._bar, self._write), False
        while waiting:
            self._left = []
            closing: deque[Work] = deque()
            for work in texts.of(self._encoded(self._ahead(waiting, wait))):
                closing.append(work)
                while closing and closing[0].written:
                    self._close(closing.popleft())
            for work in closing:
                work.wait_written()
                self._close(work)
            if self._ended_by is not None:
                raise self._ended_by
            # What is left is being built by others: wait for the first of them, and take it over if it was lost.
            waiting, wait = self._left, True

    def give_back(self) -> None:
        """Gives back the claims of all that is not finished."""
        with ExitStack() as every:  # also where giving one back fails, as on a lost mount
            for work in self._open:
                every.push(work.claimed)

    def _ahead(self, subjects: Sequence[str], wait: bool) -> Iterator[Work]:
        """Subjects that are claimed, in order, while the studies of the next ones are read."""
        ahead: deque[Work] = deque()
        for subject in subjects:
            work = self._claimed(subject, wait)
            if work is None:
                continue
            wait = False
            ahead.append(work)
            while ahead and (len(ahead) > READ_AHEAD or not ahead[0].needs.pictures):
                yield ahead.popleft()
        yield from ahead

    def _claimed(self, subject: str, wait: bool) -> Work | None:
        """A subject with its study on its way; None where there is nothing to do, or somebody else does it."""
        build, claimed = self._build, ExitStack()
        try:
            if not claimed.enter_context(build.writer.claim(subject, wait=wait)):
                self._left.append(subject)
                return None
            needs = needs_of(build, subject)
            if needs:
                work = Work(subject, needs, claimed.pop_all())
                self._open.append(work)
                if needs.pictures or needs.headers:
                    work.reading = self._reader.submit(partial(read_pictures, build, subject, needs))
                return work
        except UserError as error:
            if not ends_the_job_only(error):
                raise
            self._leave_out(subject, error)
        finally:
            claimed.close()
        self._bar.end(subject)
        self._missing.discard(subject)
        return None

    def _encoded(self, works: Iterator[Work]) -> Iterator[Work]:
        """Subjects whose pictures the encoder has behind it, one ahead: while that one is encoded, this one is written."""
        pending: deque[Work] = deque()
        for work in works:
            work.begin()
            with work.failing():
                if not self._encode(work):
                    break
            if work.error is not None:
                for embeddings in work.encoding:
                    embeddings.fail(work.error)
            pending.append(work)
            while pending and pending[0].encoded and (len(pending) > 1 or not pending[0].needs.pictures):
                yield pending.popleft()
        self._flush()
        yield from pending

    def _encode(self, work: Work) -> bool:
        """Hands a subject's pictures to the encoder and the thread that writes; False where the reader has ended.

        Raises:
            UserError: its study cannot be read, or is not the one that it was.
        """
        reading, work.reading = work.reading, None
        if reading is None:
            return True
        try:
            pictures = reading.result()
        except BaseException as error:
            if not reading.done() or reading.exception() is not error or ends_the_job_only(error):
                raise
            self._ended_by = error
            return False
        if pictures is None:
            return True
        build, work.count = self._build, pictures.count
        self._bar.know(work)
        if work.needs.slices:
            self._write(work, partial(write_slices, build.writer, build.report, work.subject, pictures))
        if work.needs.embeddings:
            self._through_encoder(
                work, build.layers.embeddings, len(pictures.slices.numbers), self._originals(pictures)
            )
        if work.needs.views and pictures.slices.masks is not None:
            self._views(work, pictures)
        if not work.encoding:
            self._bar.advance(work, 0 if work.needs.instructions else work.count)
        return True

    def _originals(self, pictures: Pictures) -> Iterator[Picture]:
        """The pictures of a study, modality by modality within a slice."""
        slices = pictures.slices
        small = self._build.models.encoder.input_size == slices.images.shape[-1]
        shown = slices.images if small else slices.native_images
        assert shown is not None  # only a study shows more than is stored
        spacing = None if small else slices.grid.slice_spacing[1:]  # a millisecond each time
        for of_slice in shown:
            for pixels in of_slice:
                yield Picture(pixels, spacing)

    def _views(self, work: Work, pictures: Pictures) -> None:
        """The augmented copies of a subject's slices, view by view: the pictures, then their embeddings."""
        build, slices = self._build, pictures.slices
        modalities = build.writer.card.modalities
        small: NDArray[np.uint8] | None = None  # of the view whose pictures were made last
        for layer in work.needs.views:
            view = view_of(layer)
            if layer.startswith("slices"):
                with build.report.timing("views", pictures.count):
                    small, masks = copies_of(build.layers.views, work.subject, view, modalities, slices)
                self._write(work, partial(build.writer.write_view, work.subject, view, small, masks))
                continue
            if view_layer("slices", view) not in work.needs.views:
                small = build.writer.view_images(work.subject, view)
            assert small is not None  # its pictures are made before it or are stored
            size = build.models.encoder.input_size
            made = pictures_of_view(build.layers.views, work.subject, view, modalities, slices, small, size)
            self._through_encoder(work, layer, len(slices.numbers), made)

    def _through_encoder(self, work: Work, layer: str, slices: int, pictures: Iterator[Picture]) -> None:
        """Pictures of a subject into the encoder, what comes out to the thread that writes."""
        build = self._build
        if self._line is None:
            self._line = PictureLine(computing(build.models.encoder, build.options.store), build.report)
        modalities = len(build.writer.card.modalities)
        embeddings = EmbeddingsOfSubject(self._writing, slices, modalities, work.fail, self._line.row_bytes)
        work.encoding.append(embeddings)
        count = slices * modalities
        self._write(
            work,
            partial(
                write_embeddings,
                build.writer,
                build.report,
                layer,
                work.subject,
                embeddings,
                build.options.store,
                count,
            ),
            embeddings.close,
        )
        for picture in pictures:
            if work.error is not None:
                return
            self._line.add(picture, embeddings)
            self._bar.advance(work, 1)

    def _flush(self) -> None:
        if self._line is not None:
            self._line.flush()

    def _write(self, work: Work, job: Callable[[], None], left_out: Callable[[], None] | None = None) -> None:
        """Hands a job to the thread that writes.

        Args:
            left_out: called where the job is not begun.
        """
        if self._writing.is_full:
            self._flush()  # it may be waiting for pictures in a batch that is not full yet
        work.write(self._writing, job, left_out)

    def _close(self, work: Work) -> None:
        """All of a subject is written, or it has failed."""
        self._open.remove(work)
        self._missing.discard(work.subject)
        work.claimed.close()
        self._bar.end(work.subject)
        report = self._build.report
        if work.error is not None:
            self._leave_out(work.subject, work.error)
            return
        report.subjects += 1
        self._finished += 1
        self._built += work.count
        now = time.perf_counter()
        what = ""
        if self._build.options.trained_for is not None:
            what = "of the texts" if self._build.layers.instructions else "of the pictures"
        left = report.time_left(now - self._started, self._built, self._missing, what)
        say(
            f"{work.subject}: {counted(work.count, 'slice-modality')} in {now - work.begun:.0f} s "
            f"({self._finished} of {self._count}){left}"
        )

    def _leave_out(self, subject: str, error: UserError) -> None:
        self._missing.discard(subject)
        self._build.report.failures[subject] = str(error)
        warn(f"{subject} is left out: {error}")
