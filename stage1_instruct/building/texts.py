"""The instructions of all subjects, whose questions fill a language model's slots one subject after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from zeus_union.cache.layout import DatasetCard
from zeus_union.stage1_instruct.building.instructions import (
    Questions,
    SubjectImages,
    SubjectInstructions,
    answer,
    ask,
    encode_answers,
    joined,
    stored_images,
)
from zeus_union.stage1_instruct.building.work import BuildBar, Work
from zeus_union.stage1_instruct.building.writing import write_instructions
from zeus_union.stage1_instruct.models.language.llm import Asked, Generation
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.projected_llm import ProjectedLLM

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.building.job import Build

Write = Callable[[Work, Callable[[], None]], None]


class Texts:
    """Writes the missing instructions of subjects whose pictures are on their way into the cache."""

    def __init__(self, build: Build, bar: BuildBar, write: Write) -> None:
        """Args: write: hands a job of a subject to the thread that writes."""
        self._build = build
        self._bar = bar
        self._write = write

    def of(self, works: Iterator[Work]) -> Iterator[Work]:
        """Each subject when all of it is handed to the thread that writes; one that has failed at once."""
        instructor = self._build.models.instructor if self._build.layers.instructions else None
        if isinstance(instructor, ProjectedLLM) and instructor.streams:
            yield from _Stream(self._build, self, instructor, works).finished()
            return
        for work in works:
            with work.failing():
                for layer in self.begin(work):
                    self.write(work, layer, joined(self._answered(work, layer)))
            yield work

    def _answered(self, work: Work, layer: str) -> Iterator[SubjectInstructions]:
        """Piece by piece: for whoever has no slots to fill."""
        build = self._build
        for seen in self.seen(work):
            piece = answer(seen, self.card(layer), build.models, build.options.seed, build.report.timing)
            self._bar.advance(work, len(piece.rows))
            yield piece

    def begin(self, work: Work) -> tuple[str, ...]:
        """The layers of texts to write, once what they are made from is in the cache.

        Raises:
            UserError: what is in the cache cannot be read.
        """
        if work.needs.instructions:
            work.wait_written()
        if work.error is not None:
            return ()
        if work.needs.instructions and not work.count:
            writer = self._build.writer
            work.count = len(writer.slices(work.subject).numbers) * len(writer.card.modalities)
            self._bar.know(work)
        return work.needs.instructions

    def seen(self, work: Work) -> Iterator[SubjectImages]:
        """What the instructor sees of a subject, through the projection that is the subject's."""
        build = self._build
        if build.projection is not None:
            build.models.projected_llm.use_projection(build.projection.of(work.subject))
        return stored_images(build.writer, work.subject, build.layers.embeddings, build.models.instructor.sees)

    def card(self, layer: str) -> DatasetCard:
        """The data set's, with what the questions of a layer ask to segment."""
        return replace(self._build.dataset.card, instance=self._build.layers.instructions[layer])

    def advance(self, work: Work) -> None:
        """One answer more."""
        self._bar.advance(work, 1)

    def write(self, work: Work, layer: str, written: SubjectInstructions) -> None:
        build = self._build
        build.report.cut_by_encoder += written.cut
        self._write(work, partial(write_instructions, build.writer, build.report, layer, work.subject, written))


@dataclass(eq=False)
class _Layer:
    """The texts of a subject in one layer.

    Attributes:
        pieces: the answered ones, by their number.
        count: of all pieces; None: not all are asked yet.
    """

    work: Work
    name: str
    card: DatasetCard
    pieces: dict[int, SubjectInstructions] = field(default_factory=dict)
    count: int | None = None

    @property
    def complete(self) -> bool:
        return len(self.pieces) == self.count


@dataclass(eq=False)
class _Piece:
    """Some slices of a subject, whose answers come in any order."""

    layer: _Layer
    number: int
    questions: Questions
    answers: dict[int, Generation] = field(default_factory=dict)


class _Stream:
    """Questions of subject after subject into one language model's slots, and the answers back to their subjects.

    The text encoder gets the answers of a piece together, as they were asked: what it gives may depend in the last bit on
    what it is given together.
    """

    def __init__(self, build: Build, texts: Texts, instructor: ProjectedLLM, works: Iterator[Work]) -> None:
        self._build = build
        self._texts = texts
        self._instructor = instructor
        self._works = works
        self._elsewhere = 0.0  # seconds of the stream that were no work of the language model
        self._layers_left: dict[Work, int] = {}
        self._finished: list[Work] = []

    def finished(self) -> Iterator[Work]:
        """Each subject when all of its texts are handed to the thread that writes."""
        card, report = self._build.dataset.card, self._build.report
        questions = {
            question(instance, card.terms[modality])
            for instance in self._build.layers.instructions.values()
            for modality in card.modalities
        }
        answers = self._instructor.stream(self._asked(), questions)
        while True:
            start, elsewhere = time.perf_counter(), self._elsewhere
            key, generation = next(answers, (None, None))
            report.add("LLM", time.perf_counter() - start - (self._elsewhere - elsewhere), generation is not None)
            if generation is not None:
                self._take(key, generation)
            finished, self._finished = self._finished, []
            yield from finished
            if generation is None:
                assert not self._layers_left, "questions without an answer"
                return

    def _asked(self) -> Iterator[Asked]:
        """The next question, whenever a slot is free."""
        while True:
            start = time.perf_counter()
            work = next(self._works, None)
            layers: tuple[str, ...] = ()
            if work is not None:
                with work.failing():
                    layers = self._texts.begin(work)
            self._elsewhere += time.perf_counter() - start
            if work is None:
                return
            if not layers:
                self._finished.append(work)
                continue
            self._layers_left[work] = len(layers)
            with work.failing():
                for name in layers:
                    yield from self._asked_of(_Layer(work, name, self._texts.card(name)))
            if work.error is not None:
                self._end(work)

    def _asked_of(self, layer: _Layer) -> Iterator[Asked]:
        build, work = self._build, layer.work
        number = 0
        for number, seen in enumerate(self._texts.seen(work), 1):
            assert seen.images is not None
            questions = ask(work.subject, seen.numbers, layer.card, self._instructor.samples, build.options.seed)
            image_tokens = self._instructor.image_tokens(seen.images.flatten(0, 1))
            piece = _Piece(layer, number, questions)
            for at, text in enumerate(questions.texts):
                yield Asked((piece, at), text, image_tokens[at], questions.seeds[at] if questions.seeds else 0)
        layer.count = number
        self._write_complete(layer)

    def _take(self, key: Hashable, generation: Generation) -> None:
        """An answer to its subject."""
        piece, at = cast("tuple[_Piece, int]", key)
        layer, work = piece.layer, piece.layer.work
        self._texts.advance(work)
        piece.answers[at] = generation
        if work.error is not None or len(piece.answers) < len(piece.questions.texts):
            return
        build = self._build
        in_order = [piece.answers[at] for at in range(len(piece.answers))]
        with work.failing():
            layer.pieces[piece.number] = encode_answers(
                piece.questions, in_order, layer.card, build.models, build.report.timing
            )
            self._write_complete(layer)
        if work.error is not None:
            self._end(work)

    def _write_complete(self, layer: _Layer) -> None:
        if layer.complete:
            self._texts.write(layer.work, layer.name, joined(layer.pieces[at] for at in sorted(layer.pieces)))
            self._layers_left[layer.work] -= 1
            if not self._layers_left[layer.work]:
                self._end(layer.work)

    def _end(self, work: Work) -> None:
        """Nothing more of it comes from here."""
        if self._layers_left.pop(work, None) is not None:
            self._finished.append(work)
