"""What the writer accepts, refuses, and goes on from."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_cache
from tiny_cache import (
    CARD,
    ENCODER_RECIPE,
    LLM_RECIPE,
    SLICES_RECIPE,
    build,
    content,
    make_embeddings,
    make_slices,
    make_texts,
)

from zeus_union.cache.atomic import AtomicFile
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import CONSTANTS, DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "chaos.h5"


@pytest.fixture
def writer(path: Path) -> CacheWriter:
    writer = CacheWriter(path, CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", ENCODER_RECIPE)
    writer.begin_layer("instructions/zeus", LLM_RECIPE)
    return writer


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "other"}, "name: phantom -> other"),
        ({"modalities": ("T1",)}, "modalities"),
        ({"terms": {"T1": "MRI-T1", "T2": "T2"}}, "terms.T2"),
        ({"classes": ("liver",)}, "classes"),
        ({"subjects": ("A", "B")}, "subjects"),
        ({"slice_step": 2}, "slice_step: 1 -> 2"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_dataset_under_the_same_path_is_refused(path: Path, change: dict, named: str, finished: bool) -> None:
    if finished:
        build(path)
    else:
        CacheWriter(path, CARD)
    with pytest.raises(UserError, match=named) as error:
        CacheWriter(path, replace(CARD, **change))
    assert "--out" in str(error.value)


@pytest.mark.parametrize("pack", [None, False, True])
def test_another_recipe_is_refused_and_the_field_named(path: Path, pack: bool | None) -> None:
    build(path, pack=pack, finalize=pack is not None)
    other = {"llm": {"weights_sha256": "34cd", "template": "xraygpt"}, "decoding": {"max_new_tokens": 8}}
    with pytest.raises(UserError, match=r"llm\.template: zeus -> xraygpt") as error:
        CacheWriter(path, CARD).begin_layer("instructions/zeus", other)
    assert "--variant" in str(error.value) and "weights" not in str(error.value)
    CacheWriter(path, CARD).begin_layer("instructions/zeus", dict(reversed(LLM_RECIPE.items())))
    with pytest.raises(UserError, match="slice_step: 1 -> 2"):
        CacheWriter(path, CARD).begin_layer("slices", {**SLICES_RECIPE, "slice_step": 2})


@pytest.mark.parametrize("layer", ["masks", "embeddings", "embeddings/", "instructions/a/b", "embeddings/../x"])
def test_names_that_are_no_layer_are_refused(writer: CacheWriter, layer: str) -> None:
    with pytest.raises(UserError, match="is not a layer name"):
        writer.begin_layer(layer, {})


@pytest.mark.parametrize("subject", ["", "..", "a/b", CONSTANTS, "é"])
def test_subjects_that_are_no_file_names_are_refused(subject: str) -> None:
    with pytest.raises(UserError, match="subject"):
        DatasetCard("d", ("T1",), {}, (), "", (subject,))


def test_what_is_written_is_read_back(writer: CacheWriter) -> None:
    writer.write_slices("A", make_slices("A"))
    found, given = writer.slices("A"), make_slices("A")
    for name in ("numbers", "images", "masks", "modality_masks", "native_masks"):
        assert (getattr(found, name) == getattr(given, name)).all()
    assert found.sources == given.sources and found.grid.same_as(given.grid)
    writer.write_embeddings("embeddings/tiny", "A", make_embeddings("A"))
    assert np.abs(writer.embeddings("embeddings/tiny", "A") - make_embeddings("A")).max() < 0.02
    assert writer.finished("embeddings/tiny", "A") and not writer.finished("embeddings/tiny", "B")


def test_one_more_variant_recomputes_nothing_and_leaves_the_other_layers_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(path)
    before = content(path)
    written: list[str] = []
    write = CacheWriter._write
    monkeypatch.setattr(
        CacheWriter, "_write", lambda self, layer, *rest: written.append(layer) or write(self, layer, *rest)
    )
    build(path, ("zeus", "other"))
    after = content(path)
    assert set(written) == {"instructions/other"}
    texts = [row for row in after.pop("texts") if row["variant"] == "zeus"]
    assert texts == before.pop("texts")
    assert {name: after[name] for name in before} == before
    assert verify(path) == []


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "sharded"])
def test_building_again_writes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, pack: bool) -> None:
    """Of a sharded cache no shard; its index is written anew, with the same bytes."""

    def files() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}

    build(path, pack=pack)
    before, written = files(), []
    shards = [name for name in before if name.endswith(".h5") and name.split(".")[0] in CARD.subjects]
    assert len(shards) == (0 if pack else 9)
    commit = AtomicFile.commit
    monkeypatch.setattr(
        AtomicFile, "commit", lambda self, *rest: written.append(self.final.name) or commit(self, *rest)
    )
    build(path, pack=pack)
    assert written == ([] if pack else ["chaos.instructions.parquet", "chaos.h5"])
    assert files() == before


def test_a_variant_that_was_not_finished_stays_beside_a_packed_cache(path: Path, writer: CacheWriter) -> None:
    build(path)
    again = CacheWriter(path, CARD)
    again.begin_layer("instructions/late", LLM_RECIPE)
    again.write_instructions("instructions/late", "A", *make_texts("A", "late"))
    build(path, ("zeus", "other"))
    with Cache(path) as cache:
        assert cache.variants == ("other", "zeus")
    assert CacheWriter(path, CARD).finished("instructions/late", "A")
    build(path, ("late",))
    with Cache(path) as cache:
        assert cache.variants == ("late", "other", "zeus")


def test_layers_made_from_other_slices_are_refused(writer: CacheWriter, path: Path) -> None:
    writer.write_slices("A", make_slices("A"))
    writer.write_embeddings("embeddings/tiny", "A", make_embeddings("A"))
    (shard,) = path.with_name("chaos.h5.d").glob("slices/A.*.h5")
    shard.unlink()
    again = CacheWriter(path, CARD)
    again.begin_layer("slices", SLICES_RECIPE)
    again.write_slices("A", replace(make_slices("A"), images=make_slices("B").images))
    with pytest.raises(UserError, match="made from other slices of A"):
        again.finished("embeddings/tiny", "A")
    assert any("made from other slices" in line for line in verify(path))


def test_changed_source_files_are_refused(writer: CacheWriter) -> None:
    writer.write_slices("A", make_slices("A"))
    sources = dict(make_slices("A").sources)
    writer.check_sources("A", sources)
    writer.check_sources("B", {"anything": "for a subject that is not there yet"})
    with pytest.raises(UserError, match=r"A/T2\.nii\.gz"):
        writer.check_sources("A", {**sources, "A/T2.nii.gz": "22"})


def test_an_unfinished_layer_is_not_finalised(writer: CacheWriter) -> None:
    for subject in CARD.subjects:
        writer.write_slices(subject, make_slices(subject))
    writer.write_embeddings("embeddings/tiny", "B", make_embeddings("B"))
    with pytest.raises(UserError, match=r"embeddings/tiny lacks A, C; instructions/zeus lacks A, B, C"):
        writer.finalize()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused_and_leave_nothing(
    writer: CacheWriter, path: Path, value: float
) -> None:
    writer.write_slices("A", make_slices("A"))
    embeddings = make_embeddings("A")
    embeddings[0, 0, 0, 0, 0] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        writer.write_embeddings("embeddings/tiny", "A", embeddings)
    assert not list(path.with_name("chaos.h5.d").glob("embeddings/tiny/*"))


def test_arrays_that_do_not_fit_are_refused(writer: CacheWriter) -> None:
    slices = make_slices("A")
    for wrong in (
        replace(slices, images=slices.images[:, :1]),
        replace(slices, images=slices.images.astype(np.float32)),
        replace(slices, masks=slices.masks[:1]),
        replace(slices, numbers=slices.numbers[:0], images=slices.images[:0]),
    ):
        with pytest.raises(ValueError):
            writer.write_slices("A", wrong)
    writer.write_slices("A", slices)
    with pytest.raises(ValueError):
        writer.write_embeddings("embeddings/tiny", "A", make_embeddings("A")[:1])
    embeddings, rows = make_texts("A", "zeus")
    with pytest.raises(ValueError, match="order"):
        writer.write_instructions("instructions/zeus", "A", embeddings, rows[::-1])


def test_subjects_stored_in_two_ways_are_refused(writer: CacheWriter) -> None:
    for subject in CARD.subjects:
        writer.write_slices(subject, make_slices(subject))
        store = "fp16" if subject == "C" else "uint8"
        writer.write_embeddings("embeddings/tiny", subject, make_embeddings(subject), store)
        writer.write_instructions("instructions/zeus", subject, *make_texts(subject, "zeus"))
    with pytest.raises(UserError, match="values of C is"):
        writer.finalize()


def test_too_little_space_is_told_before_anything_is_written(
    writer: CacheWriter, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 100))
    with pytest.raises(UserError, match="no space left: slices of A needs"):
        writer.write_slices("A", make_slices("A"))
    assert not list(path.parent.rglob("A.*"))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_cache
from zeus_union.cache.terminal import ZeusGroup

group = ZeusGroup("zeus-instruct")

@group.command()
def build_cache():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    tiny_cache.build(Path({path!r}))

group(["build-cache"])
"""


@pytest.mark.parametrize("limit", [300, 6000, 9000, 20000])
def test_a_full_disk_is_one_line_and_exit_code_2_and_can_be_resumed(path: Path, limit: int) -> None:
    code = FULL_DISK.format(tests=str(Path(__file__).parent), limit=limit, path=str(path))
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("error: no space left on the device") and found.stderr.count("\n") == 1
    assert not list(path.parent.rglob("*.tmp"))
    build(path)
    assert verify(path) == []


HOLD = """
import sys, time
sys.path.insert(0, {tests!r})
import tiny_cache
from pathlib import Path
from zeus_union.cache.writer import CacheWriter
with CacheWriter(Path({path!r}), tiny_cache.CARD).claim("A") as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that has the subject A of the cache in work."""
    code = HOLD.format(tests=str(Path(__file__).parent), path=str(path))
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    return process


def leave_temporaries(path: Path) -> list[Path]:
    """What a killed build of A, of B and of the cache itself would leave."""
    folder = path.with_name("chaos.h5.d") / "slices"
    left = [folder / f".{subject}.000000000000.h5.0123abcd.tmp" for subject in "AB"]
    left.append(path.with_name(".chaos.h5.0123abcd.tmp"))
    for file in left:
        file.touch()
    return left


def test_temporary_files_of_killed_builds_are_removed(path: Path) -> None:
    build(path, finalize=False)
    left = leave_temporaries(path)
    CacheWriter(path, CARD)
    assert [file.exists() for file in left] == [False, False, False]


def test_temporary_files_belong_to_whoever_has_the_subject(path: Path) -> None:
    build(path, finalize=False)
    other = hold(path)
    try:
        left = leave_temporaries(path)
        writer = CacheWriter(path, CARD)
        with writer.claim("A") as a, writer.claim("B") as b:
            assert (a, b) == (False, True)
            assert [file.exists() for file in left] == [True, False, True]
    finally:
        other.kill()
        other.wait()
    late = left[0].with_name(".A.000000000000.h5.4567cdef.tmp")  # made after the folder was listed
    late.touch()
    with writer.claim("A", wait=True) as ours:
        assert ours and not late.exists() and not left[0].exists()


def test_a_file_in_work_stays_where_another_process_opens_the_cache(path: Path) -> None:
    writer = CacheWriter(path, CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.write_slices("A", make_slices("A"))
    writer.begin_layer("embeddings/tiny", ENCODER_RECIPE)
    embeddings = make_embeddings("A")

    def pieces() -> Iterator[np.ndarray]:
        for row in range(len(embeddings)):
            yield embeddings[row : row + 1]
            opener = multiprocessing.get_context("spawn").Process(target=CacheWriter, args=(path, CARD))
            opener.start()
            opener.join()
            assert opener.exitcode == 0

    writer.write_embeddings("embeddings/tiny", "A", pieces())
    assert writer.finished("embeddings/tiny", "A")


def _build_part(path: Path, subjects: tuple[str, ...]) -> None:
    writer = CacheWriter(path, CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", ENCODER_RECIPE, lambda: tiny_cache.CONSTANTS)
    writer.begin_layer("instructions/zeus", LLM_RECIPE)
    for subject in subjects:
        writer.write_slices(subject, make_slices(subject))
        writer.write_embeddings("embeddings/tiny", subject, make_embeddings(subject))
        writer.write_instructions("instructions/zeus", subject, *make_texts(subject, "zeus"))


def test_two_processes_at_once_give_what_one_gives(path: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    parts = [("A", "B"), ("B", "C")]  # both build B: the later one replaces the same by the same
    processes = [spawn.Process(target=_build_part, args=(path, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    build(path)
    build(tmp_path / "one" / "chaos.h5")
    assert content(path) == content(tmp_path / "one" / "chaos.h5")
    assert path.read_bytes() == (tmp_path / "one" / "chaos.h5").read_bytes()


@pytest.mark.parametrize("pack", [True, False])
def test_a_layer_keeps_the_profile_that_made_it_and_it_decides_nothing(tmp_path: Path, pack: bool) -> None:
    """As a word on the side: fingerprints and constants are those of a layer without one, and another is no other layer."""
    profile = {"name": "lite", "llm": "/models/é", "llm_batch": "auto", "top_p": 1.0}
    build(tmp_path / "plain.h5", pack=pack)
    for name, weights in ("first", profile), ("second", profile | {"llm": "/elsewhere"}):
        path = tmp_path / name / "noted.h5"
        writer = CacheWriter(path, CARD)
        writer.begin_layer("slices", SLICES_RECIPE)
        writer.begin_layer("embeddings/tiny", ENCODER_RECIPE, lambda: tiny_cache.CONSTANTS, weights)
        writer.begin_layer("instructions/zeus", LLM_RECIPE, profile=weights)
        assert writer.constants("instructions/zeus") == {}
        writer.write_slices("A", make_slices("A"))
        writer.write_embeddings("embeddings/tiny", "A", make_embeddings("A"))
        writer.write_instructions("instructions/zeus", "A", *make_texts("A", "zeus"))
        build(path, pack=pack)  # goes on, and has no word to add
        assert content(path) == content(tmp_path / "plain.h5")
        assert verify(path) == []
        with Cache(path) as cache:
            assert cache.profile("embeddings/tiny") == cache.profile("instructions/zeus") == weights
            assert cache.profile("slices") == {}
    with Cache(tmp_path / "plain.h5") as cache:
        assert cache.profile("instructions/zeus") == {} == cache.constants("instructions/zeus")
