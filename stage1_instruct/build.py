"""Stage 1's loop: study -> slices -> embeddings -> instructions -> cache, one subject at a time."""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.layout import DatasetCard
from cache.recipe import fingerprint, sha256_file
from cache.terminal import progress_bar, say
from cache.writer import CacheWriter, Instruction, SubjectSlices
from stage1_instruct import slices as slicing
from stage1_instruct.datasets.study import Dataset, Study
from stage1_instruct.models.load import Models
from stage1_instruct.prompts import question

LAYERS = ("slices", "embeddings", "instructions")


@dataclass
class BuildReport:
    """What a build cost and brought, in this process.

    Attributes:
        seconds: by part.
        done: slice-modalities by part.
        subjects: finished.
        empty: instructions without a word.
        endless: instructions that were cut at max_new_tokens.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    subjects: int = 0
    empty: int = 0
    endless: int = 0

    @contextmanager
    def timing(self, part: str, slice_modalities: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start
        self.done[part] += slice_modalities

    def per_slice_modality(self) -> dict[str, float]:
        """part -> seconds a slice-modality."""
        return {part: self.seconds[part] / self.done[part] for part in self.seconds if self.done[part]}

    @staticmethod
    def peak_memory_bytes() -> int:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class BuildOptions:
    """How a cache is built.

    Attributes:
        out: the cache's path.
        layers: which of slices, embeddings, instructions.
        variant: name of the instruction layer.
        store: 'uint8' or 'fp16' embeddings.
        slice_step: every n-th slice of a volume.
        batch_size: slice-modalities at a time through the encoder, None: as many as fit; not part of the recipe.
        pack: one file (True), shards (False), or by size (None).
        seed: of sampled instructions; greedy ones do not depend on it.
    """

    out: Path
    layers: tuple[str, ...] = LAYERS
    variant: str = "lite"
    store: str = "uint8"
    slice_step: int = 1
    batch_size: int | None = None
    pack: bool | None = None
    seed: int = 0


def build_cache(dataset: Dataset, models: Models, options: BuildOptions) -> BuildReport:
    """Writes every wanted layer of every subject; subjects that are finished are left as they are.

    Any number of processes may run this at once for one cache (accelerate launch, or the same command on several
    machines with a common disk): each takes the next subject that nobody has taken, and whoever is last finishes the
    cache. None waits for another at a barrier, so the loss of one costs the subject it had in work and no more.

    Raises:
        UserError: unreadable data, or a layer of that name made from another recipe.
    """
    card = DatasetCard(
        name=dataset.name,
        modalities=dataset.modalities,
        terms=dict(dataset.terms),
        classes=dataset.classes,
        instance=dataset.instance,
        subjects=dataset.subjects,
        slice_step=options.slice_step,
    )
    writer = CacheWriter(options.out, card)
    layers = _begin_layers(writer, dataset, models, options)
    report = BuildReport()

    def finished(subject: str) -> bool:
        return all(writer.finished(layer, subject) for layer in layers.values())

    waiting = [subject for subject in dataset.subjects if not finished(subject)]
    if len(waiting) < len(dataset.subjects):
        say(f"{len(dataset.subjects) - len(waiting)} of {len(dataset.subjects)} subjects are finished already")
    begun = len(waiting)
    with progress_bar() as bar:
        task = bar.add_task(options.out.name, total=begun)
        patient = False
        while waiting:
            left = []
            for subject in waiting:
                with writer.claim(subject, wait=patient) as ours:
                    if not ours:
                        left.append(subject)
                        continue
                    patient = False
                    if not finished(subject):
                        start = time.perf_counter()
                        count = _build_subject(writer, dataset.load(subject), layers, models, dataset, options, report)
                        seconds = time.perf_counter() - start
                        report.subjects += 1
                        say(f"{subject}: {count} slice-modalities in {seconds:.0f} s ({report.subjects} of {begun})")
                    bar.advance(task)
            # What is left is being built by others: wait for the first of them, and take it over if it was lost.
            waiting, patient = left, True
    with writer.claim("finish", wait=True):
        writer.finalize(options.pack)
    return report


def _begin_layers(writer: CacheWriter, dataset: Dataset, models: Models, options: BuildOptions) -> dict[str, str]:
    """Opens the wanted layers under their recipes; kind -> layer name."""
    names: dict[str, str] = {}
    slices_recipe = {
        "preprocessing": slicing.recipe(),
        "slice_step": options.slice_step,
        "dataset": {"name": dataset.name, "modalities": list(dataset.modalities), **dataset.facts},
    }
    names["slices"] = "slices"
    writer.begin_layer("slices", slices_recipe)
    if "embeddings" in options.layers:
        names["embeddings"] = f"embeddings/{models.encoder.name}"
        embeddings_recipe = {
            "slices": fingerprint(slices_recipe),
            "encoder": models.encoder.recipe(),
            "store": options.store,
        }
        writer.begin_layer(names["embeddings"], embeddings_recipe, constants=models.encoder.constants())
    if "instructions" in options.layers:
        names["instructions"] = f"instructions/{options.variant}"
        seen = "slices" if models.profile.sees_pictures else "embeddings"
        recipe = {
            seen: fingerprint(slices_recipe if models.profile.sees_pictures else embeddings_recipe),
            "terms": dict(dataset.terms),
            "instance": dataset.instance,
            **models.instruction_recipe(),
        }
        if models.profile.temperature:
            recipe["seed"] = options.seed
        writer.begin_layer(names["instructions"], recipe)
    return names


def _build_subject(
    writer: CacheWriter,
    study: Study,
    layers: dict[str, str],
    models: Models,
    dataset: Dataset,
    options: BuildOptions,
    report: BuildReport,
) -> int:
    """All missing layers of one subject; returns its number of slice-modalities."""
    subject = study.subject
    _say_agreement(study)
    sources = {name: sha256_file(path) for name, path in sorted(study.sources.items())}
    pictures = slicing.study_to_slices(study, step=options.slice_step)
    count = pictures.images.shape[0] * pictures.images.shape[1]
    if writer.finished("slices", subject):
        writer.check_sources(subject, sources)
    else:
        with report.timing("writing slices", count):
            writer.write_slices(
                subject,
                SubjectSlices(
                    grid=study.grid,
                    numbers=pictures.numbers,
                    images=pictures.images,
                    masks=pictures.masks,
                    modality_masks=pictures.modality_masks,
                    native_masks=pictures.native_masks,
                    sources=sources,
                ),
            )
    if "embeddings" in layers and not writer.finished(layers["embeddings"], subject):
        size = models.encoder.input_size
        images = pictures.images if size == pictures.images.shape[-1] else pictures.images_at(size)
        with report.timing("image encoder", count):
            embeddings = _encode(models, images, options.batch_size)
        with report.timing("writing embeddings", count):
            writer.write_embeddings(layers["embeddings"], subject, embeddings, store=options.store)
        del embeddings
    if "instructions" in layers and not writer.finished(layers["instructions"], subject):
        _write_instructions(writer, subject, pictures.numbers, layers, models, dataset, options, report)
    return count


def _say_agreement(study: Study) -> None:
    """Says how well modalities that were labelled on their own agree with the target after resampling (DSC)."""
    if study.labels is None:
        return
    for modality, labels in study.modality_labels.items():
        present = (study.labels > 0) & (labels > 0)
        total = int((study.labels > 0).sum() + (labels > 0).sum())
        if total and not np.array_equal(study.labels, labels):
            dice = 2 * int((present & (study.labels == labels)).sum()) / total
            say(f"{study.subject}: labels of {modality}, resampled, agree with the target's with DSC {dice:.3f}")


def _encode(models: Models, images: NDArray[np.uint8], batch_size: int | None) -> NDArray[np.float32]:
    """(n, M, size, size) -> (n, M, 256, 64, 64)."""
    n, modalities = images.shape[:2]
    flat = images.reshape(n * modalities, *images.shape[2:])
    parts = [models.encoder.encode(batch) for batch in _batches(flat, batch_size or len(flat))]
    stacked = torch.cat(parts).numpy()
    return stacked.reshape(n, modalities, *stacked.shape[1:])


def _write_instructions(
    writer: CacheWriter,
    subject: str,
    numbers: NDArray[np.int32],
    layers: dict[str, str],
    models: Models,
    dataset: Dataset,
    options: BuildOptions,
    report: BuildReport,
) -> None:
    """The image's tokens and the question go into the LLM, its answer into the text encoder (Zeus, Eqs. 2 and 3).

    The image is taken as it is stored, so that a variant added later sees what the first one saw.
    """
    if models.profile.sees_pictures:
        shown: Tensor = torch.from_numpy(writer.slices(subject).images)
    else:
        shown = torch.from_numpy(writer.embeddings(layers["embeddings"], subject))
    keys = [(int(number), modality) for number in numbers for modality in dataset.modalities]
    questions = [question(dataset.instance, dataset.terms[modality]) for _, modality in keys]
    sampled = models.profile.temperature > 0
    seeds = [_seed(options.seed, subject, number, modality) if sampled else 0 for number, modality in keys]
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
            seed=seed,
        )
        for (number, modality), asked, answer, seed in zip(keys, questions, answers, seeds)
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


def _batches(items: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def parse_layers(names: Sequence[str]) -> tuple[str, ...]:
    """The layers to build, with those they stand on."""
    last = max(LAYERS.index(name) for name in names)
    return LAYERS[: last + 1]
