"""What a build would write, from the studies' headers, and whether the disk has room for it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zeus_union.cache.atomic import RESUMES, find_temporaries
from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.finishing import becomes_one_file
from zeus_union.cache.fold_layers import variant_of_split
from zeus_union.cache.folds import FOLDS
from zeus_union.cache.layout import CONSTANTS, kind_of, shard_folder, split_shard_name
from zeus_union.cache.manifest import find_shards, read_manifest
from zeus_union.cache.terminal import in_words, progress
from zeus_union.cache.view_layers import view_of
from zeus_union.stage1_instruct.building.job import BuildOptions
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.building.views import Views, check_views
from zeus_union.stage1_instruct.studies.check import load_study
from zeus_union.stage1_instruct.studies.depth import reading
from zeus_union.stage1_instruct.studies.intensity import windows_of
from zeus_union.stage1_instruct.studies.slices import PICTURE_SIZE, study_to_slices
from zeus_union.stage1_instruct.studies.study import Dataset, Study

HASH_BYTES = 16  # of a row
EMBEDDING_BYTES = {"uint8": 2**20 + 2 * 4 * 256, "fp16": 2 * 2**20}  # of a slice-modality
# Of a slice-modality: the vector of the widest text encoder (768), its text's hash, and its text, of which there are two copies:
# 64 tokens are some 300 letters, which zstd halves.
TEXT_BYTES = 768 * 4 + 16 + 2 * 150
SHARD_BYTES = 8192  # of a shard: seal, HDF5's own, manifest
SAMPLED = 3  # studies that are read where the disk may be too small: how much of them shows nothing?
CERTAIN = 0.9  # of what those studies promise is taken to be written for certain


@dataclass(frozen=True)
class StudySize:
    """A study as its header says.

    Attributes:
        slices: that are taken; those that show nothing are left out when voxels are read.
        native: pixels of a slice.
        labelled: whether it has labels.
        modality_labels: whether every modality has labels of its own.
        facts: bytes of what is kept of its files, their names and digests.
    """

    slices: int
    native: int
    labelled: bool
    modality_labels: bool
    facts: int = 0


@dataclass(frozen=True)
class LayerForecast:
    """What is missing of a layer.

    Attributes:
        slice_modalities: at most: slices that show nothing are left out when voxels are read.
        bytes: on disk, likewise.
    """

    layer: str
    subjects: int
    slice_modalities: int
    bytes: int


@dataclass(frozen=True)
class Present:
    """What is in a cache already, finished or not.

    Attributes:
        state: of its index; 'building' where there is none.
        finished: (layer, subject).
        bytes: of its files.
    """

    state: str
    finished: frozenset[tuple[str, str]]
    bytes: int


@dataclass(frozen=True)
class Forecast:
    """What a build would write.

    Attributes:
        layers: what is missing of each.
        failures: subject -> why its header cannot be read; it would be left out.
        packs: bytes that packing the finished cache into one file needs besides, for a while.
    """

    layers: tuple[LayerForecast, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    packs: int = 0

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def slice_modalities(self) -> int:
        """Of the pictures and the layers made of them: those of the layer that lacks most."""
        return max((layer.slice_modalities for layer in self.layers), default=0)


def study_size(study: Study, options: BuildOptions) -> StudySize:
    """From a study of which no voxels need have been read."""
    rows, *native = study.grid.seen(options.view or study.grid.acquired_view).slice_shape
    return StudySize(
        math.ceil(rows / options.slice_step),
        math.prod(native),
        study.labels is not None,
        study.labels is not None and set(study.modality_labels) == set(study.images),
        sum(len(name) + 64 + 6 for name in study.sources),  # sha256 in hexadecimal, JSON's quotes and colon
    )


def forecast(
    dataset: Dataset,
    encoder: str,
    options: BuildOptions,
    instructions: Sequence[str] = (),
    state_bytes: int = 0,
    sizes: Mapping[str, StudySize] | None = None,
    there: Present | None = None,
) -> Forecast:
    """What the build would write, layer by layer; reads headers and writes nothing.

    Args:
        encoder: of the layer of embeddings.
        instructions: names of the layers of texts.
        state_bytes: of a slice-modality, where the language model's states are kept.
        sizes: of the subjects, where their headers were read already.
        there: what the cache holds, where that was looked at already.

    Raises:
        UserError: views of a data set without labels; the cache that is there is damaged.
    """
    check_views(dataset, options.views, options.mirror_views)
    card = dataset.card
    subjects = card.subjects if options.part is None else options.part.of(card.subjects)
    failures: dict[str, str] = {}
    if sizes is None:
        sizes, failures = _read_sizes(dataset, options, subjects)
    there = there or what_is_there(options.out)
    embeddings = f"embeddings/{encoder}" if "embeddings" in options.layers else ""
    layers = ["slices", *([embeddings] if embeddings else []), *instructions]
    layers += Views(options.views, embeddings=embeddings).layers
    layers_missing = []
    for layer in layers:
        missing = [
            size
            for name, size in sizes.items()
            if (layer, name) not in there.finished and (size.labelled or not view_of(layer))
        ]
        count = sum(size.slices for size in missing) * len(card.modalities)
        written = sum(layer_bytes(layer, size, len(card.modalities), options.store, state_bytes) for size in missing)
        layers_missing.append(LayerForecast(layer, len(missing), count, written))
    total = sum(layer.bytes for layer in layers_missing)
    packs = becomes_one_file(options.out, there.state, total + there.bytes, options.pack)
    return Forecast(tuple(layers_missing), failures, total if packs else 0)


def text_layers(dataset: Dataset, options: BuildOptions, variant: str, trains: bool) -> Iterator[str]:
    """Names of the layers of texts of a build, those of a trained projection by their folds."""
    if "instructions" not in options.layers:
        return
    names = tuple(class_variants(variant, dataset.card.classes)) if options.per_class else (variant,)
    splits: list[str] = [""]
    if trains and options.trained_for is not None:
        chosen = options.trained_for
        folds = chosen.folds if chosen.folds is not None else tuple(range(min(FOLDS, len(dataset.card.subjects))))
        splits = [variant_of_split("", fold, ()) for fold in folds]
        if chosen.subjects is not None:
            splits = [variant_of_split("", None, chosen.subjects)]
    yield from (f"instructions/{name}{split}" for name in names for split in splits)


def layer_bytes(layer: str, size: StudySize, modalities: int, store: str, state_bytes: int) -> int:
    """Of one subject of one layer on the disk, as `cache.layout` stores it."""
    if kind_of(layer) == "slices":
        pictures = modalities + size.labelled + modalities * (size.modality_labels and not view_of(layer))
        native = size.native * (size.labelled and not view_of(layer))
        of_slice = pictures * PICTURE_SIZE**2 + native + 2 * 4 + HASH_BYTES
    elif kind_of(layer) == "embeddings":
        of_slice = modalities * (EMBEDDING_BYTES[store] + HASH_BYTES)
    else:
        of_slice = modalities * (TEXT_BYTES + HASH_BYTES + state_bytes)
    return size.slices * of_slice + SHARD_BYTES + size.facts * (layer == "slices")


def _read_sizes(
    dataset: Dataset, options: BuildOptions, subjects: Sequence[str]
) -> tuple[dict[str, StudySize], dict[str, str]]:
    """Subject -> its size, or what is wrong with it."""
    sizes, failures = {}, {}
    with reading("headers"):
        for subject in progress(subjects, "reading headers"):
            try:
                sizes[subject] = study_size(load_study(dataset, subject), options)
            except UserError as error:
                failures[subject] = str(error)
    return sizes, failures


def require_room(dataset: Dataset, options: BuildOptions, missing: Forecast) -> str:
    """Refuses a build that certainly does not fit on its disk; what to say where it only may not.

    Headers do not say which slices show nothing and are left out, so where all of them would not fit some studies are read
    to see how many do.

    Returns:
        '' where everything fits.

    Raises:
        NoSpaceError: it does not fit.
    """
    folder = folder_there(options.out)
    free = shutil.disk_usage(folder).free + _bytes_in_work(options.out)
    # Where packing is not asked for, a disk that is too small for it need not be refused: the rows are there.
    wanted = missing.bytes + (missing.packs if options.pack else 0)
    if free >= missing.bytes + missing.packs:
        return ""
    if free >= wanted:
        return (
            f"packing {options.out} into one file will need {in_words(missing.packs)} more for a while and "
            f"{in_words(free - wanted)} will be free at {folder}; --no-pack does without"
        )
    certain = wanted * _share_that_shows(dataset, options) * CERTAIN
    if free < certain:
        raise NoSpaceError(
            f"{options.out} needs at least {in_words(int(certain))} more and {in_words(free)} are free at {folder}; "
            f"free some, give --out on a larger disk, a larger --slice-step or fewer --views, --modalities or --subjects; "
            f"what is finished stays, and the same command resumes"
        )
    return (
        f"{options.out} needs up to {in_words(wanted)} more and {in_words(free)} are free at {folder}: it may not fit; "
        f"should it not, {RESUMES}"
    )


def folder_there(out: Path) -> Path:
    """The nearest folder above a path that exists: on the disk that it will be on."""
    return next(parent for parent in out.absolute().parents if parent.exists())


def _share_that_shows(dataset: Dataset, options: BuildOptions) -> float:
    """The least share of the slices of some studies, evenly chosen, that show something; 0 where none can be read."""
    subjects = dataset.card.subjects
    shares = []
    for subject in subjects[:: max(1, math.ceil(len(subjects) / SAMPLED))]:
        try:
            study = load_study(dataset, subject)
            windows = windows_of(dataset.card.terms, options.windows)
            shown = study_to_slices(study, step=options.slice_step, view=options.view, windows=windows)
            shares.append(len(shown.numbers) / study_size(study, options).slices)
        except UserError:
            continue
    return min(shares, default=0.0)


def _bytes_in_work(out: Path) -> int:
    """Of what is being written now, or was left by a process that was lost: it is part of what is missing."""
    total = 0
    for inner, _, _ in os.walk(shard_folder(out)):
        for _, file in find_temporaries(Path(inner)):
            with suppress(FileNotFoundError):  # finished in the meantime
                total += file.stat().st_size
    return total


def what_is_there(out: Path) -> Present:
    """Looks at the cache that is to be built on, if there is one."""
    folder, shards = shard_folder(out), find_shards(shard_folder(out))
    finished = {split_shard_name(name) for name in shards}
    size, state = sum((folder / name).stat().st_size for name in shards), "building"
    if out.exists():
        index = read_manifest(out)
        parts = ((layer, subject) for layer, by_subject in index.parts.items() for subject in by_subject)
        finished |= {part for part in parts if part[1] != CONSTANTS}
        size, state = size + out.stat().st_size, index.state
    return Present(state, frozenset(finished), size)
