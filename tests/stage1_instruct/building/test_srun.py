"""The tasks of one srun: a fixed share each where there are no locks, and a GPU each."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeus_union.cache import locks
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.building.parts import parse_part
from zeus_union.stage1_instruct.models.assembly import best_device
from zeus_union.stage1_instruct.studies.study import Dataset


@given(st.integers(1, 4), st.integers(2, 5))
def test_the_tasks_of_an_array_of_sruns_have_all_shares_each_once(array: int, tasks: int) -> None:
    shares = []
    for number in range(array):
        for task in range(tasks):
            environment = {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_PROCID": str(task)}
            if array > 1:
                values = {"MIN": 1, "MAX": array, "COUNT": array, "ID": number + 1}
                environment |= {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}
            shares.append(str(parse_part("slurm", environment)))
    assert sorted(shares) == sorted(f"{number}/{array * tasks}" for number in range(1, array * tasks + 1))


def test_several_tasks_without_parts_are_refused_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks, "_lock", refuse)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    card = DatasetCard("d", ("T1",), {}, ("liver",), "liver", ("A",))
    with pytest.raises(
        UserError, match=r"does not support locks: several processes need --part I/N each \(or --part slurm"
    ):
        build_cache(Dataset(card, None), SimpleNamespace(), BuildOptions(tmp_path / "a.h5", layers=("slices",)))  # type: ignore[arg-type]


@pytest.mark.parametrize("number, device", [("0", "cuda:0"), ("1", "cuda:1"), ("3", "cuda:1")])
def test_each_task_of_a_node_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, number: str, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", number)
    assert best_device() == device
