"""The projection learns captions through a frozen language model, and nothing else learns."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from tests.stage1_instruct.conftest import word_tokenizer, write_llama
from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.models.bridge.connectors import load_connector, read_connector
from zeus_union.stage1_instruct.models.language.lora import add_lora, lora_state, lora_subjects
from zeus_union.stage1_instruct.models.language.prompts import question, template
from zeus_union.stage1_instruct.models.projected_llm import trained_projection
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.projection import loop as training_loop
from zeus_union.stage1_instruct.projection import train as projection_training
from zeus_union.stage1_instruct.projection.loop import TrainingRecipe, fit, steps_in_all
from zeus_union.stage1_instruct.projection.objective import Captioning
from zeus_union.stage1_instruct.projection.pairs import Pair, read_pairs
from zeus_union.stage1_instruct.projection.train import lora_path, split_by_patient, train_projection

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
    training, held_out = split_by_patient(pairs, 0.5, seed=0)
    assert sorted(training + held_out) == list(range(6))
    assert not {pairs[i].image for i in training} & {pairs[i].image for i in held_out}
    assert held_out


def test_one_image_is_always_trained_on() -> None:
    assert split_by_patient([Pair("a", "x", "T2", image=Path("0.png"))], 0.9, 0) == ([0], [])


@settings(max_examples=100, deadline=None)
@given(
    subjects=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 100),
)
def test_no_subject_is_both_trained_on_and_held_out(subjects: list[int], share: float, seed: int) -> None:
    """Subject 0 stands for pictures of nobody in particular, each of which is by itself."""
    pairs = [
        Pair("a", "", "T2", subject=f"s{subject}", slice=i) if subject else Pair("a", "x", "T2", image=Path(f"{i}.png"))
        for i, subject in enumerate(subjects)
    ]
    training, held_out = split_by_patient(pairs, share, seed)
    assert sorted(training + held_out) == list(range(len(pairs))) and training
    assert not {pairs[i].patient for i in training} & {pairs[i].patient for i in held_out}
    several = len({pair.patient for pair in pairs}) > 1
    assert bool(held_out) == (several and share > 0)


def test_pairs_of_one_subject_only_hold_none_out_and_it_is_said(tiny: Models, pairs_file: Path, tmp_path: Path) -> None:
    pairs = [replace(pair, subject="s1") for pair in read_pairs(pairs_file)]
    said: list[str] = []
    out = train_projection(pairs, tiny, out=tmp_path / "p", epochs=1, say=said.append)
    assert "all pairs are of subject s1: none is held out" in " ".join(said)
    facts = read_connector(out)[1]
    assert (facts["subjects"], facts["held_out_subjects"]) == (["s1"], [])


def test_subjects_trained_on_are_recorded_and_handed_on_to_what_begins_from_it(
    tiny: Models, pairs_file: Path, tmp_path: Path
) -> None:
    pairs = [replace(pair, subject=f"s{number % 3}") for number, pair in enumerate(read_pairs(pairs_file))]
    first = train_projection(pairs, tiny, out=tmp_path / "a", epochs=1, held_out=0.4, lora_rank=2, say=quiet)
    facts = read_connector(first)[1]
    assert len(facts["subjects"]) == 2 and len(facts["held_out_subjects"]) == 1
    assert sorted(facts["subjects"] + facts["held_out_subjects"]) == ["s0", "s1", "s2"]
    assert lora_subjects(lora_path(first)) == set(facts["subjects"])
    tuned = load_models(replace(tiny.profile, lora=str(lora_path(first))), "cpu", quiet)
    assert tuned.projected_llm.recipe()["projection"] == {
        "sha256": "untrained",
        "trained_on": {"subjects": facts["subjects"]},
    }
    others = [replace(pair, subject="s7") for pair in pairs]
    plain = load_models(tiny.profile, "cpu", quiet)
    second = train_projection(others, plain, out=tmp_path / "b", start=first, epochs=1, say=quiet)
    assert read_connector(second)[1]["subjects"] == sorted([*facts["subjects"], "s7"])


def features(count: int) -> torch.Tensor:
    return torch.randn(count, 16, 256, generator=torch.Generator().manual_seed(0))


def task(models: Models, said: list[str], asked: list[str] | None = None, cut: int = 48) -> Captioning:
    """Captions of as many random images."""
    asked = asked or [ASKED] * len(said)
    return Captioning(
        models.projected_llm.new_projection(), models.projected_llm.llm, features(len(said)), asked, said, cut
    )


@pytest.mark.parametrize("connector", ["mlp", "linear", "qformer"])
def test_gradient_reaches_the_connector_only(tiny: Models, connector: str) -> None:
    models = load_models(replace(tiny.profile, connector=connector), "cpu", quiet)
    learning = task(models, ["Bright.", "Dark and large."], [ASKED, "Why?"])
    learning.loss([0, 1]).backward()
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learning.connector.parameters()]
    # A Q-Former has parameters of its text side, which images do not reach.
    assert all(reached) if connector != "qformer" else sum(reached) > 0.5 * len(reached)
    assert all(parameter.grad is None for parameter in models.projected_llm.llm.model.parameters())


def test_with_a_lora_the_gradient_reaches_it_and_nothing_else_of_the_llm(tiny: Models) -> None:
    learning = task(tiny, ["Bright.", "Dark and large."])
    added = add_lora(tiny.projected_llm.llm.model, rank=2)
    learning.loss([0, 1]).backward()
    with_gradient = {id(p) for p in tiny.projected_llm.llm.model.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in added}
    assert {id(p) for p in learning.trainable()} == with_gradient | {id(p) for p in learning.connector.parameters()}


def test_caption_loss_is_the_models_own_loss_with_the_prompt_masked(tiny: Models) -> None:
    """Against transformers' loss with labels -100 on prompt and padding."""
    learning = task(tiny, ["Bright.", "Dark and large."], [ASKED, "Why?"])
    llm = tiny.projected_llm.llm
    rows, labels = [], []
    with torch.no_grad():
        for i in range(2):
            prompt = llm.embed_prompt(learning.questions[i], learning.connector(learning.features[i][None])[0])
            target = llm.token_ids(f" {learning.captions[i]}") + llm.token_ids(" ###")
            rows.append(torch.cat([prompt, llm.embedding(torch.tensor(target))]))
            labels.append(torch.tensor([-100] * len(prompt) + target))
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        expected = llm.model(inputs_embeds=padded, labels=wanted).loss
        assert learning.loss([0, 1]).item() == pytest.approx(expected.item(), rel=1e-5)
        parts = [learning.loss([row], learning.tokens([0, 1])).item() for row in (0, 1)]
    assert sum(parts) == pytest.approx(expected.item(), rel=1e-5)


def test_long_caption_is_cut_but_keeps_its_end(tiny: Models) -> None:
    losses = [task(tiny, ["a" * count], cut=20).loss([0]).item() for count in (100, 200)]
    assert losses[0] == losses[1]


def test_two_runs_of_one_seed_give_identical_weights(tiny: Models, pairs_file: Path, tmp_path: Path) -> None:
    pairs = read_pairs(pairs_file)
    for name in ("a", "b"):
        train_projection(pairs, tiny, out=tmp_path / name, epochs=2, batch_size=2, seed=3, say=quiet)
    train_projection(pairs, tiny, out=tmp_path / "c", epochs=2, batch_size=2, seed=4, say=quiet)
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a", "b", "c"))
    assert first == again != other
    assert {path.name for path in tmp_path.glob("[abc]*")} == {"a", "b", "c"}


def test_rows_computed_one_by_one_give_the_gradient_of_the_batch(
    tiny: Models, pairs_file: Path, tmp_path: Path
) -> None:
    pairs = read_pairs(pairs_file)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "precision": "fp32", "say": quiet}
    train_projection(pairs, tiny, out=tmp_path / "whole", **options)
    train_projection(pairs, tiny, out=tmp_path / "parts", at_once=1, **options)
    whole, parts = (load_connector(tmp_path / name, 256, 32)[0].state_dict() for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_training_that_was_stopped_goes_on_and_ends_with_the_same_weights(
    tiny: Models, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_rank: int
) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY_S", 0)
    pairs = read_pairs(pairs_file)

    def train(out: Path, say: Callable[[str], None] = quiet, lr: float = 2e-3) -> None:
        models = load_models(tiny.profile, "cpu", quiet)
        train_projection(pairs, models, out=out, say=say, epochs=4, batch_size=2, lr=lr, lora_rank=lora_rank)

    train(tmp_path / "whole")

    def stop(message: str) -> None:
        if message.startswith("epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop)
    assert not (tmp_path / "parts").exists() and (tmp_path / "parts.state").exists()
    with pytest.raises(UserError, match=r"other options \(lr"):
        train(tmp_path / "parts", lr=1e-3)
    said: list[str] = []
    train(tmp_path / "parts", said.append)
    assert "resuming after epoch 2 of 4" in said
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "parts.state").exists()
    if lora_rank:
        assert lora_path(tmp_path / "parts").read_bytes() == lora_path(tmp_path / "whole").read_bytes()
    (tmp_path / "parts.state").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not the state of an unfinished training"):
        train(tmp_path / "parts")


def test_trained_lora_is_loaded_by_the_profile_that_names_it(tiny: Models, pairs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    train_projection(read_pairs(pairs_file), tiny, out=out, epochs=2, lora_rank=2, say=quiet)
    trained = lora_state(tiny.projected_llm.llm.model)
    used = load_models(replace(tiny.profile, projection=str(out), lora=str(lora_path(out))), "cpu", quiet)
    assert used.projected_llm.projection.kind == "mlp"
    assert all(torch.equal(tensor, trained[name]) for name, tensor in lora_state(used.projected_llm.llm.model).items())
    with pytest.raises(UserError, match="has a LoRA already"):
        train_projection(read_pairs(pairs_file), used, out=tmp_path / "q", lora_rank=2, say=quiet)


def test_of_a_blip2_only_a_lora_can_be_trained(
    tiny_blip2: Path, tiny_parts: dict[str, str], pairs_file: Path, tmp_path: Path
) -> None:
    profile = load_profile("lite", {**tiny_parts, "instructor": "blip2", "blip2": str(tiny_blip2)})
    pairs = read_pairs(pairs_file)
    with pytest.raises(UserError, match="no projection to train"):
        train_projection(pairs, load_models(profile, "cpu", quiet), out=tmp_path / "p", say=quiet)
    written = train_projection(
        pairs, load_models(profile, "cpu", quiet), out=tmp_path / "p", epochs=1, lora_rank=2, say=quiet
    )
    assert written == lora_path(tmp_path / "p") and not (tmp_path / "p").exists()
    tuned = load_models(replace(profile, lora=str(written)), "cpu", quiet)
    assert "lora" in tuned.instruction_recipe()


def test_training_can_start_from_a_published_projection(tiny: Models, pairs_file: Path, tmp_path: Path) -> None:
    weight, bias = torch.randn(32, 256), torch.randn(32)
    torch.save({"model": {"llama_proj.weight": weight, "llama_proj.bias": bias}}, tmp_path / "xraygpt.pth")
    linear = replace(tiny.profile, connector="linear")
    pairs, out = read_pairs(pairs_file), tmp_path / "p.safetensors"
    models = load_models(linear, "cpu", quiet)
    train_projection(pairs, models, out=out, start=tmp_path / "xraygpt.pth", epochs=1, lr=1e-6, say=quiet)
    state = load_connector(out, 256, 32)[0].state_dict()
    torch.testing.assert_close(state["layers.weight"], weight, atol=1e-4, rtol=0)
    said: list[str] = []
    used = load_models(replace(linear, projection=str(tmp_path / "xraygpt.pth")), "cpu", said.append)
    assert torch.equal(used.projected_llm.projection.state_dict()["layers.bias"], bias) and "XrayGPT" in said[0]
    with pytest.raises(UserError, match="of the kind linear, the profile asks for mlp"):
        train_projection(pairs, tiny, out=out, start=tmp_path / "xraygpt.pth", say=quiet)


def test_saved_projection_is_found_by_the_next_build_with_its_recipe(tiny: Models, pairs_file: Path) -> None:
    written = train_projection(read_pairs(pairs_file), tiny, epochs=2, batch_size=3, say=quiet)
    assert written == trained_projection(tiny.projected_llm.belongs_to())
    _, facts = load_connector(written, 256, 32)
    assert facts["training"]["epochs"] == 2
    assert facts["llm_sha256"] == tiny.projected_llm.llm.digest
    assert facts["loss"]["held_out"] is None or facts["loss"]["held_out"] > 0
    assert set(facts["sample"]) == {"before", "after", "caption"}


def test_losses_and_a_caption_are_said_on_the_way(tiny: Models, pairs_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train_projection(
        read_pairs(pairs_file), tiny, out=tmp_path / "p", epochs=4, held_out=0.25, precision="fp32", say=said.append
    )
    assert sum(line.startswith("epoch") and "held-out" in line for line in said) == 4
    assert sum("it now says" in line for line in said) == 3


def test_default_length_is_about_150_steps_whatever_the_number_of_pairs() -> None:
    assert [steps_in_all(count, TrainingRecipe(batch_size=4)) for count in (4, 96, 1000)] == [150, 168, 250]
    assert steps_in_all(96, TrainingRecipe(batch_size=4, epochs=2)) == 48


def fit_all(learning: Captioning, **options: Any) -> float:
    rows = range(len(learning.captions))
    return fit(learning, rows, [], TrainingRecipe(**options), Accelerator(cpu=True), None, quiet)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_what_was_asked_for_and_the_connectors_weights_stay_fp32(
    tiny: Models, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    """fp16 by the CPU's autocast, which stands for a GPU's."""
    monkeypatch.setattr(projection_training, "TAKES_FP16", ("cuda", "cpu"))
    monkeypatch.setattr(training_loop, "SAVE_EVERY_S", 0)
    # What `accelerate config` says of mixed precision must not count.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if precision != "bf16" else "no")
    seen: set[torch.dtype] = set()
    projections = [tiny.projected_llm.llm.model.model.layers[0].mlp.up_proj]
    hooks = [
        layer.register_forward_hook(lambda _, __, out: seen.add(out.dtype) if out.requires_grad else None)
        for layer in projections
    ]
    scalers: list[dict[str, Any]] = []
    save = training_loop.Progress.save

    def watched(self: Any, task: Any, optimizer: Any, scaler: Any, epoch: int) -> None:
        save(self, task, optimizer, scaler, epoch)
        scalers.append(torch.load(self.path, weights_only=True)["scaler"])

    monkeypatch.setattr(training_loop.Progress, "save", watched)
    out = train_projection(read_pairs(pairs_file), tiny, out=tmp_path / "p", epochs=3, precision=precision, say=quiet)
    for hook in hooks:
        hook.remove()
    assert seen == {dtype}
    assert bool(scalers[-1]) == (precision == "fp16")
    connector, facts = read_connector(out)
    assert facts["training"]["computed_in"] == precision
    assert {parameter.dtype for parameter in connector.parameters()} == {torch.float32}
    untrained = tiny.projected_llm.new_projection().state_dict()
    assert not torch.equal(connector.state_dict()["layers.0.weight"], untrained["layers.0.weight"])


def test_fp16_training_that_was_stopped_goes_on_with_its_loss_scale(
    tiny: Models, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection_training, "TAKES_FP16", ("cuda", "cpu"))
    monkeypatch.setattr(training_loop, "SAVE_EVERY_S", 0)
    # Gradients of this scale overflow at first, so that it is halved on the way.
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=2.0**30, enabled=enabled)
    )
    pairs = read_pairs(pairs_file)

    def train(out: Path, say: Callable[[str], None] = quiet) -> None:
        models = load_models(tiny.profile, "cpu", quiet)
        train_projection(pairs, models, out=out, say=say, epochs=3, batch_size=2, precision="fp16")

    def stop(message: str) -> None:
        if message.startswith("epoch 2"):
            raise KeyboardInterrupt

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop)
    state = torch.load(tmp_path / "parts.state", weights_only=True)["scaler"]
    assert state["scale"] < 2.0**30
    train(tmp_path / "parts")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_fp16_on_a_cpu_and_fp32_through_half_a_model_are_refused(tiny: Models, pairs_file: Path) -> None:
    pairs = read_pairs(pairs_file)
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        train_projection(pairs, tiny, precision="fp16", say=quiet)
    half = load_models(replace(tiny.profile, llm_precision="bf16"), "cpu", quiet)
    with pytest.raises(UserError, match=r"weights are in bf16; --set llm_precision=fp32"):
        train_projection(pairs, half, precision="fp32", say=quiet)


def test_training_lowers_the_loss(tiny: Models) -> None:
    learning = task(tiny, ["one liver", "two spleens"])
    before = learning.loss([0, 1]).item()
    assert fit_all(learning, epochs=30, lr=3e-3) < 0.9 * before


WORKER = """
import sys
from pathlib import Path
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile, parse_overrides
from zeus_union.stage1_instruct.projection.train import read_pairs, train_projection

profile = load_profile("lite", parse_overrides(tuple(sys.argv[3:])))
options = dict(epochs=3, batch_size=3, precision="fp32", lora_rank=2, held_out=0.0)
train_projection(read_pairs(Path(sys.argv[1])), load_models(profile, "cpu"), out=Path(sys.argv[2]), **options)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(
    tiny: Models, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gloo, on the CPU; batches of three, so that the processes' shares differ."""
    (tmp_path / "worker.py").write_text(WORKER)
    profile = tiny.profile
    chosen = ("encoder_weights", "llm", "projection_hidden", "projection", "max_new_tokens")
    parts = [f"{part}={getattr(profile, part)}" for part in chosen]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launched = subprocess.run(
        [*launcher, str(tmp_path / "worker.py"), str(pairs_file), str(tmp_path / "two.safetensors"), *parts],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    # Only the first process of a launch speaks and writes.
    assert launched.stderr.count("projection saved") == 1
    monkeypatch.setattr(sys, "argv", ["worker.py", str(pairs_file), str(tmp_path / "one.safetensors"), *parts])
    runpy.run_path(str(tmp_path / "worker.py"))
    for suffix in (".safetensors", ".lora.safetensors"):
        one, two = (load_file(tmp_path / f"{name}{suffix}") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=1e-3)


@pytest.mark.slow
def test_200_steps_on_32_pairs_and_the_image_alone_decides_what_is_said(
    random_litemedsam: Path, tmp_path: Path
) -> None:
    """Every caption of a training image is reproduced, and swapping images swaps captions.

    A frozen Llama of random weights that knows these words only says what it is steered to; SmolLM2 takes the same
    steps a hundred times as long.
    """
    organs = ("liver", "spleen", "left kidney", "right kidney")
    sizes, greys = ("large", "small"), ("bright", "dark", "grey", "mixed")
    said = [f"the {organ} is {size} and {grey}" for organ in organs for size in sizes for grey in greys]
    words = word_tokenizer([template("zeus").text, ASKED, *said])
    parts = {"encoder_weights": str(random_litemedsam), "llm": str(write_llama(tmp_path / "llama", words, width=64))}
    profile = load_profile("lite", {**parts, "projection": "untrained", "max_new_tokens": "12"})
    models = load_models(profile, "cpu", quiet)
    learning = task(models, said)
    learning.connector.standardise_by(learning.features)
    fit_all(learning, epochs=50, lr=2e-3, batch_size=8)
    shown = learning.connector(learning.features)
    answers = [answer.text for answer in models.projected_llm.llm.generate([ASKED] * 32, shown)]
    assert sum(answer == wanted for answer, wanted in zip(answers, said)) >= 30
    swapped = [answer.text for answer in models.projected_llm.llm.generate([ASKED] * 32, shown.flip(0))]
    assert swapped == answers[::-1]
