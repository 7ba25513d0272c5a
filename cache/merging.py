"""Two caches that were built alike, of different subjects, as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zeus_union.cache.atomic import make_folder, require_space
from zeus_union.cache.claims import lock_if_possible
from zeus_union.cache.errors import UserError
from zeus_union.cache.finishing import becomes_one_file
from zeus_union.cache.folds import UNLABELLED
from zeus_union.cache.instructions import write_table
from zeus_union.cache.layout import (
    CONSTANTS,
    PROFILE,
    ROW_HASH,
    lock_path,
    shard_folder,
    shard_name,
)
from zeus_union.cache.manifest import Manifest, Part, check_uniform, read_shard, shard_manifest
from zeus_union.cache.pack import (
    finished_manifest,
    part_bytes,
    read_texts,
    remove_left,
    write_index,
    write_packed,
    write_texts,
)
from zeus_union.cache.recipe import describe, differences, fingerprint
from zeus_union.cache.shard import FileBuilder, Files
from zeus_union.cache.terminal import counted, progress, some_of
from zeus_union.cache.verify import verify


def merge(first: Path, second: Path, target: Path, pack: bool | None = None) -> tuple[str, ...]:
    """Writes the cache `target` of the subjects of `first`, then those of `second`; both stay as they are.

    Every subject keeps its fold, and who is validated on. A killed merge into shards goes on, one into a file begins anew.

    Args:
        pack: one file (True), an index over shards (False), or one file below 20 GB (None).

    Returns:
        the subjects.

    Raises:
        UserError: one of them is unfinished or damaged, they were not built alike, a subject is in both, the same study is
            under two names, `target` exists or is being written.
        NoSpaceError: no space for it.
    """
    if first.resolve() == second.resolve() or (first.exists() and second.exists() and first.samefile(second)):
        raise UserError(f"{first} and {second} are one cache; give two of different subjects")
    for path in (first, second):
        if not path.is_file():
            raise UserError(f"cache {path} does not exist")
        if path.resolve() == target.resolve():
            raise UserError(f"{target} is one of the two caches, which stay as they are; give another --out")
    make_folder(target.parent)
    with ExitStack() as stack:
        for path in (first, second):
            stack.enter_context(lock_if_possible(lock_path(path), shared=True, wait=True))
        if not stack.enter_context(lock_if_possible(lock_path(target))):
            raise UserError(f"{target} is being written by another process; choose another name or wait for it")
        if target.exists():
            raise UserError(f"{target} exists; choose another name or remove it")
        sources = [Files(path) for path in (first, second)]
        for files in sources:
            stack.callback(files.close)
        manifests = [finished_manifest(files.manifest(), files.path) for files in sources]
        _check_alike(first, second, manifests[0], manifests[1])
        _check_different_subjects(first, second, manifests[0], manifests[1])
        for path in (first, second):
            if findings := verify(path):
                raise UserError(
                    f"{path} is damaged ({counted(len(findings), 'finding')}; {findings[0]}); repair it first"
                )
        joined = _join(manifests[0], manifests[1], sources[0], sources[1])
        check_uniform(joined.parts)
        remove_left(target)
        if becomes_one_file(target, "building", part_bytes(joined), pack):
            write_texts(target, *zip(manifests, sources))
            write_packed(target, joined, sources[0], replace_target=False, with_texts=False)
        else:
            _write_shards(target, joined, manifests, sources)
        return joined.card.subjects


def _check_alike(first: Path, second: Path, one: Manifest, other: Manifest) -> None:
    """Raises UserError: they differ in what a cache is about, or in what a layer was made from."""

    def card(manifest: Manifest) -> dict[str, Any]:
        return replace(manifest.card, subjects=()).to_json()

    if changed := differences(card(one), card(other)):
        raise UserError(
            f"{first} and {second} were built with different options ({describe(changed)}); build them with the same options"
        )
    for lacking, having in ((first, second), (second, first)):
        mine, theirs = (one, other) if lacking == first else (other, one)
        if layers := sorted({*theirs.parts} - {*mine.parts}):
            raise UserError(
                f"{lacking} lacks {', '.join(layers)} of {having}; build it there too, or take it out of {having} with "
                "zeus-instruct remove --layer"
            )
    for layer in one.parts:
        if changed := differences(one.recipes[layer], other.recipes[layer]):
            raise UserError(
                f"layer {layer} of {first} and that of {second} have different recipes ({describe(changed)}); "
                "build one of them again with the options of the other"
            )
    folds = [Counter(fold for fold in manifest.folds.values() if fold != UNLABELLED) for manifest in (one, other)]
    few, many = sorted(folds, key=len)
    # Of fewer than five subjects each is a fold of its own: those are the first folds of five.
    if few and set(few) != set(many) and not (set(few) <= set(many) and max(few.values()) == 1):
        raise UserError(
            f"{first} has {counted(len(folds[0]), 'fold')} and {second} {len(folds[1])}; build one of them again with --splits "
            "that has the folds of the other"
        )


def _check_different_subjects(first: Path, second: Path, one: Manifest, other: Manifest) -> None:
    """Raises UserError: a subject that is in both, or whose files are."""
    if both := [name for name in one.card.subjects if name in set(other.card.subjects)]:
        raise UserError(
            f"{some_of(both)} is in both {first} and {second}; take it out of one with zeus-instruct remove, or, where these "
            "are different patients, rename the studies of one and build it again"
        )
    known = {digest: name for name, digest in _digests(one)}
    if twice := [(known[digest], name) for name, digest in _digests(other) if digest in known]:
        mine, theirs = twice[0]
        raise UserError(
            f"{mine} of {first} and {theirs} of {second} were read from the same file, so that a test might see what was "
            "trained on; take one of them out with zeus-instruct remove"
        )


def _digests(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(subject, digest) of each file that a subject was read from."""
    for name, part in manifest.parts["slices"].items():
        for digest in part.facts.get("sources", {}).values():
            yield name, digest


def _join(one: Manifest, other: Manifest, files: Files, other_files: Files) -> Manifest:
    """What both hold, the parts under their files' absolute names; constants are those of the first."""
    for layer in one.parts:
        if _constants(files, one, layer) != _constants(other_files, other, layer):
            raise UserError(
                f"layer {layer} of {files.path} and that of {other_files.path} keep different constants of one model; build "
                "one of them again"
            )
    subjects = (*one.card.subjects, *other.card.subjects)
    parts = {
        layer: {
            **{name: _absolute(part, files) for name, part in by_subject.items()},
            **{name: _absolute(part, other_files) for name, part in other.parts[layer].items() if name != CONSTANTS},
        }
        for layer, by_subject in one.parts.items()
    }
    validation = {
        fold: (*one.validation.get(fold, ()), *other.validation.get(fold, ()))
        for fold in sorted({*one.validation, *other.validation})
    }
    card = replace(one.card, subjects=subjects)
    return Manifest("packed", card, one.recipes, parts, {**one.folds, **other.folds}, validation)


def _absolute(part: Part, files: Files) -> Part:
    path = files.locate(part.file).resolve()
    return replace(part, file=str(path), file_bytes=path.stat().st_size)


def _constants(files: Files, manifest: Manifest, layer: str) -> dict[str, bytes]:
    """What a layer keeps of its model; the profile, which may name paths, decides nothing."""
    part = manifest.parts[layer].get(CONSTANTS)
    return {} if part is None else {name: files.array(part, name).tobytes() for name in part.arrays if name != PROFILE}


def _write_shards(target: Path, joined: Manifest, manifests: list[Manifest], sources: list[Files]) -> None:
    """A shard for each subject of each layer, then the index; shards that are there already stay."""
    folder = shard_folder(target)
    make_folder(folder)
    require_space(folder, part_bytes(joined), f"merging into {target.name}")
    written: dict[str, dict[str, Part]] = {}
    files = Files(target)
    owner = {name: index for index, manifest in enumerate(manifests) for name in manifest.card.subjects}
    for layer, by_subject in progress(sorted(joined.parts.items()), "merging"):
        for subject, part in by_subject.items():
            name = shard_name(layer, subject, fingerprint(joined.recipes[layer]))
            if not _is_there(files, layer, subject, name, part):
                if layer.startswith("instructions/") and subject != CONSTANTS:
                    source = owner[subject]
                    table = read_texts(
                        sources[source], layer.partition("/")[2], subject, manifests[source].parts[layer][subject]
                    )
                    write_table((folder / name).with_suffix(".parquet"), [table])
                _write_shard(folder / name, layer, subject, part, joined, files)
            written.setdefault(layer, {})[subject] = read_shard(folder, name).parts[layer][subject]
    write_index(target, replace(joined, parts=written), files)
    files.close()


def _write_shard(final: Path, layer: str, subject: str, part: Part, joined: Manifest, files: Files) -> None:
    with FileBuilder(final) as builder:
        stored = {name: builder.copy(f"{layer}/{subject}/{name}", files, part, name) for name in part.arrays}
        builder.commit(shard_manifest(joined.card, layer, subject, joined.recipes[layer], stored, part.facts))


def _is_there(files: Files, layer: str, subject: str, name: str, part: Part) -> bool:
    """Whether a killed merge has written that shard: of the same rows."""
    if not (files.folder / name).is_file():
        return False
    there = read_shard(files.folder, name).parts[layer][subject]
    names = part.arrays if subject == CONSTANTS else [ROW_HASH]
    return there.facts == part.facts and all(
        np.array_equal(files.array(there, array), files.array(part, array)) for array in names
    )
