"""Several commands at one cache: nobody overwrites, packs or removes what another has in work."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_cache
from tiny_cache import CARD, build, content

from zeus_union.cache import pack as packing
from zeus_union.cache import verify as verifying
from zeus_union.cache import writer as writing
from zeus_union.cache.instructions import TextTable
from zeus_union.cache.layout import lock_path
from zeus_union.cache.manifest import Manifest
from zeus_union.cache.pack import pack
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter

# Builds a variant subject by subject as the loop of stage 1 does, and packs.
BUILD = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import tiny_cache as tiny
from zeus_union.cache.writer import CacheWriter

variant = sys.argv[2]
writer = CacheWriter(Path(sys.argv[1]), tiny.CARD)
writer.begin_layer("slices", tiny.SLICES_RECIPE)
writer.begin_layer("embeddings/tiny", tiny.ENCODER_RECIPE, lambda: tiny.CONSTANTS)
writer.begin_layer(f"instructions/{{variant}}", tiny.LLM_RECIPE)
for subject in tiny.CARD.subjects:
    with writer.claim(subject, wait=True) as ours:
        assert ours
        if not writer.finished("slices", subject):
            writer.write_slices(subject, tiny.make_slices(subject))
        if not writer.finished("embeddings/tiny", subject):
            writer.write_embeddings("embeddings/tiny", subject, tiny.make_embeddings(subject))
        time.sleep(float(sys.argv[3]))
        writer.write_instructions(f"instructions/{{variant}}", subject, *tiny.make_texts(subject, variant))
writer.finalize(pack=True)
"""


def start(path: Path, variant: str, seconds: float) -> subprocess.Popen[bytes]:
    code = BUILD.format(tests=str(Path(__file__).parent))
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen([sys.executable, "-c", code, str(path), variant, str(seconds)], cwd=root)


def test_three_commands_at_once_lose_nothing_of_one_another(tmp_path: Path) -> None:
    """The quick ones pack while the slow one has a subject in work; each shard of it must stay."""
    path = tmp_path / "chaos.h5"
    commands = [start(path, variant, seconds) for variant, seconds in (("slow", 0.5), ("quick", 0.0), ("brisk", 0.1))]
    assert [command.wait(timeout=300) for command in commands] == [0, 0, 0]
    assert verify(path) == []
    assert Cache(path).variants == ("brisk", "quick", "slow")
    build(tmp_path / "one.h5", ("slow", "quick", "brisk"), pack=True)
    assert content(path) == content(tmp_path / "one.h5")
    assert not path.with_name("chaos.h5.d").exists() and lock_path(path).exists()


def test_a_finished_cache_is_not_overwritten_by_one_that_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the path and the creation of the index, another command finishes the whole cache."""
    path = tmp_path / "chaos.h5"
    build(tmp_path / "whole.h5")
    create = CacheWriter._create

    def late(writer: CacheWriter, *folds: Any) -> None:
        shutil.copy(tmp_path / "whole.h5", path)
        create(writer, *folds)

    monkeypatch.setattr(CacheWriter, "_create", late)
    assert CacheWriter(path, CARD).packed
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_two_packs_into_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "a.h5", pack=False)
    write = packing.write_packed

    def nested(*arguments: object, **options: object) -> None:
        with pytest.raises(packing.UserError, match="written by another process"):
            pack(tmp_path / "a.h5", tmp_path / "b.h5")
        write(*arguments, **options)

    monkeypatch.setattr(packing, "write_packed", nested)
    pack(tmp_path / "a.h5", tmp_path / "b.h5")
    assert verify(tmp_path / "b.h5") == []


def test_a_claim_costs_the_same_whatever_the_number_of_subjects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It parses no index that it knows and lists no folder; a shard names one subject."""
    path = tmp_path / "chaos.h5"
    build(path, pack=False)
    writer = CacheWriter(path, CARD)
    writer.begin_layer("slices", tiny_cache.SLICES_RECIPE)
    writer.begin_layer("instructions/other", tiny_cache.LLM_RECIPE)
    cards: list[int] = []
    parse = Manifest.from_bytes
    monkeypatch.setattr(Manifest, "from_bytes", lambda text: cards.append(len((m := parse(text)).card.subjects)) or m)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a folder is listed")

    monkeypatch.setattr(writing, "find_shards", refuse)
    for subject in CARD.subjects:
        with writer.claim(subject) as ours:
            assert ours and writer.finished("slices", subject)
            assert not writer.finished("instructions/other", subject)
            writer.write_instructions("instructions/other", subject, *tiny_cache.make_texts(subject, "other"))
            assert writer.finished("instructions/other", subject)
    assert set(cards) == {1}


def test_what_another_process_finished_is_known_inside_a_claim(tmp_path: Path) -> None:
    path = tmp_path / "chaos.h5"
    writer = CacheWriter(path, CARD)
    build(path, pack=True)
    with writer.claim("A") as ours:
        assert ours and writer.finished("slices", "A") and writer.packed


@pytest.mark.parametrize("sealed", [True, False], ids=["sound", "damaged"])
def test_verify_reads_the_merged_table_of_texts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    path = tmp_path / "chaos.h5"
    build(path, ("zeus", "other"))
    looked: list[Path] = []
    holds = TextTable.__init__.__defaults__[0]
    monkeypatch.setattr(
        TextTable.__init__, "__defaults__", (lambda table: looked.append(table) or (sealed and holds(table)),)
    )
    assert len(verifying.verify(path)) == (0 if sealed else 6)
    assert len(looked) == 1


def test_a_piece_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chaos.h5"
    writer = CacheWriter(path, CARD)
    writer.begin_layer("slices", tiny_cache.SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", tiny_cache.ENCODER_RECIPE)
    writer.write_slices("A", tiny_cache.make_slices("A"))
    whole = tiny_cache.make_embeddings("A")
    for pieces in ([whole[:1]], [whole, whole[:1]], [whole[:1], whole[1:, :, :, :2]], []):
        with pytest.raises(ValueError):
            writer.write_embeddings("embeddings/tiny", "A", iter(pieces))
    assert not list(path.with_name("chaos.h5.d").glob("embeddings/tiny/*"))


@pytest.mark.parametrize("store", ["uint8", "fp16"])
def test_pieces_give_the_same_bytes_as_the_whole(tmp_path: Path, store: str) -> None:
    shards = []
    for pieces in (False, True):
        path = tmp_path / str(pieces) / "chaos.h5"
        writer = CacheWriter(path, replace(CARD, subjects=("A",)))
        writer.begin_layer("slices", tiny_cache.SLICES_RECIPE)
        writer.begin_layer("embeddings/tiny", tiny_cache.ENCODER_RECIPE)
        writer.write_slices("A", tiny_cache.make_slices("A"))
        whole = tiny_cache.make_embeddings("A")
        writer.write_embeddings("embeddings/tiny", "A", iter([whole[:1], whole[1:]]) if pieces else whole, store)
        (shard,) = path.with_name("chaos.h5.d").glob("embeddings/tiny/A.*.h5")
        shards.append(shard.read_bytes())
    assert shards[0] == shards[1]
    assert (
        writer.embeddings("embeddings/tiny", "A", slice(1, 2)) == writer.embeddings("embeddings/tiny", "A")[1:]
    ).all()
