"""Fixed shares of the subjects, where the file system has no locks."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeus_union.cache import locks
from zeus_union.cache.errors import UserError
from zeus_union.cache.pack import pack
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.building.parts import Share, parse_part
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.studies.study import Dataset

MODELS = SimpleNamespace()  # the layer `slices` needs none


@given(st.integers(0, 40), st.integers(1, 12))
def test_the_shares_are_all_subjects_each_once(subjects: int, count: int) -> None:
    names = [f"s{number}" for number in range(subjects)]
    shares = [Share(number, count).of(names) for number in range(1, count + 1)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 12), st.data())
def test_a_task_of_an_evenly_spaced_array_has_its_place(first: int, step: int, count: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, count - 1))
    values = {"MIN": first, "MAX": first + step * (count - 1), "COUNT": count, "ID": first + step * place}
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}
    assert parse_part("slurm", environment) == Share(place + 1, count)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/2", "1/0", "1/2/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected I/N"):
        parse_part(text, {})


@pytest.mark.parametrize("task", ["1", "3", "7"])
def test_an_array_with_gaps_and_no_array_are_refused(task: str) -> None:
    gaps = {"MIN": "1", "MAX": "8", "COUNT": "3", "ID": task}
    with pytest.raises(UserError, match="not evenly spaced"):
        parse_part("slurm", {f"SLURM_ARRAY_TASK_{name}": value for name, value in gaps.items()})
    with pytest.raises(UserError, match="not set"):
        parse_part("slurm", {})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=3, seed=3)
    return open_dataset("nnunet", root, modalities=("T2-SPIR",))


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions(out=tmp_path / "a.h5", layers=("slices",), slice_step=6)


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refuse(*arguments: object) -> bool:
        raise OSError(request.param, "no locks")

    monkeypatch.setattr(locks, "_lock", refuse)


def test_one_process_works_without_locks_and_says_so(
    no_locks: None, dataset: Dataset, options: BuildOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_cache(dataset, MODELS, options).complete
    assert "does not support locks" in (said := capsys.readouterr().err) and "--part I/N" in said
    assert verify(options.out) == [] and not options.out.with_name("a.h5.d").exists()


def test_several_processes_without_locks_and_without_parts_are_refused(
    no_locks: None, dataset: Dataset, options: BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="not support locks: several processes need --part I/N"):
        build_cache(dataset, MODELS, options)


def test_parts_write_their_share_and_the_last_one_finishes(
    no_locks: None, dataset: Dataset, options: BuildOptions
) -> None:
    first = build_cache(dataset, MODELS, replace(options, part=Share(2, 2)))
    assert (first.subjects, first.complete) == (1, False)
    with pytest.raises(UserError, match="unfinished"):
        Cache(options.out)
    last = build_cache(dataset, MODELS, replace(options, part=Share(1, 2)))
    assert (last.subjects, last.complete) == (2, True)
    assert verify(options.out) == [] and Cache(options.out).state == "sharded"
    build_cache(dataset, MODELS, options)
    assert Cache(options.out).state == "packed" and len(Cache(options.out).subjects) == 3


def test_pack_finishes_what_parts_have_written(dataset: Dataset, options: BuildOptions, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zeus_union.stage1_instruct.building.loop._finish", lambda build: None)
        build_cache(dataset, MODELS, replace(options, part=Share(1, 2)))
        with pytest.raises(UserError, match="not finished, phantom_002 are missing"):
            pack(options.out, tmp_path / "whole.h5")
        build_cache(dataset, MODELS, replace(options, part=Share(2, 2)))
    pack(options.out, tmp_path / "whole.h5")
    assert verify(tmp_path / "whole.h5") == [] and len(Cache(tmp_path / "whole.h5").subjects) == 3


def test_a_part_leaves_the_temporary_files_of_other_parts(
    no_locks: None, dataset: Dataset, options: BuildOptions
) -> None:
    build_cache(dataset, MODELS, replace(options, part=Share(2, 2)))
    folder = options.out.with_name("a.h5.d") / "slices"
    theirs, own = (folder / f".{name}.000000000000.h5.0123abcd.tmp" for name in ("phantom_001", "phantom_002"))
    for file in (theirs, own):
        file.touch()
    build_cache(dataset, MODELS, replace(options, part=Share(2, 2)))
    assert (theirs.exists(), own.exists()) == (True, False)
