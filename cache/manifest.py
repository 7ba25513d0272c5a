"""What a file of a cache says about itself, and the index says about all of them: the JSON in `/manifest`."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import folds_of_labelled
from zeus_union.cache.layout import CONSTANTS, LAYOUT, DatasetCard, kind_of, shard_folder
from zeus_union.cache.recipe import canonical_json
from zeus_union.cache.seal import check_seal
from zeus_union.cache.terminal import counted, some_of
from zeus_union.cache.view_layers import view_of


@lru_cache
def _itemsize(dtype: str) -> int:
    return int(np.dtype(dtype).itemsize)


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies in its file."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _itemsize(self.dtype)

    def row_at(self, row: int, axes: int) -> int:
        """Offset of a row, counted over the `axes` leading axes."""
        return self.offset + row * (self.nbytes // math.prod(self.shape[:axes]))


@dataclass(frozen=True)
class Part:
    """One subject of one layer.

    Attributes:
        file: name relative to the shard folder; '' is the cache file itself.
        file_bytes: size of that shard, 0 for ''.
        arrays: name -> where.
        facts: what else is known; `slices`: the native grid and the digests of the source files, other layers: the
            digest of the slices they were made from (`view_layers.made_from`).
    """

    file: str
    file_bytes: int
    arrays: Mapping[str, StoredArray]
    facts: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Of its arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def to_json(self) -> dict[str, Any]:
        arrays = {name: [array.offset, array.dtype, list(array.shape)] for name, array in self.arrays.items()}
        return {"file": self.file, "file_bytes": self.file_bytes, "arrays": arrays, "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Part:
        arrays = {name: StoredArray(at, dtype, tuple(shape)) for name, (at, dtype, shape) in values["arrays"].items()}
        return cls(values["file"], values["file_bytes"], arrays, values["facts"])


@dataclass(frozen=True)
class Manifest:
    """What a file holds, or where what it lists is.

    Attributes:
        state: 'shard', or of the cache file: 'building' (lists nothing yet), 'sharded', 'packed'.
        card: the dataset.
        recipes: layer -> recipe.
        parts: layer -> subject (or `CONSTANTS`) -> part.
        folds: subject -> fold, -1 for those that no fold tests; decided when the cache is created.
        validation: fold -> subjects to validate on, of those that it does not test; likewise.
    """

    state: str
    card: DatasetCard
    recipes: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Part]] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
    validation: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        parts = {
            layer: {name: part.to_json() for name, part in by_subject.items()}
            for layer, by_subject in self.parts.items()
        }
        return canonical_json(
            {
                "state": self.state,
                "card": self.card.to_json(),
                "recipes": dict(self.recipes),
                "parts": parts,
                "folds": dict(self.folds),
                "validation": {str(fold): list(names) for fold, names in self.validation.items()},
            }
        ).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> Manifest:
        values = json.loads(text)
        parts = {
            layer: {name: Part.from_json(part) for name, part in by_subject.items()}
            for layer, by_subject in values["parts"].items()
        }
        card = DatasetCard.from_json(values["card"])
        validation = {int(fold): tuple(names) for fold, names in values["validation"].items()}
        return cls(values["state"], card, values["recipes"], parts, values["folds"], validation)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's cyclic garbage collector for the time of the block.

    While the objects of a large index are made it walks through all of them again and again and finds nothing to free: an
    index of 10,000 subjects takes three times as long.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_manifest(path: Path) -> Manifest:
    """The manifest of a cache file or shard.

    Raises:
        UserError: not a cache, another schema version, truncated, damaged.
    """
    check_seal(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            text = bytes(file["manifest"][()])
        with _collector_paused():
            manifest = Manifest.from_bytes(text)
        size = os.path.getsize(path)
        parts = [part for by_subject in manifest.parts.values() for part in by_subject.values() if part.file == ""]
        for array in (array for part in parts for array in part.arrays.values()):
            if array.offset < 0 or array.offset + array.nbytes > size:
                raise ValueError("an array lies outside the file")
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, SyntaxError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}); zeus-instruct verify says where; "
            "copy it again from where it came, or delete it and build it again with zeus-instruct build-cache"
        ) from error
    return manifest


def shard_manifest(
    card: DatasetCard,
    layer: str,
    subject: str,
    recipe: Mapping[str, Any],
    stored: Mapping[str, StoredArray],
    facts: Mapping[str, Any],
) -> Manifest:
    """Of one subject of one layer, or of the layer's constants, in a file of its own."""
    of_shard = replace(card, subjects=() if subject == CONSTANTS else (subject,))
    return Manifest("shard", of_shard, {layer: dict(recipe)}, {layer: {subject: Part("", 0, stored, facts)}})


def refuse_shard(manifest: Manifest, path: Path) -> None:
    """Raises UserError: `path` is not a cache but a part of one."""
    if manifest.state == "shard":
        raise UserError(f"{path} is a single subject's shard; give the cache file next to its .h5.d folder")


def read_shard(folder: Path, name: str) -> Manifest:
    """The manifest of a shard, its part (there is one) naming the shard as its file.

    Raises:
        UserError: as `read_manifest`.
    """
    path = folder / name
    manifest = read_manifest(path)
    size = path.stat().st_size
    parts = {
        layer: {subject: replace(part, file=name, file_bytes=size) for subject, part in by_subject.items()}
        for layer, by_subject in manifest.parts.items()
    }
    return replace(manifest, parts=parts)


def find_shards(folder: Path, layer: str = "*", subject: str = "*", suffix: str = ".h5") -> list[str]:
    """Names relative to the shard folder of the finished shards (or, .parquet, of their tables of texts), sorted."""
    layers = ("slices", "slices@view*", "embeddings/*", "instructions/*") if layer == "*" else (layer,)
    paths = (path for name in layers for path in folder.glob(f"{name}/{subject}.{'?' * 12}{suffix}"))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def subjects_due(layer: str, subjects: Sequence[str], slices: Mapping[str, Part]) -> list[str]:
    """Whom a finished layer holds: all, but for a view's those that `slices` knows to have no labels."""
    if not view_of(layer):
        return list(subjects)
    return [name for name in subjects if name not in slices or "masks" in slices[name].arrays]


def check_uniform(parts: Mapping[str, Mapping[str, Part]]) -> None:
    """Refuses layers whose subjects do not have arrays of one dtype and one shape of a row.

    Raises:
        UserError: naming two subjects that differ.
    """
    for layer, by_subject in parts.items():
        seen: dict[str, tuple[str, Any]] = {}
        for subject, part in by_subject.items():
            for spec in LAYOUT[kind_of(layer)]:
                if subject == CONSTANTS or spec.name not in part.arrays or "native row" in spec.axes:
                    continue
                array = part.arrays[spec.name]
                first, expected = seen.setdefault(spec.name, (subject, (array.dtype, array.shape[1:])))
                if expected != (array.dtype, array.shape[1:]):
                    raise UserError(
                        f"{layer}/{spec.name} of {subject} is {array.dtype} {array.shape[1:]}, of {first} it is "
                        f"{expected[0]} {expected[1]}; build them the same way (same --store) under another --out"
                    )


def finished_so_far(index: Manifest, path: Path, allow_partial: bool) -> Manifest:
    """What an unfinished build has: the layers that were begun, and the subjects that are finished in all of them.

    Raises:
        UserError: not `allow_partial`, or no subject is finished.
    """
    folder = shard_folder(path)
    parts: dict[str, dict[str, Part]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    for name in find_shards(folder):
        shard = read_shard(folder, name)
        recipes.update(shard.recipes)
        for layer, by_subject in shard.parts.items():
            parts.setdefault(layer, {}).update(by_subject)
    subjects = index.card.subjects
    slices = parts.get("slices", {})
    lacking = {
        layer: [name for name in subjects_due(layer, subjects, slices) if name not in by_subject]
        for layer, by_subject in parts.items()
    }
    done = [name for name in subjects if parts and not any(name in names for names in lacking.values())]
    if not allow_partial or not done or "slices" not in parts:
        missing = "; ".join(f"{layer} lacks {some_of(names)}" for layer, names in lacking.items() if names)
        raise UserError(
            f"{path} is unfinished: {len(done)} of {counted(len(subjects), 'subject')} finished"
            + (f" ({missing})" if missing else "")
            + "; run the same build-cache command again to continue"
            + (", or use what is finished with --allow-partial" if done else "")
        )
    kept = {
        layer: {name: part for name, part in by_subject.items() if name in (*done, CONSTANTS)}
        for layer, by_subject in parts.items()
    }
    labelled = [name for name in done if "masks" in kept["slices"][name].arrays]
    folds = folds_of_labelled(subjects, labelled, index.folds)
    return replace(index, recipes=recipes, parts=kept, folds=folds)
