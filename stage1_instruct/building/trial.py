"""What a slice-modality costs in every part of a build, on this device: a few slices of a real study through all of it.

The parts are those that the build itself runs, one after the other, so their sum is what it takes where nothing overlaps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zeus_union.cache.devices import synchronise
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices
from zeus_union.stage1_instruct.building.cached import first_pictures
from zeus_union.stage1_instruct.building.job import BuildOptions
from zeus_union.stage1_instruct.building.trained import too_large_to_try
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.text.bert import encode_distinct
from zeus_union.stage1_instruct.profiles.profile import SERVER
from zeus_union.stage1_instruct.projection.fold import RECIPE, training_minutes
from zeus_union.stage1_instruct.studies.check import load_study
from zeus_union.stage1_instruct.studies.intensity import windows_of
from zeus_union.stage1_instruct.studies.slices import Slices, study_to_slices
from zeus_union.stage1_instruct.studies.study import Dataset

READING, ENCODER, LLM, TEXT, WRITING, VIEWS = (
    "reading, slicing", "image encoder", "LLM", "text encoder", "writing", "views' pictures"
)  # fmt: skip
QUICK = 5.0  # seconds: a first pass that takes longer is not repeated
ROWS_ON_CPU, ROWS_ON_GPU = 16, 64  # of the language model: a batch of it
CAPTION = "The liver is bright. The spleen is dark. " * 4  # as long as those that a projection learns from


@dataclass
class Trial:
    """What was measured.

    Attributes:
        seconds: part -> of a slice-modality.
        training_minutes: of the projections of one split; 0 where none is trained.
        not_measured: part -> why.
        subject: whose slices these were.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    training_minutes: float = 0.0
    not_measured: dict[str, str] = field(default_factory=dict)
    subject: str = ""


def measure_parts(dataset: Dataset, models: Models, options: BuildOptions, trains: bool, folder: Path) -> Trial:
    """Times every part on slices of the first study that can be read; sends nothing to a server.

    Args:
        trains: whether the build trains a projection.
        folder: on the disk that the cache will be on; a folder of its own is made there and removed.

    Raises:
        UserError: no study can be read; a model that cannot be loaded.
    """
    trial = Trial()
    pictures = _read(trial, dataset, options)
    embeddings = _encode(trial, models, pictures) if "embeddings" in options.layers else None
    texts: list[Instruction] = []
    if "instructions" in options.layers and embeddings is not None:
        texts = _instruct(trial, dataset.card, models, pictures, embeddings, trains)
    if options.views and pictures.masks is not None:
        _augment(trial, pictures, dataset.card.modalities)
    _write(trial, dataset.card, pictures, embeddings, texts, options.store, folder)
    return trial


@contextmanager
def _timed(trial: Trial, part: str, slice_modalities: int, models: Models | None = None) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if models is not None:
        synchronise(models.device)
    trial.seconds[part] = trial.seconds.get(part, 0.0) + (time.perf_counter() - start) / slice_modalities


def _read(trial: Trial, dataset: Dataset, options: BuildOptions) -> Slices:
    windows = windows_of(dataset.card.terms, options.windows)
    failure: UserError | None = None
    if dataset.cached_recipe:
        start = time.perf_counter()
        trial.subject, pictures = first_pictures(options.out)
        trial.seconds[READING] = (time.perf_counter() - start) / (len(pictures.numbers) * len(dataset.card.modalities))
        return pictures
    for subject in dataset.card.subjects:
        start = time.perf_counter()
        try:
            study = load_study(dataset, subject)
            pictures = study_to_slices(study, step=options.slice_step, view=options.view, windows=windows)
        except UserError as error:
            failure = failure or error
            continue
        trial.seconds[READING] = (time.perf_counter() - start) / (len(pictures.numbers) * len(dataset.card.modalities))
        trial.subject = subject
        return pictures
    assert failure is not None  # a data set has a subject
    raise failure


def _encode(trial: Trial, models: Models, pictures: Slices) -> NDArray[np.float32]:
    """float32 (k, M, 256, 64, 64) of some slices in the middle; timed with the resizing before it."""
    count, modalities = pictures.images.shape[:2]
    encoder = models.encoder
    at_once = encoder.at_once or 1
    taken = min(count, max(1, at_once // modalities))
    piece = slice((count - taken) // 2, (count - taken) // 2 + taken)
    for _ in range(2):  # the first pass is slower
        trial.seconds.pop(ENCODER, None)
        with _timed(trial, ENCODER, taken * modalities, models):
            images = pictures.images_at(encoder.input_size, piece)
            flat = images.reshape(-1, *images.shape[2:])
            encoded = [encoder.encode(flat[at : at + at_once]) for at in range(0, len(flat), at_once)]
        if trial.seconds[ENCODER] * taken * modalities > QUICK:
            break
    stacked = torch.cat(encoded).numpy()
    return stacked.reshape(taken, modalities, *stacked.shape[1:])


def _instruct(
    trial: Trial, card: DatasetCard, models: Models, pictures: Slices, embeddings: NDArray[np.float32], trains: bool
) -> list[Instruction]:
    """Answers of a batch of questions; nothing where the language model cannot be tried here."""
    kind = models.profile.instructor
    if kind == SERVER:
        trial.not_measured[LLM] = "it is a server, and a dry run sends nothing"
        return []
    if kind == "llm" and (why := too_large_to_try(models)):
        trial.not_measured[LLM] = why
        return []
    instructor = models.instructor
    if trains and kind == "llm":  # the trained one is not there yet, and any other costs as much
        models.projected_llm.use_projection(models.projected_llm.new_projection(RECIPE.seed))
    instructor.load()
    rows = ROWS_ON_CPU if models.device.type == "cpu" else ROWS_ON_GPU
    questions = [
        question(card.instance, card.terms[card.modalities[row % len(card.modalities)]]) for row in range(rows)
    ]
    seen = None
    if instructor.sees == "embeddings":
        seen = _repeated(torch.from_numpy(embeddings).flatten(0, 1), rows)
    elif instructor.sees == "pictures":
        seen = _repeated(torch.from_numpy(pictures.images).flatten(0, 1), rows)
    with _timed(trial, LLM, rows, models):
        generations = instructor.answer(questions, seen, list(range(rows)) if instructor.samples else None)
    encoder = models.text_encoder
    # Texts of their own, as equal ones are encoded once.
    texts = [f"{row} {generation.text}" for row, generation in enumerate(generations)]
    with _timed(trial, TEXT, rows, models):
        encode_distinct(encoder, texts)
    if trains and kind == "llm":
        features = models.projected_llm.features(_repeated(seen, RECIPE.batch_size)) if seen is not None else None
        if features is not None:
            counts = [RECIPE.steps * RECIPE.batch_size] * 3
            captions = [CAPTION] * len(features)
            trial.training_minutes = training_minutes(models, features, questions[: len(features)], captions, counts)
    return [
        Instruction(0, "", asked, generation.text, generation.prompt_tokens, generation.output_tokens, "length", None)
        for asked, generation in zip(questions, generations)
    ]


def _repeated(images: torch.Tensor, rows: int) -> torch.Tensor:
    """As many rows, the images again and again."""
    return images[torch.arange(rows) % len(images)]


def _augment(trial: Trial, pictures: Slices, modalities: Sequence[str]) -> None:
    from zeus_union.stage1_instruct.studies.augment import augmented  # MONAI's transforms take seconds to import

    few = slice(0, 10)
    with _timed(trial, VIEWS, len(pictures.numbers[few]) * len(modalities)):
        augmented("", pictures.numbers[few], 1, tuple(modalities), pictures.images[few])


def _write(
    trial: Trial,
    card: DatasetCard,
    pictures: Slices,
    embeddings: NDArray[np.float32] | None,
    texts: Sequence[Instruction],
    store: str,
    folder: Path,
) -> None:
    """A cache of a few slices: quantising, hashing, writing to the disk and reading back."""
    taken = len(pictures.numbers[:8]) if embeddings is None else len(embeddings)
    some = slice(0, taken)
    stored = SubjectSlices(
        pictures.grid,
        pictures.numbers[some],
        pictures.images[some],
        None if pictures.masks is None else pictures.masks[some],
        None if pictures.modality_masks is None else pictures.modality_masks[some],
        None if pictures.native_masks is None else pictures.native_masks[some],
        {},
    )
    with tempfile.TemporaryDirectory(prefix=".zeus-trial-", dir=folder) as trial_folder:
        writer = CacheWriter(Path(trial_folder) / "trial.h5", card)
        for layer in ("slices", "embeddings/trial", "instructions/trial"):
            writer.begin_layer(layer, {})
        with _timed(trial, WRITING, taken * len(card.modalities)):
            writer.write_slices(card.subjects[0], stored)
            if embeddings is not None:
                writer.write_embeddings("embeddings/trial", card.subjects[0], embeddings, store)
            if texts:
                rows = [
                    Instruction(int(number), modality, *_text_of(texts[index % len(texts)]))
                    for index, (number, modality) in enumerate(
                        (number, modality) for number in stored.numbers for modality in card.modalities
                    )
                ]
                vectors = np.zeros((taken, len(card.modalities), 768), np.float32)
                writer.write_instructions("instructions/trial", card.subjects[0], vectors, rows)


def _text_of(row: Instruction) -> tuple[str, str, int, int, str, None]:
    return row.prompt, row.text, row.prompt_tokens, row.output_tokens, row.stop_reason, None
