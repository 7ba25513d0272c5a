"""The paper's configuration from study to cache, at its own architectures where they are small enough, random weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import transformers
from click.testing import CliRunner

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.models.medclip_keys import new_text, new_vision
from zeus_union.stage1_instruct.phantom.write import write_demo

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##a", "##e", ".", ",")


@pytest.fixture(scope="module")
def medclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MedCLIP checkpoint (Swin-T, and BERT with a small vocabulary and inner width) and its tokenizer's folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("medclip")
    text = new_text(transformers.BertConfig(vocab_size=len(WORDS), intermediate_size=64))
    halves = {"vision_model": new_vision("vit"), "text_model": text}
    state = {f"{half}.{name}": tensor for half, net in halves.items() for name, tensor in net.state_dict().items()}
    torch.save({**state, "logit_scale": torch.tensor(2.66)}, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.mark.slow
def test_medclip_vicuna_and_states_go_from_study_to_cache(
    medclip: Path, tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    write_demo("nnunet", tmp_path / "data", subjects=1, seed=1)
    parts = {
        "encoder": "litemedsam",
        "encoder_weights": tiny_parts["encoder_weights"],
        "vision_weights": str(medclip / "pytorch_model.bin"),
        "text_encoder": str(medclip / "pytorch_model.bin"),
        "text_tokenizer": str(medclip),
        "llm": tiny_parts["llm"],
        "llm_precision": "fp32",
        "max_new_tokens": "6",
        "temperature": "0.9",
        "keep_states": "yes",
    }
    command = ["build-cache", "--models", "paper", "--dataset", "nnunet", "--data-root", str(tmp_path / "data")]
    command += ["--slice-step", "12", "--modalities", "T2-SPIR", "--out", str(tmp_path / "c.h5")]
    for part, value in parts.items():
        command += ["--set", f"{part}={value}"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert re.search(r"[1-9]\d* cut at max_new_tokens", done.output), done.output
    assert verify(tmp_path / "c.h5") == []
    with Cache(tmp_path / "c.h5") as cache:
        rows = np.arange(len(cache.rows))
        recipe = cache.recipe("instructions/paper")
        assert recipe["vision"]["source"] == "MedCLIP vit"
        # The language model saw the picture, so the layer stands on the slices and on no image encoder.
        assert "slices" in recipe and "embeddings" not in recipe
        vectors = cache.text_embeddings("paper", rows)
        assert vectors.shape == (len(rows), 1, 512)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
        table = cache.instructions("paper")
        assert len(set(table["seed"].to_pylist())) == len(rows)
        states, counts = cache.states("paper", rows), table["output_tokens"].to_pylist()
        assert states.shape == (len(rows), 1, 6, 32)
        for row, count in enumerate(counts):
            assert (np.abs(states[row, 0, :count]).sum(-1) > 0).all() and not states[row, 0, count:].any()
        assert pc.min(table["output_tokens"]).as_py() >= 1
        before = table.to_pylist()
    # Other layers of the same cache have no states; another seed is another text.
    again = [*command, "--variant", "again", "--seed", "1", "--set", "keep_states=no"]
    assert CliRunner().invoke(main, again).exit_code == 0
    with Cache(tmp_path / "c.h5") as cache:
        assert [row["text"] for row in cache.instructions("again").to_pylist()] != [row["text"] for row in before]
        assert cache.instructions("paper").to_pylist() == before
        with pytest.raises(UserError, match="holds no last-layer states"):
            cache.states("again", rows)
    refused = CliRunner().invoke(main, [*command, "--seed", "1"])
    assert refused.exit_code == 2 and "seed" in refused.output
