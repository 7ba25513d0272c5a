"""Instructions whose projection the build trains itself, on captions of the training subjects of each split."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import variant_of_split
from zeus_union.cache.layout import shard_folder
from zeus_union.cache.terminal import progress, say, some_of
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.subjects import Build, Recipes, Splits, begin_texts, build_subjects
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.projection.fold import Captioned, FoldProjection, Split, train_fold_projection
from zeus_union.stage1_instruct.projection.label_captions import caption
from zeus_union.stage1_instruct.seeds import slice_seed


def build_with_trained(build: Build, own: Sequence[str], recipes: Recipes, splits: Splits) -> bool:
    """Builds all layers of `own`, with a projection of its own for each split; whether there was something to learn from.

    The training subjects come first; then one process trains while the others go on with the pictures of the rest.
    """
    candidates = _candidates(build, splits)
    first = [subject for subject in own if subject in candidates]
    others = [subject for subject in own if subject not in candidates]
    build_subjects(build, first)
    if build.report.failures:
        say("a projection is trained when its training subjects are built; the pictures of the others go on")
        build_subjects(build, others)
        return True
    wanted = _splits(build, splits)
    if not any(split.train for split in wanted):
        say(
            f"{build.options.out} has no labelled subject to train a projection on: the texts come from an untrained one; "
            "--projection FILE takes another's, e.g. a run's"
        )
        return False
    projections = {split: _projection(build, recipes, split, wait=False) for split in wanted}
    build_subjects(build, others)
    build.report.subjects = 0  # counted again as their texts are written
    for split in wanted:
        projection = projections[split] or _projection(build, recipes, split, wait=True)
        assert projection is not None
        layers = begin_texts(build, recipes, _ending(split), projection)
        build_subjects(replace(build, layers=layers, projection=projection), own)
    return True


def _candidates(build: Build, splits: Splits) -> set[str]:
    """Who may be trained on, before it is known who has labels."""
    subjects = build.dataset.card.subjects
    if splits.subjects is not None:
        return set(splits.subjects)
    labelled = subjects if build.dataset.labelled is None else build.dataset.labelled
    folds = build.writer.folds if splits.folds is None else splits.folds
    return {name for fold in folds for name in build.writer.subjects_of(fold, labelled).train}


def _splits(build: Build, splits: Splits) -> list[Split]:
    """The splits by their subjects with labels; who can be trained on is finished.

    Raises:
        UserError: no such fold; a named subject without labels.
    """
    writer = build.writer
    known = [name for name in build.dataset.card.subjects if writer.finished("slices", name)]
    labelled = [name for name in known if writer.labelled(name)]
    if splits.subjects is not None:
        if unlabelled := [name for name in splits.subjects if name not in labelled]:
            raise UserError(
                f"{some_of(unlabelled)} has no labels to make captions from; those with labels: {some_of(labelled)}"
            )
        return [Split(None, tuple(name for name in labelled if name in splits.subjects))]
    folds = writer.folds if splits.folds is None else splits.folds
    if unknown := sorted(set(folds) - set(writer.folds)):
        raise UserError(
            f"there is no fold {', '.join(map(str, unknown))}; folds of this cache: {', '.join(map(str, writer.folds))}"
        )
    return [Split(fold, writer.subjects_of(fold, labelled).train) for fold in folds]


def _ending(split: Split) -> str:
    return variant_of_split("", split.fold, split.train)


def _instances(build: Build, split: Split) -> dict[str, str]:
    """Layer -> what its questions ask to segment."""
    card, options = build.dataset.card, build.options
    instances = class_variants(options.variant, card.classes) if options.per_class else {options.variant: card.instance}
    return {f"instructions/{variant}{_ending(split)}": instance for variant, instance in instances.items()}


def _projection(build: Build, recipes: Recipes, split: Split, wait: bool) -> FoldProjection | None:
    """The projection that the layer of a split has, or is given here; None where another process is at it."""
    writer = build.writer
    layers = list(_instances(build, split))
    stored = _stored(writer, layers[0])
    if stored is not None:
        return stored
    with writer.claim(f"{build.options.variant}{_ending(split)}.projection", wait=wait) as ours:
        if not ours:
            return None
        stored = _stored(writer, layers[0])
        if stored is not None:
            return stored
        folder = shard_folder(build.options.out) / "projections" / f"{build.options.variant}{_ending(split)}"
        captioned = _captioned(build, split)
        trained = train_fold_projection(
            build.models, split, captioned, lambda pairs: _features(build, pairs), folder, say
        )
        begin_texts(build, recipes, _ending(split), trained)
        _forget(folder)
        return trained


def _stored(writer: CacheWriter, layer: str) -> FoldProjection | None:
    """What a layer was begun with: it is a constant of the layer, and never trained again."""
    recipe = writer.begun(layer)
    if recipe is None:
        return None
    writer.begin_layer(layer, recipe)
    constants = writer.constants(layer)
    return FoldProjection.from_constants(recipe["connector"], recipe["projection"], constants) if constants else None


def _captioned(build: Build, split: Split) -> list[Captioned]:
    """A caption of every labelled slice and modality of the training subjects; of every class, where each has a layer."""
    card, writer = build.dataset.card, build.writer
    captioned = []
    for subject in split.train:
        slices = writer.slices(subject)
        assert slices.masks is not None
        for place, (number, images, mask) in enumerate(zip(slices.numbers, slices.images, slices.masks)):
            for index, (modality, image) in enumerate(zip(card.modalities, images)):
                words = slice_seed(build.options.seed, subject, int(number), modality)
                for instance, classes, labels in _asked(build, mask):
                    text = caption(image, labels, classes, card.terms[modality], slices.grid.view, words)
                    if text:
                        shows = bool(((labels > 0) & (labels <= len(classes))).any())
                        asked = question(instance, card.terms[modality])
                        captioned.append(Captioned(subject, place, index, asked, text, shows))
    return captioned


def _asked(build: Build, mask: Any) -> list[tuple[str, tuple[str, ...], Any]]:
    """What is asked of a slice, with the classes it is about and their mask."""
    card = build.dataset.card
    if not build.options.per_class:
        return [(card.instance, card.classes, mask)]
    from zeus_union.cache.layout import IGNORE

    alone = []
    for label, name in enumerate(card.classes, 1):
        labels = (mask == label).astype(mask.dtype)
        labels[mask == IGNORE] = IGNORE
        alone.append((name, (name,), labels))
    return alone


def _features(build: Build, captioned: Sequence[Captioned]) -> Tensor:
    """The frozen vision features of each, float32 (N, T, C); every slice is read once."""
    writer, llm = build.writer, build.models.projected_llm
    by_slice: dict[tuple[str, int], list[int]] = {}
    for row, pair in enumerate(captioned):
        by_slice.setdefault((pair.subject, pair.slice), []).append(row)
    features: list[Any] = [None] * len(captioned)
    pictures: Mapping[str, Any] = {}
    if llm.sees == "pictures":
        pictures = {subject: writer.slices(subject).images for subject in {pair.subject for pair in captioned}}
    for (subject, place), rows in progress(list(by_slice.items()), "vision features"):
        if llm.sees == "pictures":
            seen = torch.from_numpy(pictures[subject][place])
        else:
            seen = torch.from_numpy(writer.embeddings(build.layers.embeddings, subject, slice(place, place + 1))[0])
        of_slice = llm.features(seen)
        for row in rows:
            features[row] = of_slice[captioned[row].modality]
    return torch.stack(features)


def _forget(folder: Path) -> None:
    """Removes what was kept of unfinished trainings."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others are at theirs
        folder.parent.rmdir()
