"""Options of a training step: each does what it says, against a plain reckoning of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training import messages
from zeus_union.stage2_segment.training.learner import Learner, inverse_weights
from zeus_union.stage2_segment.training.schedule import build_optimizer, ema_decay, running_mean
from zeus_union.stage2_segment.training.train import train_run, train_together

QUICK: dict[str, Any] = {
    "fusion": "hybrid",
    "modalities": ["T1"],
    "train_subjects": ["ada", "cleo"],
    "test_subjects": ["ben"],
    "foreground_share": 0.0,
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / "last.safetensors")


def train(cache: Path, run: Path, **options: Any) -> dict[str, torch.Tensor]:
    train_run(cache, run, device="cpu", validate_every=0, **{**QUICK, **options})
    return weights(run)


def test_accumulated_batches_make_the_step_of_one_batch_of_their_size(toy_cache: Path, tmp_path: Path) -> None:
    """With Dice by slice and equal parts the two are the same sum."""
    plain = {"recipe": "paper", "epochs": 2}
    whole = train(toy_cache, tmp_path / "whole", batch_size=6, **plain)
    parts = train(toy_cache, tmp_path / "parts", batch_size=2, accumulate=3, **plain)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_the_running_mean_of_the_weights_is_what_is_kept(toy_cache: Path, tmp_path: Path) -> None:
    """The decay warms up: 2/11, 3/12, ... until it is the run's."""
    decay, options = 0.22, {"batch_size": 6, "modalities": ["T1"]}
    after = [train(toy_cache, tmp_path / f"{n}", epochs=3, **options) for n in ("plain",)]
    with Cache(toy_cache) as cache:
        config = plan_run(cache, run=tmp_path, epochs=3, ema=decay, **{**QUICK, **options})
        accelerator = make_accelerator("cpu")
        learner = Learner(cache, config, tmp_path / "mean", accelerator)
        steps: list[dict[str, torch.Tensor]] = []
        take = learner.take

        def watched(*args: Any) -> None:
            take(*args)
            steps.append({name: tensor.clone() for name, tensor in learner.bare.state_dict().items()})

        learner.take = watched  # type: ignore[method-assign]
        train_together(cache, [learner], accelerator, validate_every=0)
    kept = weights(tmp_path / "mean")
    for name, tensor in kept.items():
        mean = steps[0][name]
        for number, step in enumerate(steps[1:], 1):
            share = min(decay, (1 + number) / (10 + number))
            mean = share * mean + (1 - share) * step[name]
        torch.testing.assert_close(tensor, mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(steps[-1][name], after[0][name])  # the weights themselves go their own way


def test_a_long_running_mean_of_a_short_training_is_not_mostly_its_start() -> None:
    """With a decay of 0.999 from the first step, 300 steps would leave the start 74 % of the mean."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = running_mean(model, 0.999)
    for step in range(300):
        with torch.no_grad():
            model.weight.fill_(float(step > 0))  # the start is 0, all that comes after is 1
        average.update_parameters(model)
    assert average.module.weight.item() > 0.99
    assert [ema_decay(0.999, t) for t in (1, 8, 100_000)] == [2 / 11, 0.5, 0.999]


def test_a_dropped_modality_gets_no_gradient_and_one_always_stays(toy_cache: Path, tmp_path: Path) -> None:
    with Cache(toy_cache) as cache:
        options = {**QUICK, "modalities": None, "fusion": "late", "modality_drop": 0.6}
        config = plan_run(cache, run=tmp_path, epochs=1, batch_size=2, **options)
        learner = Learner(cache, config, tmp_path / "run", make_accelerator("cpu"))
        data = SliceData(cache, "toy", ["T1", "T2"], cache.rows_of(["ada"]), torch.device("cpu"))
        learner.inputs = RunInputs(config, data)
        seen = []
        for index in range(40):
            learner.index = index
            seen.append(tuple(learner.keep() or ()))
        assert set(seen) == {(0,), (1,), (0, 1)}
        learner.index = seen.index((1,))
        positions = np.array([1, 2])
        learner.inputs.logits(learner.model, positions, data.batch(positions), learner.keep()).sum().backward()
        assert all(p.grad is None for p in learner.bare.decoders[0].parameters())
        assert any(p.grad is not None for p in learner.bare.decoders[1].parameters())


def test_rare_classes_weigh_more(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        config = plan_run(cache, run=Path("run"), class_weights="inverse", **QUICK)
        masks = cache.masks(cache.rows_of(["ada", "cleo"]))
        pixels = np.array([(masks == 1).sum(), (masks == 2).sum()])
        expected = pixels**-0.5 / (pixels**-0.5).mean()
        np.testing.assert_allclose(inverse_weights(cache, config).numpy(), expected, rtol=1e-6)


def test_bf16_is_away_from_fp32_by_its_rounding_and_keeps_weights_and_gradients_in_fp32(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one training step: what the model says, and the whole gradient, relative to their size.

    bf16 rounds to 8 bits, 2**-9 of a number at most: a forward pass without it differs by 1e-6, a wrong one by 1.
    """
    losses, take = Learner.losses, Learner.take
    seen: dict[str, list[torch.Tensor]] = {"logits": [], "gradient": []}

    def watched(self: Learner, logits: torch.Tensor, *rest: Any) -> Any:
        seen["logits"].append(logits.detach().clone())
        return losses(self, logits, *rest)

    def stepped(self: Learner, *rest: Any) -> None:
        gradients = [p.grad for p in self.bare.parameters() if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        seen["gradient"].append(torch.cat([gradient.flatten() for gradient in gradients]))
        take(self, *rest)

    monkeypatch.setattr(Learner, "losses", watched)
    monkeypatch.setattr(Learner, "take", stepped)
    for precision in ("fp32", "bf16"):
        found = train(toy_cache, tmp_path / precision, precision=precision, batch_size=3, epochs=1,
                      train_subjects=["ada"])  # fmt: skip
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name, (exact, low) in seen.items():
        assert low.dtype == torch.float32
        away = ((low - exact).norm() / exact.norm()).item()
        print(f"{name}: {away:.2g}")
        assert 2**-11 < away < 2**-4, name


@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_the_decoder_and_the_rest_have_rates_of_their_own(toy_cache: Path, fusion: str) -> None:
    with Cache(toy_cache) as cache:
        options = {**QUICK, "fusion": fusion, "modalities": None, "combine": "learned"}
        config = plan_run(cache, run=Path("run"), lr=1e-4, lr_new=3e-3, **options)
        model = build_model(config.architecture)
        decoder, rest = build_optimizer(model, config.recipe).param_groups
        assert (decoder["lr"], rest["lr"]) == (1e-4, 3e-3)
        assert {id(p) for p in decoder["params"]} == {id(p) for p in model.decoders.parameters()}
        assert len(decoder["params"]) + len(rest["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("model", "precision", "device", "native", "said"),
    [
        ("zeus", "fp32", "cpu", True, True),
        ("zeus", "bf16", "cpu", True, False),
        ("zeus", "fp32", "cpu", False, False),
        ("unext", "fp32", "cpu", True, False),
        ("zeus", "fp32", "meta", True, False),  # stands for a GPU, where nothing was measured
    ],
)
def test_where_bf16_is_faster_it_is_said_with_the_option_that_chooses_it(
    toy_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    precision: str,
    device: str,
    native: bool,
    said: bool,
) -> None:
    monkeypatch.setattr(messages, "computes_bf16", lambda _: native)
    with Cache(toy_cache) as cache:
        config = plan_run(cache, run=Path("run"), model=model, precision=precision, **QUICK)
    messages.say_what_is_faster([config], torch.device(device), "--set precision=bf16")
    assert ("with --set precision=bf16" in " ".join(capsys.readouterr().err.split())) is said
