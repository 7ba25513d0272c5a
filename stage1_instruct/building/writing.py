"""What is written of a subject, as jobs of the writer thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

from zeus_union.cache.rows import SubjectSlices, pictures_as
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.encoding import EmbeddingsOfSubject
from zeus_union.stage1_instruct.building.instructions import SubjectInstructions
from zeus_union.stage1_instruct.building.reading import Pictures
from zeus_union.stage1_instruct.building.report import BuildReport

T = TypeVar("T")


def write_slices(writer: CacheWriter, report: BuildReport, subject: str, pictures: Pictures) -> None:
    with report.timing("writing slices", pictures.count):
        writer.write_slices(subject, pictures_as(SubjectSlices, pictures.slices, sources=pictures.sources))


def write_embeddings(
    writer: CacheWriter,
    report: BuildReport,
    layer: str,
    subject: str,
    embeddings: EmbeddingsOfSubject,
    store: str,
    count: int,
) -> None:
    """Writes a subject's embeddings as the encoder gives them."""
    waited = 0.0

    def waiting(pieces: Iterator[T]) -> Iterator[T]:
        nonlocal waited
        while True:
            start = time.perf_counter()
            piece = next(pieces, None)
            waited += time.perf_counter() - start
            if piece is None:
                return
            yield piece

    start = time.perf_counter()
    try:
        writer.write_embeddings(layer, subject, waiting(embeddings.pieces()), store=store)
    finally:
        embeddings.close()
    report.add("writing embeddings", time.perf_counter() - start - waited, count)


def write_instructions(
    writer: CacheWriter, report: BuildReport, layer: str, subject: str, written: SubjectInstructions
) -> None:
    with report.timing("writing instructions", len(written.rows)):
        writer.write_instructions(layer, subject, written.embeddings, written.rows, written.states)
