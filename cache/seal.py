"""The first 512 bytes of every HDF5 file of a cache: a text that makes truncation and any flipped byte detectable.

The block is HDF5's user block, so other HDF5 tools skip it and `head -c 512` shows it.
"""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import SCHEMA_VERSION

SEAL_BYTES = 512
_MAGIC = b"zeus-union cache\n"
_PIECE = 8 << 20


def make_seal(size: int, digest: str) -> bytes:
    """The seal of a file of `size` bytes in all, whose bytes after the seal have the xxh3_128 `digest`."""
    text = _MAGIC + f"schema: {SCHEMA_VERSION}\nbytes: {size}\nxxh3_128 after byte {SEAL_BYTES}: {digest}\n".encode()
    return text.ljust(SEAL_BYTES - 1) + b"\n"


def hash_bytes(path: Path, start: int, stop: int) -> str:
    """xxh3_128 of the bytes of a file from `start` to `stop`, 32 hexadecimal digits."""
    left = stop - start
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(max(min(_PIECE, left), 1)))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while left > 0 and (count := file.readinto(buffer[:left])):
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()


def seal_of(path: Path) -> bytes:
    """The seal that the bytes of a file ask for. Reads the whole file."""
    size = os.path.getsize(path)
    return make_seal(size, hash_bytes(path, SEAL_BYTES, size))


def read_seal(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(SEAL_BYTES)


def seal_holds(path: Path) -> bool:
    """Whether not one bit differs from what was sealed. Reads the whole file."""
    return read_seal(path) == seal_of(path)


def check_seal(path: Path) -> None:
    """Refuses what is no cache file, has another schema version, or has been cut short. Reads 512 bytes.

    Raises:
        UserError: saying what to do.
    """
    size, block = os.path.getsize(path), read_seal(path)
    again = "build it again with zeus-instruct build-cache"
    if size == 0:
        raise UserError(f"{path} is empty; delete it and {again}")
    if not block.startswith(_MAGIC):
        raise UserError(f"{path} is not a Zeus cache (nor a part of one); give the .h5 that build-cache wrote")
    fields = dict(line.split(": ", 1) for line in block.decode("ascii", "replace").splitlines() if ": " in line)
    if fields.get("schema") != str(SCHEMA_VERSION):
        raise UserError(
            f"{path} has cache schema version {fields.get('schema')}, this program reads version {SCHEMA_VERSION}; "
            f"{again}, or use the version of zeus-union that made it"
        )
    if fields.get("bytes") != str(size):
        raise UserError(
            f"{path} is truncated or damaged: {size} bytes, its seal says {fields.get('bytes')}; "
            f"copy it again from where it came, or delete it and {again}"
        )
