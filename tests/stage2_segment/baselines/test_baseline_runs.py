"""A baseline is trained, measured and used as Zeus is, from the same cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.choices import BASELINES
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
from zeus_union.stage2_segment.evaluation.missing import evaluate_missing
from zeus_union.stage2_segment.evaluation.probe import probe_texts
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model import build_model, parameter_table
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.predict import predict_run
from zeus_union.stage2_segment.training.train import train_run

SPLIT: dict[str, Any] = {"train_subjects": ["ada", "cleo"], "test_subjects": ["ben"]}


def test_pictures_come_from_zero_to_one(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["ada"])
        data = SliceData(cache, None, ["T2"], rows, torch.device("cpu"))
        batch = data.batch(np.array([2, 1]))
        np.testing.assert_allclose(batch.images.numpy(), cache.images(rows[[2, 1]])[:, 1:] / 255, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["early", "hybrid", "late"])
def test_a_baseline_learns_from_the_pictures_and_is_used_as_any_run(
    toy_cache: Path, tmp_path: Path, fusion: str
) -> None:
    """The toy's pictures are its masks, so a network that learns at all finds them."""
    run = tmp_path / "run"
    options: dict[str, Any] = {
        "model": "unext",
        "fusion": fusion,
        "preset": "quarter",
        "epochs": 40,
        "batch_size": 3,
        **SPLIT,
    }
    train_run(toy_cache, run, device="cpu", validate_every=0, lr=3e-3, **options)
    config = load_config(run)
    assert (config.inputs.encoder, config.inputs.variants, config.inputs.text) == (None, (), "none")
    assert set(config.inputs.fingerprints) == {"slices"}
    with Cache(toy_cache) as cache:
        assert evaluate_run(run, cache, device="cpu").summary()["mean_over_classes"]["dsc_256"] > 0.6
        assert len(evaluate_missing(run, cache, device="cpu")) == 3
        assert len(predict_run(run, cache, tmp_path / "masks", subjects=["eve"], device="cpu")) == 1
        with pytest.raises(UserError, match="trained with --text none"):
            probe_texts(run, cache, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "unet", "text": "instruction"}, "--text applies to zeus only and this is unet; leave out --text"),
        ({"model": "unet", "form": "tokens", "aligner_depth": 1}, "leave out --form, --aligner-depth"),
        ({"model": "unet", "iou_token": True}, "leave out --iou-token"),
        (
            {"preset": "quarter", "merge": "mean"},
            "--merge, --preset apply to baselines only and this is zeus",
        ),
        ({"model": "unet", "variant": ["toy"], "combine": "max"}, "leave out --variant, --combine"),
        ({"fusion": "early"}, "zeus has no early fusion"),
        ({"model": "vnet"}, "unknown model vnet; there are: zeus, unet, attention_unet"),
        ({"model": "unet", "fusion": "middle"}, "unknown fusion middle; there are: early, hybrid, late"),
        (
            {"pretrained": Path("resnet.pth")},
            r"--pretrained applies to .* only and this is zeus; .*leave out --pretrained",
        ),
        ({"augment": True}, "zeus trains on cached embeddings, its way are cached views; leave out --augment"),
        (
            {"model": "unet", "pretrained": Path("x.pth")},
            "weights for .* transunet, pretrained_unet; leave out --pretr",
        ),
        ({"model": "transunet", "pretrained": Path("x.pth")}, "no weights at x.pth; expected torchvision's ResNet-50"),
        ({"model": "pretrained_unet"}, "begins from published weights.*--pretrained FILE, expected an EfficientNet-b0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(toy_cache: Path, options: dict[str, Any], message: str) -> None:
    with Cache(toy_cache) as cache, pytest.raises(UserError, match=message):
        plan_run(cache, run=Path("run"), **options)


@pytest.mark.parametrize("model", BASELINES)
def test_parameters_are_counted_by_part(toy_cache: Path, model: str) -> None:
    with Cache(toy_cache) as cache:
        config = plan_run(cache, run=Path("run"), model="unet", fusion="hybrid")
    with torch.device("meta"):
        built = build_model(replace(config.architecture, model=model))
    parts = parameter_table(built)
    assert list(parts) == ["encoder", "merging", "decoder"] and all(parts.values())
    assert sum(parts.values()) == sum(p.numel() for p in built.parameters())
