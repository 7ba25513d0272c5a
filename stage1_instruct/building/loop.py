"""Stage 1's loop: study -> slices -> embeddings -> instructions -> cache, one subject at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zeus_union.cache.errors import JobError, UserError
from zeus_union.cache.recipe import fingerprint, sha256_file
from zeus_union.cache.terminal import progress_bar, say
from zeus_union.cache.writer import CacheWriter, SubjectSlices
from zeus_union.stage1_instruct.building.failures import BuildFailures
from zeus_union.stage1_instruct.building.instructions import answer, joined, stored_images
from zeus_union.stage1_instruct.building.parts import Share
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.studies import slices as slicing
from zeus_union.stage1_instruct.studies.check import check_studies, load_study
from zeus_union.stage1_instruct.studies.intensity import Window, windows_of, windows_recipe
from zeus_union.stage1_instruct.studies.study import Dataset, Study

LAYERS = ("slices", "embeddings", "instructions")
ENCODED_AT_ONCE = 32  # slice-modalities between encoder and disk: 128 MiB as float32


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
        part: only this share of the subjects, for one of several processes on a file system without locks.
        check: read the headers of all studies that are not finished before a model is loaded.
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
    part: Share | None = None
    check: bool = False
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
    cache. None waits for another at a barrier, so the loss of one costs the subject it had in work and no more. A file
    system without locks needs `options.part`.

    A subject that cannot be built is left out, and the others go on.

    Only models of which something is missing are loaded, all of them before the first subject.

    Raises:
        BuildFailures: subjects that could not be built, after all others were; the cache stays unfinished.
        UserError: models that cannot be loaded or do not belong together, or a layer of that name made from another
            recipe.
    """
    subjects = dataset.card.subjects
    own = subjects if options.part is None else options.part.of(subjects)
    card = replace(dataset.card, slice_step=options.slice_step)
    writer = CacheWriter(options.out, card, dataset.folds, dataset.labelled, own=own if options.part else None)
    _check_processes(writer, options)
    report = BuildReport()
    build = _Build(writer, _begin_layers(writer, dataset, models, options), dataset, models, options, report)
    missing = _find_missing(build, own)
    waiting = [subject for subject in missing if subject not in report.failures]
    if finished := len(own) - len(missing) - len(report.failures.keys() - missing.keys()):
        say(f"{finished} of {len(own)} subjects are finished already")
    if options.check and waiting:
        report.failures |= check_studies(dataset, waiting, "headers")
        for subject in report.failures:
            say(f"{subject} will be left out: {report.failures[subject]}")
        waiting = [subject for subject in waiting if subject not in report.failures]
    _load_models(build, {layer for subject in waiting for layer in missing[subject]})
    _build_subjects(build, waiting)
    if report.failures:
        raise BuildFailures(options.out, report.failures, len(own))
    _finish(build)
    return report


def _check_processes(writer: CacheWriter, options: BuildOptions) -> None:
    """Says what a file system without locks means.

    Raises:
        UserError: a launcher has started several processes there, and nothing keeps them apart.
    """
    if writer.locks or options.part is not None:
        return
    remedy = "several processes need --part I/N each (or --part slurm in a job array)"
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError(f"the file system of {options.out} has no locks: {remedy}")
    say(f"the file system of {options.out} has no locks: this process must be the only one; {remedy}")


def _find_missing(build: _Build, subjects: Sequence[str]) -> dict[str, list[str]]:
    """Subject -> the layers it is missing in, of those that are not finished; damaged ones become failures."""
    missing: dict[str, list[str]] = {}
    with build.writer.at_work():
        for subject in subjects:
            try:
                layers = [layer for layer in build.layers.names if not build.writer.finished(layer, subject)]
            except UserError as error:
                build.report.failures[subject] = str(error)
                continue
            if layers:
                missing[subject] = layers
    return missing


def _build_subjects(build: _Build, waiting: Sequence[str]) -> None:
    """Builds the subjects that nobody else builds, and waits for the others; those that fail are in the report."""
    report, begun = build.report, len(waiting)
    with progress_bar() as bar:
        task = bar.add_task(build.options.out.name, total=begun)
        wait = False
        while waiting:
            left = []
            for subject in waiting:
                with build.writer.claim(subject, wait=wait) as ours:
                    if not ours:
                        left.append(subject)
                        continue
                    wait = False
                    try:
                        _take(build, subject, begun)
                    except JobError:
                        raise
                    except UserError as error:
                        report.failures[subject] = str(error)
                        say(f"{subject} is left out: {error}")
                    bar.advance(task)
            # What is left is being built by others: wait for the first of them, and take it over if it was lost.
            waiting, wait = left, True


def _take(build: _Build, subject: str, begun: int) -> None:
    """Builds a subject, unless another process has finished it.

    Raises:
        UserError: it cannot be built.
    """
    if build.finished(subject):
        return
    start = time.perf_counter()
    count = _build_subject(build, load_study(build.dataset, subject))
    seconds = time.perf_counter() - start
    build.report.subjects += 1
    say(f"{subject}: {count} slice-modalities in {seconds:.0f} s ({build.report.subjects} of {begun})")


def _finish(build: _Build) -> None:
    """Makes the cache one that can be read, unless subjects of other parts are missing."""
    writer, options = build.writer, build.options
    pack = options.pack
    if options.part is not None:
        if missing := _find_missing(build, build.dataset.card.subjects):
            say(
                f"part {options.part} of {options.out} is built; {len(missing)} subjects of other parts are missing, and the "
                "last part to end finishes the cache (or the same command without --part)"
            )
            return
        if not writer.locks:
            if writer.packed:
                say(f"all parts of {options.out} are built; the same command without --part puts them into the file")
                return
            # An index is replaced by the same index where two parts end at once; packing would remove shards under one.
            pack = False
    writer.finalize(pack)
    build.report.complete = True


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


def _load_models(build: _Build, missing: Collection[str]) -> None:
    """Loads the models that the `missing` layers need: what is wrong with them is known then."""
    if build.layers.embeddings in missing:
        _ = build.models.encoder
    if any(layer in missing for layer in build.layers.instructions):
        build.models.instructor.load()
        _ = build.models.text_encoder


def _build_subject(build: _Build, study: Study) -> int:
    """All missing layers of one subject; returns its number of slice-modalities."""
    writer, models, report = build.writer, build.models, build.report
    subject, embeddings_layer = study.subject, build.layers.embeddings
    _say_agreement(study)
    sources = _digest_sources(study)
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
        encoding = report.seconds["image encoder"]
        with report.timing("writing embeddings", count):
            writer.write_embeddings(
                embeddings_layer, subject, _encode_pieces(build, pictures), store=build.options.store
            )
        report.seconds["writing embeddings"] -= report.seconds["image encoder"] - encoding
    missing = [layer for layer in build.layers.instructions if not writer.finished(layer, subject)]
    for layer in missing:
        card = replace(build.dataset.card, instance=build.layers.instructions[layer])
        pieces = stored_images(writer, subject, embeddings_layer, models.instructor.sees)
        written = joined(answer(seen, card, models, build.options.seed, report.timing) for seen in pieces)
        report.count(written.rows, written.cut)
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


def _digest_sources(study: Study) -> dict[str, str]:
    """Name of each file that was read -> its sha256.

    Raises:
        UserError: a file that can no longer be read.
    """
    try:
        return {name: sha256_file(path) for name, path in sorted(study.sources.items())}
    except OSError as error:
        raise UserError(f"a file of {study.subject} cannot be read ({error}); copy it again") from error


def _encode_pieces(build: _Build, pictures: slicing.Slices) -> Iterator[NDArray[np.float32]]:
    """Embeddings float32 (k, M, 256, 64, 64) of some slices at a time, so that memory does not grow with the study."""
    encoder, batch_size = build.models.encoder, build.options.batch_size
    slices, modalities = pictures.images.shape[:2]
    at_once = max(1, (batch_size or ENCODED_AT_ONCE) // modalities)
    for first in range(0, slices, at_once):
        images = pictures.images[first : first + at_once]
        if encoder.input_size != images.shape[-1]:
            native = pictures.native_images[first : first + at_once]
            images = replace(pictures, native_images=native).images_at(encoder.input_size)
        with build.report.timing("image encoder", len(images) * modalities):
            embeddings = _encode(build.models, images, batch_size)
        yield embeddings
        del embeddings


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
