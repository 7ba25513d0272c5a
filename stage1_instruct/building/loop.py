"""Stage 1: study -> slices -> embeddings -> instructions -> cache, as a pipeline over the subjects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_of
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, say, some_of, warn
from zeus_union.cache.text_statistics import say_statistics
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.failures import BuildFailures
from zeus_union.stage1_instruct.building.job import LAYERS, Build, BuildOptions
from zeus_union.stage1_instruct.building.parts import tasks_of_srun
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.start import look_ahead
from zeus_union.stage1_instruct.building.subjects import begin_pictures, begin_texts, build_subjects, find_missing
from zeus_union.stage1_instruct.building.trained import build_with_trained
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.building.views import check_views
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.studies.study import Dataset

__all__ = ["LAYERS", "BuildOptions", "build_cache", "parse_layers"]


def build_cache(dataset: Dataset, models: Models, options: BuildOptions) -> BuildReport:
    """Writes every wanted layer of every subject; subjects that are finished are left as they are.

    Any number of processes may run this at once for one cache (accelerate launch, or the same command on several
    machines with a common disk): each takes the next subject that nobody has taken, and reads ahead those after it;
    whoever is last finishes the cache. None waits for another at a barrier, so the loss of one costs what it had in work
    and no more. A file system without locks needs `options.part`.

    A subject that cannot be built is left out, and the others are built.

    Only models of which something is missing are loaded, all of them before the first subject.

    Raises:
        BuildFailures: subjects that could not be built, after all others were; the cache stays unfinished.
        UserError: models that cannot be loaded or do not belong together, a layer of that name made from another recipe,
            views of what has no labels, or a disk that is too small.
    """
    if "instructions" in options.layers and models.profile.sees == "embeddings":
        options = replace(options, layers=parse_layers(options.layers))
    check_views(dataset, options.views, options.mirror_views)
    subjects = dataset.card.subjects
    share = subjects if options.part is None else options.part.of(subjects)
    card = dataset.card if dataset.cached_recipe else replace(dataset.card, slice_step=options.slice_step)
    writer = CacheWriter(options.out, card, dataset.folds, dataset.labelled, share=share if options.part else None)
    _check_processes(writer, options)
    if writer.new_subjects:
        old = len(card.subjects) - len(writer.new_subjects)
        say(
            f"adding {counted(len(writer.new_subjects), 'new subject')} to the {old} of {options.out}: "
            f"{some_of(writer.new_subjects)}"
        )
    report = BuildReport()
    layers, recipes = begin_pictures(writer, dataset, models, options)
    build = Build(writer, layers, dataset, models, options, report)
    if options.check:
        look_ahead(build, share)
    trained = None
    if "instructions" in options.layers and options.trained_for is not None:
        trained = build_with_trained(build, share, recipes, options.trained_for)
    if trained is None:
        if "instructions" in options.layers:
            build = replace(build, layers=begin_texts(build, recipes))
        build_subjects(build, share)
    build = trained or build
    if report.failures:
        raise BuildFailures(options.out, report.failures, len(share))
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
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 or tasks_of_srun(os.environ) > 1:
        raise UserError(f"the file system of {options.out} does not support locks: {remedy}")
    warn(f"the file system of {options.out} does not support locks: run only one process, since {remedy}")


def _finish(build: Build) -> None:
    """Makes the cache one that can be read, unless subjects of other parts are missing."""
    writer, options = build.writer, build.options
    pack = options.pack
    if options.part is not None:
        if missing := find_missing(build, build.dataset.card.subjects):
            say(
                f"part {options.part} of {options.out} is built; {counted(len(missing), 'subject')} of other parts missing: the "
                "last part to end finishes the cache (or the same command without --part)"
            )
            return
        if not writer.locks:
            if writer.packed:
                say(f"all parts of {options.out} are built; the same command without --part puts them into the file")
                return
            # An index is replaced by the same index where two parts end at once; packing would remove shards under one.
            pack = False
    if not writer.finalize(pack):
        return
    build.report.complete = True
    if "instructions" in options.layers:
        names = {options.variant, *(class_variants(options.variant, writer.card.classes) if options.per_class else ())}
        with Cache(options.out, allow_partial=True) as cache:
            say_statistics(cache, [variant for variant in cache.variants if base_of(variant) in names])


def parse_layers(names: Sequence[str]) -> tuple[str, ...]:
    """The layers to build, with those they stand on."""
    last = max(LAYERS.index(name) for name in names)
    return LAYERS[: last + 1]
