"""Who builds what of a cache, how far it is, how long it still takes; read from the disk, by anybody."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cache.tiny_cache import CARD, ENCODER_RECIPE, SLICES_RECIPE, build, make_embeddings, make_slices
from zeus_union.cache import locks
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import lock_path, locks_folder, shard_folder
from zeus_union.cache.manifest import find_shards
from zeus_union.cache.status import read_status
from zeus_union.cache.writer import CacheWriter

EMBEDDINGS = "embeddings/tiny"

HOLD = """
import sys, time
from tests.cache.tiny_cache import CARD, ENCODER_RECIPE, SLICES_RECIPE, make_slices
from zeus_union.cache.writer import CacheWriter
writer = CacheWriter(sys.argv[1], CARD)
writer.begin_layer("slices", SLICES_RECIPE)
writer.begin_layer("embeddings/tiny", ENCODER_RECIPE)
with writer.claim("C"):
    print("taken", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.h5"


@pytest.fixture
def unfinished(path: Path) -> Path:
    """A and B of slices, A of embeddings; a slice and a modality of them has taken 5 s and 25 s."""
    writer = CacheWriter(path, CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer(EMBEDDINGS, ENCODER_RECIPE)
    for subject in "AB":
        writer.write_slices(subject, make_slices(subject))
    writer.write_embeddings(EMBEDDINGS, "A", make_embeddings("A"))
    for at, start in ((1000, "slices/A"), (1020, "slices/B"), (1120, "embeddings/tiny/A")):
        layer, _, subject = start.rpartition("/")
        (name,) = find_shards(shard_folder(path), layer, subject)
        os.utime(shard_folder(path) / name, (at, at))
    return path


def test_each_layer_says_how_far_it_is_and_what_is_left(unfinished: Path) -> None:
    status = read_status(unfinished)
    slices, embeddings = (next(one for one in status.layers if one.layer == name) for name in ("slices", EMBEDDINGS))
    assert (slices.subjects, slices.subjects_due, embeddings.subjects) == (2, 3, 1)
    # Two slices of two modalities; C is taken to have as many as the others.
    assert (slices.slice_modalities, slices.slice_modalities_due, embeddings.slice_modalities) == (8, 12, 4)
    assert (slices.seconds_each, embeddings.seconds_each) == (5.0, 25.0)
    assert (slices.seconds_left, embeddings.seconds_left, status.seconds_left) == (4 * 5, 8 * 25, 4 * 5 + 8 * 25)
    assert (status.state, status.finished, status.subjects, status.complete) == ("building", 1, 3, False)


def test_a_night_without_anybody_at_work_is_not_in_the_rate(unfinished: Path) -> None:
    writer = CacheWriter(unfinished, CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer(EMBEDDINGS, ENCODER_RECIPE)
    writer.write_embeddings(EMBEDDINGS, "B", make_embeddings("B"))
    (name,) = find_shards(shard_folder(unfinished), EMBEDDINGS, "B")
    os.utime(shard_folder(unfinished) / name, (90_000, 90_000))
    for late, subject in ((90_000, "B"), (1120, "A")):
        (name,) = find_shards(shard_folder(unfinished), EMBEDDINGS, subject)
        os.utime(shard_folder(unfinished) / name, (late, late))
    writer.write_slices("C", make_slices("C"))
    (name,) = find_shards(shard_folder(unfinished), "slices", "C")
    os.utime(shard_folder(unfinished) / name, (90_020, 90_020))
    writer.write_embeddings(EMBEDDINGS, "C", make_embeddings("C"))
    (name,) = find_shards(shard_folder(unfinished), EMBEDDINGS, "C")
    os.utime(shard_folder(unfinished) / name, (90_120, 90_120))
    (embeddings,) = (layer for layer in read_status(unfinished).layers if layer.layer == EMBEDDINGS)
    assert embeddings.seconds_each == 25.0


@pytest.mark.parametrize("pack", [True, False])
def test_a_finished_cache_lacks_nothing_and_nobody_is_at_work(path: Path, pack: bool) -> None:
    build(path, pack=pack)
    status = read_status(path)
    assert status.complete and status.holders == () and status.seconds_left == 0.0
    assert status.state == ("packed" if pack else "sharded") and status.finished == 3
    assert {layer.layer: layer.slice_modalities for layer in status.layers} == {
        "slices": 12,
        EMBEDDINGS: 12,
        "instructions/zeus": 12,
    }


def test_a_layer_that_is_added_to_a_packed_cache_is_seen_beside_it(path: Path) -> None:
    build(path, pack=True)
    writer = CacheWriter(path, CARD)
    writer.begin_layer("embeddings/other", ENCODER_RECIPE)
    writer.write_embeddings("embeddings/other", "B", make_embeddings("B"))
    status = read_status(path)
    assert status.state == "packed" and not status.complete and status.finished == 1
    assert {layer.layer: layer.subjects for layer in status.layers}["embeddings/other"] == 1


def test_who_has_a_subject_in_work_is_named_and_so_is_who_was_lost_with_it(path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "47", "SLURM_ARRAY_TASK_ID": "3"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=root, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    (holder,) = read_status(path).holders
    assert (holder.subject, holder.pid, holder.job, holder.alive) == ("C", process.pid, "47_3", True)
    assert holder.layers == ("slices", EMBEDDINGS)
    assert {layer.layer for layer in read_status(path).layers} == {"slices", EMBEDDINGS}, (
        "begun, though nothing is there"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (lost,) = read_status(path).holders
    assert (lost.subject, lost.pid, lost.alive) == ("C", process.pid, False)
    writer = CacheWriter(path, CARD)
    with writer.claim("C") as ours:
        assert ours
        (holder,) = read_status(path).holders
        assert (holder.pid, holder.alive) == (os.getpid(), True)
        assert not _can_be_taken_by_another(path), "looking has given the lock back"
    assert read_status(path).holders == (), "given back in order"


def _can_be_taken_by_another(path: Path) -> bool:
    take = (
        "import sys; from pathlib import Path; from zeus_union.cache.locks import acquire; "
        "print(acquire(Path(sys.argv[1]), False, False) is not None)"
    )
    lock = str(locks_folder(path) / "C.lock")
    done = subprocess.run([sys.executable, "-c", take, lock], stdout=subprocess.PIPE, text=True)
    return done.stdout == "True\n"


def test_what_a_lost_process_left_is_removed_by_whoever_takes_its_subject(path: Path) -> None:
    writer, other = CacheWriter(path, CARD), CacheWriter(path, CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    left = shard_folder(path) / "slices" / ".A.0123456789ab.h5.01234567.tmp"
    left.parent.mkdir(parents=True)
    with other.at_work():
        left.touch()
        with writer.claim("A"):
            assert left.exists(), "nobody was lost: it may be another one's"
        (locks_folder(path) / "A.lock").write_bytes(b'{"host": "n1", "pid": 1}')
        assert [holder.alive for holder in read_status(path).holders] == [False]
        with writer.claim("A"):
            assert not left.exists()


def test_without_locks_it_says_what_is_being_written(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks, "_locked_by_another", refuse)
    (shard_folder(unfinished) / "slices" / ".C.0123456789ab.h5.01234567.tmp").touch()
    status = read_status(unfinished)
    assert status.locks is False and set(status.writing) == {"C"}


def test_a_read_only_copy_without_lock_files_is_read(unfinished: Path) -> None:
    lock_path(unfinished).unlink()
    folders = [
        unfinished.parent,
        shard_folder(unfinished),
        *(p for p in shard_folder(unfinished).rglob("*") if p.is_dir()),
    ]
    for folder in folders:
        folder.chmod(0o555)
    try:
        status = read_status(unfinished)
        assert status.locks is None and status.finished == 1
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_damaged_shard_is_named_and_the_others_are_counted(unfinished: Path) -> None:
    (name,) = find_shards(shard_folder(unfinished), "slices", "B")
    shard = shard_folder(unfinished) / name
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:100])
    status = read_status(unfinished)
    assert len(status.damaged) == 1 and str(shard) in status.damaged[0]
    assert status.layers[0].subjects == 1


def test_no_cache_an_index_that_is_missing_and_a_shard_are_told_apart(unfinished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.h5 does not exist; zeus-instruct build-cache"):
        read_status(tmp_path / "none.h5")
    (name,) = find_shards(shard_folder(unfinished), "slices", "A")
    with pytest.raises(UserError, match="a single subject's shard"):
        read_status(shard_folder(unfinished) / name)
    unfinished.unlink()
    with pytest.raises(UserError, match=r"a\.h5 is missing and its shard folder .* exists"):
        read_status(unfinished)


def test_a_cache_that_was_only_begun_has_no_layers(path: Path) -> None:
    CacheWriter(path, replace(CARD, subjects=("A",)))
    status = read_status(path)
    assert status.layers == () and status.finished == 0 and not status.complete
