"""What a subject still needs, and its study read and sliced for that, ahead of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.building.cached import needs_study, stored_pictures
from zeus_union.stage1_instruct.studies import slices as slicing
from zeus_union.stage1_instruct.studies.check import load_study
from zeus_union.stage1_instruct.studies.depth import reading
from zeus_union.stage1_instruct.studies.intensity import windows_of
from zeus_union.stage1_instruct.studies.slices import Slices
from zeus_union.stage1_instruct.studies.study import Study

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.building.job import Build


@dataclass(frozen=True)
class Needs:
    """What a subject needs to be finished.

    Attributes:
        study: whether its study is read; else its pictures, if they are needed, are those in the cache.
        headers: whether its files are looked at nevertheless, to be those that the pictures in the cache were made from.
        slices, embeddings: whether these layers are missing.
        views: missing layers of augmented copies.
        instructions: missing layers of texts.
    """

    study: bool
    headers: bool
    slices: bool
    embeddings: bool
    views: tuple[str, ...]
    instructions: tuple[str, ...]

    @property
    def pictures(self) -> bool:
        """Whether something is made from its pictures: texts are made from what is stored of them."""
        return self.slices or self.embeddings or bool(self.views)

    def __bool__(self) -> bool:
        return self.pictures or bool(self.instructions)


def needs_of(build: Build, subject: str) -> Needs:
    """Raises UserError: something of it in the cache is damaged, or was made from other slices."""
    writer, layers = build.writer, build.layers
    missing = {layer for layer in layers.names if not writer.finished(layer, subject)}
    study = build.projection is None and needs_study(build.models, missing)
    return Needs(
        study,
        bool(missing) and not study and build.projection is None and not build.dataset.cached_recipe,
        "slices" in missing,
        layers.embeddings in missing,
        tuple(layer for layer in layers.views.layers if layer in missing),
        tuple(layer for layer in layers.instructions if layer in missing),
    )


@dataclass(frozen=True, eq=False)
class Pictures:
    """A study's pictures.

    Attributes:
        sources: name of each file that was read -> its sha256; empty where they come from the cache.
    """

    slices: Slices
    sources: Mapping[str, str]

    @property
    def count(self) -> int:
        """Slice-modalities."""
        return self.slices.images.shape[0] * self.slices.images.shape[1]


def read_pictures(build: Build, subject: str, needs: Needs) -> Pictures | None:
    """A subject's pictures, from its study or from the cache; None where none are needed.

    Raises:
        UserError: the study cannot be read, nothing shows in it, or it is not the one that the cache was made from.
    """
    writer, report = build.writer, build.report
    if needs.study:
        return _read_study(build, subject, needs)
    with report.timing("reading", 0):
        if needs.headers:
            with reading("headers"):
                writer.check_sources(subject, _digest_sources(load_study(build.dataset, subject)))
        return Pictures(stored_pictures(writer, subject), {}) if needs.pictures else None


def _read_study(build: Build, subject: str, needs: Needs) -> Pictures:
    report, options = build.report, build.options
    with report.timing("reading", 0):
        study = load_study(build.dataset, subject)
        sources = _digest_sources(study)
        if not needs.slices:
            build.writer.check_sources(subject, sources)
    with report.timing("slicing", 0):
        _say_agreement(study)
        windows = windows_of(build.dataset.card.terms, options.windows)
        slices = slicing.study_to_slices(study, step=options.slice_step, view=options.view, windows=windows)
    if slices.grid.view != "axial":
        say(f"{subject}: cut into {slices.grid.view} slices")
    pictures = Pictures(slices, sources)
    for part in ("reading", "slicing"):
        report.add(part, 0.0, pictures.count)
    return pictures


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


def _digest_sources(study: Study) -> dict[str, str]:
    """Name of each file that was read -> its sha256.

    Raises:
        UserError: a file that can no longer be read.
    """
    try:
        return {name: sha256_file(path) for name, path in sorted(study.sources.items())}
    except OSError as error:
        raise UserError(f"a file of {study.subject} cannot be read ({error}); copy it again") from error
