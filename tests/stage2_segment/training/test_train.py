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

from tests.stage2_segment.conftest import SIDE
from tests.stage2_segment.interruptions import stopped_at_save
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.checkpoint import load_config, load_state
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.recipe import RECIPES, Recipe, chosen_recipe
from zeus_union.stage2_segment.trained import load_trained
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.losses import Losses
from zeus_union.stage2_segment.training.messages import speed_in_words
from zeus_union.stage2_segment.training.schedule import lr_factor
from zeus_union.stage2_segment.training.train import train_run

QUICK: dict[str, Any] = {
    "fusion": "hybrid",
    "modalities": ["T1"],
    "train_subjects": ["ada"],
    "test_subjects": ["ben"],
    "validation_subjects": ["cleo"],
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
    assert (config.split.train, config.split.test, config.split.fold) == (("ada",), ("ben",), None)
    assert set(config.inputs.fingerprints) == {"slices", "embeddings/toy", "instructions/toy"}
    table = pq.read_table(whole_run / "metrics.parquet").to_pylist()
    assert [row["epoch"] for row in table] == [1, 2, 3]
    assert {"loss", "dice_loss", "cross_entropy", "lr", "validation_dsc", "validation_miou", "slices_per_s"} <= set(
        table[0]
    )
    assert any((whole_run / "tensorboard").iterdir())
    assert not list(whole_run.rglob("*.tmp"))
    text = (whole_run / "config.json").read_text()
    assert json.loads(text)["inputs"]["cache"].startswith("..")
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


@pytest.mark.parametrize("place", [(1, 1), (2, 0), (2, 1)], ids=["in the first epoch", "between", "within the second"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_interrupted_at_any_step_and_resumed_equals_uninterrupted(
    whole_run: Path,
    toy_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    place: tuple[int, int],
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", float("inf"))
    with stopped_at_save(place, moment):
        train_run(toy_cache, run, epochs=3, seed=5, **QUICK)
    if moment == "after":
        assert load_state(run)["place"] == place
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
    with pytest.raises(UserError, match=r"other options \(.*recipe.lr_pretrained: 0.0004 -> 0.001"):
        train_run(toy_cache, whole_run, epochs=3, seed=5, lr=1e-3, resume=True, **QUICK)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Learner.losses

    def spoiled(self: Learner, *rest: Any) -> Losses:
        found = losses(self, *rest)
        return Losses(*(part * torch.nan for part in found)) if (self.epoch, self.index) == (2, 1) else found

    monkeypatch.setattr(Learner, "losses", spoiled)
    with pytest.raises(UserError, match="loss became nan, its gradient nan in epoch 2, step 2"):
        train_run(toy_cache, tmp_path / "run", epochs=3, **QUICK)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    assert load_state(tmp_path / "run")["place"] == (2, 1)


def test_weights_that_are_not_finite_are_never_kept(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = Learner.gradient_norm

    def spoiled(self: Learner, *rest: Any) -> torch.Tensor:
        if (self.epoch, self.index) == (2, 0):
            with torch.no_grad():
                next(self.bare.parameters()).fill_(torch.nan)
            next(self.bare.parameters()).grad.fill_(torch.nan)
        return norm(self, *rest)

    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", float("inf"))
    monkeypatch.setattr(Learner, "gradient_norm", spoiled)
    with pytest.raises(UserError, match="its gradient nan in epoch 2, step 1"):
        train_run(toy_cache, tmp_path / "run", epochs=3, **QUICK)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_paper_recipe_stops_early_without_a_lower_training_loss(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is left out: the losses are made up, the third epoch's and all later ones are above the second's."""
    values = {1: 1.0, 2: 0.5}
    plain = torch.zeros((), requires_grad=True)
    monkeypatch.setattr(
        Learner, "losses", lambda self, *_: Losses(*(plain + values.get(self.epoch, 0.6) for _ in range(3)))
    )
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    monkeypatch.setattr(
        "zeus_union.stage2_segment.inputs.run_inputs.RunInputs.logits", lambda *_: torch.zeros(1, 2, SIDE, SIDE)
    )
    train_run(toy_cache, tmp_path / "run", recipe="paper", validate_every=0, **QUICK)
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
    train_run(toy_cache, run, text="none", epochs=2, **QUICK)
    config = load_config(run)
    assert (config.inputs.variants, config.architecture.text_width) == ((), 0)
    assert not any(layer.startswith("instructions") for layer in config.inputs.fingerprints)
    torch.manual_seed(config.seed)
    assert not torch.equal(weights(run)["bases.0"], build_model(config.architecture).bases[0])
    with Cache(toy_cache) as cache:
        assert load_trained(run, device="cpu").predict(cache, cache.rows_of(["ben"])).shape == (3, SIDE, SIDE)
        with pytest.raises(UserError, match="text none reads no instructions"):
            plan_run(cache, run=run, text="none", variant=[cache.variants[0]])


def test_rates_and_share_can_be_chosen_and_one_rate_is_of_all_weights(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        plain = RECIPES["stable"]
        faster = plan_run(cache, run=Path("run"), lr=2 * plain.lr_pretrained).recipe
        assert faster.lr_new == pytest.approx(2 * plain.lr_new)
        chosen = plan_run(cache, run=Path("run"), lr=1e-4, lr_new=3e-5, foreground_share=1.0).recipe
        assert (chosen.lr_pretrained, chosen.lr_new, chosen.foreground_share) == (1e-4, 3e-5, 1.0)


@pytest.mark.parametrize(
    ("rate", "words"), [(6.32, "6.3 slices/s"), (1.0, "1.0 slices/s"), (0.072, "13.9 s a slice"), (0.0, "0.0 slices/s")]
)
def test_a_speed_is_never_rounded_to_nothing(rate: float, words: str) -> None:
    assert speed_in_words(rate) == words


def test_a_network_that_starts_from_nothing_trains_for_more_epochs() -> None:
    epochs = {
        (name, baseline): chosen_recipe(name, {}, one_rate=baseline, slices=10_000).epochs
        for name in RECIPES
        for baseline in (False, True)
    }
    assert epochs == {("stable", False): 15, ("stable", True): 30, ("paper", False): 300, ("paper", True): 300}
    assert chosen_recipe("stable", {"epochs": 4}, one_rate=True, slices=10_000).epochs == 4


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
    with pytest.raises(UserError, match="not a safetensors file"):
        checkpoint.load_weights(run, "last")
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        checkpoint.load_state(run)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_training_learns_masks_that_hold_on_an_unseen_subject(toy_cache: Path, tmp_path: Path, fusion: str) -> None:
    """From random decoder weights, which need a higher learning rate than pretrained ones."""
    run = tmp_path / "run"
    split = {"train_subjects": ["ada", "cleo"], "test_subjects": ["ben"]}
    train_run(toy_cache, run, fusion=fusion, epochs=10, lr=1e-3, batch_size=2, device="cpu", validate_every=0, **split)
    mean = evaluate_run(run, device="cpu").summary()["mean_over_classes"]
    assert mean["dsc"] > 0.6
