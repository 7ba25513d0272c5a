"""What `Cache` gives, and what it says of files it cannot read."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny_cache
from tiny_cache import CARD, SLICES_RECIPE, build, content, make_embeddings, make_slices, make_texts

from zeus_union.cache.errors import UserError
from zeus_union.cache.pack import pack
from zeus_union.cache.quantize import decode
from zeus_union.cache.reader import Cache
from zeus_union.cache.seal import SEAL_BYTES
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter


@pytest.fixture(scope="module", params=["packed", "sharded"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp(request.param) / "chaos.h5"
    build(path, ("zeus", "other"), pack=request.param == "packed")
    return Cache(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build(tmp_path / "chaos.h5")
    os.chmod(tmp_path / "chaos.h5", 0o644)
    return tmp_path / "chaos.h5"


def test_rows_are_the_slices_of_all_subjects(cache: Cache) -> None:
    assert cache.subjects == CARD.subjects
    assert cache.rows.subject.tolist() == [0, 0, 1, 1, 2, 2]
    assert cache.rows.number.tolist() == [2, 5] * 3
    assert cache.rows.labelled.all()
    assert sorted(set(cache.rows.fold.tolist())) == [0, 1, 2]
    foreground = np.concatenate([(make_slices(subject).masks > 0).sum((1, 2)) for subject in CARD.subjects])
    assert cache.rows.foreground.tolist() == foreground.tolist()
    assert cache.rows_of(["C", "A"]).tolist() == [4, 5, 0, 1]


def test_every_row_is_what_was_written_in_any_order(cache: Cache) -> None:
    rows = [5, 0, 3, 3]
    slices = [make_slices(subject) for subject in CARD.subjects]
    for name in ("images", "masks", "modality_masks"):
        written = np.concatenate([getattr(one, name) for one in slices])
        assert (getattr(cache, name)(rows) == written[rows]).all()
    for variant in cache.variants:
        written = np.concatenate([make_texts(subject, variant)[0] for subject in CARD.subjects])
        assert (cache.text_embeddings(variant, np.array(rows)) == written[rows]).all()
    assert (cache.native_masks("B") == slices[1].native_masks).all()
    assert cache.grid("B").same_as(slices[1].grid)
    assert cache.sources("B") == slices[1].sources
    assert (cache.encoders, cache.variants, cache.store("tiny")) == (("tiny",), ("other", "zeus"), "uint8")
    assert (cache.text_width("zeus"), cache.modalities, cache.classes) == (7, CARD.modalities, CARD.classes)


@pytest.mark.parametrize("modalities", [[0], [1], [0, 1], [1, 0], [1, 1]])
def test_embeddings_of_chosen_modalities_in_the_order_asked(cache: Cache, modalities: list[int]) -> None:
    written = np.concatenate([make_embeddings(subject) for subject in CARD.subjects])[[4, 1]][:, modalities]
    stored = cache.read_embeddings("tiny", [4, 1], modalities)
    assert stored.values.dtype == np.uint8 and stored.values.shape == written.shape
    decoded = decode(stored.values, stored.scale, stored.offset).numpy()
    assert (np.abs(decoded - written) <= stored.scale[..., None, None] * 0.501).all()


def test_buffers_are_used_again_also_for_a_smaller_batch(cache: Cache) -> None:
    first = cache.read_embeddings("tiny", [0, 1, 2], [0, 1])
    again = cache.read_embeddings("tiny", [5, 4], [0, 1], out=first)
    fresh = cache.read_embeddings("tiny", [5, 4], [0, 1])
    for name in ("values", "scale", "offset"):
        assert np.shares_memory(getattr(again, name), getattr(first, name))
        assert (getattr(again, name) == getattr(fresh, name)).all()
    with pytest.raises(ValueError, match="buffer"):
        cache.read_embeddings("tiny", [0], [0], out=first)


def test_constants_recipes_and_texts(cache: Cache) -> None:
    found = cache.constants("embeddings/tiny")
    assert all((found[name] == array).all() for name, array in tiny_cache.CONSTANTS.items())
    assert found.keys() == tiny_cache.CONSTANTS.keys()
    assert cache.recipe("embeddings/tiny") == tiny_cache.ENCODER_RECIPE
    assert len(cache.fingerprint("slices")) == 64
    table = cache.instructions("zeus")
    assert table["subject"].to_pylist() == [subject for subject in CARD.subjects for _ in range(4)]
    assert table["text"][4].as_py() == "zeus: B 2 é"
    assert set(cache.instructions()["variant"].to_pylist()) == {"zeus", "other"}


def test_other_programs_read_the_same_arrays(cache: Cache) -> None:
    with h5py.File(cache.path) as file:
        assert (file["slices/B/images"][:] == make_slices("B").images).all()
        assert file["embeddings/tiny/C/values"].shape == (2, 2, 4, 3, 3)
        assert file["embeddings/tiny/C/values"].chunks is None


def test_unknown_names_are_told_with_those_there_are(cache: Cache) -> None:
    with pytest.raises(UserError, match=r"no layer embeddings/sam; it has embeddings/tiny"):
        cache.read_embeddings("sam", [0], [0])
    with pytest.raises(UserError, match="no layer instructions/x"):
        cache.instructions("x")
    with pytest.raises(UserError, match="subject D; it has A, B, C"):
        cache.rows_of(["D"])


@pytest.mark.parametrize("rows", [[-1], [0, 6]])
def test_rows_that_are_not_there_are_refused(cache: Cache, rows: list[int]) -> None:
    for read in (
        cache.images,
        cache.masks,
        cache.modality_masks,
        lambda rows: cache.read_embeddings("tiny", rows, [0]),
    ):
        with pytest.raises(IndexError, match="of 6 rows"):
            read(rows)
    with pytest.raises(IndexError, match="modality"):
        cache.read_embeddings("tiny", [0], [2])


def test_pickled_forked_and_threaded_readers_read_the_same(cache: Cache) -> None:
    expected = cache.images([0, 3])
    assert (pickle.loads(pickle.dumps(cache)).images([0, 3]) == expected).all()
    child = os.fork()
    if child == 0:
        os._exit(0 if (cache.images([0, 3]) == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    wrong: list[int] = []

    def read() -> None:
        for _ in range(100):
            row = np.random.default_rng().integers(6)
            wrong.extend([row] * int((cache.images([row, 3])[1] != expected[1]).any()))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    cache.close()
    assert (cache.images([0, 3]) == expected).all()


def test_two_hundred_shards_are_read_with_64_open_files(tmp_path: Path) -> None:
    card = replace(CARD, subjects=tuple(f"P{number:03}" for number in range(200)))
    writer = CacheWriter(tmp_path / "many.h5", card)
    writer.begin_layer("slices", SLICES_RECIPE)
    for number, subject in enumerate(card.subjects):
        images = np.full((2, 2, 6, 6), number, np.uint8)
        writer.write_slices(subject, replace(make_slices("A"), images=images))
    writer.finalize(pack=False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = len(os.listdir("/proc/self/fd"))  # of the tests before, in a process that runs many
    resource.setrlimit(resource.RLIMIT_NOFILE, (64 + others, limits[1]))
    try:
        with Cache(tmp_path / "many.h5") as cache:
            rows = np.random.default_rng(0).permutation(400)
            assert (cache.images(rows)[:, 0, 0, 0] == rows // 2).all()
        assert verify(tmp_path / "many.h5") == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_unlabelled_subjects(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "some.h5", CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    for subject in CARD.subjects:
        writer.write_slices(subject, make_slices(subject, labelled=subject != "A"))
    writer.finalize()
    with Cache(tmp_path / "some.h5") as cache:
        assert cache.rows.labelled.tolist() == [False, False, True, True, True, True]
        assert cache.rows.fold[:2].tolist() == [-1, -1]
        assert cache.rows.foreground[:2].tolist() == [-1, -1]
        assert cache.native_masks("A") is None and cache.modality_masks([0, 2]) is None
        assert (cache.masks([4]) == make_slices("C").masks[:1]).all()
        with pytest.raises(UserError, match="no labels of A"):
            cache.masks([0, 2])


def test_fp16_embeddings(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "half.h5", CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", {"store": "fp16"})
    for subject in CARD.subjects:
        writer.write_slices(subject, make_slices(subject))
        writer.write_embeddings("embeddings/tiny", subject, make_embeddings(subject), "fp16")
    writer.finalize()
    with Cache(tmp_path / "half.h5") as cache:
        stored = cache.read_embeddings("tiny", [2], [0, 1])
        assert cache.store("tiny") == "fp16" and stored.scale is None and stored.offset is None
        assert (stored.values[0] == make_embeddings("B")[0].astype(np.float16)).all()
        assert cache.constants("embeddings/tiny") == {}


def test_a_packed_cache_works_elsewhere(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("chaos.h5", "chaos.instructions.parquet"):
        shutil.copy(tmp_path / name, tmp_path / "elsewhere" / name)
    assert content(tmp_path / "elsewhere" / "chaos.h5") == content(path)


def test_packing_a_sharded_cache_gives_the_packed_one(path: Path, tmp_path: Path) -> None:
    build(tmp_path / "shards" / "chaos.h5", pack=False)
    pack(tmp_path / "shards" / "chaos.h5", tmp_path / "out" / "one.h5")
    assert content(tmp_path / "out" / "one.h5") == content(path)
    assert verify(tmp_path / "out" / "one.h5") == verify(tmp_path / "shards" / "chaos.h5") == []
    with pytest.raises(UserError, match="exists"):
        pack(path, tmp_path / "out" / "one.h5")


def test_an_index_without_its_shards_is_told(tmp_path: Path) -> None:
    build(tmp_path / "chaos.h5", pack=False)
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "chaos.h5", tmp_path / "alone")
    with pytest.raises(UserError, match=r"shard folder .*chaos\.h5\.d is missing"):
        Cache(tmp_path / "alone" / "chaos.h5")
    (shard,) = (tmp_path / "chaos.h5.d").glob("slices/B.*")
    os.chmod(shard, 0o644)
    os.truncate(shard, 700)
    with pytest.raises(UserError, match=r"slices/B\..* is truncated"):
        Cache(tmp_path / "chaos.h5")
    shard.unlink()
    with pytest.raises(UserError, match=r"slices/B\..* is missing"):
        Cache(tmp_path / "chaos.h5")


@pytest.mark.parametrize("keep", [1, 100, SEAL_BYTES, 2000, -1])
def test_a_truncated_cache_is_told(path: Path, keep: int) -> None:
    os.truncate(path, keep if keep > 0 else path.stat().st_size + keep)
    for read in (Cache, lambda path: CacheWriter(path, CARD)):
        with pytest.raises(UserError, match=r"truncated|not a Zeus cache"):
            read(path)


def test_what_is_no_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("x" * 1000)
    (tmp_path / "empty.h5").touch()
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = 1
    for name, said in (
        ("text", "not a Zeus cache"),
        ("empty", "empty"),
        ("other", "not a Zeus"),
        ("none", "not exist"),
    ):
        with pytest.raises(UserError, match=said):
            Cache(tmp_path / f"{name}.h5")
    build(tmp_path / "chaos.h5", pack=False)
    (shard,) = (tmp_path / "chaos.h5.d").glob("slices/B.*")
    with pytest.raises(UserError, match="a single subject's shard"):
        Cache(shard)


def test_another_schema_version_is_refused(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"schema: 2\n", b"schema: 3\n", 1))
    for read in (Cache, lambda path: CacheWriter(path, CARD)):
        with pytest.raises(UserError, match="schema version 3, this program reads version 2"):
            read(path)
    assert "schema version 3" in verify(path)[0]


def test_a_damaged_manifest_is_told(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"card":', b'{"cord":'))
    with pytest.raises(UserError, match="is damaged"):
        Cache(path)


def test_a_cache_that_is_replaced_while_it_is_read_is_not_mixed_up(path: Path) -> None:
    cache = Cache(path)
    before = cache.images([0, 5])
    build(path, ("zeus", "other"))
    assert (cache.images([0, 5]) == before).all()
    cache.close()
    with pytest.raises(UserError, match="replaced while it was in use"):
        cache.images([0])


def test_an_unfinished_build_says_what_is_missing_and_can_be_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "chaos.h5"
    build(path, card=CARD, finalize=False)
    (shard,) = path.with_name("chaos.h5.d").glob("embeddings/tiny/B.*.h5")
    shard.unlink()
    with pytest.raises(UserError, match=r"2 of 3 subjects.*embeddings/tiny lacks B.*--allow-partial"):
        Cache(path)
    with Cache(path, allow_partial=True) as cache:
        assert cache.subjects == ("A", "C")
        assert (cache.images(cache.rows_of(["C"])) == make_slices("C").images).all()
        assert cache.instructions()["subject"].to_pylist() == ["A"] * 4 + ["C"] * 4
        assert cache.constants("embeddings/tiny").keys() == tiny_cache.CONSTANTS.keys()
    CacheWriter(tmp_path / "new.h5", CARD)
    with pytest.raises(UserError, match="0 of 3 subjects"):
        Cache(tmp_path / "new.h5", allow_partial=True)


@pytest.mark.parametrize(
    "rows",
    [np.array([True, False, True, False, False, False]), [True, False], [0, True], [0.0, 1.0], np.array([1.7]), [[0]]],
    ids=["mask", "booleans", "one boolean", "floats", "float array", "two axes"],
)
def test_rows_and_modalities_that_are_no_whole_numbers_are_refused(cache: Cache, rows: object) -> None:
    """Read as numbers, a mask would be rows 0 and 1 over and over."""
    for read in (cache.images, cache.masks, cache.modality_masks, lambda r: cache.text_embeddings("zeus", r)):
        with pytest.raises(TypeError, match="by their indices, whole numbers"):
            read(rows)
    with pytest.raises(TypeError, match="rows are chosen by their indices"):
        cache.read_embeddings("tiny", rows, [0])
    with pytest.raises(TypeError, match="modalities are chosen by their indices"):
        cache.read_embeddings("tiny", [0], np.array([True, False]))


@pytest.mark.parametrize("rows", [[], (), range(2), np.arange(2, dtype=np.uint8), [np.int32(1)]])
def test_rows_of_any_whole_numbers_are_read(cache: Cache, rows: object) -> None:
    assert len(cache.images(rows)) == len(rows)


def test_the_content_digest_follows_what_the_subjects_hold_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(name: str) -> dict[str, str]:
        build(tmp_path / name, pack=name != "sharded.h5")
        with Cache(tmp_path / name) as cache:
            assert cache.content_digest("slices", ["B", "A"]) == cache.content_digest("slices", ["A", "B", "A"])
            return {
                f"{layer} {subject}": cache.content_digest(layer, [subject])
                for layer in cache.layers
                for subject in cache.subjects
            }

    first = digests("first.h5")
    assert len(set(first.values())) == len(first) == 9
    assert digests("again.h5") == digests("sharded.h5") == first
    whole = tiny_cache.make_slices

    def corrected(subject: str) -> object:
        slices = whole(subject)
        if subject == "B":
            slices.native_masks[0, 0, 0] ^= 1
        return slices

    with monkeypatch.context() as patch:
        patch.setattr(tiny_cache, "make_slices", corrected)
        other = digests("other.h5")
    assert {key for key in first if other[key] != first[key]} == {"slices B"}
