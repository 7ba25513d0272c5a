"""Small real architectures with random weights, and phantoms on disk, two subjects in each layout."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel

from tests.stage1_instruct.file_site import Site, serving
from zeus_union.stage1_instruct import downloads
from zeus_union.stage1_instruct.models.image.tiny_vit import TinyViT
from zeus_union.stage1_instruct.phantom.write import write_demo


def byte_tokenizer(begins: bool = False) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, '#' first (id 0); where `begins`, <s> stands in front of every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (letter != "#", letter))
    special = ["<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate([*alphabet, *special])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def word_tokenizer(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """One token a word of these texts; a full stop, or any other row of punctuation, is a word."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    special = ["<unk>", "</s>", "<pad>"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([*words, *special])}, "<unk>"))
    tokenizer.pre_tokenizer = split
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def write_llama(folder: Path, tokenizer: transformers.PreTrainedTokenizerFast, width: int = 32) -> Path:
    """A two-layer Llama of random weights with that tokenizer, as a transformers folder."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"), byte_tokenizer())


@pytest.fixture(scope="session")
def beginning_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a tokenizer that puts <s> in front, as LLaMA's does."""
    return write_llama(tmp_path_factory.mktemp("llama"), byte_tokenizer(begins=True))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT of random weights with a byte tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = byte_tokenizer(begins=True)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, OPT as language model, a byte tokenizer that puts its beginning token in front as OPT's does."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("blip2")
    tokenizer = byte_tokenizer(begins=True)
    config = transformers.Blip2Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "initializer_range": 0.5,
        },
        qformer_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_hidden_size": 24,
            "initializer_range": 0.5,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer) + 1,
            "hidden_size": 32,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "init_std": 0.5,
        },
        num_query_tokens=5,
        image_token_index=len(tokenizer),
    )
    model = transformers.Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    torch.nn.init.normal_(model.language_projection.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_litemedsam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LiteMedSAM, an eighth as wide, with random weights (of the mask decoder, one tensor)."""
    torch.manual_seed(0)
    narrow = TinyViT((8, 16, 20, 40))
    state = {f"image_encoder.{name}": tensor for name, tensor in narrow.state_dict().items()}
    state["mask_decoder.mask_tokens.weight"] = torch.randn(4, 256)
    state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = torch.randn(2, 128)
    state["prompt_encoder.no_mask_embed.weight"] = torch.randn(1, 256)
    path = tmp_path_factory.mktemp("litemedsam") / "random.safetensors"
    save_file(state, path)
    return path


@pytest.fixture
def tiny_parts(
    random_litemedsam: Path, tiny_llama: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """What turns the lite profile into one of tiny models of random weights, in an empty ZEUS_HOME."""
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path / "home"))
    return {
        "encoder_weights": str(random_litemedsam),
        "llm": str(tiny_llama),
        "text_encoder": str(tiny_bert),
        "max_new_tokens": "8",
    }


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with chaos/, msd/ and nnunet/; only for reading."""
    folder = tmp_path_factory.mktemp("phantoms")
    for layout in ("chaos", "msd", "nnunet"):
        write_demo(layout, folder / layout, subjects=2, seed=3)
    return folder


@pytest.fixture
def chaos(phantoms: Path, tmp_path: Path) -> Path:
    """A CHAOS folder of one's own."""
    return Path(shutil.copytree(phantoms / "chaos", tmp_path / "chaos"))


@pytest.fixture
def msd(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms / "msd", tmp_path / "msd"))


@pytest.fixture
def nnunet(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms / "nnunet", tmp_path / "nnunet"))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of one file; whoever downloads from it does not pause between attempts."""
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    with serving() as running:
        yield running
