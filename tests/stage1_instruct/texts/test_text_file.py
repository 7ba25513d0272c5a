"""Tables of texts: what is written is read again, and what is wrong is named in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.texts.text_file import TextRow, read_text_file, write_text_file

LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
AWKWARD = st.text(st.sampled_from("a ,;\t\"'\n\r\u2028\u0085\ufeff\\{}é肝"))
NAMES = st.one_of(st.none(), st.text(LETTERS, min_size=1))
ROWS = st.lists(
    st.builds(
        TextRow,
        st.text("aB1._-", min_size=1),
        st.text(LETTERS) | AWKWARD,
        st.none() | st.integers(0, 10_000),
        NAMES,
        NAMES,
    ),
    min_size=1,
)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"])
@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_what_is_written_is_read_again(ending: str, rows: list[TextRow]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"texts{ending}"
        write_text_file(path, rows)
        assert read_text_file(path) == rows
        first = path.read_bytes()
        write_text_file(path, read_text_file(path))
        assert path.read_bytes() == first


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_as_spreadsheets_write_it(mark: str, tmp_path: Path) -> None:
    lines = ["subject,slice,text", 'A,12,"a liver, bright"', "", "007,,whole study", "B,3.0,x"]
    text = "\r\n".join(line.replace(",", mark) for line in lines)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_text_file(tmp_path / "t.csv") == [
        TextRow("A", f"a liver{mark} bright", 12),
        TextRow("007", "whole study"),
        TextRow("B", "x", 3),
    ]


def test_numbers_from_pandas_are_names_and_slices(tmp_path: Path) -> None:
    table = pa.table({"subject": [1, 2], "slice": [3.0, None], "text": ["x", ""]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read_text_file(tmp_path / "t.parquet") == [TextRow("1", "x", 3), TextRow("2", "")]
    (tmp_path / "t.jsonl").write_text('{"subject": 1, "slice": 3, "text": "x"}\n\n{"subject": "2", "text": ""}')
    assert read_text_file(tmp_path / "t.jsonl") == [TextRow("1", "x", 3), TextRow("2", "")]


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("t.csv", b"", "is empty; expected the columns subject, slice, modality, class, text"),
    "blank": ("t.csv", b"\n\n", "is empty"),
    "blank lines": ("t.jsonl", b"\n\n", "is empty"),
    "header alone": ("t.csv", b"subject,text\n", "has no row below its columns subject, text"),
    "latin 1": ("t.csv", "subject,text\nA,größer\n".encode("latin1"), r"is not UTF-8 \(byte 0xf6 in line 2\); save"),
    "utf-16": ("t.csv", "subject,text\nA,x\n".encode("utf-16"), "is not UTF-8"),
    "unknown column": (
        "t.csv",
        b"subject,slices,text\nA,1,x\n",
        "does not expect slices: subject and text are required",
    ),
    "no text column": ("t.csv", b"subject,report\nA,x\n", "lacks text and does not expect report"),
    "doubled column": ("t.csv", b"subject,text,text\nA,x,y\n", "has the column text twice"),
    "uneven": ("t.csv", b"subject,text\nA,bright, liver\nB,x\nC\n", "2 columns, but line 2 has 3, line 4 has 1"),
    "open quote": ("t.csv", b'subject,text\nA,"x\n', "line 2: unexpected end of data"),
    "slice": (
        "t.csv",
        b"subject,slice,text\nA,1.5,x\nA,second,x\n",
        "2 unusable rows: line 2: slice is '1.5'.*line 3: slice",
    ),
    "infinite slice": ("t.csv", b"subject,slice,text\nA,inf,x\n", "line 2: slice is 'inf'"),
    "no subject": ("t.csv", b"subject,text\n ,x\n", "line 2: no subject"),
    "not JSON": ("t.jsonl", b'{"subject": "A"', "line 1 is not JSON"),
    "no object": ("t.jsonl", b"[1]\n", "line 1 is not an object"),
    "no text": ("t.jsonl", b'{"subject": "A", "text": null}\n', "line 1: no text"),
    "text is none": ("t.jsonl", b'{"subject": "A", "text": 3}\n', "line 1: the text is 3"),
    "twice": ("t.jsonl", b'{"subject": "A", "text": "x", "text": "y"}\n', "a name comes twice"),
    "half a letter": ("t.jsonl", b'{"subject": "A", "text": "\\ud800"}\n', "line 1: text holds half a letter"),
    "no Parquet": ("t.parquet", b"PAR1 or not", "is not a Parquet table"),
    "ending": ("t.xlsx", b"x", "ends in .csv, .tsv, .parquet, .jsonl, .ndjson"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_table_that_cannot_be_used_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    name, data, message = BAD[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_text_file(tmp_path / name)


def test_a_table_that_is_not_there_and_an_ending_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_text_file(tmp_path / "t.csv")
    with pytest.raises(UserError, match="choose such a name"):
        write_text_file(tmp_path / "t.txt", [TextRow("A", "x")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200) | st.text(st.sampled_from('subject,text\n"A{}:')).map(str.encode))
def test_whatever_bytes_a_file_holds_it_is_read_or_refused(ending: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"texts{ending}"
        path.write_bytes(data)
        try:
            assert read_text_file(path)
        except UserError as error:
            assert str(path) in str(error)
