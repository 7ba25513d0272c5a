"""The instruction texts: a Parquet table with one row per subject, slice and modality of a variant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from zeus_union.cache.atomic import AtomicFile
from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import canonical_json
from zeus_union.cache.seal import hash_bytes

_SEAL = b"zeus-union xxh3_128 before and after these digits: "

SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("slice", pa.int32()),
        ("modality", pa.string()),
        ("variant", pa.string()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("stop_reason", pa.string()),
        ("seed", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Instruction:
    """What the LLM was asked about one slice of one modality, and what it said.

    Attributes:
        slice_number: in the view of the native grid.
        prompt, text: the question and the answer, whole.
        prompt_tokens, output_tokens: their lengths in the LLM's tokens.
        stop_reason: why the answer ends, e.g. 'marker' or 'length'.
        seed: of the sampling; None for greedy decoding.
    """

    slice_number: int
    modality: str
    prompt: str
    text: str
    prompt_tokens: int
    output_tokens: int
    stop_reason: str
    seed: int | None


def make_table(subject: str, variant: str, rows: Sequence[Instruction]) -> pa.Table:
    columns = {
        "subject": [subject] * len(rows),
        "slice": [row.slice_number for row in rows],
        "modality": [row.modality for row in rows],
        "variant": [variant] * len(rows),
        "prompt": [row.prompt for row in rows],
        "text": [row.text for row in rows],
        "prompt_tokens": [row.prompt_tokens for row in rows],
        "output_tokens": [row.output_tokens for row in rows],
        "stop_reason": [row.stop_reason for row in rows],
        "seed": [row.seed for row in rows],
    }
    return pa.table(columns, schema=SCHEMA)


def text_hashes(table: pa.Table) -> NDArray[np.uint8]:
    """xxh3_128 of every row of `table`, all columns: uint8 (rows, 16)."""
    records = (xxhash.xxh3_128_digest(canonical_json(list(row.values())).encode()) for row in table.to_pylist())
    return np.frombuffer(b"".join(records), np.uint8).reshape(-1, 16)


def write_table(final: Path, tables: Iterable[pa.Table]) -> None:
    """Writes `tables`, each a row group, whole or not at all."""
    file = AtomicFile(final)
    try:
        with pq.ParquetWriter(
            file,
            SCHEMA.with_metadata({"seal": _SEAL + b"0" * 64}),
            compression="zstd",
            use_dictionary=["subject", "modality", "variant", "prompt", "stop_reason"],
            write_page_checksum=True,
        ) as writer:
            for table in tables:
                writer.write_table(table)
                file.check()
        file.check()
        offset = _seal_offset(file.temporary)
        file.write_at(offset, _digests(file.temporary, offset))
        file.commit()
    finally:
        file.discard()


def _seal_offset(path: Path) -> int:
    """Where the 64 digits of the seal stand: in the metadata of the footer. -1 if there are none."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 8, 0))
        start = max(size - 8 - int.from_bytes(file.read(4), "little"), 0)
        file.seek(start)
        index = file.read().find(_SEAL)
    return start + index + len(_SEAL) if index >= 0 else -1


def _digests(path: Path, offset: int) -> bytes:
    """xxh3_128 of everything before the seal's digits, and of everything after."""
    return (hash_bytes(path, 0, offset) + hash_bytes(path, offset + 64, os.path.getsize(path))).encode()


def table_seal_holds(path: Path) -> bool:
    """Whether not one bit of a table differs from what was written. Reads the whole file."""
    offset = _seal_offset(path)
    if offset < 0:
        return False
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(64) == _digests(path, offset)


class TextTable:
    """A table of texts that is open: its bytes were compared with its seal once, its row groups are looked up.

    Args:
        sealed: whether the seal of the file holds; looked at before pyarrow reads, which ends the process, or waits for
            ever, over some damaged files.

    Raises:
        UserError: missing or damaged.
    """

    def __init__(self, path: Path, sealed: Callable[[Path], bool] = table_seal_holds) -> None:
        self.path = path
        self._values: dict[str, dict[str | None, set[int]]] = {}
        with _damage_named(path):
            if not sealed(path):
                raise ValueError("bytes differ from what was written")
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            if not self._file.schema_arrow.equals(SCHEMA):
                raise ValueError(f"its columns are {', '.join(self._file.schema_arrow.names)}")

    def read(self, **equal: str) -> pa.Table:
        """The rows in which the named text columns have the given values.

        Raises:
            UserError: damaged.
        """
        with _damage_named(self.path):
            groups = set(range(self._file.num_row_groups))
            for column, value in equal.items():
                values = self._values_of(column)
                groups &= values.get(value, set()) | values.get(None, set())
            table = self._file.read_row_groups(sorted(groups), use_threads=False).replace_schema_metadata(None)
            for column, value in equal.items():
                table = table.filter(pc.equal(table[column], value))
            return table

    def _values_of(self, column: str) -> dict[str | None, set[int]]:
        """Value -> its row groups: each is one subject of one variant. Those with several values stand under None."""
        if column not in self._values:
            values: dict[str | None, set[int]] = {}
            index, metadata = SCHEMA.get_field_index(column), self._file.metadata
            for group in range(metadata.num_row_groups):
                statistics = metadata.row_group(group).column(index).statistics
                single = statistics is not None and statistics.has_min_max and statistics.min == statistics.max
                values.setdefault(statistics.min if single else None, set()).add(group)
            self._values[column] = values
        return self._values[column]


def read_table(path: Path, **equal: str) -> pa.Table:
    """The rows of a table in which the named text columns have the given values.

    Raises:
        UserError: missing or damaged.
    """
    return TextTable(path, _sealed_since).read(**equal)


def _sealed_since(path: Path) -> bool:
    """As `table_seal_holds`, which is asked again only where the file has changed."""
    status = path.stat()
    return _seal_held(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache
def _seal_held(path: Path, *_: int) -> bool:
    return table_seal_holds(path)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it holds the instruction texts: copy it next to the cache") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())[:200]}); copy it again from where it came, "
            "or delete the cache and build it again"
        ) from error
