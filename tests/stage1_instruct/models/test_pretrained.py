"""Loading: Vicuna-Rad's layout, precision, quantisation, and one clear error for each broken folder."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.language.llm import Decoding, InstructionLLM
from zeus_union.stage1_instruct.models.language.prompts import template
from zeus_union.stage1_instruct.models.pretrained import Loading, load_pretrained, read_config
from zeus_union.stage1_instruct.models.text.bert import TextEncoder

SECOND_SHARD = "pytorch_model-00002-of-00003.bin"


def load(folder: Path, loading: Loading | None = None, auto_class: Any = transformers.AutoModelForCausalLM) -> Any:
    return load_pretrained(auto_class, str(folder), "language model", loading)


def logits(model: Any) -> torch.Tensor:
    return model(torch.tensor([[5, 6, 7, 8]])).logits.float()


def as_vicuna_rad(source: Path, folder: Path) -> Path:
    """The same model as three fp16 .bin shards with an index, and the buffers that old versions of transformers left."""
    shutil.copytree(source, folder)
    state = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    for layer in range(2):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.full((4,), 9.0)
    (folder / "model.safetensors").unlink()
    files: dict[str, str] = {}
    for number in range(3):
        name = f"pytorch_model-{number + 1:05}-of-00003.bin"
        shard = dict(list(state.items())[number::3])
        torch.save(shard, folder / name)
        files |= dict.fromkeys(shard, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.fixture
def vicuna_rad(tiny_llama: Path, tmp_path: Path) -> Path:
    return as_vicuna_rad(tiny_llama, tmp_path / "vicuna")


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copied"))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_vicuna_rads_three_shards_load_whatever_buffers_they_carry(tiny_llama: Path, vicuna_rad: Path) -> None:
    _, model = load(vicuna_rad)
    assert next(model.parameters()).dtype == torch.float32
    assert torch.allclose(logits(model), logits(load(tiny_llama)[1]), atol=0.03)  # fp16 rounding of the weights


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_what_was_asked_for_and_not_the_files(
    tiny_llama: Path, precision: str, dtype: torch.dtype
) -> None:
    _, model = load(tiny_llama, Loading(precision))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture
def wide_llama(copied: Path) -> Path:
    """64 wide: bitsandbytes' 4-bit layers count in blocks of 64."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(copied)
    config.update({"hidden_size": 64, "head_dim": 16, "intermediate_size": 128})
    transformers.LlamaForCausalLM(config).save_pretrained(copied)
    return copied


@pytest.mark.parametrize(
    ("quantize", "layer", "likeness"), [("8bit", "Linear8bitLt", 0.99), ("4bit", "Linear4bit", 0.85)]
)
def test_bitsandbytes_layers_answer_like_the_whole_model(
    wide_llama: Path, quantize: str, layer: str, likeness: float
) -> None:
    pytest.importorskip("bitsandbytes")
    _, model = load(wide_llama, Loading("fp32", quantize))
    assert type(model.model.layers[0].mlp.up_proj).__name__ == layer
    whole = logits(load(wide_llama)[1])
    assert torch.nn.functional.cosine_similarity(logits(model), whole, dim=-1).mean() > likeness


def test_quantising_without_bitsandbytes_says_what_to_install(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        load(tiny_llama, Loading(quantize="4bit"))


def test_layers_spread_by_accelerate_give_the_same_logits(tiny_llama: Path) -> None:
    assert torch.equal(logits(load(tiny_llama, Loading(device_map="auto"))[1]), logits(load(tiny_llama)[1]))


def test_tokenizer_shorter_than_the_embedding_is_fine_and_nothing_is_resized(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(1, 32)])
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    edit(copied / "config.json", vocab_size=260)
    tokenizer, model = load(copied)
    assert (len(tokenizer), model.get_input_embeddings().num_embeddings) == (259, 260)


def test_encoder_without_its_unused_pooler_loads(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    state = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder, auto_class=transformers.AutoModel)[1].config.hidden_size == 32


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _longer_tokenizer(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["liver", "spleen"])
    tokenizer.save_pretrained(folder)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer.*expected tokenizer\.json or"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "not a language model"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"no file named model\.safetensors"),
    "half the weights": (lambda folder: _cut(folder / "model.safetensors"), r"model\.safetensors is cut short"),
    "more tokens than embeddings": (_longer_tokenizer, "259 embeddings but its tokenizer 261 tokens"),
    "another vocabulary": (
        lambda folder: edit(folder / "config.json", vocab_size=300),
        r"(lm_head|embed_tokens)\.weight is \(259, 32\) in the weights, but \(300, 32\) by .*config\.json",
    ),
    "another depth": (
        lambda folder: edit(folder / "config.json", num_hidden_layers=3),
        r"model\.layers\.2\.input_layernorm\.weight is missing \(9 tensors",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_folder_is_one_clear_error(copied: Path, fault: str) -> None:
    spoil, message = BROKEN[fault]
    spoil(copied)
    with pytest.raises(UserError, match=message) as error:
        load(copied)
    assert str(copied) in str(error.value)


def test_missing_shard_is_named(vicuna_rad: Path) -> None:
    (vicuna_rad / SECOND_SHARD).unlink()
    with pytest.raises(UserError, match=rf"{SECOND_SHARD} is missing \(1 of 3 files"):
        load(vicuna_rad)


def test_shard_cut_short_is_named(vicuna_rad: Path) -> None:
    _cut(vicuna_rad / SECOND_SHARD)
    with pytest.raises(UserError, match=rf"{SECOND_SHARD} is cut short"):
        load(vicuna_rad)


def test_sentencepiece_tokenizer_without_its_library_says_what_to_install(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        load(copied)


def with_more_tokens(folder: Path, special: bool, token: str = "<image_soft_token>") -> Path:
    """Llama 2 with a padding token, Gemma 3's image token: one token more than there are embeddings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token], special_tokens=special)
    tokenizer.save_pretrained(folder)
    return folder


def test_special_token_beyond_the_embeddings_is_fine_and_refused_where_a_text_has_it(copied: Path) -> None:
    tokenizer, model = load(with_more_tokens(copied, special=True))
    assert (len(tokenizer), model.get_input_embeddings().num_embeddings) == (260, 259)
    llm = InstructionLLM(str(copied), template("zeus"), Decoding(max_new_tokens=2))
    assert llm.generate(["Where is the liver?"], torch.zeros(1, 2, 32))[0].prompt_tokens > 2
    with pytest.raises(UserError, match="the text holds <image_soft_token>, a special token"):
        llm.generate(["Where is <image_soft_token>?"], torch.zeros(1, 2, 32))


def test_ordinary_word_beyond_the_embeddings_is_refused_by_name(copied: Path) -> None:
    with pytest.raises(UserError, match=r"259 embeddings but its tokenizer 260 tokens: not a pair \(liver would"):
        load(with_more_tokens(copied, special=False, token="liver"))


def test_padding_token_without_an_embedding_changes_no_vector_of_a_text_encoder(
    tiny_bert: Path, tmp_path: Path
) -> None:
    texts = ["A liver.", "A much longer text about the left kidney.", "Spleen."]
    expected = TextEncoder(str(tiny_bert)).encode(texts)
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[NEWPAD]"})
    tokenizer.save_pretrained(folder)
    encoder = TextEncoder(str(folder))
    assert abs(encoder.encode(texts) - expected).max() < 1e-6
    with pytest.raises(UserError, match=r"the text holds \[NEWPAD\]"):
        encoder.encode(["A [NEWPAD] text."])


CODE = "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\nclass Own: ...\n"


@pytest.mark.parametrize("auto_class", ["AutoModelForCausalLM", "AutoConfig"])
@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_folder_is_never_run_and_nobody_is_asked(
    copied: Path, known: bool, auto_class: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "own.py").write_text(CODE)
    edit(copied / "config.json", auto_map={auto_class: "own.Own"}, **({} if known else {"model_type": "own"}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    if known:
        load(copied)
        said = capsys.readouterr().err
        assert "ships its own Python code, which is not run" in " ".join(said.split())
    else:
        with pytest.raises(UserError, match=r"Python code of its own \(config\.json: auto_map\), which is never run"):
            load(copied)
        with pytest.raises(UserError, match="trust_remote_code is off"):
            read_config(str(copied), "text encoder")
    assert not list(copied.rglob("was_run"))


def test_tokenizer_of_own_code_is_not_run_either(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "own.py").write_text(CODE)
    (copied / "tokenizer.json").unlink()
    values = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    edit(copied / "tokenizer_config.json", **values)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    with pytest.raises(UserError, match=r"tokenizer.*(own code|of its own|no tokenizer)"):
        load(copied)
    assert not list(copied.rglob("was_run"))


def test_a_file_in_place_of_a_folder_is_one_clear_error(copied: Path) -> None:
    with pytest.raises(UserError, match="is a file, expected a folder"):
        load(copied / "model.safetensors")
