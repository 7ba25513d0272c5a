"""Stage 1's loop: study -> slices -> embeddings -> instructions -> cache, one subject at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zeus_union.cache.recipe import fingerprint, sha256_file
from zeus_union.cache.terminal import progress_bar, say
from zeus_union.cache.writer import CacheWriter, SubjectSlices
from zeus_union.stage1_instruct.building.instructions import answer, stored_images
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.studies import slices as slicing
from zeus_union.stage1_instruct.studies.intensity import Window, windows_of, windows_recipe
from zeus_union.stage1_instruct.studies.study import Dataset, Study

LAYERS = ("slices", "embeddings", "instructions")


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
        batch_size: slice-modalities at a time through the encoder, None: as many as fit; not part of the recipe.
        pack: one file (True), shards (False), or by size (None).
        seed: of sampled instructions; greedy ones do not depend on it.
        view: of the slices of every study; None: each study's plane of acquisition.
        windows: modality -> window of grey values, None for percentiles; those of `intensity.windows_of` for the others.
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
    view: str | None = None
    windows: Mapping[str, Window | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layers:
    """The layers of a build beside `slices`.

    Attributes:
        embeddings: name of that layer; '' where it is not wanted.
        instructions: name of each layer of instructions -> what its questions ask to segment.
    """

    embeddings: str
    instructions: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return ("slices", *([self.embeddings] if self.embeddings else []), *self.instructions)


@dataclass(frozen=True)
class _Build:
    """A cache in the making: what goes in, and what has come of it."""

    writer: CacheWriter
    layers: _Layers
    dataset: Dataset
    models: Models
    options: BuildOptions
    report: BuildReport

    def finished(self, subject: str) -> bool:
        return all(self.writer.finished(layer, subject) for layer in self.layers.names)


def build_cache(dataset: Dataset, models: Models, options: BuildOptions) -> BuildReport:
    """Writes every wanted layer of every subject; subjects that are finished are left as they are.

    Any number of processes may run this at once for one cache (accelerate launch, or the same command on several
    machines with a common disk): each takes the next subject that nobody has taken, and whoever is last finishes the
    cache. None waits for another at a barrier, so the loss of one costs the subject it had in work and no more.

    Only models of which something is missing are loaded, all of them before the first subject.

    Raises:
        UserError: unreadable data, models that cannot be loaded or do not belong together, or a layer of that name made
            from another recipe.
    """
    writer = CacheWriter(options.out, replace(dataset.card, slice_step=options.slice_step))
    report = BuildReport()
    build = _Build(writer, _begin_layers(writer, dataset, models, options), dataset, models, options, report)
    subjects = dataset.card.subjects
    waiting = [subject for subject in subjects if not build.finished(subject)]
    if len(waiting) < len(subjects):
        say(f"{len(subjects) - len(waiting)} of {len(subjects)} subjects are finished already")
    _load_models(build, waiting)
    begun = len(waiting)
    with progress_bar() as bar:
        task = bar.add_task(options.out.name, total=begun)
        wait = False
        while waiting:
            left = []
            for subject in waiting:
                with writer.claim(subject, wait=wait) as ours:
                    if not ours:
                        left.append(subject)
                        continue
                    wait = False
                    if not build.finished(subject):
                        start = time.perf_counter()
                        count = _build_subject(build, dataset.load(subject))
                        seconds = time.perf_counter() - start
                        report.subjects += 1
                        say(f"{subject}: {count} slice-modalities in {seconds:.0f} s ({report.subjects} of {begun})")
                    bar.advance(task)
            # What is left is being built by others: wait for the first of them, and take it over if it was lost.
            waiting, wait = left, True
    with writer.claim("finish", wait=True):
        writer.finalize(options.pack)
    return report


def _begin_layers(writer: CacheWriter, dataset: Dataset, models: Models, options: BuildOptions) -> _Layers:
    """Opens the wanted layers under their recipes; loads no model, but for an encoder whose constants are missing."""
    card = dataset.card
    embeddings, instances = "", {}
    slices_recipe = {
        "preprocessing": slicing.recipe(),
        "view": options.view or "acquisition",
        "windows": windows_recipe(windows_of(card.terms, options.windows)),
        "slice_step": options.slice_step,
        "dataset": {"name": card.name, "modalities": list(card.modalities), **dataset.facts},
    }
    writer.begin_layer("slices", slices_recipe)
    if "embeddings" in options.layers:
        embeddings = f"embeddings/{models.profile.encoder}"
        embeddings_recipe = {
            "slices": fingerprint(slices_recipe),
            "encoder": models.encoder_recipe(),
            "store": options.store,
        }
        writer.begin_layer(embeddings, embeddings_recipe, constants=lambda: models.encoder.constants())
    if "instructions" in options.layers:
        instances = {options.variant: card.instance}
        if options.per_class:
            instances = class_variants(options.variant, card.classes)
        instances = {f"instructions/{variant}": instance for variant, instance in instances.items()}
        sees_embeddings = models.instructor.sees == "embeddings"
        recipe = {
            "embeddings" if sees_embeddings else "slices": fingerprint(
                embeddings_recipe if sees_embeddings else slices_recipe
            ),
            "terms": dict(card.terms),
            **models.instruction_recipe(),
        }
        if models.instructor.samples:
            recipe["seed"] = options.seed
        for layer, instance in instances.items():
            writer.begin_layer(layer, {**recipe, "instance": instance})
    return _Layers(embeddings, instances)


def _load_models(build: _Build, subjects: Sequence[str]) -> None:
    """Loads the models that have something to do for one of the subjects: what is wrong with them is known then."""

    def missing(layer: str) -> bool:
        return not all(build.writer.finished(layer, subject) for subject in subjects)

    if build.layers.embeddings and missing(build.layers.embeddings):
        _ = build.models.encoder
    if any(missing(layer) for layer in build.layers.instructions):
        build.models.instructor.load()
        _ = build.models.text_encoder


def _build_subject(build: _Build, study: Study) -> int:
    """All missing layers of one subject; returns its number of slice-modalities."""
    writer, models, report = build.writer, build.models, build.report
    subject, embeddings_layer = study.subject, build.layers.embeddings
    _say_agreement(study)
    sources = {name: sha256_file(path) for name, path in sorted(study.sources.items())}
    options = build.options
    windows = windows_of(build.dataset.card.terms, options.windows)
    pictures = slicing.study_to_slices(study, step=options.slice_step, view=options.view, windows=windows)
    if pictures.grid.view != "axial":
        say(f"{subject}: {pictures.grid.view} slices")
    count = pictures.images.shape[0] * pictures.images.shape[1]
    if writer.finished("slices", subject):
        writer.check_sources(subject, sources)
    else:
        with report.timing("writing slices", count):
            writer.write_slices(
                subject,
                SubjectSlices(
                    grid=pictures.grid,
                    numbers=pictures.numbers,
                    images=pictures.images,
                    masks=pictures.masks,
                    modality_masks=pictures.modality_masks,
                    native_masks=pictures.native_masks,
                    sources=sources,
                ),
            )
    if embeddings_layer and not writer.finished(embeddings_layer, subject):
        size = models.encoder.input_size
        images = pictures.images if size == pictures.images.shape[-1] else pictures.images_at(size)
        with report.timing("image encoder", count):
            embeddings = _encode(models, images, build.options.batch_size)
        with report.timing("writing embeddings", count):
            writer.write_embeddings(embeddings_layer, subject, embeddings, store=build.options.store)
        del embeddings
    missing = [layer for layer in build.layers.instructions if not writer.finished(layer, subject)]
    if missing:
        seen = stored_images(writer, subject, embeddings_layer, models.instructor.sees)
        for layer in missing:
            card = replace(build.dataset.card, instance=build.layers.instructions[layer])
            written = answer(seen, card, models, build.options.seed, report.timing)
            report.count(written.rows)
            with report.timing("writing instructions", count):
                writer.write_instructions(layer, subject, written.embeddings, written.rows, written.states)
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


def _batches(items: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def parse_layers(names: Sequence[str]) -> tuple[str, ...]:
    """The layers to build, with those they stand on."""
    last = max(LAYERS.index(name) for name in names)
    return LAYERS[: last + 1]
