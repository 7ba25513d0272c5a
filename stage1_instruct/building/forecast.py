"""What a build would take, from the studies' headers and one picture through the encoder: `build-cache --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeus_union.cache.layout import CONSTANTS, kind_of, shard_folder, split_shard_name
from zeus_union.cache.manifest import find_shards, read_manifest
from zeus_union.cache.terminal import progress
from zeus_union.cache.view_layers import view_of
from zeus_union.stage1_instruct.building.subjects import BuildOptions
from zeus_union.stage1_instruct.building.views import Views, check_views
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.studies.check import load_study
from zeus_union.stage1_instruct.studies.depth import reading
from zeus_union.stage1_instruct.studies.slices import PICTURE_SIZE
from zeus_union.stage1_instruct.studies.study import Dataset

EMBEDDING_BYTES = {"uint8": 2**20 + 2 * 4 * 256, "fp16": 2 * 2**20}  # of a slice-modality


@dataclass(frozen=True)
class LayerForecast:
    """What is missing of a layer.

    Attributes:
        slice_modalities: at most: slices that show nothing are left out when voxels are read.
        bytes: on disk, without native masks.
    """

    layer: str
    subjects: int
    slice_modalities: int
    bytes: int


def forecast(dataset: Dataset, encoder: str, options: BuildOptions) -> list[LayerForecast]:
    """What the build would write of pictures and embeddings, layer by layer; reads headers and writes nothing.

    Raises:
        UserError: a study whose header cannot be read; views of a data set without labels.
    """
    check_views(dataset, options.views, options.mirror_views)
    card = dataset.card
    subjects = card.subjects if options.part is None else options.part.of(card.subjects)
    slices = _slices(dataset, options, subjects)
    done = set(_finished(options.out))
    embeddings = f"embeddings/{encoder}" if "embeddings" in options.layers else ""
    layers = ["slices", *([embeddings] if embeddings else []), *Views(options.views, embeddings=embeddings).layers]
    forecasts = []
    for layer in layers:
        due = [name for name in subjects if not view_of(layer) or dataset.labelled is None or name in dataset.labelled]
        missing = [name for name in due if (layer, name) not in done]
        count = sum(slices[name] for name in missing)
        pictures = PICTURE_SIZE**2 * (len(card.modalities) + 1)
        each = pictures if kind_of(layer) == "slices" else EMBEDDING_BYTES[options.store] * len(card.modalities)
        forecasts.append(LayerForecast(layer, len(missing), count * len(card.modalities), count * each))
    return forecasts


def seconds_each(models: Models) -> tuple[float, float]:
    """Seconds of a slice-modality through the image encoder, and of making an augmented copy of it; on noise."""
    from zeus_union.stage1_instruct.studies.augment import augmented

    encoder = models.encoder
    noise = np.random.default_rng(0).integers(0, 256, (1, encoder.input_size, encoder.input_size), dtype=np.uint8)
    encoder.encode(noise)  # the first pass is slower
    start = time.perf_counter()
    encoder.encode(noise)
    encoding = time.perf_counter() - start
    numbers, copies = np.arange(10, dtype=np.int32), noise[None].repeat(10, axis=0)
    start = time.perf_counter()
    augmented("", numbers, 1, ("",), copies)
    return encoding, (time.perf_counter() - start) / len(numbers)


def _slices(dataset: Dataset, options: BuildOptions, subjects: tuple[str, ...]) -> dict[str, int]:
    """Subject -> its slices, as its header says."""
    counts = {}
    with reading("headers"):
        for subject in progress(subjects, "reading headers"):
            grid = load_study(dataset, subject).grid
            counts[subject] = math.ceil(
                grid.seen(options.view or grid.acquired_view).slice_shape[0] / options.slice_step
            )
    return counts


def _finished(out: Path) -> Iterator[tuple[str, str]]:
    """(layer, subject) of what is in the cache already."""
    if out.exists():
        for layer, by_subject in read_manifest(out).parts.items():
            yield from ((layer, subject) for subject in by_subject if subject != CONSTANTS)
    for shard in find_shards(shard_folder(out)):
        yield split_shard_name(shard)
