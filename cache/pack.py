"""Many shards into one file that can be copied anywhere, or a small index over them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from zeus_union.cache.atomic import make_folder, remove_stale, require_space
from zeus_union.cache.errors import UserError
from zeus_union.cache.instructions import read_table, write_table
from zeus_union.cache.layout import CONSTANTS, parquet_path, short_names, split_shard_name
from zeus_union.cache.manifest import Manifest, Part, find_shards
from zeus_union.cache.shard import FileBuilder, Files


def part_bytes(manifest: Manifest) -> int:
    """Bytes of all rows and constants."""
    return sum(
        array.nbytes for found in manifest.parts.values() for part in found.values() for array in part.arrays.values()
    )


def texts_path(files: Files, part: Part) -> Path:
    """The table that holds a subject's texts: beside its shard, or the merged one beside the cache."""
    return files.locate(part.file).with_suffix(".parquet") if part.file else parquet_path(files.path)


def read_texts(files: Files, variant: str, subject: str, part: Part) -> pa.Table:
    """The instructions of one subject, in row order."""
    return read_table(texts_path(files, part), subject=subject, variant=variant)


def write_texts(target: Path, manifest: Manifest, files: Files) -> None:
    """Merges the instruction texts of all subjects into `target`, the table beside a cache."""

    def tables() -> Iterator[pa.Table]:
        for variant in short_names(manifest.parts, "instructions"):
            found = manifest.parts[f"instructions/{variant}"]
            for subject in manifest.card.subjects:
                yield read_texts(files, variant, subject, found[subject])

    write_table(target, tables())


def write_packed(target: Path, manifest: Manifest, files: Files) -> None:
    """One file with every row that `manifest` lists, and the table of texts beside it; the texts get their name first.

    Raises:
        UserError: no space for it. OSError: the disk is full after all.
    """
    make_folder(target.parent)
    require_space(target.parent, part_bytes(manifest), f"packing {target.name}")
    if short_names(manifest.parts, "instructions"):
        write_texts(parquet_path(target), manifest, files)
    with FileBuilder(target) as builder:
        packed: dict[str, Mapping[str, Part]] = {}
        for layer, found in sorted(manifest.parts.items()):
            names = [name for name in (CONSTANTS, *manifest.card.subjects) if name in found]
            packed[layer] = {
                name: Part(
                    "",
                    0,
                    {
                        array: builder.copy(f"{layer}/{name}/{array}", files, found[name], array)
                        for array in found[name].arrays
                    },
                    found[name].facts,
                )
                for name in names
            }
        builder.commit(replace(manifest, state="packed", parts=packed))


def write_index(target: Path, manifest: Manifest, files: Files) -> None:
    """The small index of a sharded cache, and the table of texts beside it; the texts get their name first."""
    if short_names(manifest.parts, "instructions"):
        write_texts(parquet_path(target), manifest, files)
    with FileBuilder(target) as builder:
        for layer, found in sorted(manifest.parts.items()):
            for name, part in sorted(found.items()):
                builder.link(f"{layer}/{name}", Path(files.folder.name) / part.file, f"{layer}/{name}")
        builder.commit(replace(manifest, state="sharded"))


def remove_packed(manifest: Manifest, folder: Path) -> None:
    """Removes the shards whose rows a packed file lists, and the folders this leaves empty."""
    for shard in find_shards(folder):
        layer, subject = split_shard_name(shard)
        if subject in manifest.parts.get(layer, {}):
            (folder / shard).with_suffix(".parquet").unlink(missing_ok=True)
            (folder / shard).unlink()
    for inner, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # not empty: layers that are not finished stay
            os.rmdir(inner)


def pack(source: Path | str, target: Path | str) -> None:
    """Packs the finished cache `source` into `target`, one file (and its table of texts); the source stays as it is.

    Raises:
        UserError: `source` is not a finished cache, `target` exists, or there is no space.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise UserError(f"cache {source} does not exist")
    if target.exists():
        raise UserError(f"{target} exists; choose another name or remove it")
    files = Files(source)
    manifest = files.manifest()
    if manifest.state not in ("sharded", "packed"):
        raise UserError(f"{source} is not finished; run the same build-cache command again, then pack it")
    make_folder(target.parent)
    remove_stale(target.parent)
    write_packed(target, manifest, files)
    files.close()
