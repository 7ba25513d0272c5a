"""The pipeline against a plain loop: the same bytes, whenever it is killed, interrupted or finds no space, and however its
threads are slowed down.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stage1_instruct.building.plain_loop import build_plainly
from tests.stage1_instruct.building.quick_encoder import QuickEncoder
from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building import instructions, pipeline, reading
from zeus_union.stage1_instruct.building.failures import BuildFailures
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.models.projected_llm import ProjectedLLM
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.studies.study import Dataset, Study

SUBJECTS = 4
CHANGES = ("pwrite", "ftruncate", "fsync", "replace", "link", "unlink", "mkdir")
_TEMPORARY = re.compile(r"(.*)\.[0-9a-f]{8}\.tmp")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four phantoms in one modality, of which two slices each are taken."""
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=SUBJECTS, seed=5)
    return open_dataset("nnunet", root, modalities=("T2-SPIR",))


@pytest.fixture(scope="module")
def models(
    random_litemedsam: Path, tiny_llama: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Models]:
    """An encoder that takes no time, real language models of random weights, two slots."""
    parts = {
        "encoder_weights": str(random_litemedsam),
        "llm": str(tiny_llama),
        "text_encoder": str(tiny_bert),
        "max_new_tokens": "4",
        "temperature": "1.5",  # so that every text is another one
        "llm_batch": "2",
        "projection": "untrained",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEUS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(Models, "encoder", QuickEncoder())
        yield load_models(load_profile("lite", parts))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A subject's questions come in two pieces; no thread is left behind."""
    monkeypatch.setattr(instructions, "EMBEDDINGS_AT_ONCE", 1)
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def options(out: Path, **more: Any) -> BuildOptions:
    return replace(BuildOptions(out, slice_step=6, pack=True), **more)


def content(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_name(f"{path.stem}.instructions.parquet").read_bytes()


@pytest.fixture(scope="module")
def expected(dataset: Dataset, models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    path = tmp_path_factory.mktemp("plain") / "c.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instructions, "EMBEDDINGS_AT_ONCE", 1)
        build_plainly(dataset, models, options(path))
    return content(path)


def test_the_models_stream(models: Models) -> None:
    assert isinstance(models.instructor, ProjectedLLM) and models.instructor.streams


def test_the_bytes_are_those_of_a_plain_loop(
    dataset: Dataset, models: Models, expected: tuple[bytes, bytes], tmp_path: Path
) -> None:
    report = build_cache(dataset, models, options(tmp_path / "c.h5"))
    assert content(tmp_path / "c.h5") == expected
    assert report.subjects == SUBJECTS
    parts = ("reading", "slicing", "image encoder", "LLM", "text encoder", *(f"writing {layer}" for layer in LAYERS))
    assert {part: report.done[part] for part in parts} == dict.fromkeys(parts, 2 * SUBJECTS)
    assert report.elapsed > 0


LAYERS = ("slices", "embeddings", "instructions")


@pytest.mark.parametrize("seed", range(4))
def test_the_bytes_do_not_depend_on_which_thread_is_slow(
    dataset: Dataset,
    models: Models,
    expected: tuple[bytes, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    draw = random.Random(seed)
    most_ms = {name: draw.choice([0, 0, 30]) for name in ("read", "encode", "write", "answer")}

    def slowed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **named: Any) -> Any:
            time.sleep(draw.random() * most_ms[name] / 1000)
            return function(*arguments, **named)

        return slow

    monkeypatch.setattr(reading, "load_study", slowed("read", reading.load_study))
    monkeypatch.setattr(QuickEncoder, "encode", slowed("encode", QuickEncoder.encode))
    monkeypatch.setattr(CacheWriter, "_write", slowed("write", CacheWriter._write))
    monkeypatch.setattr(ProjectedLLM, "image_tokens", slowed("answer", ProjectedLLM.image_tokens))
    build_cache(dataset, models, options(tmp_path / "c.h5"))
    assert content(tmp_path / "c.h5") == expected


def test_slots_are_filled_by_the_next_subject_before_the_last_answer_of_this_one(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three slots and two questions a subject, no step but the last ones has a free slot."""
    from zeus_union.stage1_instruct.models.language.decoding import Decoder

    rows: list[int] = []
    step = Decoder._step
    monkeypatch.setattr(models.projected_llm.llm, "_slots", 3)
    monkeypatch.setattr(Decoder, "_step", lambda decoder, of, cache: rows.append(len(of)) or step(decoder, of, cache))
    build_cache(dataset, models, options(tmp_path / "c.h5"))
    assert len(rows) > 4 and set(rows[:-3]) == {3}


def test_at_most_two_studies_are_read_ahead_of_the_one_that_is_encoded(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    ahead: list[int] = []
    encoded = 0

    def load(subject: str) -> Study:
        read.append(subject)
        return dataset.load(subject)

    def encode(encoder: QuickEncoder, images: Any) -> Any:
        nonlocal encoded
        time.sleep(0.1)
        ahead.append(len(read) - (encoded // 2 + 1))
        encoded += 1
        return quick(encoder, images)

    quick = QuickEncoder.encode
    monkeypatch.setattr(QuickEncoder, "encode", encode)
    build_cache(replace(dataset, load=load), models, options(tmp_path / "c.h5"))
    assert max(ahead) == 2 and ahead[-1] == 0


def temporary_free(folder: Path) -> tuple[object, ...]:
    """What is on disk. Temporary files count by name only: nothing ever reads those of an ended process."""
    found = []
    for path in sorted(folder.rglob("*")):
        ended = _TEMPORARY.fullmatch(path.name)
        data = b"" if ended or not path.is_file() else path.read_bytes()
        found.append((ended[1] if ended else str(path.relative_to(folder)), data))
    return tuple(found)


class Disk:
    """Every call of this process that changes the disk goes through `at`, one at a time, before it is made."""

    def __init__(self, patch: pytest.MonkeyPatch, at: Callable[[str], None]) -> None:
        self._lock, self._inside, self._at = threading.RLock(), threading.local(), at
        for name in CHANGES:
            patch.setattr(os, name, self._replaced(name, getattr(os, name)))

    def _replaced(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if getattr(self._inside, "call", False):
                return real(*arguments, **named)
            with self._lock:
                self._inside.call = True
                try:
                    self._at(name)
                    return None if name == "fsync" else real(*arguments, **named)
                finally:
                    self._inside.call = False

        return call


@pytest.mark.slow
def test_a_build_killed_anywhere_resumes_to_the_same_bytes(
    dataset: Dataset, models: Models, expected: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves what is on disk at that moment: copied at every call that changes it, in whichever thread.

    Half of these states are resumed, drawn.
    """
    work, left = tmp_path / "work", tmp_path / "left"
    states: set[tuple[object, ...]] = set()
    points = 0

    def killed(name: str) -> None:
        nonlocal points
        points += 1
        state = temporary_free(work)
        if state not in states:
            shutil.copytree(work, left / str(len(states)))
            states.add(state)

    work.mkdir()
    with monkeypatch.context() as patch:
        Disk(patch, killed)
        build_cache(dataset, models, options(work / "c.h5"))
    assert content(work / "c.h5") == expected
    assert len(states) > 3 * SUBJECTS
    print(f"{points} crash points leave {len(states)} different states")
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for number in random.Random(0).sample(range(len(states)), len(states) // 2):
        shutil.rmtree(work)
        shutil.copytree(left / str(number), work)
        build_cache(dataset, models, options(work / "c.h5"))
        assert content(work / "c.h5") == expected
        assert verify(work / "c.h5") == [] and list(work.rglob("*.tmp")) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.ESTALE, "lost"), KeyboardInterrupt()])
def test_an_error_at_any_call_that_changes_the_disk_ends_the_build_with_its_type_and_nothing_is_lost(
    dataset: Dataset,
    models: Models,
    expected: tuple[bytes, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """At a few of the points, in order: the build after it goes on from what the one before it has finished."""
    draw = random.Random(str(error))
    path = tmp_path / "c.h5"
    for _ in range(4):
        calls, at = 0, draw.randrange(2, 120)

        def fails(name: str, at: int = at) -> None:
            nonlocal calls
            calls += 1
            if calls >= at and name in ("pwrite", "fsync", "ftruncate"):
                raise error

        with monkeypatch.context() as patch:
            Disk(patch, fails)
            try:
                build_cache(dataset, models, options(path))
            except type(error) as raised:
                assert isinstance(raised, KeyboardInterrupt) or raised.errno == error.errno  # type: ignore[union-attr, attr-defined]
        assert list(tmp_path.rglob("*.tmp")) == []
    build_cache(dataset, models, options(path))
    assert content(path) == expected


@pytest.mark.parametrize("where", ["read", "encode", "image_tokens", "write_slices", "write_embeddings", "text"])
@pytest.mark.parametrize("nth", [1, 3])
def test_ctrl_c_in_any_thread_ends_the_build_and_the_same_command_goes_on(
    dataset: Dataset,
    models: Models,
    expected: tuple[bytes, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    nth: int,
) -> None:
    calls = 0

    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return call

    target: dict[str, tuple[Any, str]] = {
        "read": (reading, "load_study"),
        "encode": (QuickEncoder, "encode"),
        "image_tokens": (ProjectedLLM, "image_tokens"),
        "write_slices": (CacheWriter, "write_slices"),
        "write_embeddings": (CacheWriter, "write_embeddings"),
        "text": (type(models.text_encoder), "encode"),
    }
    owner, name = target[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            build_cache(dataset, models, options(tmp_path / "c.h5"))
    assert list(tmp_path.rglob("*.tmp")) == []
    build_cache(dataset, models, options(tmp_path / "c.h5"))
    assert content(tmp_path / "c.h5") == expected


@pytest.mark.parametrize("where", ["load", "encode", "write_embeddings", "embeddings"])
def test_one_subjects_fault_in_any_thread_costs_that_subject(
    dataset: Dataset,
    models: Models,
    expected: tuple[bytes, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """The second subject's study, picture, shard or stored embeddings: three are finished."""
    bad = dataset.card.subjects[1]
    calls = 0

    def refuse(function: Callable[..., Any], is_bad: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if is_bad(*arguments, **named):
                raise UserError("not this one")
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        if where == "load":
            patch.setattr(reading, "load_study", refuse(reading.load_study, lambda dataset, subject: subject == bad))
        elif where == "encode":
            patch.setattr(QuickEncoder, "encode", refuse(QuickEncoder.encode, lambda *_: calls == 4))
        else:
            method = getattr(CacheWriter, where)
            patch.setattr(CacheWriter, where, refuse(method, lambda writer, layer, subject, *_, **__: subject == bad))
        with pytest.raises(BuildFailures) as raised:
            build_cache(dataset, models, options(tmp_path / "c.h5"))
    assert raised.value.reasons == {bad: "not this one"}
    assert list(tmp_path.rglob("*.tmp")) == []
    assert build_cache(dataset, models, options(tmp_path / "c.h5")).subjects == 1
    assert content(tmp_path / "c.h5") == expected


def test_what_was_read_before_the_reader_ended_is_finished(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(subject: str) -> Study:
        if subject == dataset.card.subjects[2]:
            raise NoSpaceError("no space left to unpack it")
        return dataset.load(subject)

    with pytest.raises(NoSpaceError):
        build_cache(replace(dataset, load=load), models, options(tmp_path / "c.h5"))
    assert build_cache(dataset, models, options(tmp_path / "c.h5")).subjects == 2


def test_what_a_subject_has_in_work_is_claimed_and_given_back(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: set[str] = set()
    most = 0
    claim = CacheWriter.claim
    from contextlib import contextmanager

    @contextmanager
    def noted(writer: CacheWriter, subject: str, wait: bool = False) -> Iterator[bool]:
        nonlocal most
        with claim(writer, subject, wait) as ours:
            claimed.add(subject)
            most = max(most, len(claimed & {*dataset.card.subjects}))
            try:
                yield ours
            finally:
                claimed.discard(subject)

    monkeypatch.setattr(CacheWriter, "claim", noted)
    write = CacheWriter._write_rows

    def checked(writer: CacheWriter, layer: str, subject: str, *arguments: Any) -> None:
        assert subject in claimed
        write(writer, layer, subject, *arguments)

    monkeypatch.setattr(CacheWriter, "_write_rows", checked)
    build_cache(dataset, models, options(tmp_path / "c.h5"))
    assert not claimed and most <= pipeline.READ_AHEAD + 2
