"""The residual aligner: text that says nothing costs nothing, and text that says which one is heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.stage2_segment.conftest import GRID, decoder_constants
from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.inputs.texts import SCALE_FLOOR, STATE_PARTS, pool_states, read_text, text_statistics
from zeus_union.stage2_segment.model.aligner import TEXT_NORM, TextPart
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.train import train_run

SPLIT: dict[str, Any] = {"train_subjects": ["ada", "cleo"], "test_subjects": ["ben"]}


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "weights" / "last.safetensors")


def same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """All slices of a modality say the same."""

    def text_embeddings(self: Cache, variant: str, rows: Any) -> np.ndarray:
        text = np.random.default_rng(0).standard_normal((1, 2, 24)).astype(np.float32)
        return np.repeat(text / np.linalg.norm(text, axis=-1, keepdims=True), len(rows), axis=0)

    monkeypatch.setattr(Cache, "text_embeddings", text_embeddings)


@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_at_the_start_the_masks_are_those_without_text_to_the_last_bit(toy_cache: Path, fusion: str) -> None:
    with Cache(toy_cache) as cache:
        learners = [
            Learner(
                cache,
                plan_run(cache, run=Path("run"), text=text, fusion=fusion, **SPLIT),
                Path("none"),
                make_accelerator("cpu"),
            )
            for text in ("instruction", "none")
        ]
        rows = cache.rows_of(["ada"])
        embeddings = torch.randn(3, 2, 256, GRID, GRID, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = [
                learner.bare(embeddings, torch.from_numpy(read_text(cache, learner.config, rows, cache.modalities)))
                for learner in learners
            ]
        assert torch.equal(*logits)


@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_text_that_is_always_the_same_trains_the_weights_of_no_text(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: str
) -> None:
    same_text(monkeypatch)
    one = {"train_subjects": ["ada"], "test_subjects": ["ben"]}  # 3 slices: 7 epochs of 3 steps
    how: dict[str, Any] = {**one, "fusion": fusion, "epochs": 7, "batch_size": 1, "ema": 0.9, "device": "cpu"}
    train_run(toy_cache, tmp_path / "text", text_drop=0.3, **how, validate_every=0)
    train_run(toy_cache, tmp_path / "none", text="none", **how, validate_every=0)
    said, none = weights(tmp_path / "text"), weights(tmp_path / "none")
    for name, tensor in none.items():
        torch.testing.assert_close(said[name], tensor, rtol=0, atol=1e-6, msg=name)
    record = pq.read_table(tmp_path / "text" / "metrics.parquet").to_pylist()[-1]
    assert record["text_part"] == 0 and record["token_drift"] > 0
    with Cache(toy_cache) as cache:
        learner = Learner(cache, load_config(tmp_path / "none"), tmp_path / "other", make_accelerator("cpu"))
    start = learner.bare.state_dict()
    assert any((start[name] - tensor).abs().max() > 1e-3 for name, tensor in none.items())  # it did train


def make_discs(path: Path, side: int = 256) -> Path:
    """Two equal discs in every picture; the text alone says which one is the object, in words that vary a little.

    Args:
        side: pixels of a picture; with fewer, a DSC of 0.9 takes more epochs.
    """
    grid_side = side // 4
    subjects, slices, width = ("ada", "ben", "cleo", "dan", "eve"), 12, 24
    card = DatasetCard("discs", ("T1",), {"T1": "MRI-T1"}, ("object",), "object", subjects, slice_step=1)
    writer = CacheWriter(path, card)
    writer.begin_layer("slices", {"discs": 1})
    writer.begin_layer("embeddings/toy", {"encoder": "toy", "slices": "discs"}, lambda: decoder_constants(grid_side))
    writer.begin_layer("instructions/toy", {"llm": "toy"})
    words = np.random.default_rng(1).standard_normal((2, width))
    y, x = np.mgrid[:side, :side] * (256 / side)
    for number, subject in enumerate(subjects):
        random = np.random.default_rng(number)
        discs = np.zeros((2, slices, side, side), bool)
        for n in range(slices):
            row = random.integers(70, 186)
            for which_disc, column in enumerate((75 + random.integers(-15, 15), 180 + random.integers(-15, 15))):
                discs[which_disc, n] = (y - row) ** 2 + (x - column) ** 2 < 30**2
        which = random.permutation(np.arange(slices) % 2)
        masks = discs[which, np.arange(slices)].astype(np.uint8)
        both = discs.any(axis=0)
        grid = Grid((side, side, slices), np.eye(4))
        images = (both * 200)[:, None].astype(np.uint8)
        writer.write_slices(
            subject, SubjectSlices(grid, np.arange(slices, dtype=np.int32), images, masks, None, masks, {})
        )
        embeddings = random.standard_normal((slices, 1, 256, grid_side, grid_side), dtype=np.float32) * 0.3
        embeddings[:, 0, ::8] += 1.5 * both[:, None, ::4, ::4]
        embeddings[:, 0, 1::8] += np.linspace(-1, 1, grid_side, dtype=np.float32)  # where left and right are
        writer.write_embeddings("embeddings/toy", subject, embeddings)
        text = words[which] + 0.5 * random.standard_normal((slices, width))
        text = (text / np.linalg.norm(text, axis=-1, keepdims=True)).astype(np.float32)[:, None]
        rows = [Instruction(n, "T1", "where?", "there", 1, 1, "stop", 0) for n in range(slices)]
        writer.write_instructions("instructions/toy", subject, text, rows)
    writer.finalize()
    return path


@pytest.mark.slow
def test_the_text_alone_says_which_of_two_discs_and_it_is_heard(tmp_path: Path) -> None:
    cache = make_discs(tmp_path / "discs.h5")
    split = {"train_subjects": ["ada", "ben", "cleo"], "validation_subjects": ["dan"], "test_subjects": ["eve"]}
    how: dict[str, Any] = {**split, "batch_size": 2, "device": "cpu"}
    scores = {}
    for text, epochs in (("instruction", 9), ("none", 2)):
        run = tmp_path / text
        train_run(cache, run, text=text, fusion="hybrid", epochs=epochs, validate_every=epochs, **how)
        scores[text] = pq.read_table(run / "metrics.parquet").to_pylist()[-1]
    assert scores["instruction"]["validation_dsc"] >= 0.9
    both = 2 / 3  # the DSC of an answer that is both discs
    assert scores["none"]["validation_dsc"] <= both
    assert scores["instruction"]["validation_dsc_without_text"] <= both


def test_the_texts_part_has_no_say_at_the_mean_and_stays_small() -> None:
    part = TextPart(24)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    assert all("bias" not in name for name, _ in part.named_parameters())
    assert torch.equal(part(torch.zeros(5, 24)), torch.zeros(5, 256))
    text = 100 * torch.randn(1000, 24)
    assert part(text).norm(dim=-1).max() <= TEXT_NORM * (1 + 1e-6)
    torch.testing.assert_close(part(1e-9 * text), part.layers(1e-9 * text), rtol=1e-3, atol=1e-9)


def test_statistics_are_of_what_the_aligner_reads_in_training(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        config = plan_run(cache, run=Path("run"), **SPLIT)
        rows = cache.rows_of(["ada", "cleo"])
        text = cache.text_embeddings("toy", rows).astype(np.float64)
        mean, scale = text_statistics(cache, config, rows)
        np.testing.assert_allclose(mean, text.mean(axis=0), atol=1e-7)
        np.testing.assert_allclose(scale, (text - text.mean(axis=0)).std(), rtol=1e-6)
        control = plan_run(cache, run=Path("run"), text="random", **SPLIT)
        other, _ = text_statistics(cache, control, rows)
        np.testing.assert_allclose(other, read_text(cache, control, rows, cache.modalities).mean(axis=0), atol=1e-7)
        assert np.abs(other - mean).max() > 1e-2


def test_texts_that_are_nearly_the_same_do_not_become_noise_at_full_size(
    toy_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_text(monkeypatch)
    with Cache(toy_cache) as cache:
        config, rows = plan_run(cache, run=Path("run"), **SPLIT), cache.rows_of(["ada", "cleo"])
        text = cache.text_embeddings("toy", rows)
        mean, scale = text_statistics(cache, config, rows)
        assert np.array_equal(mean, text[0])  # exactly: nothing is left of equal texts
        np.testing.assert_allclose(scale, SCALE_FLOOR * np.sqrt((text.astype(np.float64) ** 2).mean()), rtol=1e-6)


def test_states_are_averaged_over_the_quarters_of_their_text() -> None:
    states = np.zeros((3, 20, 2), np.float16)
    states[0, :8, 0] = np.arange(1, 9)
    states[1, :2, 0] = (1, 2)
    pooled = pool_states(states)
    assert pooled.shape == (3, STATE_PARTS * 2) and pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled[0, ::2], [1.5, 3.5, 5.5, 7.5])
    np.testing.assert_array_equal(pooled[1, ::2], [1, 1, 2, 2])
    assert not pooled[2].any() and not pooled[:, 1::2].any()


def test_text_can_be_dropped_only_where_it_is_a_part(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        assert plan_run(cache, run=Path("run"), **SPLIT).recipe.text_drop > 0
        assert plan_run(cache, run=Path("run"), recipe="paper", **SPLIT).architecture.aligner == "mlp"
        for without in ({"text": "none"}, {"aligner": "mlp"}):
            assert plan_run(cache, run=Path("run"), **without, **SPLIT).recipe.text_drop == 0
            with pytest.raises(UserError, match="--text-drop leaves out the text's part"):
                plan_run(cache, run=Path("run"), text_drop=0.2, **without, **SPLIT)
