"""How a file of a cache is written and its rows are read.

Reading needs HDF5 for the manifest only: it holds the offset of every array, and rows come by `os.preadv`, which reads
at the speed of a raw file, is not serialised by h5py's lock and survives a fork.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from zeus_union.cache.atomic import AtomicFile
from zeus_union.cache.descriptors import FLAGS, read_at
from zeus_union.cache.errors import UserError
from zeus_union.cache.instructions import TextTable
from zeus_union.cache.layout import CONSTANTS, ROW_HASH, little_endian, packed_name, row_axes, shard_folder
from zeus_union.cache.manifest import Manifest, Part, StoredArray, read_manifest
from zeus_union.cache.seal import SEAL_BYTES, read_seal, seal_holds, seal_of

OPEN_FILES = 32  # well under the 256 descriptors a process gets on some systems, and the 64 of a strict batch queue
OPEN_TABLES = 2  # the merged one beside a cache, and a subject's


class Files:
    """The files of one cache, opened as they are needed, the least recently used closed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = shard_folder(path)
        self._seal: bytes | None = None
        self._open = lru_cache(maxsize=OPEN_FILES)(self._open_file)
        self._tables = lru_cache(maxsize=OPEN_TABLES)(TextTable)

    def manifest(self) -> Manifest:
        """Reads the cache file's manifest; from then on, a cache file that was replaced since is refused.

        Raises:
            UserError: as `read_manifest`.
        """
        self.close()
        self._seal = read_seal(self.path)
        return read_manifest(self.path)

    def _open_file(self, name: str) -> _OpenFile:
        opened = _OpenFile(self.locate(name))
        if name or self._seal is None or opened.has_seal(self._seal):
            return opened
        kept = self.folder / packed_name(self._seal)
        if kept.is_file() and (opened := _OpenFile(kept)).has_seal(self._seal):
            return opened  # layers or subjects were added, and the file that was read is among the shards
        raise UserError(f"{self.path} was replaced while it was in use (a layer was added?); start again")

    def locate(self, name: str) -> Path:
        return self.folder / name if name else self.path

    def close(self) -> None:
        self._open.cache_clear()
        self._tables.cache_clear()

    def texts(self, path: Path) -> TextTable:
        """A table of instruction texts, opened (and its seal checked) once for all subjects.

        Raises:
            UserError: as `TextTable`.
        """
        return self._tables(path)

    def read_into(self, file: str, offset: int, buffer: NDArray[Any]) -> None:
        """Fills `buffer` (C-contiguous) with the bytes at `offset`.

        Raises:
            UserError: the file ends before.
        """
        opened = self._open(file)
        view = buffer.data.cast("B")
        while len(view):
            try:
                count = read_at(opened.fd, view, offset)
            except OSError as error:  # the system does not say of which file
                raise OSError(error.errno, error.strerror, str(self.locate(file))) from error
            if count == 0:
                raise UserError(f"{self.locate(file)} is truncated; zeus-instruct verify says what is lost")
            view, offset = view[count:], offset + count

    def array(self, part: Part, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """An array, or some neighbouring rows of its leading axis, in fresh memory."""
        stored = part.arrays[name]
        if not stored.shape:
            first, shape = 0, stored.shape
        else:
            first, last, _ = rows.indices(stored.shape[0])
            shape = (max(last - first, 0), *stored.shape[1:])
        values = np.empty(shape, stored.dtype)
        if values.size:
            self.read_into(part.file, stored.row_at(first, 1) if first else stored.offset, values)
        return values


class _OpenFile:
    """A descriptor that is closed when nobody uses it any more, be it dropped from the list of open files or not."""

    def __init__(self, path: Path) -> None:
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | FLAGS)
        except FileNotFoundError:
            raise UserError(f"{path} is missing; copy the shard folder {path.name} lies in next to the cache") from None

    def has_seal(self, seal: bytes) -> bool:
        start = bytearray(SEAL_BYTES)
        return start[: read_at(self.fd, start, 0)] == seal

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def row_hashes(arrays: Mapping[str, NDArray[Any]], axes: int) -> NDArray[np.uint8]:
    """xxh3_128 of every row: the bytes of all arrays in the order of their names.

    Args:
        arrays: each (rows..., ...) with the same `axes` leading axes.

    Returns:
        uint8 (rows..., 16).
    """
    lead = next(iter(arrays.values())).shape[:axes]
    count = int(np.prod(lead))
    flat = [little_endian(arrays[name]).reshape(count, -1).view(np.uint8) for name in sorted(arrays)]
    hashes = np.empty((count, 16), np.uint8)
    for row in range(count):
        digest = xxhash.xxh3_128()
        for array in flat:
            digest.update(array[row])
        hashes[row] = np.frombuffer(digest.digest(), np.uint8)
    return hashes.reshape(*lead, 16)


def rows_digest(hashes: NDArray[np.uint8]) -> str:
    """One digest of the hashes of a subject's rows: what the layers that are made from them keep."""
    return xxhash.xxh3_128_hexdigest(hashes.tobytes())


def damaged_rows(files: Files, layer: str, part: Part) -> Iterator[tuple[int, ...]]:
    """Indices (slice,) or (slice, modality) of the rows whose bytes are not those that were written."""
    axes = row_axes(layer)
    stored = files.array(part, ROW_HASH)
    arrays = {name: array for name, array in part.arrays.items() if name != ROW_HASH}
    row = {name: np.empty(array.shape[axes:], array.dtype) for name, array in arrays.items()}
    for number, index in enumerate(np.ndindex(stored.shape[:axes])):
        for name, array in arrays.items():
            files.read_into(part.file, array.row_at(number, axes), row[name])
        if (row_hashes(row, 0) != stored[index]).any():
            yield index


class FileBuilder:
    """Writes one HDF5 file of a cache; it appears under its name with `commit`, or not at all.

    HDF5 lays out the file, the arrays' bytes are written by `AtomicFile` at the offsets HDF5 gave them.
    """

    def __init__(self, final: Path) -> None:
        self.file = AtomicFile(final)
        try:
            self._h5 = h5py.File(self.file, "w", userblock_size=SEAL_BYTES, libver=("earliest", "v110"))
        except BaseException:
            self.file.discard()
            raise
        self._group: tuple[str, Any] = "", self._h5.id
        self._contiguous = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._contiguous.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        self._contiguous.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        self._contiguous.set_obj_track_times(False)  # the same content gives the same bytes

    def __enter__(self) -> FileBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._h5.close()
        finally:
            self.file.discard()

    def allocate(self, name: str, dtype: str, shape: tuple[int, ...]) -> StoredArray:
        """A contiguous dataset whose bytes are to be written with `file.write_at`."""
        folder, _, short = name.rpartition("/")
        dataset = h5py.h5d.create(
            self._group_of(folder),
            short.encode(),
            h5py.h5t.py_create(np.dtype(dtype), logical=True),
            h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR),
            self._contiguous,
        )
        stored = StoredArray(0, dtype, shape)
        return replace(stored, offset=dataset.get_offset()) if stored.nbytes else stored

    def _group_of(self, folder: str) -> h5py.h5g.GroupID | h5py.h5f.FileID:
        """The group of that path, created where it is not there; the last one is kept, as a subject's arrays come together."""
        if folder != self._group[0]:
            self._group = folder, (self._h5.require_group(folder) if folder else self._h5).id
        return self._group[1]

    def add(self, name: str, array: NDArray[Any]) -> StoredArray:
        array = little_endian(array)
        stored = self.allocate(name, array.dtype.str, array.shape)
        self.file.write_at(stored.offset, array.reshape(-1).view(np.uint8))
        self.file.check()
        return stored

    def copy(self, name: str, files: Files, part: Part, array: str, piece: int = 16 << 20) -> StoredArray:
        """Copies an array from another file in pieces of `piece` bytes."""
        source = part.arrays[array]
        stored = self.allocate(name, source.dtype, source.shape)
        buffer = np.empty(min(piece, source.nbytes), np.uint8)
        for start in range(0, source.nbytes, piece):
            view = buffer[: source.nbytes - start]
            files.read_into(part.file, source.offset + start, view)
            self.file.write_at(stored.offset + start, view)
            self.file.check()
        return stored

    def link(self, name: str, target: Path, inside: str) -> None:
        """Lets people who browse the index follow it to a shard; nothing here reads through links."""
        self._h5[name] = h5py.ExternalLink(str(target), inside)

    def write_rows(self, stored: StoredArray, first: int, array: NDArray[Any]) -> None:
        """Writes `array` (rows, ...) into what `allocate` gave, from row `first` of its leading axis on."""
        array = little_endian(array)
        self.file.write_at(stored.row_at(first, 1), array.reshape(-1).view(np.uint8))
        self.file.check()

    def commit(self, manifest: Manifest, replace: bool = True) -> None:
        """Writes the manifest and the seal, reads everything back, and gives the file its name.

        Args:
            replace: what has the name; else it stays.

        Raises:
            OSError: the disk is full, what was written does not read back, or, not `replace`, something has the name.
        """
        self.add("manifest", np.array(manifest.to_bytes()))
        self._h5.close()
        self.file.check()
        self.file.write_at(0, seal_of(self.file.temporary))
        self.file.sync()
        written = Files(self.file.temporary)
        sound = seal_holds(self.file.temporary) and not any(
            True
            for layer, by_subject in manifest.parts.items()
            for name, part in by_subject.items()
            if name != CONSTANTS and part.file == ""
            for _ in damaged_rows(written, layer, part)
        )
        written.close()
        if not sound:
            raise OSError(errno.EIO, "what was written does not read back", str(self.file.final))
        self.file.commit(replace)
