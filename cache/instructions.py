"""The instruction texts: a Parquet table with one row per subject, slice and modality of a variant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from cache.atomic import AtomicFile
from cache.errors import UserError
from cache.recipe import canonical_json

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
        slice_number: in the axial view of the native grid.
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
            SCHEMA,
            compression="zstd",
            use_dictionary=["subject", "modality", "variant", "prompt", "stop_reason"],
            write_page_checksum=True,
        ) as writer:
            for table in tables:
                writer.write_table(table)
                file.check()
        file.commit()
    finally:
        file.discard()


def read_table(path: Path, **equal: Any) -> pa.Table:
    """The rows of a table in which the named columns have the given values.

    Raises:
        UserError: missing or damaged.
    """
    try:
        table = pq.read_table(
            path,
            filters=[(column, "=", value) for column, value in equal.items()] or None,
            page_checksum_verification=True,
            use_threads=False,
            partitioning=None,
        )
        if not table.schema.equals(SCHEMA):
            raise ValueError(f"its columns are {', '.join(table.schema.names)}")
        return table
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it holds the instruction texts: copy it beside the cache") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())[:200]}); copy it again from where it came, "
            "or delete the cache and build it again"
        ) from error
