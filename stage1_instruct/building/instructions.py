"""The instructions of one subject: what the instructor says of every slice and modality, and its embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.writer import CacheWriter, Instruction
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.models.language.llm import Generation
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.text.bert import encode_distinct
from zeus_union.stage1_instruct.profiles.profile import Sees
from zeus_union.stage1_instruct.seeds import slice_seed

Timing = Callable[[str, int], AbstractContextManager[None]]  # part of the work, its slice-modalities

EMBEDDINGS_AT_ONCE = 128  # slice-modalities before the instructor: 512 MiB as float32


@dataclass(frozen=True, eq=False)
class SubjectImages:
    """A subject, or some of its slices, as the instructor sees it.

    Attributes:
        subject: its name.
        numbers: int32 (n,), its slices.
        images: (n, M, ...) of what the instructor sees; None where it sees nothing.
    """

    subject: str
    numbers: NDArray[np.int32]
    images: Tensor | None


@dataclass(frozen=True, eq=False)
class SubjectInstructions:
    """The instructions of a subject.

    Attributes:
        rows: n * M texts, modality by modality within a slice.
        embeddings: float32 (n, M, D), the encoded texts.
        states: fp16 (n, M, L, H), the LLM's last layer at every generated token, zeros after the last; None where they
            are not kept.
        cut: how many of the texts are longer than what the text encoder reads of them.
    """

    rows: list[Instruction]
    embeddings: NDArray[np.float32]
    states: NDArray[np.float16] | None
    cut: int = 0


def stored_images(writer: CacheWriter, subject: str, embeddings: str, sees: Sees) -> Iterator[SubjectImages]:
    """What the instructor sees of a subject, as it is stored, so that a later variant sees what the first one saw.

    In pieces of slices, as the embeddings of a whole subject may not fit into memory (155 slices of four modalities:
    2.6 GB).

    Args:
        embeddings: name of that layer.
    """
    slices = writer.slices(subject)
    if sees != "embeddings":
        images = torch.from_numpy(slices.images) if sees == "pictures" else None
        yield SubjectImages(subject, slices.numbers, images)
        return
    at_once = max(1, EMBEDDINGS_AT_ONCE // slices.images.shape[1])
    for first in range(0, len(slices.numbers), at_once):
        piece = slice(first, first + at_once)
        images = torch.from_numpy(writer.embeddings(embeddings, subject, piece))
        yield SubjectImages(subject, slices.numbers[piece], images)


def joined(pieces: Iterable[SubjectInstructions]) -> SubjectInstructions:
    """The instructions of a subject from those of its pieces, in order."""
    parts = list(pieces)
    states = [part.states for part in parts if part.states is not None]
    return SubjectInstructions(
        [row for part in parts for row in part.rows],
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate(states) if states else None,
        sum(part.cut for part in parts),
    )


def _untimed(part: str, slice_modalities: int) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked about a subject, or some of its slices, modality by modality within a slice.

    Attributes:
        keys: (slice number, modality) of each.
        texts: as they are asked.
        seeds: of sampled answers; None where none is sampled.
    """

    keys: list[tuple[int, str]]
    texts: list[str]
    seeds: list[int] | None


def ask(subject: str, numbers: NDArray[np.int32], card: DatasetCard, samples: bool, seed: int) -> Questions:
    """The questions about a subject's slices (Zeus, Eq. 2).

    Args:
        card: its `instance` is what the questions ask to segment.
        samples: whether the answers depend on a seed.
    """
    keys = [(int(number), modality) for number in numbers for modality in card.modalities]
    texts = [question(card.instance, card.terms[modality]) for _, modality in keys]
    return Questions(keys, texts, [slice_seed(seed, subject, *key) for key in keys] if samples else None)


def answer(
    seen: SubjectImages, card: DatasetCard, models: Models, seed: int = 0, timing: Timing = _untimed
) -> SubjectInstructions:
    """Image and question to the instructor, its answer into the text encoder (Zeus, Eqs. 2 and 3).

    Args:
        card: its `instance` is what the questions ask to segment.
        seed: of sampled instructions.
        timing: around the work of each model.
    """
    instructor = models.instructor
    asked = ask(seen.subject, seen.numbers, card, instructor.samples, seed)
    if seen.images is None:
        generations = instructor.answer(asked.texts, None, asked.seeds)
    else:
        with timing("LLM", len(asked.keys)):
            generations = instructor.answer(asked.texts, seen.images.flatten(0, 1), asked.seeds)
    return encode_answers(asked, generations, card, models, timing)


def encode_answers(
    asked: Questions, generations: Sequence[Generation], card: DatasetCard, models: Models, timing: Timing = _untimed
) -> SubjectInstructions:
    """The answers through the text encoder (Zeus, Eq. 3)."""
    with timing("text encoder", len(asked.keys)):
        texts = [generation.text for generation in generations]
        vectors = encode_distinct(models.text_encoder, texts)
        cut = sum(dropped > 0 for dropped in models.text_encoder.dropped(texts))
    rows = [
        Instruction(
            slice_number=number,
            modality=modality,
            prompt=models.instructor.prompt(row_question),
            text=generation.text,
            prompt_tokens=generation.prompt_tokens,
            output_tokens=generation.output_tokens,
            stop_reason=generation.stop_reason,
            seed=row_seed,
        )
        for (number, modality), row_question, generation, row_seed in zip(
            asked.keys, asked.texts, generations, asked.seeds or repeat(None)
        )
    ]
    shape = (len(asked.keys) // len(card.modalities), len(card.modalities))
    states = None
    if models.profile.keep_states:
        states = _stack_states([generation.states for generation in generations], models.max_new_tokens)
        states = states.reshape(*shape, *states.shape[1:])
    return SubjectInstructions(rows, np.asarray(vectors, dtype=np.float32).reshape(*shape, -1), states, cut)


def _stack_states(states: Sequence[Tensor | None], length: int) -> NDArray[np.float16]:
    """(L_i, H) each -> (rows, length, H), zeros behind."""
    present = [state for state in states if state is not None]
    stacked = np.zeros((len(present), length, present[0].shape[1]), np.float16)
    for row, state in zip(stacked, present):
        row[: len(state)] = state.numpy()
    return stacked
