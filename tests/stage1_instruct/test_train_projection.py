"""The projection learns captions through a frozen language model, and nothing else learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache.errors import UserError
from stage1_instruct.models.connectors import load_connector
from stage1_instruct.models.load import Models, load_models, trained_projection
from stage1_instruct.pairs import Pair, read_pairs
from stage1_instruct.profiles import Profile, load_profile
from stage1_instruct.prompts import question
from stage1_instruct.train_projection import (
    TrainingRecipe,
    _steps,
    caption,
    caption_loss,
    fit,
    split_by_image,
    train_projection,
)

ASKED = question("liver", "MRI-T2")


def quiet(message: str) -> None:
    pass


@pytest.fixture
def tiny(random_litemedsam: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Models of the lite profile at random weights and small width."""
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path / "home"))
    parts = {"encoder_weights": str(random_litemedsam), "llm": str(tiny_llama), "max_new_tokens": "8"}
    return load_models(
        load_profile("lite", {**parts, "projection_hidden": "16", "projection": "untrained"}), "cpu", quiet
    )


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Four pictures with a caption each, two of them with a second one."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(4):
        picture = np.kron(generator.integers(0, 255, (8, 8), dtype=np.uint8), np.ones((16, 16), np.uint8))
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        for caption_number in range(1 + number // 2):
            text = f"Picture {number}, said {caption_number}."
            line = {"image": f"{number}.png", "caption": text, "instance": "liver", "modality": "MRI-T2"}
            lines.append(json.dumps(line))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path / "pairs.jsonl"


def test_pairs_are_read_with_images_beside_the_file(pairs_file: Path) -> None:
    pairs = read_pairs(pairs_file)
    assert len(pairs) == 6
    assert pairs[0] == Pair("Picture 0, said 0.", "liver", "MRI-T2", image=pairs_file.parent / "0.png")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 holds list"),
        ('{"caption": "", "modality": "T2"}', "line 2: 'caption' is ''"),
        ('{"caption": 3, "modality": "T2"}', "line 2: 'caption' is 3"),
        ('{"caption": "a", "modality": "T2"}', "line 2 has neither 'image' nor 'subject'"),
        ('{"caption": "a", "modality": "T2", "instance": "x", "image": "absent.png"}', "line 2: there is no image"),
        ('{"caption": "a", "modality": "T2", "image": "0.png"}', "line 2: 'instance' is None"),
        ('{"caption": "a", "modality": "T2", "subject": "s", "slice": "4"}', "line 2: 'slice' is '4'"),
    ],
)
def test_malformed_pair_is_named_by_its_line(line: str, message: str, pairs_file: Path) -> None:
    first = pairs_file.read_text().splitlines()[0]
    pairs_file.write_text(f"{first}\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_pairs(pairs_file)


def test_empty_or_absent_or_binary_pairs_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pairs at"):
        read_pairs(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no pairs"):
        read_pairs(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_pairs(tmp_path / "binary.jsonl")


def test_picture_that_cannot_be_read_is_named(tiny: Models, pairs_file: Path) -> None:
    (pairs_file.parent / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png is not a picture"):
        train_projection(read_pairs(pairs_file), tiny, say=quiet)


def test_pairs_of_a_cache_need_that_cache(tiny: Models) -> None:
    with pytest.raises(UserError, match="give that cache with --cache"):
        train_projection([Pair("a", "", "T2", subject="s", slice=1)], tiny, say=quiet)


def test_split_keeps_the_pairs_of_one_image_together(pairs_file: Path) -> None:
    pairs = read_pairs(pairs_file)
    training, held_out = split_by_image(pairs, 0.5, seed=0)
    assert sorted(training + held_out) == list(range(6))
    assert not {pairs[i].image for i in training} & {pairs[i].image for i in held_out}
    assert held_out


def test_one_image_is_always_trained_on() -> None:
    assert split_by_image([Pair("a", "x", "T2", image=Path("0.png"))], 0.9, 0) == ([0], [])


def features(count: int) -> torch.Tensor:
    return torch.randn(count, 16, 256, generator=torch.Generator().manual_seed(0))


def test_gradient_reaches_the_projection_only(tiny: Models) -> None:
    projection = tiny.new_projection()
    caption_loss(
        projection, tiny.llm, features(2), [ASKED, "Why?"], ["Bright.", "Dark and large."], [0, 1], 48
    ).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projection.parameters())
    assert all(parameter.grad is None for parameter in tiny.llm.model.parameters())


def test_caption_loss_is_the_models_own_loss_with_the_prompt_masked(tiny: Models) -> None:
    """Against transformers' loss with labels -100 on prompt and padding, in fp32."""
    projection, llm = tiny.new_projection().requires_grad_(False), tiny.llm
    shown, asked, said = features(2), [ASKED, "Why?"], ["Bright.", "Dark and large."]
    rows, labels = [], []
    for i in range(2):
        prompt = llm.embed_prompt(asked[i], projection(shown[i]))
        target = llm.token_ids(f" {said[i]}") + llm.token_ids(" ###")
        rows.append(torch.cat([prompt, llm.embedding(torch.tensor(target))]))
        labels.append(torch.tensor([-100] * len(prompt) + target))
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    expected = llm.model(inputs_embeds=padded, labels=wanted).loss
    found = caption_loss(projection, llm, shown, asked, said, [0, 1], 48)
    assert found.item() == pytest.approx(expected.item(), rel=2e-2)  # bf16 where the machine computes in it


def test_long_caption_is_cut_but_keeps_its_end(tiny: Models) -> None:
    projection = tiny.new_projection().requires_grad_(False)
    long, longer = ("a" * n for n in (100, 200))
    losses = [caption_loss(projection, tiny.llm, features(1), [ASKED], [said], [0], 20) for said in (long, longer)]
    assert losses[0] == losses[1]


def test_two_runs_of_one_seed_give_identical_weights(tiny: Models, pairs_file: Path, tmp_path: Path) -> None:
    pairs = read_pairs(pairs_file)
    for name in ("a", "b"):
        train_projection(pairs, tiny, out=tmp_path / name, epochs=2, batch_size=2, seed=3, say=quiet)
    train_projection(pairs, tiny, out=tmp_path / "c", epochs=2, batch_size=2, seed=4, say=quiet)
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a", "b", "c"))
    assert first == again != other


def test_saved_projection_is_found_by_the_next_build_with_its_recipe(tiny: Models, pairs_file: Path) -> None:
    written = train_projection(read_pairs(pairs_file), tiny, epochs=2, batch_size=3, say=quiet)
    assert written == trained_projection(tiny.profile)
    _, facts = load_connector(written, 256, 32)
    assert facts["training"]["epochs"] == 2
    assert facts["llm_sha256"] == tiny.llm.digest
    assert facts["loss"]["held_out"] is None or facts["loss"]["held_out"] > 0
    assert set(facts["sample"]) == {"before", "after", "caption"}


def test_default_length_is_about_150_steps_whatever_the_number_of_pairs() -> None:
    assert [_steps(count, TrainingRecipe(batch_size=4)) for count in (4, 96, 1000)] == [150, 168, 250]
    assert _steps(96, TrainingRecipe(batch_size=4, epochs=2)) == 48


def test_training_lowers_the_loss(tiny: Models) -> None:
    projection, said = tiny.new_projection(), ["one liver", "two spleens"]
    shown = features(2)
    before = caption_loss(projection, tiny.llm, shown, [ASKED] * 2, said, [0, 1], 48).item()
    after = fit(projection, tiny.llm, shown, [ASKED] * 2, said, [0, 1], TrainingRecipe(epochs=30, lr=3e-3), quiet)
    assert after < 0.9 * before


@pytest.mark.slow
def test_swapping_images_swaps_captions(lite: Profile) -> None:
    """Overfit on four images through SmolLM2: afterwards the image alone decides what is said."""
    models = load_models(lite, "cpu", quiet)
    said = [
        "The liver is large and dark.",
        "Two bright kidneys are visible.",
        "No organ can be seen here.",
        "A small spleen lies at the back.",
    ]
    shown, asked = features(4), [question("organs", "MRI-T2")] * 4
    projection = models.new_projection()
    projection.standardise_by(shown)
    fit(projection, models.llm, shown, asked, said, range(4), TrainingRecipe(epochs=60, lr=2e-3, batch_size=4), quiet)
    assert [caption(projection, models.llm, shown[i], asked[i]) for i in range(4)] == said
    swapped = shown[[1, 0, 3, 2]]
    assert [caption(projection, models.llm, swapped[i], asked[i]) for i in range(4)] == [said[i] for i in (1, 0, 3, 2)]
    together = models.llm.generate(asked[:2], projection(shown[[0, 0]]))
    assert together[0] == together[1]
