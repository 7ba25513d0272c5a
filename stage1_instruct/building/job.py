"""What a build is, as data: its options, its layers, and what goes in and comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.parts import Share
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.views import Views
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.projection.fold import FoldProjection
from zeus_union.stage1_instruct.studies.intensity import Window
from zeus_union.stage1_instruct.studies.study import Dataset

LAYERS = ("slices", "embeddings", "instructions")


@dataclass(frozen=True)
class Splits:
    """The splits of the subjects that projections are trained for.

    Attributes:
        folds: of the cache; None: all.
        subjects: in place of folds, the subjects to train on.
        asked: whether the user named them: then it is done however long it takes.
    """

    folds: tuple[int, ...] | None = (0,)
    subjects: tuple[str, ...] | None = None
    asked: bool = False


@dataclass(frozen=True)
class BuildOptions:
    """How a cache is built.

    Attributes:
        out: the cache's path.
        layers: which of slices, embeddings, instructions.
        variant: name of the instruction layer.
        per_class: instead of it a layer for each class, `variants.class_variants`, whose questions ask for that class.
        store: 'uint8' or 'fp16' embeddings.
        slice_step: every n-th slice of a volume.
        batch_size: pictures in a batch through the encoder on a GPU, None: as many as fit; not part of the recipe.
        pack: one file (True), shards (False), or by size (None).
        seed: of sampled instructions; greedy ones do not depend on it.
        part: only this share of the subjects, for one of several processes on a file system without locks.
        check: read the headers of all studies that are not finished before a model is loaded.
        view: of the slices of every study; None: each study's plane of acquisition.
        windows: modality -> window of grey values, None for percentiles; those of `intensity.windows_of` for the others.
        trained_for: train the projection behind the instructions for these splits of the subjects, a layer for each;
            None: the profile's projection serves all.
        views: augmented copies of every labelled slice.
        mirror_views: mirror half of them, left for right.
    """

    out: Path
    layers: tuple[str, ...] = LAYERS
    variant: str = "lite"
    per_class: bool = False
    store: str = "uint8"
    slice_step: int = 1
    batch_size: int | None = None
    pack: bool | None = None
    seed: int = 0
    part: Share | None = None
    check: bool = False
    view: str | None = None
    windows: Mapping[str, Window | None] = field(default_factory=dict)
    trained_for: Splits | None = None
    views: int = 0
    mirror_views: bool = False


@dataclass(frozen=True)
class Layers:
    """The layers of a build beside `slices`.

    Attributes:
        embeddings: name of that layer; '' where it is not wanted.
        instructions: name of each layer of instructions -> what its questions ask to segment.
        views: the augmented copies of the labelled slices.
    """

    embeddings: str
    instructions: Mapping[str, str]
    views: Views = field(default_factory=Views)

    @property
    def names(self) -> tuple[str, ...]:
        embeddings = [self.embeddings] if self.embeddings else []
        return ("slices", *embeddings, *self.instructions, *self.views.layers)


@dataclass(frozen=True)
class Recipes:
    """What slices and embeddings were made from; the instructions' recipe names them."""

    slices: Mapping[str, Any]
    embeddings: Mapping[str, Any]


@dataclass(frozen=True)
class Build:
    """A cache in the making: what goes in, and what has come of it.

    Attributes:
        projection: whose texts these layers hold, where it was trained for them; None: the profile's.
    """

    writer: CacheWriter
    layers: Layers
    dataset: Dataset
    models: Models
    options: BuildOptions
    report: BuildReport
    projection: FoldProjection | None = None

    def finished(self, subject: str) -> bool:
        return all(self.writer.finished(layer, subject) for layer in self.layers.names)
