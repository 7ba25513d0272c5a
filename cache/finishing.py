"""How a cache is finished: which layers are complete, and whether it becomes one file or an index over shards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import find_packed, shard_folder
from zeus_union.cache.manifest import Manifest, Part, subjects_due
from zeus_union.cache.pack import COPY_BELOW, PACK_BELOW, move_among_shards, part_bytes, write_index, write_packed
from zeus_union.cache.shard import Files
from zeus_union.cache.terminal import some_of, warn


def keep_complete(
    path: Path, index: Manifest, subjects: Sequence[str], begun: Collection[str], parts: dict[str, dict[str, Part]]
) -> dict[str, list[str]]:
    """Leaves in `parts` the layers in which every subject is finished, and those of the finished cache.

    Args:
        begun: the layers that must be complete.

    Returns:
        layer of the finished cache -> those who join it and are not in that layer yet.

    Raises:
        UserError: a layer that was begun is not finished.
    """
    slices = parts.get("slices", {})
    missing = {
        layer: [name for name in subjects_due(layer, subjects, slices) if name not in parts.get(layer, {})]
        for layer in ("slices", *begun, *parts)
    }
    begun = {layer: missing[layer] for layer in ("slices", *begun)}
    if lacking := "; ".join(f"{layer} lacks {some_of(names)}" for layer, names in begun.items() if names):
        raise UserError(f"{path} is not finished: {lacking}; run the same build-cache command again")
    for layer in [layer for layer in parts if missing[layer] and layer not in index.parts]:
        warn(f"layer {layer} is left out because it is unfinished: {some_of(missing[layer])} missing")
        del parts[layer]
    return {layer: missing[layer] for layer in parts if missing[layer]}


def put_together(path: Path, index: Manifest, manifest: Manifest, files: Files, pack: bool | None) -> bool:
    """Writes what `manifest` lists under the cache's own name.

    Args:
        index: what the cache is so far.
        pack: as for `CacheWriter.finalize`.

    Returns:
        whether it is one file.
    """
    is_new = any(part.file for by_subject in manifest.parts.values() for part in by_subject.values())
    if index.state == "packed" and not is_new:
        return True
    if becomes_one_file(path, index.state, part_bytes(manifest), pack):
        write_packed(path, manifest, files)
        return True
    if index.state == "packed":
        manifest = move_among_shards(path, manifest)
    write_index(path, manifest, files)
    return False


def becomes_one_file(path: Path, state: str, total: int, pack: bool | None) -> bool:
    """Whether a cache is finished as one file; one that exists and is large is not copied for it unasked.

    Args:
        state: what it is so far.
        total: bytes of all that it is to hold.
        pack: whether it is asked for.
    """
    if pack is not None:
        return pack
    folder = shard_folder(path)
    packed = [path] if state == "packed" else [folder / name for name in find_packed(folder)]
    if packed:
        return sum(file.stat().st_size for file in packed) < COPY_BELOW
    return total < PACK_BELOW
