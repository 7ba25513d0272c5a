"""The loop: same seed, same weights; stopped and resumed, same weights; nothing lost, nothing silently wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from cache.errors import UserError
from cache.reader import Cache
from stage2_segment import checkpoint, train
from stage2_segment.checkpoint import load_config, load_state
from stage2_segment.config import RECIPES, Recipe, plan_run
from stage2_segment.evaluate import evaluate_run
from stage2_segment.model import build_model
from stage2_segment.predict import predict_rows
from stage2_segment.train import lr_factor, train_run

QUICK: dict[str, Any] = {
    "fusion": "hybrid",
    "modalities": ["T1"],
    "train_subjects": ["ada"],
    "test_subjects": ["ben"],
    "batch_size": 2,
    "device": "cpu",
}


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / f"{which}.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole_run(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs without interruption."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train_run(toy_cache, run, epochs=3, seed=5, **QUICK)
    return run


def test_a_run_folder_holds_config_metrics_weights_and_events(whole_run: Path) -> None:
    config = load_config(whole_run)
    assert (config.train_subjects, config.test_subjects, config.fold) == (("ada",), ("ben",), None)
    assert set(config.fingerprints) == {"slices", "embeddings/toy", "instructions/toy"}
    table = pq.read_table(whole_run / "metrics.parquet").to_pylist()
    assert [row["epoch"] for row in table] == [1, 2, 3]
    assert {"loss", "dice_loss", "cross_entropy", "lr", "validation_dsc", "validation_miou", "slices_per_s"} <= set(
        table[0]
    )
    assert any((whole_run / "tensorboard").iterdir())
    assert not list(whole_run.rglob("*.tmp"))
    text = (whole_run / "config.json").read_text()
    assert json.loads(text)["cache"].startswith("..")
    assert_same(weights(whole_run), load_state(whole_run)["model"])


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(
    whole_run: Path, toy_cache: Path, tmp_path: Path
) -> None:
    train_run(toy_cache, tmp_path / "again", epochs=3, seed=5, **QUICK)
    assert_same(weights(whole_run), weights(tmp_path / "again"))
    assert_same(weights(whole_run, "best"), weights(tmp_path / "again", "best"))
    train_run(toy_cache, tmp_path / "other", epochs=1, seed=6, **QUICK)
    name = "aligners.0.layers.0.weight"
    assert not torch.equal(weights(tmp_path / "other")[name], weights(whole_run)[name])


@pytest.mark.parametrize("moment", ["before the state is written", "after the state is written"])
def test_interrupted_and_resumed_equals_uninterrupted(
    whole_run: Path, toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = tmp_path / "run"
    save = checkpoint.save_state

    def interrupted(folder: Path, state: dict[str, Any]) -> None:
        if state["epoch"] == 2 and moment.startswith("before"):
            raise KeyboardInterrupt
        save(folder, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "SAVE_EVERY_S", 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_state", interrupted)
        train_run(toy_cache, run, epochs=3, seed=5, **QUICK)
    assert load_state(run)["epoch"] == (1 if moment.startswith("before") else 2)
    train_run(toy_cache, run, epochs=3, seed=5, resume=True, **QUICK)
    assert_same(weights(run), weights(whole_run))
    assert_same(weights(run, "best"), weights(whole_run, "best"))
    losses = [pq.read_table(folder / "metrics.parquet")["loss"].to_pylist() for folder in (run, whole_run)]
    assert losses[0] == losses[1]


def test_resuming_a_finished_run_changes_nothing(whole_run: Path, toy_cache: Path) -> None:
    before = {path: path.read_bytes() for path in whole_run.rglob("*.safetensors")}
    train_run(toy_cache, whole_run, epochs=3, seed=5, resume=True, **QUICK)
    assert before == {path: path.read_bytes() for path in whole_run.rglob("*.safetensors")}


def test_a_run_is_never_overwritten_nor_resumed_with_other_options(whole_run: Path, toy_cache: Path) -> None:
    with pytest.raises(UserError, match="exists; go on with it by --resume"):
        train_run(toy_cache, whole_run, epochs=3, seed=5, **QUICK)
    with pytest.raises(UserError, match=r"other options \(lr: 0.0002 -> 0.001"):
        train_run(toy_cache, whole_run, epochs=3, seed=5, lr=1e-3, resume=True, **QUICK)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY_S", 0)
    train_epoch = train._train_epoch

    def spoiled(model: Any, *rest: Any) -> dict[str, float]:
        if rest[4] == 2:
            with torch.no_grad():
                next(model.parameters()).fill_(torch.nan)
        return train_epoch(model, *rest)

    monkeypatch.setattr(train, "_train_epoch", spoiled)
    with pytest.raises(UserError, match="loss became nan, its gradient nan in epoch 2, step 1"):
        train_run(toy_cache, tmp_path / "run", epochs=3, **QUICK)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    assert load_state(tmp_path / "run")["epoch"] == 1


def test_paper_recipe_stops_early_without_a_lower_training_loss(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {1: 1.0, 2: 0.5}
    record = {"dice_loss": 0.0, "cross_entropy": 0.0, "lr": 0.0}
    monkeypatch.setattr(train, "_train_epoch", lambda *a: {"loss": losses.get(a[5], 0.6), **record})
    monkeypatch.setattr(train, "_validate", lambda *a: {"validation_dsc": 0.5, "validation_miou": 0.5})
    train_run(toy_cache, tmp_path / "run", recipe="paper", **QUICK)
    assert pq.read_table(tmp_path / "run" / "metrics.parquet").num_rows == 2 + RECIPES["paper"].patience


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_learning_rate_rises_once_and_falls_to_nearly_zero(recipe: Recipe) -> None:
    steps = 7
    factors = [lr_factor(recipe, step, steps) for step in range(recipe.epochs * steps)]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert 0 < factors[-1] < 0.02
    assert (top == 0) == (recipe.warmup == 0)


def test_tiny_data_gets_more_epochs_unless_told(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        stable = plan_run(cache, run=Path("run"))
        assert stable.recipe.epochs * 3 >= RECIPES["stable"].min_steps  # nine slices are three steps of four
        assert plan_run(cache, run=Path("run"), epochs=3).recipe.epochs == 3
        assert plan_run(cache, run=Path("run"), recipe="paper").recipe.epochs == 300


def test_without_text_a_learned_token_is_trained_and_no_instruction_is_read(toy_cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(toy_cache, run, text=False, epochs=2, **QUICK)
    config = load_config(run)
    assert (config.variant, config.text_width) == (None, 0)
    assert not any(layer.startswith("instructions") for layer in config.fingerprints)
    torch.manual_seed(config.seed)
    assert not torch.equal(weights(run)["aligners.0.token"], build_model(config).aligners[0].token)
    with Cache(toy_cache) as cache:
        assert predict_rows(run, cache, cache.rows_of(["ben"]), device="cpu").shape == (3, 256, 256)
        with pytest.raises(UserError, match="--no-text reads no instructions"):
            plan_run(cache, run=run, text=False, variant=cache.variants[0])


def test_rates_and_share_can_be_chosen_and_otherwise_keep_the_recipes_ratio(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        plain = RECIPES["stable"]
        faster = plan_run(cache, run=Path("run"), lr=2 * plain.lr).recipe
        assert faster.aligner_lr == pytest.approx(2 * plain.aligner_lr)
        chosen = plan_run(cache, run=Path("run"), lr=1e-4, aligner_lr=3e-5, foreground_share=1.0).recipe
        assert (chosen.lr, chosen.aligner_lr, chosen.foreground_share) == (1e-4, 3e-5, 1.0)


def test_a_pickle_where_weights_or_state_should_be_is_never_run(
    whole_run: Path, toy_cache: Path, tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "config.json").write_bytes((whole_run / "config.json").read_bytes())
    (run / "weights" / "last.safetensors").write_bytes(pickle.dumps(Trap()))
    (run / "state.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="no safetensors file"):
        checkpoint.load_weights(run, "last")
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        checkpoint.load_state(run)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_training_learns_masks_that_hold_on_an_unseen_subject(toy_cache: Path, tmp_path: Path, fusion: str) -> None:
    """From random decoder weights, which need a higher learning rate than pretrained ones."""
    run = tmp_path / "run"
    train_run(toy_cache, run, fusion=fusion, epochs=25, lr=1e-3, batch_size=3, device="cpu")
    mean = evaluate_run(run, device="cpu").summary()["mean_over_classes"]
    assert mean["dsc"] > 0.6
