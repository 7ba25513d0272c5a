"""Many shards into one file that can be copied anywhere, or a small index over them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from zeus_union.cache.atomic import NOT_SUPPORTED, make_folder, remove_temporaries, require_space, sync_folder
from zeus_union.cache.claims import lock_if_possible
from zeus_union.cache.errors import UserError
from zeus_union.cache.instructions import write_table
from zeus_union.cache.layout import (
    CONSTANTS,
    find_packed,
    is_packed_name,
    lock_path,
    packed_name,
    parquet_path,
    shard_folder,
    short_names,
    split_shard_name,
)
from zeus_union.cache.manifest import Manifest, Part, find_shards, finished_so_far, refuse_shard
from zeus_union.cache.seal import read_seal
from zeus_union.cache.shard import FileBuilder, Files
from zeus_union.cache.terminal import some_of

PACK_BELOW = 20e9  # bytes; packing needs the space twice for a while, and a larger file is awkward to copy
COPY_BELOW = (
    2e8  # bytes of a packed file that is copied for one more layer: 4 s here; 0.55 GB took 9.8 s, renamed 1.2 s
)


def part_bytes(manifest: Manifest) -> int:
    """Bytes of all rows and constants."""
    return sum(part.nbytes for by_subject in manifest.parts.values() for part in by_subject.values())


def texts_path(files: Files, part: Part) -> Path:
    """The table that holds a subject's texts: beside its shard, or the merged one beside the cache."""
    if not part.file or is_packed_name(part.file):
        return parquet_path(files.path)
    return files.locate(part.file).with_suffix(".parquet")


def read_texts(files: Files, variant: str, subject: str, part: Part) -> pa.Table:
    """The instructions of one subject, in row order."""
    return files.texts(texts_path(files, part)).read(subject=subject, variant=variant)


def write_texts(target: Path, *caches: tuple[Manifest, Files]) -> None:
    """Merges the instruction texts of all subjects of caches with the same layers into the table beside the cache `target`.

    Nothing is written where there are no instructions.
    """
    variants = short_names(caches[0][0].parts, "instructions")

    def tables() -> Iterator[pa.Table]:
        for variant in variants:
            for manifest, files in caches:
                by_subject = manifest.parts[f"instructions/{variant}"]
                for subject in manifest.card.subjects:
                    yield read_texts(files, variant, subject, by_subject[subject])

    if variants:
        write_table(parquet_path(target), tables())


def write_packed(
    target: Path, manifest: Manifest, files: Files, replace_target: bool = True, with_texts: bool = True
) -> None:
    """One file with every row that `manifest` lists, and the table of texts beside it; the texts get their name first.

    Args:
        with_texts: write the table.

    Raises:
        NoSpaceError: no space for it.
        OSError: the disk is full after all, or, not `replace_target`, something has the name by now.
    """
    make_folder(target.parent)
    require_space(target.parent, part_bytes(manifest), f"packing {target.name}")
    if with_texts:
        write_texts(target, (manifest, files))
    with FileBuilder(target) as builder:
        packed: dict[str, Mapping[str, Part]] = {}
        for layer, by_subject in sorted(manifest.parts.items()):
            names = [name for name in (CONSTANTS, *manifest.card.subjects) if name in by_subject]
            packed[layer] = {
                name: Part(
                    "",
                    0,
                    {
                        array: builder.copy(f"{layer}/{name}/{array}", files, by_subject[name], array)
                        for array in by_subject[name].arrays
                    },
                    by_subject[name].facts,
                )
                for name in names
            }
        builder.commit(replace(manifest, state="packed", parts=packed), replace_target)


def write_index(target: Path, manifest: Manifest, files: Files, with_texts: bool = True) -> None:
    """The small index of a sharded cache, and the table of texts beside it; the texts get their name first.

    Args:
        with_texts: write the table.
    """
    if with_texts:
        write_texts(target, (manifest, files))
    with FileBuilder(target) as builder:
        for layer, by_subject in sorted(manifest.parts.items()):
            for name, part in sorted(by_subject.items()):
                builder.link(f"{layer}/{name}", Path(files.folder.name) / part.file, f"{layer}/{name}")
        builder.commit(replace(manifest, state="sharded"))


def move_among_shards(path: Path, manifest: Manifest) -> Manifest:
    """Gives a packed cache file its name in the shard folder, unchanged, so that an index can take its own; reads 512 bytes.

    Until then it has both names, so that the cache is never without its file. Where the file system has no second names,
    it is renamed, and `restore_packed` gives it its own again if the process is killed before there is an index.

    Args:
        manifest: what the cache is to hold.

    Returns:
        the manifest, with the parts of the packed file under that name.
    """
    folder, name = shard_folder(path), packed_name(read_seal(path))
    make_folder(folder)
    size = path.stat().st_size
    try:
        with suppress(FileExistsError):
            os.link(path, folder / name)
    except OSError as error:
        if error.errno not in (*NOT_SUPPORTED, errno.EPERM, errno.EMLINK, errno.EXDEV):
            raise
        os.replace(path, folder / name)
        sync_folder(path.parent)
    sync_folder(folder)
    parts = {
        layer: {
            subject: part if part.file else replace(part, file=name, file_bytes=size)
            for subject, part in by_subject.items()
        }
        for layer, by_subject in manifest.parts.items()
    }
    return replace(manifest, parts=parts)


def restore_packed(path: Path) -> None:
    """Gives a cache without its file the packed one among its shards, where a kill came between the two renames."""
    folder = shard_folder(path)
    for name in find_packed(folder)[:1]:
        with suppress(FileNotFoundError):  # another process was quicker
            os.replace(folder / name, path)
        sync_folder(path.parent)


def remove_packed(manifest: Manifest, folder: Path) -> None:
    """Removes the shards, and the packed files among them, whose rows a packed file lists, and the folders this leaves empty."""
    for name in find_packed(folder):
        (folder / name).unlink()
    for shard in find_shards(folder):
        layer, subject = split_shard_name(shard)
        if subject in manifest.parts.get(layer, {}):
            (folder / shard).with_suffix(".parquet").unlink(missing_ok=True)
            (folder / shard).unlink()
    remove_empty(folder)


def remove_left(path: Path) -> None:
    """Removes the temporary files that killed processes left of a cache; nobody else may be at work on it."""
    remove_temporaries(path.parent, [path.name, parquet_path(path).name])
    for folder, _, _ in os.walk(shard_folder(path)):
        remove_temporaries(Path(folder))


def remove_empty(folder: Path) -> None:
    """Removes the folders of layers in which nothing is left, and the shard folder itself."""
    for inner, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # not empty: layers that are not finished stay
            os.rmdir(inner)


def pack(source: Path | str, target: Path | str) -> None:
    """Packs the cache `source` into `target`, one file (and its table of texts); the source stays as it is.

    Raises:
        UserError: `source` does not exist or a subject is missing in one of its layers, `target` exists or is being
            written, or there is no space.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise UserError(f"cache {source} does not exist")
    make_folder(target.parent)
    with lock_if_possible(lock_path(source), shared=True, wait=True), lock_if_possible(lock_path(target)) as ours:
        if not ours:
            raise UserError(f"{target} is being written by another process; choose another name or wait for it")
        if target.exists():
            raise UserError(f"{target} exists; choose another name or remove it")
        files = Files(source)
        manifest = finished_manifest(files.manifest(), source)
        remove_left(target)
        write_packed(target, manifest, files, replace_target=False)
        files.close()


def finished_manifest(manifest: Manifest, path: Path) -> Manifest:
    """What a cache holds, also one of which every part is there and only the end is missing.

    Raises:
        UserError: a subject is missing in a layer, or it is a shard.
    """
    refuse_shard(manifest, path)
    if manifest.state == "building":
        complete = finished_so_far(manifest, path, allow_partial=True)
        missing = [name for name in manifest.card.subjects if name not in complete.parts["slices"]]
        if missing:
            raise UserError(
                f"{path} is not finished, {some_of(missing)} are missing; run the same build-cache command again, then "
                "pack it"
            )
        return complete
    return manifest
