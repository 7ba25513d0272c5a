"""Subjects of a cache as a page shows them: slices with the truth, a run's prediction, and what it was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.page.slices import MOST_SLICES, Said, Sentence, SliceView, SubjectView
from zeus_union.cache.page.telling import telling_rows
from zeus_union.cache.reader import Cache
from zeus_union.cache.text_statistics import CUT
from zeus_union.stage2_segment.checkpoint import read_table
from zeus_union.stage2_segment.evaluation.metrics import dsc, is_defined, overlap_counts
from zeus_union.stage2_segment.inputs.layers import layer_read
from zeus_union.stage2_segment.trained import TrainedRun

Where = tuple[str, int, str]  # subject, slice, modality


def subject_view(
    trained: TrainedRun,
    cache: Cache,
    subject: str,
    role: str = "",
    note: str = "",
    probed: Mapping[Where, Mapping[str, float]] | None = None,
    compared: tuple[str, TrainedRun] | None = None,
) -> SubjectView:
    """A subject's most telling slices, as many as a page takes, with the masks of a run.

    Args:
        compared: another run whose masks stand beside, and what it is called.
        probed: sentence -> how much of the mask it moves, where `zeus-segment probe --sentences` measured it.
    """
    every = cache.rows_of([subject])
    rows = telling_rows(cache, every, MOST_SLICES)
    modalities = tuple(name for name in cache.modalities if name in trained.config.inputs.modalities)
    images = cache.images(rows)[:, [cache.modalities.index(name) for name in modalities]]
    truth = cache.masks(rows) if cache.rows["labelled"][rows].all() else None
    predicted = trained.predict(cache, rows)
    others = compared[1].predict(cache, rows) if compared else None
    said = texts_of(trained, cache, subject, probed or {})
    return SubjectView(
        name=subject,
        role=role,
        note=note,
        modalities=modalities,
        classes=trained.config.inputs.classes,
        slices=tuple(
            SliceView(
                number=(number := int(cache.rows["number"][row])),
                images=images[index],
                truth=None if truth is None else truth[index],
                prediction=predicted[index],
                compared=None if others is None else others[index],
                scores={}
                if truth is None
                else slice_scores(predicted[index], truth[index], trained.config.inputs.classes),
                said=said.get(number, ()),
            )
            for index, row in enumerate(rows)
        ),
        grid=cache.grid(subject),
        left_out=len(every) - len(rows),
        compared=compared[0] if compared else "",
    )


def slice_scores(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: Sequence[str]) -> dict[str, float]:
    """Class -> DSC of one slice, of the classes that truth or prediction shows."""
    scores = dsc(overlap_counts(predicted, truth, len(classes)))[1:]
    return {name: float(score) for name, score in zip(classes, scores) if is_defined(score)}


def texts_of(
    trained: TrainedRun, cache: Cache, subject: str, probed: Mapping[Where, Mapping[str, float]]
) -> dict[int, tuple[Said, ...]]:
    """Slice number -> the instructions that the run read of it, in the order of its modalities."""
    config = trained.config
    several = len(config.inputs.texts_read) > 1
    said: dict[int, list[Said]] = {}
    for index, variant in enumerate(config.inputs.texts_read):
        table = cache.instructions(layer_read(config, cache, variant))
        rows = [row for row in table.to_pylist() if row["subject"] == subject]
        rows = [row for row in rows if row["modality"] in config.inputs.modalities]
        for row in sorted(rows, key=lambda row: (row["slice"], config.inputs.modalities.index(row["modality"]))):
            of = f"{row['modality']}, {config.inputs.classes[index]}" if several else row["modality"]
            weights = probed.get((subject, row["slice"], row["modality"]), {})
            text = Said(of, marked(row["text"], weights), row["stop_reason"] == CUT)
            said.setdefault(row["slice"], []).append(text)
    return {number: tuple(texts) for number, texts in said.items()}


def marked(text: str, weights: Mapping[str, float]) -> tuple[Sentence, ...]:
    """A text in parts: sentences that were probed with how much they move, what is between them without."""
    parts: list[Sentence] = []
    position = 0
    at = sorted((start, sentence) for sentence in weights if sentence and (start := text.find(sentence)) >= 0)
    for start, sentence in at:
        if start < position:
            continue
        if between := text[position:start].strip():
            parts.append(Sentence(between))
        parts.append(Sentence(sentence, weights[sentence]))
        position = start + len(sentence)
    if rest := text[position:].strip():
        parts.append(Sentence(rest))
    return tuple(parts)


def read_probed(path: Path) -> dict[Where, dict[str, float]]:
    """What `probe_sentences` wrote: subject, slice, modality -> sentence -> share of the mask it moves; empty without it."""
    probed: dict[Where, dict[str, float]] = {}
    for line in read_table(path):
        if is_defined(line["changed"]):
            where = line["subject"], line["slice"], line["modality"]
            probed.setdefault(where, {})[line["text"]] = line["changed"]
    return probed
