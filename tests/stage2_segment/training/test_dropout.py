"""A model that drops units: its run is the same alone, beside others, and after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.stage2_segment.interruptions import stopped_after
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training import learner as learner_module
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.step import Alone, group_learners
from zeus_union.stage2_segment.training.train import train_run, train_together

QUICK: dict[str, Any] = {
    "model": "unext",
    "fusion": "early",
    "train_subjects": ["ada", "cleo"],
    "test_subjects": ["ben"],
    "batch_size": 2,
    "epochs": 2,
}


class Dropping(nn.Module):
    """Two convolutions of one pixel and dropout between; takes the place of a baseline."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Conv2d(2, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 2, 1)

    def forward(self, images: Tensor, present: Sequence[int] | None = None) -> Tensor:
        return self.last(self.drop(self.first(images).relu()))


@pytest.fixture(autouse=True)
def dropping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "build_model", Dropping)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", float("inf"))


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "weights" / "last.safetensors")


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(cache: Path, run: Path, **options: Any) -> dict[str, Tensor]:
    train_run(cache, run, device="cpu", validate_every=0, **{**QUICK, **options})
    return weights(run)


def test_trained_again_it_has_the_same_weights_and_others_than_without_dropout(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train(toy_cache, tmp_path / "alone")
    torch.rand(7)  # what is drawn elsewhere has no part in it
    assert_same(train(toy_cache, tmp_path / "again"), alone)
    monkeypatch.setattr(Dropping, "train", lambda self, mode=True: nn.Module.train(self, False))
    undropped = train(toy_cache, tmp_path / "undropped")
    monkeypatch.undo()
    dropped = [name for name in alone if not torch.equal(undropped[name], alone[name])]
    assert dropped  # else the test would show nothing


@pytest.mark.parametrize("step", [1, 2, 4])
def test_stopped_at_a_step_and_resumed_it_ends_the_same(toy_cache: Path, tmp_path: Path, step: int) -> None:
    alone = train(toy_cache, tmp_path / "alone")
    with stopped_after(step):
        train(toy_cache, tmp_path / "run")
    assert_same(train(toy_cache, tmp_path / "run", resume=True), alone)


def test_beside_another_run_it_ends_the_same_and_is_never_stacked(toy_cache: Path, tmp_path: Path) -> None:
    alone = {lr: train(toy_cache, tmp_path / f"alone {lr}", lr=lr) for lr in (1e-3, 1e-2)}
    accelerator = make_accelerator("cpu")
    with Cache(toy_cache) as cache:
        plans = {lr: plan_run(cache, run=tmp_path / f"{lr}", lr=lr, **QUICK) for lr in alone}
        learners = [Learner(cache, plan, tmp_path / f"{lr}", accelerator) for lr, plan in plans.items()]
        assert all(isinstance(group, Alone) for group in group_learners(learners, stacked=True))
        train_together(cache, learners, accelerator, validate_every=0, stacked=True)
    for lr, own in alone.items():
        assert_same(weights(tmp_path / f"{lr}"), own)


def test_what_is_dropped_follows_from_seed_epoch_batch_and_process_and_leaves_no_trace(
    toy_cache: Path, tmp_path: Path
) -> None:
    accelerator = make_accelerator("cpu")
    with Cache(toy_cache) as cache:
        plans = [plan_run(cache, run=tmp_path / f"{seed}", seed=seed, **QUICK) for seed in (0, 1)]
        first, other = (Learner(cache, plan, tmp_path / f"{plan.seed}", accelerator) for plan in plans)

    def drawn(learner: Learner, epoch: int = 1, index: int = 0, process: int = 0) -> tuple[float, ...]:
        class Process:
            process_index, device = process, torch.device("cpu")

        learner.epoch, learner.index = epoch, index
        learner._accelerator = Process()
        with learner.random_numbers():
            return tuple(torch.rand(4).tolist())

    before = torch.random.get_rng_state()
    draws = [drawn(first), drawn(other), drawn(first, epoch=2), drawn(first, index=1), drawn(first, process=1)]
    assert len(set(draws)) == 5 and drawn(first) == draws[0]
    assert torch.equal(torch.random.get_rng_state(), before)
