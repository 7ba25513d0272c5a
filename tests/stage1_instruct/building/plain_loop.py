"""Stage 1 without a pipeline: one subject after the other, and of each one thing after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.instructions import answer, joined, stored_images
from zeus_union.stage1_instruct.building.job import Build, BuildOptions
from zeus_union.stage1_instruct.building.reading import needs_of, read_pictures
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.subjects import begin_pictures, begin_texts
from zeus_union.stage1_instruct.building.writing import write_instructions, write_slices
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.studies.study import Dataset


def build_plainly(dataset: Dataset, models: Models, options: BuildOptions) -> BuildReport:
    """A cache of slices, embeddings and instructions from nothing."""
    report = BuildReport()
    card = replace(dataset.card, slice_step=options.slice_step)
    writer = CacheWriter(options.out, card, dataset.folds, dataset.labelled)
    layers, recipes = begin_pictures(writer, dataset, models, options)
    build = Build(writer, layers, dataset, models, options, report)
    if "instructions" in options.layers:
        build = replace(build, layers=begin_texts(build, recipes))
    for subject in dataset.card.subjects:
        with writer.claim(subject):
            _build(build, subject)
    writer.finalize(options.pack)
    return report


def _build(build: Build, subject: str) -> None:
    writer, models, report = build.writer, build.models, build.report
    pictures = read_pictures(build, subject, needs_of(build, subject))
    assert pictures is not None
    write_slices(writer, report, subject, pictures)
    pieces = []
    for at in range(len(pictures.slices.numbers)):
        (images,) = pictures.slices.images_at(models.encoder.input_size, slice(at, at + 1))
        with report.timing("image encoder", len(images)):
            pieces.append(np.concatenate([models.encoder.encode(image[None]).numpy() for image in images])[None])
    with report.timing("writing embeddings", pictures.count):
        writer.write_embeddings(build.layers.embeddings, subject, iter(pieces), store=build.options.store)
    for layer, instance in build.layers.instructions.items():
        card = replace(build.dataset.card, instance=instance)
        seen = stored_images(writer, subject, build.layers.embeddings, models.instructor.sees)
        written = joined(answer(piece, card, models, build.options.seed, report.timing) for piece in seen)
        write_instructions(writer, report, layer, subject, written)
