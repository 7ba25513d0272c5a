"""Taking subjects or layers out of a cache, so that not one byte of them stays in its files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from zeus_union.cache.claims import lock_if_possible
from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import UNLABELLED
from zeus_union.cache.instructions import TextTable
from zeus_union.cache.layout import (
    CONSTANTS,
    find_packed,
    is_packed_name,
    lock_path,
    locks_folder,
    parquet_path,
    short_names,
    split_shard_name,
)
from zeus_union.cache.manifest import Manifest, find_shards, read_manifest, read_shard, refuse_shard
from zeus_union.cache.pack import (
    part_bytes,
    remove_empty,
    remove_left,
    remove_packed,
    write_index,
    write_packed,
    write_texts,
)
from zeus_union.cache.projections import trained_on
from zeus_union.cache.shard import FileBuilder, Files
from zeus_union.cache.terminal import choose, some_of
from zeus_union.cache.view_layers import view_layer, view_of


@dataclass(frozen=True)
class Removal:
    """What leaves a cache, and what that means.

    Attributes:
        subjects, layers: what leaves.
        freed: bytes of their rows.
        copied: bytes that are written anew for it, of what stays in a packed file; 0 where only shards go.
        untested: folds that test nobody afterwards.
        learned: layers that stay and whose projection has learned from one of the subjects.
    """

    subjects: tuple[str, ...]
    layers: tuple[str, ...]
    freed: int
    copied: int
    untested: tuple[int, ...]
    learned: tuple[str, ...]


def plan_removal(path: Path, subjects: Sequence[str], layers: Sequence[str]) -> Removal:
    """What `remove` would do; writes nothing.

    Raises:
        UserError: as `remove`.
    """
    files = Files(path)
    try:
        index = _open(files)
        return _plan(files, index, _without(files, index, subjects, layers), subjects, layers)
    finally:
        files.close()


def remove(path: Path, subjects: Sequence[str], layers: Sequence[str] = ()) -> Removal:
    """Takes subjects and layers out of a cache, finished or not.

    What lies in shards goes with them. A packed file is written anew without them and takes the old one's place when it is
    whole, so a kill leaves the cache with all of them, or without: then the same command removes what is left of their files.

    Args:
        subjects: names; also of some that are not in the cache yet, or not any more, and of which there are files.
        layers: names, of any but the slices.

    Raises:
        UserError: no such subject or layer, the last subject, the slices, another process is at work on the cache.
        NoSpaceError: no space for what a packed file keeps.
    """
    with _alone(path):
        files = Files(path)
        try:
            index = _open(files)
            kept = _without(files, index, subjects, layers)
            removal = _plan(files, index, kept, subjects, layers)
            remove_left(path)
            if removal.copied:
                write_packed(path, kept, files, with_texts=False)
            elif index.state == "sharded":
                write_index(path, kept, files, with_texts=False)
            elif index != kept:
                with FileBuilder(path) as builder:
                    builder.commit(kept)
            # From here on nothing lists them, and what follows only clears away.
            _rewrite_texts(files, kept)
            for suffix in (".h5", ".parquet"):  # a shard is what says that its table is there
                for name in find_shards(files.folder, suffix=suffix):
                    if _leaves(name, subjects, layers):
                        (files.folder / name).unlink()
            remove_empty(files.folder)
            shutil.rmtree(locks_folder(path), ignore_errors=True)
            now = files.manifest()
            if now.state == "packed":
                remove_packed(now, files.folder)
            return removal
        finally:
            files.close()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with lock_if_possible(lock_path(path)) as ours:
        if not ours:
            raise UserError(f"another process builds {path}; wait for it, or end it, before removing anything")
        yield


def _open(files: Files) -> Manifest:
    if not files.path.is_file():
        raise UserError(f"cache {files.path} does not exist")
    index = files.manifest()
    refuse_shard(index, files.path)
    return index


def _without(files: Files, index: Manifest, subjects: Sequence[str], layers: Sequence[str]) -> Manifest:
    """The index without them."""
    card = index.card
    names = [name for suffix in (".h5", ".parquet") for name in find_shards(files.folder, suffix=suffix)]
    shards = [split_shard_name(name) for name in names]
    in_packed = [
        name for file in find_packed(files.folder) for name in read_manifest(files.folder / file).card.subjects
    ]
    known = dict.fromkeys([*card.subjects, *(name for _, name in shards if name != CONSTANTS), *in_packed])
    left = [name for name in subjects if name not in known and _has_texts(files.path, name)]
    choose([name for name in subjects if name not in left], tuple(known), "subject")
    known_layers = dict.fromkeys([*index.parts, *(layer for layer, _ in shards)])
    choose(layers, tuple(sorted(known_layers)), "layer")
    if "slices" in layers:
        raise UserError(f"every layer of {files.path} stands on its slices; delete the whole cache, or name subjects")
    for layer in layers:
        if layer.startswith("slices@") and (
            seeing := [name for name in known_layers if _shows(name, layer) and name not in layers]
        ):
            raise UserError(f"{', '.join(seeing)} of {files.path} shows {layer}; take it out too")
    kept = tuple(name for name in card.subjects if name not in set(subjects))
    if not kept:
        raise UserError(f"{some_of(card.subjects)} would leave {files.path} without a subject; delete it instead")
    parts = {
        layer: {name: part for name, part in by_subject.items() if name == CONSTANTS or name in set(kept)}
        for layer, by_subject in index.parts.items()
        if layer not in layers
    }
    return replace(
        index,
        card=replace(card, subjects=kept),
        recipes={layer: recipe for layer, recipe in index.recipes.items() if layer not in layers},
        parts=parts,
        folds={name: fold for name, fold in index.folds.items() if name in set(kept)},
        validation={
            fold: tuple(name for name in names if name in set(kept)) for fold, names in index.validation.items()
        },
    )


def _shows(layer: str, pictures: str) -> bool:
    """Whether a layer holds the embeddings of the view `pictures`."""
    return layer != pictures and bool(view_of(layer)) and view_layer("slices", view_of(layer)) == pictures


def _has_texts(path: Path, subject: str) -> bool:
    table = parquet_path(path)
    return table.is_file() and bool(TextTable(table).read(subject=subject).num_rows)


def _plan(files: Files, index: Manifest, kept: Manifest, subjects: Sequence[str], layers: Sequence[str]) -> Removal:
    gone = [
        part
        for layer, by_subject in index.parts.items()
        for name, part in by_subject.items()
        if name not in kept.parts.get(layer, {})
    ]
    listed = {part.file for part in gone}
    for name in find_shards(files.folder):
        if name not in listed and _leaves(name, subjects, layers):
            gone += [
                part for by_subject in read_shard(files.folder, name).parts.values() for part in by_subject.values()
            ]
    is_copied = any(not part.file or is_packed_name(part.file) for part in gone)
    folds = [{*manifest.folds.values()} - {UNLABELLED} for manifest in (index, kept)]
    return Removal(
        tuple(subjects),
        tuple(layers),
        sum(part.nbytes for part in gone),
        part_bytes(kept) if is_copied else 0,
        tuple(sorted(folds[0] - folds[1])),
        tuple(
            layer for layer, recipe in kept.recipes.items() if set(subjects) & {*trained_on(recipe).get("subjects", ())}
        ),
    )


def _leaves(shard: str, subjects: Sequence[str], layers: Sequence[str]) -> bool:
    layer, subject = split_shard_name(shard)
    return layer in layers or subject in subjects


def _rewrite_texts(files: Files, kept: Manifest) -> None:
    """The table beside the cache, without what left."""
    if short_names(kept.parts, "instructions"):
        write_texts(files.path, (kept, files))
    elif kept.state != "building":
        parquet_path(files.path).unlink(missing_ok=True)
