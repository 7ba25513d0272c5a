"""Slices augmented on the fly: in training alone, the same in any process, beside any run and after any interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.stage2_segment.conftest import SIDE
from tests.stage2_segment.interruptions import stopped_after
from zeus_union.cache import augmentation
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint, trained
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.inputs.staging import Staging
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training import learner as learner_module
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.train import _augmentation_seeds, shared_plan, train_run, train_together

QUICK: dict[str, Any] = {
    "model": "unext",
    "fusion": "early",
    "train_subjects": ["ada", "cleo"],
    "test_subjects": ["ben"],
    "batch_size": 2,
    "epochs": 2,
}
CPU = torch.device("cpu")


class Pixelwise(nn.Module):
    """Two convolutions of one pixel; takes the place of a baseline."""

    def __init__(self, architecture: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(architecture.modalities, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor, present: Sequence[int] | None = None) -> Tensor:
        return self.last(self.first(images).relu())


@pytest.fixture()
def pixelwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (learner_module, trained):
        monkeypatch.setattr(module, "build_model", Pixelwise)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", float("inf"))


def train(cache: Path, run: Path, **options: Any) -> dict[str, Tensor]:
    train_run(cache, run, device="cpu", validate_every=0, **{**QUICK, **options})
    return load_file(run / "weights" / "last.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_recipe_stable_augments_baselines_recipe_paper_and_zeus_do_not(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:

        def augments(**options: Any) -> bool:
            return plan_run(cache, run=Path("run"), **options).recipe.augment

        assert augments(model="unet") and not augments(model="unet", recipe="paper")
        assert not augments(model="unet", augment=False) and augments(model="unet", recipe="paper", augment=True)
        assert not augments() and not augments(recipe="paper")


@pytest.mark.usefixtures("pixelwise")
@pytest.mark.parametrize("step", [1, 4])
def test_stopped_at_a_step_and_resumed_it_ends_the_same(toy_cache: Path, tmp_path: Path, step: int) -> None:
    alone = train(toy_cache, tmp_path / "alone")
    assert load_config(tmp_path / "alone").recipe.augment
    assert not same(train(toy_cache, tmp_path / "plain", augment=False), alone)
    with stopped_after(step):
        train(toy_cache, tmp_path / "run")
    assert same(train(toy_cache, tmp_path / "run", resume=True), alone)


@pytest.mark.usefixtures("pixelwise")
def test_beside_a_run_of_other_modalities_it_ends_the_same_as_alone(toy_cache: Path, tmp_path: Path) -> None:
    modalities: dict[str, Any] = {"both": None, "T2": ["T2"]}
    alone = {name: train(toy_cache, tmp_path / f"{name} alone", modalities=some) for name, some in modalities.items()}
    accelerator = make_accelerator("cpu")
    with Cache(toy_cache) as cache:
        plans = {name: plan_run(cache, run=tmp_path / name, modalities=m, **QUICK) for name, m in modalities.items()}
        learners = [Learner(cache, plan, tmp_path / name, accelerator) for name, plan in plans.items()]
        train_together(cache, learners, accelerator, validate_every=0)
    for name, weights in alone.items():
        assert same(load_file(tmp_path / name / "weights" / "last.safetensors"), weights)


def test_runs_with_and_without_share_no_batch(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        plans = [plan_run(cache, run=Path("run"), augment=augment, **QUICK) for augment in (True, False)]
    assert shared_plan(plans[0]) != shared_plan(plans[1])


@pytest.mark.usefixtures("pixelwise")
def test_in_however_many_processes_a_slice_is_augmented_the_same(toy_cache: Path, tmp_path: Path) -> None:
    """Of a batch of five, three and two; a slice that is drawn twice is augmented in two ways."""
    with Cache(toy_cache) as cache:
        plan = plan_run(cache, run=tmp_path, **QUICK)
        learner = Learner(cache, plan, tmp_path / "run", make_accelerator("cpu"))
        data = SliceData(cache, None, ["T1", "T2"], cache.rows_of(["ada", "cleo"]), CPU, augmented=True)
        batches = [np.array([1, 4, 1, 2, 5]), np.array([0, 3])]
        seeds = list(_augmentation_seeds(learner, batches, 0))
        whole = list(data.batches(batches, seeds))
        for rank, world in ((0, 2), (1, 2), (2, 3)):
            parts = data.batches([batch[rank::world] for batch in batches], [some[rank::world] for some in seeds])
            for one, part in zip(whole, parts, strict=True):
                assert one.masks is not None and part.masks is not None
                assert torch.equal(part.images, one.images[rank::world])
                assert torch.equal(part.masks, one.masks[rank::world])
        assert not torch.equal(whole[0].images[0], whole[0].images[2])
        # A resumed run begins at a later batch, with that batch's seeds.
        assert list(_augmentation_seeds(learner, batches, 1)) == seeds[1:]
        learner.epoch = 2
        assert not set(next(_augmentation_seeds(learner, batches, 0))) & set(seeds[0])


@pytest.mark.parametrize("resident", ["ram", "disk"])
def test_what_is_kept_stays_as_it_was_and_only_training_sees_other_slices(toy_cache: Path, resident: str) -> None:
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["ada"])
        data = SliceData(cache, None, ["T2"], rows, CPU, resident=resident, augmented=True)
        plain = data.batch(np.arange(3))
        batches, seeds = [np.arange(3), np.arange(1)], [[(5, i) for i in range(3)], [(6, 0)]]  # the last: one slice
        augmented, single = data.batches(batches, seeds)
        assert not torch.equal(augmented.images, plain.images) and single.images.shape == (1, 1, SIDE, SIDE)
        assert augmented.images.min() >= 0 and augmented.images.max() <= 1
        for _, batch in data.in_order(3):
            assert torch.equal(batch.images, plain.images) and torch.equal(batch.masks, plain.masks)  # type: ignore[arg-type]


def test_on_their_way_to_a_gpu_they_are_the_same(toy_cache: Path) -> None:
    """Through memory that is used again, for a smaller batch too."""
    with Cache(toy_cache) as cache:
        data = SliceData(cache, None, ["T1", "T2"], cache.rows_of(["ada"]), CPU, augmented=True)
        staging = Staging(CPU)
        for count in (3, 1, 0, 2):
            positions, seeds = np.arange(count), [(count, i) for i in range(count)]
            plain, staged = (data._augmented(positions, memory, seeds=seeds) for memory in (None, staging))
            assert torch.equal(plain.values, staged.values) and torch.equal(plain.masks, staged.masks)  # type: ignore[arg-type]


def test_validation_and_scores_are_of_the_slices_as_they_are(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixelwise: None
) -> None:
    """Twelve slices are trained on in two epochs, two subjects of six; no other is ever augmented."""
    augmented = []
    augment = augmentation.augment

    def counted(images: Any, mask: Any, seed: Sequence[int], modalities: Sequence[int]) -> Any:
        augmented.append(tuple(seed))
        return augment(images, mask, seed, modalities)

    monkeypatch.setattr(augmentation, "augment", counted)
    train_run(toy_cache, tmp_path / "run", device="cpu", precision="bf16", validation_subjects=["dan"], **QUICK)
    assert len(augmented) == len(set(augmented)) == 12
