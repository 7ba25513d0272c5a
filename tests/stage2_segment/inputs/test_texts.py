"""What the aligner reads: each control replaces what it says it does, the same way everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.stage2_segment.conftest import SIDE
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.inputs.texts import read_text, typical_text
from zeus_union.stage2_segment.model import Zeus, build_model
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.trained import load_trained
from zeus_union.stage2_segment.training.train import train_run


def planned(cache: Cache, **options: Any) -> RunConfig:
    return plan_run(cache, run=Path("run"), **options)


def test_the_instruction_is_the_caches(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["dan", "ada"])
        text = read_text(cache, planned(cache), rows, ["T2"])
        np.testing.assert_array_equal(text, cache.text_embeddings("toy", rows)[:, 1:])


def test_shuffled_between_slices_is_another_slice_of_the_subject_each_once(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        config = planned(cache, text="shuffled-slices")
        rows = cache.rows_of(["ben", "ada"])
        text = read_text(cache, config, rows, cache.modalities)
        own = cache.text_embeddings("toy", rows)
        taken = [[int((own[:, m] == text[row, m]).all(1).argmax()) for m in (0, 1)] for row in range(6)]
        assert all(first == second for first, second in taken)  # the modalities of one slice stay together
        order = [first for first, _ in taken]
        assert sorted(order[:3]) == [0, 1, 2] and sorted(order[3:]) == [3, 4, 5]
        assert all(place != source for place, source in enumerate(order))
        # A part of the rows, in another order, is given the same.
        np.testing.assert_array_equal(read_text(cache, config, rows[[4, 0]], cache.modalities), text[[4, 0]])


def test_shuffled_between_modalities_is_the_slices_other_modality(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["ada"])
        own = cache.text_embeddings("toy", rows)
        both = read_text(cache, planned(cache, text="shuffled-modalities"), rows, cache.modalities)
        np.testing.assert_array_equal(both, own[:, ::-1])
        alone = read_text(cache, planned(cache, text="shuffled-modalities", modalities=["T1"]), rows, ["T1"])
        np.testing.assert_array_equal(alone, own[:, 1:])


def test_random_vectors_differ_by_slice_and_modality_and_are_always_the_same(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        config = planned(cache, text="random")
        rows = cache.rows_of(["ada", "ben"])
        text = read_text(cache, config, rows, cache.modalities)
        np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, rtol=1e-5)
        assert len(np.unique(text.reshape(12, -1), axis=0)) == 12
        np.testing.assert_array_equal(read_text(cache, config, rows[[3]], ["T2"]), text[[3], 1:])


def test_the_typical_text_is_the_one_nearest_to_the_mean(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["ada", "ben", "cleo"])
        own = cache.text_embeddings("toy", rows)
        typical = typical_text(cache, planned(cache, text="constant"), rows)
        for m in (0, 1):
            distances = np.linalg.norm(own[:, m] - own[:, m].mean(0), axis=1)
            np.testing.assert_array_equal(typical[m], own[distances.argmin(), m])


def test_a_constant_text_is_kept_with_the_weights_and_reads_no_instruction(toy_cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"]}
    train_run(toy_cache, run, text="constant", fusion="hybrid", epochs=1, batch_size=2, device="cpu", **split)
    with Cache(toy_cache) as cache:
        config = planned(cache, text="constant", fusion="hybrid", **split)
        model = build_model(config.architecture)
        text = typical_text(cache, config, cache.rows_of(["ada"]))
        model.set_constant_text(torch.from_numpy(text))
        embeddings = torch.randn(1, 2, 256, 64, 64)
        plain = build_model(planned(cache, fusion="hybrid", **split).architecture)
        plain.load_state_dict({name: t for name, t in model.state_dict().items() if name != "constant_text"})
        nothing = torch.empty(1, 2, 0)
        torch.testing.assert_close(model(embeddings, nothing), plain(embeddings, torch.from_numpy(text)[None]))
        assert load_trained(run, device="cpu").predict(cache, cache.rows_of(["ben"])).shape == (3, SIDE, SIDE)


def test_one_instruction_a_class_gives_each_class_a_mask_of_its_own(toy_cache: Path, tmp_path: Path) -> None:
    with Cache(toy_cache) as cache:
        with pytest.raises(UserError, match="needs one layer for each of liver, spleen"):
            planned(cache, instructions="class")
        classes = {"instructions": "class", "variant": ["toy", "toy"], "fusion": "hybrid", "modalities": ["T1"]}
        config = planned(cache, **classes, aligner="mlp")  # the residual one has a token of its own for each class
        rows = cache.rows_of(["ada"])
        text = torch.from_numpy(read_text(cache, config, rows, ["T1"]))
        assert text.shape == (3, 1, 2, 24)
        torch.manual_seed(0)
        model = build_model(config.architecture).eval()
        embeddings = torch.randn(3, 1, 256, 64, 64)
        with torch.no_grad():
            logits = model(embeddings, text)
            assert logits.shape == (3, 2, 256, 256)
            torch.testing.assert_close(logits[:, 0], logits[:, 1])  # one text for both classes: one mask
            text[:, :, 1] = -text[:, :, 1]
            other = model(embeddings, text)
        torch.testing.assert_close(other[:, 0], logits[:, 0])
        assert not torch.allclose(other[:, 1], logits[:, 1])
    run = tmp_path / "run"
    train_run(
        toy_cache, run, instructions="class", variant=["toy", "toy"], fusion="hybrid", modalities=["T1"], epochs=1,
        train_subjects=["ada"], test_subjects=["ben"], batch_size=3, device="cpu",
    )  # fmt: skip
    train_run(
        toy_cache, tmp_path / "none", instructions="class", text="none", fusion="late", modalities=["T1"], epochs=1,
        train_subjects=["ada"], test_subjects=["ben"], batch_size=3, device="cpu",
    )  # fmt: skip


def test_controls_that_cannot_be_are_refused(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        with pytest.raises(UserError, match="unknown text nonsense"):
            planned(cache, text="nonsense")
        with pytest.raises(UserError, match="names 2 layers, one is read"):
            planned(cache, variant=["toy", "toy"])
        with pytest.raises(UserError, match="it has toy; zeus-instruct build-cache --variant prompt"):
            planned(cache, variant=["prompt"])


def test_states_of_zeros_are_no_tokens(toy_cache: Path) -> None:
    torch.manual_seed(0)
    model = Zeus(1, 2, 12, fusion="hybrid", aligner="mlp", token_states=True).eval()
    embeddings, states = torch.randn(2, 1, 256, 64, 64), torch.randn(2, 1, 20, 12)
    states[0, :, 3:] = 0
    with torch.no_grad():
        logits = model(embeddings, states)
        short = model(embeddings[:1], states[:1, :, :3])  # few tokens take another way through the same attention
        torch.testing.assert_close(logits[:1], short, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(embeddings[:1], states[:1, :, :2]), short, atol=1e-4)


def test_a_run_reads_the_language_models_states(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy cache has none; these stand for them."""

    def states(self: Cache, variant: str, rows: Any) -> np.ndarray:
        found = np.stack([np.random.default_rng(int(row)).standard_normal((2, 5, 12)) for row in rows])
        found[:, :, 3:] = 0
        return found.astype(np.float16)

    with Cache(toy_cache) as cache:
        with pytest.raises(UserError, match="holds no last-layer states"):
            planned(cache, form="tokens")
        with pytest.raises(UserError, match="form tokens goes with --instructions modality"):
            planned(cache, form="tokens", text="random")
    monkeypatch.setattr(Cache, "states", states)
    for aligner, shape in (("mlp", (5, 12)), ("residual", (4 * 12,))):
        run = tmp_path / aligner
        train_run(toy_cache, run, form="tokens", aligner=aligner, fusion="late", epochs=1, train_subjects=["ada"],
                  test_subjects=["ben"], batch_size=3, device="cpu")  # fmt: skip
        with Cache(toy_cache) as cache:
            config = planned(cache, form="tokens", aligner=aligner, text="shuffled-slices")
            assert config.architecture.text_width == shape[-1]
            assert read_text(cache, config, np.arange(3), ["T1"]).shape == (3, 1, *shape)
            assert load_trained(run, device="cpu").predict(cache, cache.rows_of(["ben"])).shape == (3, SIDE, SIDE)
