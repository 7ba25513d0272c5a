"""`verify` finds what changed, and says which row it hit."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import tiny_cache

from zeus_union.cache.instructions import read_table
from zeus_union.cache.manifest import read_manifest
from zeus_union.cache.seal import SEAL_BYTES, seal_holds
from zeus_union.cache.verify import verify


@contextmanager
def flipped(path: Path, position: int, bit: int = 0) -> Iterator[None]:
    """One bit of a file is another while this lasts."""
    os.chmod(path, 0o644)
    with open(path, "r+b", buffering=0) as file:
        original = os.pread(file.fileno(), 1, position)
        os.pwrite(file.fileno(), bytes([original[0] ^ (1 << bit)]), position)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), original, position)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "chaos.h5"
    tiny_cache.build(path, card=replace(tiny_cache.CARD, subjects=("A",)))
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_cache.build(tmp_path / "chaos.h5", pack=False)
    return tmp_path / "chaos.h5"


def test_sound_caches_have_no_findings(packed: Path, sharded: Path) -> None:
    assert verify(packed) == []
    assert verify(sharded) == []


def test_every_flipped_byte_of_a_packed_file_breaks_the_seal(packed: Path) -> None:
    for position in range(packed.stat().st_size):
        with flipped(packed, position, position % 8):
            assert not seal_holds(packed), position
    assert seal_holds(packed)


@pytest.mark.slow
def test_every_nth_flipped_byte_of_a_packed_file_is_reported(packed: Path) -> None:
    for position in [*range(0, SEAL_BYTES, 7), *range(SEAL_BYTES, packed.stat().st_size, 23)]:
        with flipped(packed, position, position % 8):
            assert verify(packed), position
    assert verify(packed) == []


def test_a_flipped_byte_of_a_row_names_subject_slice_and_modality(packed: Path) -> None:
    with h5py.File(packed) as file:
        images = file["slices/A/images"].id.get_offset() + file["slices/A/images"][0].nbytes
        values = file["embeddings/tiny/A/values"]
        embedding = values.id.get_offset() + values[0, 0].nbytes * 3
        constant = file["embeddings/tiny/_constants/no_mask"].id.get_offset()
    with flipped(packed, images):
        assert verify(packed) == [f"{packed}: slices, subject A, slice 5: bytes differ from what was written"]
    with flipped(packed, embedding + 1):
        findings = [f"{packed}: embeddings/tiny, subject A, slice 5, modality T2: bytes differ from what was written"]
        assert verify(packed) == findings
    with flipped(packed, constant):
        assert verify(packed) == [f"{packed}: bytes outside the rows differ from what was written"]


@pytest.mark.slow
def test_every_flipped_byte_of_the_texts_is_reported(packed: Path) -> None:
    path = packed.with_name("chaos.instructions.parquet")
    draw = random.Random(0)
    for position in range(path.stat().st_size):
        with flipped(path, position, draw.randrange(8)):
            found = verify(packed)
            assert found and all("chaos.instructions.parquet" in line for line in found), position
    assert verify(packed) == []


def test_a_changed_text_is_named(packed: Path) -> None:
    path = packed.with_name("chaos.instructions.parquet")
    original = path.read_bytes()
    table = read_table(path)
    rows = table.to_pylist()
    rows[3]["text"] += "!"
    from zeus_union.cache.instructions import SCHEMA, write_table

    write_table(path, [type(table).from_pylist(rows, SCHEMA)])
    try:
        (finding,) = verify(packed)
        assert "subject A, slice 5, modality T2: the text differs" in finding
    finally:
        os.chmod(path, 0o644)
        path.write_bytes(original)


def test_damaged_shards_are_named(sharded: Path) -> None:
    folder = sharded.with_name("chaos.h5.d")
    (gone,) = folder.glob("embeddings/tiny/A.*.h5")
    (cut,) = folder.glob("embeddings/tiny/B.*.h5")
    (zeroed,) = folder.glob("embeddings/tiny/C.*.h5")
    gone.unlink()
    os.chmod(cut, 0o644)
    os.truncate(cut, cut.stat().st_size - 1)
    values = read_manifest(zeroed).parts["embeddings/tiny"]["C"].arrays["values"]
    os.chmod(zeroed, 0o644)
    with open(zeroed, "r+b") as file:
        file.seek(values.offset)
        file.write(bytes(values.nbytes // 4))
    findings = verify(sharded)
    assert any(gone.name in line for line in findings)
    assert any(cut.name in line and "truncated" in line for line in findings)
    assert any(f"{zeroed}: embeddings/tiny, subject C, slice 2, modality T1" in line for line in findings)
    assert not any("slices, subject" in line for line in findings)


def test_missing_texts_are_reported(packed: Path, tmp_path: Path) -> None:
    shutil.copy(packed, tmp_path / "alone.h5")
    (finding,) = verify(tmp_path / "alone.h5")
    assert "alone.instructions.parquet" in finding and "missing" in finding
