"""What a cache costs by its number of subjects: operations on the disk are counted, not seconds.

A cost is linear where twice as many more subjects cost twice as many more operations; tests/benchmarks/bench_scale.py has the
seconds at 100,000 subjects.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cache.tiny_cache import CARD, ENCODER_RECIPE, SLICES_RECIPE, build, make_embeddings, make_slices
from zeus_union.cache.layout import shard_folder
from zeus_union.cache.manifest import Manifest
from zeus_union.cache.reader import Cache
from zeus_union.cache.status import read_status
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter

SIZES = (4, 8, 16)
LISTINGS = ("os.scandir", "os.listdir")

_counting: list[Counter[str]] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if _counting and event in ("open", *LISTINGS):
        _counting[-1][event if event == "open" else "listing"] += 1


sys.addaudithook(_count)  # stays for good, and counts only inside `operations`


def operations(work: Callable[..., object], *arguments: object) -> Counter[str]:
    """How many files are opened and how many folders are listed."""
    _counting.append(Counter())
    try:
        work(*arguments)
    finally:
        counted = _counting.pop()
    return counted


def names(subjects: int) -> tuple[str, ...]:
    return tuple(chr(ord("A") + number) for number in range(subjects))


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    folder = tmp_path_factory.mktemp("caches")
    paths = {}
    for subjects in SIZES:
        for state in ("packed", "sharded", "building"):
            path = paths[subjects, state] = folder / f"{state}{subjects}.h5"
            card = replace(CARD, subjects=names(subjects))
            build(path, variants=(), pack=state == "packed", card=card, finalize=state != "building")
    return paths


def assert_linear(counts: dict[int, Counter[str]]) -> None:
    few, some, many = (counts[subjects] for subjects in SIZES)
    for operation in few | some | many:
        assert many[operation] - some[operation] <= 2 * (some[operation] - few[operation]), (operation, counts)


WORK: dict[str, Callable[[Path], object]] = {
    "opening": lambda path: Cache(path, allow_partial=True),
    "verify": verify,
    "status": read_status,
    "finished": lambda path: _ask_all(path),
}


def _begin(path: Path) -> CacheWriter:
    card = Cache(path, allow_partial=True).card
    writer = CacheWriter(path, card)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", ENCODER_RECIPE)
    return writer


def _ask_all(path: Path) -> None:
    writer = _begin(path)
    assert all(writer.finished(layer, name) for name in writer.card.subjects for layer in ("slices", "embeddings/tiny"))


@pytest.mark.parametrize("state", ["packed", "sharded", "building"])
@pytest.mark.parametrize("what", WORK)
def test_the_cost_of_a_subject_does_not_grow_with_their_number(
    what: str, state: str, caches: dict[tuple[int, str], Path]
) -> None:
    assert_linear({subjects: operations(WORK[what], caches[subjects, state]) for subjects in SIZES})


@pytest.mark.parametrize("what", ["opening", "finished"])
def test_a_packed_cache_is_opened_and_resumed_without_a_file_a_subject(
    what: str, caches: dict[tuple[int, str], Path]
) -> None:
    counts = [operations(WORK[what], caches[subjects, "packed"]) for subjects in SIZES]
    assert counts[0] == counts[-1], counts


def test_claims_list_no_folder_also_of_subjects_that_others_had(tmp_path: Path) -> None:
    """Else n processes at N subjects would list N files for each of them."""
    card = replace(CARD, subjects=names(16))
    one, other = CacheWriter(tmp_path / "a.h5", card), CacheWriter(tmp_path / "a.h5", card)

    def claim_all() -> None:
        for subject in card.subjects:
            with one.claim(subject) as ours, other.claim(subject) as refused:
                assert ours and not refused
            with other.claim(subject) as ours:
                assert ours

    assert operations(claim_all)["listing"] == 0


def test_writing_a_subject_lists_no_folder(tmp_path: Path) -> None:
    card = replace(CARD, subjects=names(8))
    writer = CacheWriter(tmp_path / "a.h5", card)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", ENCODER_RECIPE)

    def write(subject: str) -> None:
        with writer.claim(subject):
            writer.write_slices(subject, make_slices(subject))
            writer.write_embeddings("embeddings/tiny", subject, make_embeddings(subject))

    counts = [operations(write, subject) for subject in card.subjects]
    assert all(count["listing"] == 0 for count in counts)
    assert len({count["open"] for count in counts[1:]}) == 1, counts
    assert shard_folder(tmp_path / "a.h5").is_dir()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_while_an_index_is_read_and_is_left_as_it_was(
    enabled: bool, caches: dict[tuple[int, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    from_bytes = Manifest.from_bytes
    monkeypatch.setattr(Manifest, "from_bytes", lambda text: seen.append(gc.isenabled()) or from_bytes(text))
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        Cache(caches[4, "packed"])
        assert seen == [False] and gc.isenabled() is enabled
    finally:
        gc.enable() if before else gc.disable()


def test_the_rows_of_subjects_are_theirs_in_the_order_asked_for(caches: dict[tuple[int, str], Path]) -> None:
    with Cache(caches[8, "packed"]) as cache:
        for chosen in ((), ("A",), ("H", "B", "E"), tuple(reversed(cache.subjects))):
            rows = cache.rows_of(chosen)
            expected = [
                row
                for name in chosen
                for row in range(len(cache.rows))
                if cache.rows.subject[row] == cache.subjects.index(name)
            ]
            assert rows.dtype == "intp" and rows.tolist() == expected
