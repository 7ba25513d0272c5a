"""Instructions whose projection the build trains itself, on captions of the training subjects of each split."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import variant_of_split
from zeus_union.cache.layout import shard_folder
from zeus_union.cache.manifest import read_manifest
from zeus_union.cache.terminal import choose, say, some_of, warn
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.captioned import captions_of, features_of
from zeus_union.stage1_instruct.building.job import Build, BuildOptions, Layers, Recipes, Splits
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.subjects import begin_texts, build_subjects, instances_of
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.projection.fold import (
    FoldProjection,
    Split,
    TooLongError,
    train_fold_projection,
)
from zeus_union.stage1_instruct.studies.study import Dataset, Study
from zeus_union.stage1_instruct.weights.store import weights_bytes

UNASKED_MINUTES = 15  # a build that nobody asked to train a projection takes no longer than that for it
UNASKED_BYTES = 2e9  # of the language model's weights on a CPU: a 7B model is not even loaded there to measure a step
ROOM = 1.5  # memory for the weights with what a step keeps beside them


def build_with_trained(build: Build, subjects: Sequence[str], recipes: Recipes, splits: Splits) -> Build | None:
    """Builds all layers of `subjects`, with a projection of its own for each split.

    The training subjects come first; then one process trains while the others go on with the pictures of the rest.

    Returns:
        The build with all layers that were begun; None where there are no labels to learn from: the texts are left to be
        made with the profile's projection.
    """
    wanted = _wanted(build, splits)
    projections = {split: _stored(build, split) for split in wanted}
    for split, projection in projections.items():
        if projection is not None:  # made from something else? That is said before any work
            begin_texts(build, recipes, _ending(split), projection)
    rest = list(subjects)
    if None in projections.values():
        if build.options.part is not None:
            build_subjects(build, subjects)
            say(_of_parts(build, wanted))
            return build
        candidates = {name for split in wanted for name in _candidates(build, split)}
        rest = [subject for subject in subjects if subject not in candidates]
        expected = build.report.expected
        build.report.later = sum(expected.get(subject, 0) for subject in rest)
        build_subjects(build, [subject for subject in subjects if subject in candidates])
        build.report.later = 0
        if build.report.failures:
            say("a projection is trained once its training subjects are built; building the pictures of the others")
            build_subjects(build, rest)
            return build
        wanted = [_labelled(build, split) for split in wanted]
        if lacking := [split for split in wanted if not split.train]:
            nobody = f"{build.options.out} has no labelled subject to train a projection on"
            if splits.asked:
                raise UserError(f"{nobody} for fold {lacking[0].fold}; label more, or leave the fold out")
            warn(f"{nobody}: the texts come from an untrained one; --projection RUN takes that of a run")
            return None
    try:
        # Whoever finds one in training goes on with the pictures, and asks again when these are done.
        for split in wanted:
            projections[split] = projections.get(split) or _projection(build, recipes, split, splits, wait=False)
        build_subjects(build, rest)
        build.report.subjects = 0  # counted again as their texts are written
        instructions: dict[str, str] = {}
        for after, split in zip(reversed(range(len(wanted))), wanted):
            build.report.later = after * sum(build.report.expected.values())
            projection = projections[split] or _projection(build, recipes, split, splits, wait=True)
            assert projection is not None
            layers = begin_texts(build, recipes, _ending(split), projection)
            build_subjects(replace(build, layers=layers, projection=projection), subjects)
            instructions |= layers.instructions
    except LeftOutError as left_out:
        build_subjects(build, rest)
        warn(str(left_out))
        build.report.without_texts = True
        return build
    return replace(build, layers=replace(build.layers, instructions=instructions))


class LeftOutError(Exception):
    """The instructions are left out, with the line that says why and what to do."""


def _wanted(build: Build, splits: Splits) -> list[Split]:
    """The splits; of folds it is not known yet who has labels.

    Raises:
        UserError: no such fold or subject.
    """
    writer, subjects = build.writer, build.dataset.card.subjects
    if splits.subjects is not None:
        chosen = choose(splits.subjects, subjects, "subject")
        return [Split(None, tuple(name for name in subjects if name in chosen))]
    folds = writer.folds if splits.folds is None else splits.folds
    if splits.asked and (unknown := sorted(set(folds) - set(writer.folds))):
        raise UserError(
            f"there is no fold {', '.join(map(str, unknown))}; folds of this cache: {', '.join(map(str, writer.folds))}"
        )
    return [Split(fold, ()) for fold in folds]


def _candidates(build: Build, split: Split) -> tuple[str, ...]:
    """Who may be trained on, before it is known who has labels."""
    if split.fold is None:
        return split.train
    labelled = build.dataset.card.subjects if build.dataset.labelled is None else build.dataset.labelled
    groups = build.writer.subjects_of(split.fold, labelled)
    return (*groups.train, *groups.validation)


def _labelled(build: Build, split: Split) -> Split:
    """The split with those who have labels, once their slices are finished.

    Raises:
        UserError: a named subject without labels.
    """
    candidates = _candidates(build, split)
    labelled = [name for name in candidates if build.writer.labelled(name)]
    if split.fold is not None:
        return Split(split.fold, build.writer.subjects_of(split.fold, labelled).train)
    if unlabelled := [name for name in candidates if name not in labelled]:
        raise UserError(f"{some_of(unlabelled)} has no labels to make captions from; name others")
    return split


def _of_parts(build: Build, wanted: Sequence[Split]) -> str:
    """What to do where the subjects are split over processes that cannot see one another."""
    options = build.options
    which = " ".join(_flag(split) for split in wanted[:1])
    return (
        f"part {options.part} of {options.out} has its pictures. When all parts have theirs, one process trains the "
        f"projection: zeus-instruct train-projection --cache {options.out} {which} --variant {options.variant} (with the "
        "--models and --set of this command); then the same command for each part again writes the texts"
    )


def _flag(split: Split) -> str:
    """The option that names it."""
    return f"--fold {split.fold}" if split.fold is not None else f"--train-subjects {','.join(split.train)}"


def _ending(split: Split) -> str:
    return variant_of_split("", split.fold, split.train)


def _projection(build: Build, recipes: Recipes, split: Split, splits: Splits, wait: bool) -> FoldProjection | None:
    """The projection that the layer of a split has, or is given here; None where another process is at it.

    Raises:
        LeftOutError: nobody asked for it, and it takes too long or does not fit.
    """
    name = f"{build.options.variant}{_ending(split)}"
    if stored := _stored(build, split):
        return stored
    with build.writer.claim(f"{name}.projection", wait=wait) as ours:
        if not ours:
            return None
        if stored := _stored(build, split):
            return stored
        return train_for(build, recipes, split, None if splits.asked else UNASKED_MINUTES)


def train_for(build: Build, recipes: Recipes, split: Split, limit: float | None) -> FoldProjection:
    """Trains the projection of a split and begins its layers with it.

    Args:
        limit: minutes it may take; None: as many as it takes.

    Raises:
        LeftOutError: it takes longer, or the language model is too large to try.
    """
    if limit is not None and (too_large := too_large_to_try(build.models)):
        raise LeftOutError(_left_out(build, split, too_large))
    folder = shard_folder(build.options.out) / "projections" / f"{build.options.variant}{_ending(split)}"
    try:
        trained = train_fold_projection(
            build.models,
            split,
            captions_of(build, split.train),
            lambda pairs: features_of(build, pairs),
            folder,
            say,
            limit,
        )
    except TooLongError as error:
        raise LeftOutError(_left_out(build, split, f"would take about {error.minutes:.0f} min here")) from error
    begin_texts(build, recipes, _ending(split), trained)
    _forget(folder)
    return trained


def _left_out(build: Build, split: Split, why: str) -> str:
    return (
        f"{build.options.out} gets no instructions: training the projection behind them {why}. The same command with "
        f"{_flag(split)} trains it all the same, --projection FILE takes one that is there, --projection untrained none"
    )


def too_large_to_try(models: Models) -> str:
    """Why the language model is not even loaded to measure a step; '' where it is."""
    size = weights_bytes(models.projected_llm.weights)
    device = models.device
    if device.type == "cpu" and size > UNASKED_BYTES:
        return f"through a language model of {size / 1e9:.0f} GB takes hours on a CPU"
    free = psutil.virtual_memory().available if device.type != "cuda" else torch.cuda.mem_get_info(device)[0]
    if size * ROOM > free:
        return f"needs about {size * ROOM / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
    return ""


def _stored(build: Build, split: Split) -> FoldProjection | None:
    """What the layers of a split were begun with: it is a constant of them, and never trained again."""
    layer = next(iter(instances_of(build, _ending(split))))
    recipe = build.writer.begun(layer)
    if recipe is None:
        return None
    build.writer.begin_layer(layer, recipe)
    constants = build.writer.constants(layer)
    return FoldProjection.from_constants(recipe["connector"], recipe["projection"], constants) if constants else None


def _forget(folder: Path) -> None:
    """Removes what was kept of unfinished trainings."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others are at theirs
        folder.parent.rmdir()


def train_in_cache(path: Path, models: Models, splits: Splits, variant: str, per_class: bool, seed: int) -> list[str]:
    """Trains the projections of splits on the slices and embeddings that a cache holds; the layers that were begun.

    For builds in parts that cannot see one another: a build finds the projections and writes the texts.

    Raises:
        UserError: no cache, or one in which training subjects or embeddings are missing.
    """
    if not path.is_file():
        raise UserError(f"cache {path} does not exist; zeus-instruct build-cache makes one")
    card = read_manifest(path).card
    writer = CacheWriter(path, card)
    embeddings = f"embeddings/{models.profile.encoder}"
    begun = {layer: writer.begun(layer) for layer in ("slices", embeddings)}
    if lacking := [layer for layer, recipe in begun.items() if recipe is None]:
        raise UserError(f"{path} has no {' and '.join(lacking)}; build them first")
    recipes = Recipes(*(dict(recipe or {}) for recipe in begun.values()))
    dataset = Dataset(card, _not_read)
    options = BuildOptions(path, variant=variant, per_class=per_class, seed=seed, trained_for=splits)
    build = Build(writer, Layers(embeddings, {}), dataset, models, options, BuildReport())
    layers: list[str] = []
    for split in _wanted(build, splits):
        if missing := [
            name for name in _candidates(build, split) for layer in begun if not writer.finished(layer, name)
        ]:
            raise UserError(f"{path} has not all pictures of {some_of(missing)} yet; build all parts first")
        split = _labelled(build, split)
        _projection(build, recipes, split, splits, wait=True)
        layers += instances_of(build, _ending(split))
    return layers


def _not_read(subject: str) -> Study:
    raise RuntimeError(f"{subject} is not read here")
