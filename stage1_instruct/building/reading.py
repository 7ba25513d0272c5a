"""What a subject still needs, and its study read and sliced for that, ahead of the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.studies import slices as slicing
from zeus_union.stage1_instruct.studies.check import load_study
from zeus_union.stage1_instruct.studies.intensity import windows_of
from zeus_union.stage1_instruct.studies.slices import Slices
from zeus_union.stage1_instruct.studies.study import Study

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.building.subjects import Build


@dataclass(frozen=True)
class Needs:
    """What is missing of a subject.

    Attributes:
        slices, embeddings: whether these layers are.
        views: layers of augmented copies.
        instructions: layers of texts.
    """

    slices: bool
    embeddings: bool
    views: tuple[str, ...]
    instructions: tuple[str, ...]

    @property
    def study(self) -> bool:
        """Whether its files are read: texts alone are made from what is in the cache."""
        return self.slices or self.embeddings or bool(self.views)

    def __bool__(self) -> bool:
        return self.study or bool(self.instructions)


def needs_of(build: Build, subject: str) -> Needs:
    """Raises UserError: something of it in the cache is damaged, or was made from other slices."""
    writer, layers = build.writer, build.layers
    missing = {layer for layer in layers.names if not writer.finished(layer, subject)}
    return Needs(
        "slices" in missing,
        layers.embeddings in missing,
        tuple(layer for layer in layers.views.layers if layer in missing),
        tuple(layer for layer in layers.instructions if layer in missing),
    )


@dataclass(frozen=True, eq=False)
class Pictures:
    """A study, read and sliced.

    Attributes:
        sources: name of each file that was read -> its sha256.
    """

    slices: Slices
    sources: dict[str, str]

    @property
    def count(self) -> int:
        """Slice-modalities."""
        return self.slices.images.shape[0] * self.slices.images.shape[1]


def read_pictures(build: Build, subject: str) -> Pictures:
    """Reads and slices a study.

    Raises:
        UserError: it cannot be read, or nothing shows in it.
    """
    report, options = build.report, build.options
    with report.timing("reading", 0):
        study = load_study(build.dataset, subject)
        sources = _digest_sources(study)
    with report.timing("slicing", 0):
        _say_agreement(study)
        windows = windows_of(build.dataset.card.terms, options.windows)
        slices = slicing.study_to_slices(study, step=options.slice_step, view=options.view, windows=windows)
    if slices.grid.view != "axial":
        say(f"{subject}: {slices.grid.view} slices")
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
