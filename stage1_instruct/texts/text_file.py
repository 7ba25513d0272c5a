"""A table of texts as a person keeps it: CSV, Parquet or JSON Lines, a row for each text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted, some_of

REQUIRED = ("subject", "text")
OPTIONAL = ("slice", "modality", "class")
COLUMNS = ("subject", "slice", "modality", "class", "text")
LONGEST = 1 << 30  # characters of a field; csv's own limit of 131072 would refuse what it has written
FEWEST_SHOWN = 5  # offenders that a message names

_Record = tuple[int, Mapping[str, Any]]  # line or row, from 1, and its values by column


@dataclass(frozen=True)
class TextRow:
    """One text, and what it is about; None: all of them.

    Attributes:
        slice_number: in the view of the subject's native grid, as the cache numbers its slices.
        class_name: the class that it speaks of alone.
        line: where it stands in its file, from 1; 0 where it comes from none.
    """

    subject: str
    text: str
    slice_number: int | None = None
    modality: str | None = None
    class_name: str | None = None
    line: int = field(default=0, compare=False)


def read_text_file(path: Path) -> list[TextRow]:
    """The rows of a table, in order, each with a subject and a text (which may be empty).

    Raises:
        UserError: no such file; a name that does not end in .csv, .tsv, .parquet, .jsonl or .ndjson; not UTF-8; damaged;
            without rows; columns that are missing or unknown; values that are none, naming the first few lines.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: a table of texts ends in {', '.join(_READERS)}; save it as one of these")
    if not path.is_file():
        raise UserError(f"the table of texts {path} does not exist")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty; expected the columns {', '.join(COLUMNS)} (subject and text are enough)")
    columns, records = reader(path)
    _check_columns(path, columns)
    rows, wrong = [], []
    for line, values in records:
        try:
            rows.append(_row(values, line))
        except ValueError as error:
            wrong.append(f"line {line}: {error}")
    if wrong:
        raise UserError(f"{path}: {counted(len(wrong), 'unusable row')}: {some_of(wrong, FEWEST_SHOWN)}")
    if not rows:
        raise UserError(f"{path} has no row below its columns {', '.join(columns)}")
    return rows


def write_text_file(path: Path, rows: Sequence[TextRow]) -> None:
    """The inverse of `read_text_file`, whole or not at all; columns that no row uses are left out.

    Raises:
        UserError: a name that does not end in .csv, .tsv, .parquet, .jsonl or .ndjson.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"{path}: a table of texts ends in {', '.join(_WRITERS)}; choose such a name")
    values: dict[str, list[Any]] = {
        "subject": [row.subject for row in rows],
        "slice": [row.slice_number for row in rows],
        "modality": [row.modality for row in rows],
        "class": [row.class_name for row in rows],
        "text": [row.text for row in rows],
    }
    used = {name: column for name, column in values.items() if name in REQUIRED or any(v is not None for v in column)}
    write_atomically(path, writer(used))


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise UserError(f"{path} has the column {', '.join(doubled)} twice; keep one of each")
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in COLUMNS]
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"does not expect {some_of(unknown)}"] * bool(
            unknown
        )
        raise UserError(
            f"{path} has the columns {some_of(columns)}; it {' and '.join(wrong)}: subject and text are required, "
            "slice, modality and class optional; rename or remove the others"
        )


def _row(values: Mapping[str, Any], line: int) -> TextRow:
    """Raises ValueError saying what is wrong with a value."""
    subject = _name(values.get("subject"), "subject")
    if not (subject := (subject or "").strip()):
        raise ValueError("no subject")
    text = values.get("text")
    if not isinstance(text, str):
        raise ValueError("no text" if text is None else f"the text is {text!r}")
    for name in ("subject", "modality", "class", "text"):
        _check_letters(values.get(name), name)
    return TextRow(
        subject,
        text,
        _slice_number(values.get("slice")),
        _name(values.get("modality"), "modality"),
        _name(values.get("class"), "class"),
        line,
    )


def _name(value: Any, what: str) -> str | None:
    """A name; a whole number is one too (columns of numbers come so from Parquet and JSON)."""
    if _is_empty(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what} is {value!r}")
    return str(value)


def _slice_number(value: Any) -> int | None:
    """A whole number, also as 12.0 or '12.0': pandas writes a column with gaps so."""
    if _is_empty(value):
        return None
    number = value
    if isinstance(value, str):
        try:
            number = float(value) if value.isascii() else math.nan
        except ValueError:
            number = math.nan
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not float(number).is_integer():
        raise ValueError(f"slice is {value!r}, expected a whole number")
    return int(number)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _check_letters(value: Any, what: str) -> None:
    """JSON can say half a letter (a lone surrogate), which no encoding holds."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half a letter (a lone surrogate)") from None


def _decode(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: another encoding, saying in which line.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8 (byte {data[error.start]:#04x} in line {line}); save it as UTF-8 "
            "(in Excel: 'CSV UTF-8'; iconv -f latin1 -t utf-8)"
        ) from None


def _read_csv(path: Path) -> tuple[list[str], list[_Record]]:
    text = _decode(path)
    first = text.partition("\n")[0]
    # Excel writes ';' where the comma is the decimal mark.
    delimiter = max(",;\t", key=lambda mark: len(set(first.replace('"', "").strip().split(mark)) & set(COLUMNS)))
    limit = csv.field_size_limit(LONGEST)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            lines = [(reader.line_num, fields) for fields in reader if fields]
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: {error}; a text with quotes or line ends stands in quotes"
            ) from error
    finally:
        csv.field_size_limit(limit)
    if not lines:
        raise UserError(f"{path} is empty; expected the columns {', '.join(COLUMNS)}")
    columns = [name.strip() for name in lines[0][1]]
    uneven = [f"line {line} has {len(fields)}" for line, fields in lines[1:] if len(fields) != len(columns)]
    if uneven:
        raise UserError(
            f"{path} has {len(columns)} columns, but {some_of(uneven, FEWEST_SHOWN)}; a text with '{delimiter}' stands in "
            "quotes"
        )
    return columns, [(line, dict(zip(columns, fields))) for line, fields in lines[1:]]


def _read_parquet(path: Path) -> tuple[list[str], list[_Record]]:
    try:
        table = pq.read_table(path)
        return table.column_names, list(enumerate(table.to_pylist(), 1))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a Parquet table ({' '.join(str(error).split())[:200]}); save it again"
        ) from error


def _read_json_lines(path: Path) -> tuple[list[str], list[_Record]]:
    records: list[_Record] = []
    # Not splitlines(): it would also cut at letters that JSON leaves inside a text, such as U+2028.
    for number, line in enumerate(_decode(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_object)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); expected an object a line") from error
        if not isinstance(values, dict):
            raise UserError(f'{path}, line {number} is not an object; expected e.g. {{"subject": "A", "text": "..."}}')
        records.append((number, values))
    if not records:
        raise UserError(f"{path} is empty; expected an object a line with {', '.join(COLUMNS)}")
    return list(dict.fromkeys(name for _, values in records for name in values)), records


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name comes twice")
    return values


def _write_csv(values: Mapping[str, Sequence[Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(list(values))
    writer.writerows(zip(*values.values()))
    return out.getvalue().encode()


def _write_tsv(values: Mapping[str, Sequence[Any]]) -> bytes:
    return _write_csv(values, "\t")


def _write_parquet(values: Mapping[str, Sequence[Any]]) -> bytes:
    out = io.BytesIO()
    types = {name: pa.int32() if name == "slice" else pa.string() for name in values}
    pq.write_table(pa.table(dict(values), schema=pa.schema(list(types.items()))), out, compression="zstd")
    return out.getvalue()


def _write_json_lines(values: Mapping[str, Sequence[Any]]) -> bytes:
    def lines() -> Iterator[str]:
        for fields in zip(*values.values()):
            present = {name: value for name, value in zip(values, fields) if value is not None}
            yield json.dumps(present, ensure_ascii=False) + "\n"

    return "".join(lines()).encode()


_READERS: Mapping[str, Callable[[Path], tuple[list[str], list[_Record]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
}
_WRITERS: Mapping[str, Callable[[Mapping[str, Sequence[Any]]], bytes]] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
    ".jsonl": _write_json_lines,
    ".ndjson": _write_json_lines,
}
