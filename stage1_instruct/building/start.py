"""The start of a build: the headers of all that is missing, what will be written, and whether the disk has room for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from zeus_union.cache.terminal import counted, in_words, say, warn
from zeus_union.stage1_instruct.building.forecast import (
    StudySize,
    forecast,
    require_room,
    study_size,
    text_layers,
    what_is_there,
)
from zeus_union.stage1_instruct.building.job import Build
from zeus_union.stage1_instruct.studies.check import check_studies
from zeus_union.stage1_instruct.studies.study import Study


def look_ahead(build: Build, subjects: Sequence[str]) -> None:
    """Reads the headers of the subjects that are not finished and says in one line what the build will write.

    How long it takes is said behind the first subject: measuring it before would load the models and take longer than that.

    Studies that cannot be read are in the build's report.

    Raises:
        NoSpaceError: the disk is certainly too small.
    """
    dataset, options, report = build.dataset, build.options, build.report
    texts = list(text_layers(dataset, options, options.variant, options.trained_for is not None))
    there = what_is_there(options.out)
    layers = {*build.layers.names, *texts}
    missing = [name for name in subjects if any((layer, name) not in there.finished for layer in layers)]
    if not missing:
        return
    sizes: dict[str, StudySize] = {}

    def keep(study: Study) -> None:
        sizes[study.subject] = study_size(study, options)

    failures = check_studies(dataset, missing, "headers", keep)
    report.failures |= failures
    for subject, reason in failures.items():
        warn(f"{subject} will be left out: {reason}")
    encoder = build.layers.embeddings.partition("/")[2]
    expected = forecast(dataset, encoder, options, texts, sizes=sizes, there=there)
    room = require_room(dataset, options, expected)
    report.expected = {name: size.slices * len(dataset.card.modalities) for name, size in sizes.items()}
    free = in_words(shutil.disk_usage(options.out.parent).free)
    say(
        f"{options.out}: {counted(len(sizes), 'subject')} to build, at most {expected.slice_modalities:,} slice-modalities and "
        f"{in_words(expected.bytes)} on disk ({free} free); the time it takes is shown after the first subject"
    )
    if room:
        warn(room)
