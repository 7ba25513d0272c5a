"""Writing the instructions of one subject: what the instructor says of every slice and modality."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.writer import CacheWriter, Instruction
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.models.language.llm import Generation
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.text.bert import encode_distinct
from zeus_union.stage1_instruct.profiles.profile import PROMPT
from zeus_union.stage1_instruct.studies.study import Dataset


def stored_images(writer: CacheWriter, subject: str, embeddings: str, models: Models) -> Tensor | None:
    """What the instructor sees of a subject: (n, M, ...) as for `Models.features`; None where it sees nothing.

    The image is taken as it is stored, so that a variant added later sees what the first one saw.

    Args:
        embeddings: name of that layer.
    """
    if models.profile.sees_pictures:
        return torch.from_numpy(writer.slices(subject).images)
    if models.profile.sees_embeddings:
        return torch.from_numpy(writer.embeddings(embeddings, subject))
    return None


def write_instructions(
    writer: CacheWriter,
    layer: str,
    subject: str,
    numbers: NDArray[np.int32],
    images: Tensor | None,
    models: Models,
    dataset: Dataset,
    seed: int,
    report: BuildReport,
) -> None:
    """One subject's instructions: image tokens and question into the LLM, its answer into the text encoder.

    Zeus, Eqs. 2 and 3. Without images no model is asked: the text is the question.

    Args:
        numbers: int32 (n,), the subject's slices.
        images: `stored_images`.
        dataset: its `instance` is what the question asks to segment.
        seed: of sampled instructions.
    """
    keys = [(int(number), modality) for number in numbers for modality in dataset.modalities]
    questions = [question(dataset.instance, dataset.terms[modality]) for _, modality in keys]
    sampled = models.profile.samples
    seeds = [_seed(seed, subject, number, modality) if sampled else 0 for number, modality in keys]
    if images is None:
        answers = [Generation(asked, prompt_tokens=0, output_tokens=0, stop_reason=PROMPT) for asked in questions]
    else:
        with report.timing("LLM", len(keys)):
            answers = models.instruct(questions, images.flatten(0, 1), seeds)
    with report.timing("text encoder", len(keys)):
        texts = encode_distinct(models.text_encoder, [answer.text for answer in answers])
    rows = [
        Instruction(
            slice_number=number,
            modality=modality,
            prompt=models.prompt(asked),
            text=answer.text,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            stop_reason=answer.stop_reason,
            seed=own_seed,
        )
        for (number, modality), asked, answer, own_seed in zip(keys, questions, answers, seeds)
    ]
    report.empty += sum(not answer.text for answer in answers)
    report.endless += sum(answer.stop_reason == "length" for answer in answers)
    shape = (len(numbers), len(dataset.modalities))
    states = None
    if models.profile.keep_states:
        states = _stack_states([answer.states for answer in answers], models.profile.max_new_tokens)
        states = states.reshape(*shape, *states.shape[1:])
    with report.timing("writing instructions", len(keys)):
        shaped = np.asarray(texts, dtype=np.float32).reshape(*shape, -1)
        writer.write_instructions(layer, subject, shaped, rows, states)


def _seed(seed: int, subject: str, number: int, modality: str) -> int:
    """A seed of its own for every instruction (63 bits): batches, order and resuming never change what is sampled."""
    digest = hashlib.sha256(f"{seed}:{subject}:{number}:{modality}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _stack_states(states: Sequence[Tensor | None], length: int) -> NDArray[np.float16]:
    """(L_i, H) each -> (rows, length, H), zeros behind."""
    present = [state for state in states if state is not None]
    stacked = np.zeros((len(present), length, present[0].shape[1]), np.float16)
    for row, state in zip(stacked, present):
        row[: len(state)] = state.numpy()
    return stacked
