"""What many processes and GPUs ask of a step, where there is none: who waits for the device, who adds up, and where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training import processes
from zeus_union.stage2_segment.training.learner import Learner, take_batch
from zeus_union.stage2_segment.training.losses import Losses
from zeus_union.stage2_segment.training.processes import share_buffers, sum_counts

QUICK: dict[str, Any] = {
    "fusion": "hybrid",
    "modalities": ["T1"],
    "train_subjects": ["ada"],
    "test_subjects": ["ben"],
    "validation_subjects": ["cleo"],
    "epochs": 1,
}


def learner(cache: Path, run: Path, **options: Any) -> Learner:
    with Cache(cache) as opened:
        config = plan_run(opened, run=run, **{**QUICK, **options})
        return Learner(opened, config, run, make_accelerator("cpu"))


def test_counts_are_added_up_on_the_device_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of GPUs cannot add up what lies in main memory; the device that is made up here holds no numbers."""
    devices: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: devices.append(tensor.device.type))
    with pytest.raises(NotImplementedError, match="meta"):
        sum_counts(np.ones((2, 3), np.int64), torch.device("meta"))
    assert devices == ["meta"]


def test_counts_of_two_processes_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.arange(6).reshape(2, 3)
    assert sum_counts(counts, torch.device("cpu")) is counts  # of one
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))  # another with the same
    assert (sum_counts(counts, torch.device("cpu")) == 2 * counts).all()


def test_validation_adds_up_on_the_accelerators_device(toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeus_union.stage2_segment.training import validation

    monkeypatch.setattr(validation, "sum_counts", lambda counts, device: pytest.fail(str(device)))
    with Cache(toy_cache) as cache:
        config = plan_run(cache, run=Path("run"), **QUICK)

        class One:
            predictor = nn.Identity()

        One.config = config
        accelerator = make_accelerator("cpu")
        check = validation.Validation(cache, [One()], ["T1"], accelerator, "ram")  # type: ignore[list-item]
        check._data.in_order = lambda _: iter(())  # type: ignore[method-assign]
        with pytest.raises(pytest.fail.Exception, match="cpu"):
            check([One()])  # type: ignore[list-item]


def test_buffers_are_the_first_processs_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.BatchNorm2d(3)
    share_buffers(norm)  # nothing to share with
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "broadcast", lambda buffer, src: buffer.fill_(7 + src))
    share_buffers(norm)
    assert {name: set(buffer.flatten().tolist()) for name, buffer in norm.named_buffers()} == {
        "running_mean": {7.0}, "running_var": {7.0}, "num_batches_tracked": {7},
    }  # fmt: skip


def test_processes_add_up_gradients_once_an_optimiser_step(toy_cache: Path, tmp_path: Path) -> None:
    def adding_up(**options: Any) -> list[bool]:
        one = learner(toy_cache, tmp_path / "run", accumulate=2, **options)
        held: list[int] = []

        class Accelerator:
            @contextlib.contextmanager
            def no_sync(self, model: nn.Module) -> Iterator[None]:
                assert model is one.model
                held.append(one.index)
                yield

        one._accelerator = Accelerator()
        for one.index in range(5):
            with one.backward_alone(batches=5):
                pass
        return [index not in held for index in range(5)]

    assert adding_up() == [False, True, False, True, True]
    # DDP would leave out of the sum what the last of the batches leaves out of the model.
    assert adding_up(modalities=None, modality_drop=0.5) == [True] * 5


def test_all_learners_wait_for_the_device_once_a_step(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners = [learner(toy_cache, tmp_path / f"{lr}", lr=lr) for lr in (1e-4, 1e-3, 1e-2)]
    fetched: list[tuple[int, ...]] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: fetched.append(tuple(self.shape)) or cpu(self))
    taken: list[tuple[str, list[float], float]] = []
    monkeypatch.setattr(
        Learner, "take", lambda self, values, norm, _: taken.append((self.run.name, values.tolist(), norm))
    )
    for place, one in enumerate(learners):
        for parameter in one.bare.parameters():
            parameter.grad = torch.zeros_like(parameter)
        next(one.bare.parameters()).grad.flatten()[0] = 3.0 + place
    losses = [Losses(*(torch.tensor(float(part + 10 * place)) for part in range(3))) for place in range(3)]
    take_batch(list(zip(learners, losses)), batches=1)
    assert fetched == [(3, 4)]
    assert taken == [
        ("0.0001", [0.0, 1.0, 2.0], 3.0), ("0.001", [10.0, 11.0, 12.0], 4.0), ("0.01", [20.0, 21.0, 22.0], 5.0),
    ]  # fmt: skip
