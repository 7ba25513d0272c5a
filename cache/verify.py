"""Checks every byte and every row of a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.instructions import text_hashes
from zeus_union.cache.layout import CONSTANTS, ROW_HASH
from zeus_union.cache.manifest import Manifest, Part, find_shards, read_manifest, read_shard
from zeus_union.cache.pack import read_texts, texts_path
from zeus_union.cache.seal import seal_holds
from zeus_union.cache.shard import Files, damaged_rows, rows_digest
from zeus_union.cache.view_layers import made_from


def verify(path: Path | str) -> list[str]:
    """Reads the whole cache and compares it with what was written.

    Returns:
        one line for each finding, naming subject, slice and modality of the rows that are hit; empty for a sound cache.

    Raises:
        UserError: there is nothing at `path`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"cache {path} does not exist")
    files = Files(path)
    try:
        return list(_findings(files))
    finally:
        files.close()


def _findings(files: Files) -> Iterator[str]:
    try:
        index = read_manifest(files.path)
    except UserError as error:
        yield str(error)
        return
    if index.state == "building":
        yield f"{files.path} is unfinished; run the same build-cache command again"
    parts = {(layer, name): part for layer, by_subject in index.parts.items() for name, part in by_subject.items()}
    listed: dict[str, list[Part]] = {}
    for part in parts.values():
        listed.setdefault(part.file, []).append(part)
    damaged = set() if seal_holds(files.path) else {""}
    for name in sorted({*listed, *find_shards(files.folder)} - {""}):
        try:
            shard = read_shard(files.folder, name)
            if not seal_holds(files.locate(name)):
                damaged.add(name)
        except (UserError, OSError, ValueError) as error:
            yield str(error)
            continue
        for layer, by_subject in shard.parts.items():
            for subject, part in by_subject.items():
                if name not in listed:
                    parts.setdefault((layer, subject), part)
                elif part not in listed[name]:
                    yield f"{files.locate(name)} is not the shard that {files.path} was made with"
    hit = set()
    unreadable: dict[Path, str] = {}
    for (layer, subject), part in sorted(parts.items()):
        if subject != CONSTANTS:
            slices = parts.get((made_from(layer), subject))
            for finding in _check_part(files, index, layer, subject, part, slices, unreadable):
                hit.add(part.file)
                yield finding
    for name in sorted(damaged - hit):
        yield f"{files.locate(name)}: bytes outside the rows differ from what was written"


def _check_part(
    files: Files,
    index: Manifest,
    layer: str,
    subject: str,
    part: Part,
    slices: Part | None,
    unreadable: dict[Path, str],
) -> Iterator[str]:
    """What is wrong with one subject of one layer; `unreadable`: tables of texts that cannot be read -> why."""
    where = f"{files.locate(part.file)}: {layer}, subject {subject}"
    try:
        if slices is None and subject not in index.card.subjects:
            remedy = f"zeus-instruct remove {files.path} {subject} --yes takes it away"
            yield f"{where}: left of a subject that is not in the cache; {remedy}"
            return
        if slices is None:
            yield f"{where}: its slices are missing"
            return
        numbers = files.array(slices, "numbers")

        def row(position: tuple[int, ...]) -> str:
            modality = f", modality {index.card.modalities[position[1]]}" if len(position) == 2 else ""
            return f"slice {numbers[position[0]]}{modality}"

        for position in damaged_rows(files, layer, part):
            yield f"{where}, {row(position)}: bytes differ from what was written"
        if layer != "slices" and part.facts["slices"] != rows_digest(files.array(slices, ROW_HASH)):
            yield f"{where}: made from other slices than those in the cache"
        if layer.startswith("instructions/"):
            merged = [replace(part, file="")] if subject in index.parts.get(layer, {}) else []
            for texts in {part.file: part, **{other.file: other for other in merged}}.values():
                yield from _check_texts(files, layer, subject, texts, files.array(part, "text_xxh3"), row, unreadable)
    except Exception as error:  # a flipped byte of the manifest can lead anywhere
        yield f"{where}: unreadable ({' '.join(repr(error).split())})"


def _check_texts(
    files: Files,
    layer: str,
    subject: str,
    part: Part,
    expected: NDArray[np.uint8],
    row: Callable[[tuple[int, ...]], str],
    unreadable: dict[Path, str],
) -> Iterator[str]:
    variant = layer.partition("/")[2]
    path = texts_path(files, part)
    where = f"{path}: {layer}, subject {subject}"
    try:
        if path not in unreadable:
            files.texts(path)
    except (UserError, OSError, ValueError) as error:
        unreadable[path] = str(error)
    try:
        if path in unreadable:
            raise ValueError(unreadable[path])
        hashes = text_hashes(read_texts(files, variant, subject, part))
    except (UserError, OSError, ValueError) as error:
        yield f"{where}: unreadable ({error})"
        return
    if len(hashes) != expected.shape[0] * expected.shape[1]:
        yield f"{where}: {len(hashes)} texts, expected {expected.shape[0] * expected.shape[1]}"
        return
    for position in np.argwhere((hashes.reshape(expected.shape) != expected).any(axis=-1)).tolist():
        yield f"{where}, {row(tuple(position))}: the text differs from what was written"
