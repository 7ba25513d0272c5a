"""What a cache is built on from without the raw data: the data set as the cache knows it, and its stored pictures.

Texts see stored pictures or embeddings, and an image encoder that reads pictures of the stored size sees the very pixels it
would see of the study. One that reads larger ones sees them straight from the native resolution, which no cache holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import kind_of, shard_folder
from zeus_union.cache.manifest import find_shards, read_manifest, read_shard
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.rows import pictures_as
from zeus_union.cache.terminal import some_of
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.studies.depth import wanted
from zeus_union.stage1_instruct.studies.slices import PICTURE_SIZE, Slices
from zeus_union.stage1_instruct.studies.study import Dataset, Study


def cached_dataset(path: Path) -> Dataset:
    """The data set of a cache, finished or not: its card, its folds, and who of the finished subjects has labels.

    No study of it can be loaded, but for what a reading of headers gives of a finished one: its grid, and which labels it has.

    Raises:
        UserError: not a cache, or one without a finished subject.
    """
    index = read_manifest(path)
    slices, recipes = dict(index.parts.get("slices", {})), dict(index.recipes)
    for name in find_shards(shard_folder(path), "slices"):
        shard = read_shard(shard_folder(path), name)
        slices |= shard.parts["slices"]
        recipes |= shard.recipes
    if not slices:
        raise UserError(
            f"{path} holds no finished subject yet; what is missing needs the raw data: give --dataset and --data-root"
        )

    def load(subject: str) -> Study:
        if wanted() or subject not in slices:
            raise UserError(
                f"{subject} needs the raw data, and the data set is known from {path} alone; give --data-root"
            )
        part = slices[subject]
        grid = Grid.from_json(part.facts["grid"])
        nothing = np.broadcast_to(np.float32(0), grid.shape)
        labels = np.broadcast_to(np.uint8(0), grid.shape)
        images = dict.fromkeys(index.card.modalities, nothing)
        of_each = dict.fromkeys(index.card.modalities, labels) if "modality_masks" in part.arrays else {}
        return Study(subject, grid, images, labels if "masks" in part.arrays else None, of_each)

    labelled = {name: name for name, part in slices.items() if "masks" in part.arrays}
    return Dataset(index.card, load, labelled=labelled, cached_recipe=recipes["slices"])


def store_of(path: Path) -> str | None:
    """How a cache stores embeddings, 'uint8' or 'fp16'; None where it has none, or both ways."""
    stores = {recipe.get("store") for layer, recipe in read_manifest(path).recipes.items() if "embeddings/" in layer}
    for name in find_shards(shard_folder(path), "embeddings/*")[:1]:
        stores |= {recipe.get("store") for recipe in read_shard(shard_folder(path), name).recipes.values()}
    return stores.pop() if len(stores) == 1 else None


def check_same_pictures(path: Path, dataset: Dataset, given: Mapping[str, Any]) -> None:
    """Refuses options that ask for other pictures than those in the cache.

    Args:
        given: what the user chose of a card's fields, and of the recipe's 'view' and 'windows'.

    Raises:
        UserError: naming what differs.
    """
    card, recipe = dataset.card.to_json(), dataset.cached_recipe or {}
    stored = {name: recipe.get(name) if name in ("view", "windows") else card[name] for name in given}
    for name, value in given.items():
        before = stored[name]
        if isinstance(value, Mapping) and isinstance(before, Mapping):  # those that were not named stay as they are
            stored[name] = {key: before.get(key) for key in value}
    if changed := differences(_plain(stored), _plain(given)):
        raise UserError(
            f"the pictures in {path} were made otherwise ({describe(changed)}), and others need the raw data: give "
            "--dataset and --data-root with another --out, or leave the option out"
        )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names in any order."""
    return {name: sorted(value) if isinstance(value, (tuple, list)) else value for name, value in values.items()}


def needs_study(models: Models, layers: Collection[str]) -> bool:
    """Whether one of these layers of a subject is made from its study, and not from what the cache holds of it."""
    if "slices" in layers:
        return True
    encoded = any(kind_of(layer) == "embeddings" for layer in layers)
    return encoded and models.encoder_recipe()["input_size"] != PICTURE_SIZE


def check_can_be_made(path: Path, models: Models, missing: Mapping[str, Sequence[str]]) -> None:
    """Refuses, before a model is loaded, to go on without the raw data where what is missing needs it.

    Args:
        missing: subject -> the layers it is missing in.

    Raises:
        UserError: naming layers and subjects.
    """
    lacking = [subject for subject, layers in missing.items() if needs_study(models, layers)]
    if not lacking:
        return
    layers = sorted({layer for subject in lacking for layer in missing[subject] if needs_study(models, (layer,))})
    why = (
        "they are not in the cache yet"
        if "slices" in layers
        else (
            f"{models.profile.encoder} reads pictures of {models.encoder_recipe()['input_size']} pixels, made from the native "
            f"resolution, and the cache holds {PICTURE_SIZE}"
        )
    )
    raise UserError(
        f"{', '.join(layers)} of {some_of(lacking)} cannot be made from {path} alone, {why}: give the raw data with "
        "--dataset and --data-root"
    )


def stored_pictures(writer: CacheWriter, subject: str) -> Slices:
    """The finished slices of a subject, without native pictures."""
    return pictures_as(Slices, writer.slices(subject), native_images=None)


def first_pictures(path: Path) -> tuple[str, Slices]:
    """A finished subject of a cache, and its slices, as `stored_pictures`; for whoever builds nothing."""
    with Cache(path, allow_partial=True) as cache:
        subject = cache.subjects[0]
        rows = cache.rows_of([subject])
        labelled = bool(cache.rows["labelled"][rows].all())
        return subject, Slices(
            grid=cache.grid(subject),
            numbers=cache.rows["number"][rows],
            images=cache.images(rows),
            masks=cache.masks(rows) if labelled else None,
            modality_masks=cache.modality_masks(rows) if labelled else None,
            native_masks=cache.native_masks(subject),
            native_images=None,
        )
