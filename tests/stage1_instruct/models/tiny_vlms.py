"""Vision-language models of random weights, small, each with its own processor and chat template, as transformers folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
TEMPLATE = (
    "{% for message in messages %}<|user|>{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MEAN_STD = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def tokenizer(*special: str, **named: str) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, and special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "<bos>", "<eos>", "<pad>", "<|user|>", "<|end|>", "<|assistant|>", *special]
    made = Tokenizer(BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(words[len(alphabet) :])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )


def ids_of(words: transformers.PreTrainedTokenizerFast) -> dict[str, int]:
    return {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}


def llava() -> tuple[Any, Any]:
    words = tokenizer("<image>", image_token="<image>")
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT, **ids_of(words)},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    pictures = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **MEAN_STD
    )
    processor = transformers.LlavaProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """The architecture of SmolVLM, without video."""
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    words = tokenizer(*special)
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT, **ids_of(words)},
        vision_config={"model_type": "idefics3_vision", **VISION},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    pictures = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True, **MEAN_STD
    )
    processor = transformers.Idefics3Processor(
        pictures, words, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """The architecture of MedGemma."""
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    words = tokenizer(*named.values(), **named)
    config = transformers.Gemma3Config(
        text_config={"vocab_size": len(words), "head_dim": 8, "sliding_window": 64, **TEXT, **ids_of(words)},
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    pictures = transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, **MEAN_STD)
    processor = transformers.Gemma3Processor(
        pictures, words, image_seq_length=4, chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>")
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros by itself
    return model, processor


def qwen2_vl() -> tuple[Any, Any]:
    """Needs torchvision: its processor has a part for video."""
    words = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            **TEXT,
            **ids_of(words),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 2, "initializer_range": 0.3},
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    pictures = transformers.Qwen2VLImageProcessor(**sizes, size=size, **MEAN_STD)
    videos = transformers.Qwen2VLVideoProcessor(**sizes)
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = transformers.Qwen2VLProcessor(pictures, words, videos, chat_template=template)
    return transformers.Qwen2VLForConditionalGeneration(config), processor


KINDS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "idefics3": idefics3,
    "gemma3": gemma3,
    "qwen2_vl": qwen2_vl,
}
# Their processors; that of Idefics3 did so before transformers 5.20.
NEEDS_TORCHVISION = ("qwen2_vl", "idefics3") if Version(transformers.__version__) < Version("5.20") else ("qwen2_vl",)


def write_vlm(kind: str, folder: Path) -> Path:
    torch.manual_seed(5)  # with others a Gemma's first token ends its answer
    model, processor = KINDS[kind]()
    model.generation_config = transformers.GenerationConfig(**ids_of(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
