"""Writing the instructions of one subject: what the language model says of every slice and modality."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.writer import CacheWriter, Instruction
from stage1_instruct.build_report import BuildReport
from stage1_instruct.datasets.study import Dataset
from stage1_instruct.models.load import Models
from stage1_instruct.prompts import question


def write_instructions(
    writer: CacheWriter,
    subject: str,
    numbers: NDArray[np.int32],
    layers: Mapping[str, str],
    models: Models,
    dataset: Dataset,
    seed: int,
    report: BuildReport,
) -> None:
    """One subject's instructions: image tokens and question into the LLM, its answer into the text encoder.

    Zeus, Eqs. 2 and 3. The image is taken as it is stored, so that a variant added later sees what the first one saw.

    Args:
        numbers: int32 (n,), the subject's slices.
        layers: kind -> name of the layers of this build; `embeddings` and `instructions` are used.
        seed: of sampled instructions.
    """
    if models.profile.sees_pictures:
        shown: Tensor = torch.from_numpy(writer.slices(subject).images)
    else:
        shown = torch.from_numpy(writer.embeddings(layers["embeddings"], subject))
    keys = [(int(number), modality) for number in numbers for modality in dataset.modalities]
    questions = [question(dataset.instance, dataset.terms[modality]) for _, modality in keys]
    sampled = models.profile.temperature > 0
    seeds = [_seed(seed, subject, number, modality) if sampled else 0 for number, modality in keys]
    with report.timing("LLM", len(keys)):
        answers = models.instruct(questions, shown.flatten(0, 1), seeds)
    with report.timing("text encoder", len(keys)):
        texts = models.text_encoder.encode([answer.text for answer in answers])
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
        writer.write_instructions(layers["instructions"], subject, shaped, rows, states)


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
