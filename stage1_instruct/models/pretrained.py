"""Loading from a transformers folder, without the network, with errors a person can act on."""

from __future__ import annotations

import importlib.util
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from zeus_union.cache.errors import UserError, first_line
from zeus_union.cache.terminal import counted, warn
from zeus_union.stage1_instruct.weights.store import path_of

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A head that a checkpoint may lack: encoders come without it, and nothing here reads it.
_UNUSED = ("pooler.",)


@dataclass(frozen=True)
class Loading:
    """How a model lies in memory.

    Attributes:
        precision: 'fp32', 'bf16' or 'fp16'; with `quantize`, of what stays unquantised and of the computation.
        quantize: 'none', or '8bit' or '4bit' (nf4) linear layers by bitsandbytes.
        device_map: 'none' is one device; 'auto' spreads the layers over the GPUs, then the CPU (accelerate).
    """

    precision: str = "fp32"
    quantize: str = "none"
    device_map: str = "none"


def load_pretrained(
    auto_class: Any, part: str, what: str, loading: Loading | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """Tokenizer and frozen model of a part of a profile, on the device.

    A tokenizer with fewer tokens than the model has embeddings is fine (Vicuna v0 has a row for padding that LLaMA's
    tokenizer does not know), and so is one whose tokens beyond the embeddings are special ones (Llama 2 with a padding
    token, Gemma 3's image token), which no text here has in it (`check_ids`); nothing is ever resized.

    Python code that comes with the folder is never run, and nobody is asked whether it may.

    Args:
        auto_class: transformers.AutoModel or one of its kin.
        part: a name that `fetch` knows, or a folder with config, weights (one file or shards) and tokenizer.
        what: how a message calls it, e.g. 'language model'.
        loading: fp32 on one device by default.
    Raises:
        UserError: no such folder; no tokenizer; not such a model; weights missing, cut short or of other sizes than
            the configuration says; more tokens than embeddings; bitsandbytes asked for and not installed.
    """
    loading = loading or Loading()
    folder = path_of(part)
    if not folder.is_dir():
        raise UserError(f"the {what} {part} is a file, expected a folder with config.json, weights and tokenizer")
    transformers.utils.logging.disable_progress_bar()
    tokenizer = _tokenizer(folder, part, what)
    options = _options(loading, torch.device(device))
    _check_shards(folder, part, what)
    try:
        with _quiet():
            model, report = auto_class.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=_DTYPES[loading.precision],
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they come back in `report`, with their names
                **options,
            )
    except Exception as error:  # safetensors, zip, pickle and transformers each have their own
        broken = _first_broken(folder)
        if broken is not None:
            raise UserError(
                f"the {what} {part} cannot be read: {broken} is cut short or damaged; copy or download it again"
            ) from error
        if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError, KeyError)):
            raise
        raise _unreadable(folder, part, what, error) from error
    _check_complete(report, folder, part, what)
    rows = model.get_input_embeddings().num_embeddings
    beyond = [token for token, number in tokenizer.get_vocab().items() if number >= rows]
    ordinary = sorted(set(beyond) - _special_tokens(tokenizer))
    if ordinary:
        raise UserError(
            f"the {what} {part} has {rows} embeddings but its tokenizer {len(tokenizer)} tokens: not a pair "
            f"({', '.join(ordinary[:3])} would have no embedding)"
        )
    if own_code(folder):
        warn(f"{part} ships its own Python code, which is not run: transformers' {type(model).__name__} is used")
    if not options:
        model.to(device)
    return tokenizer, model.eval().requires_grad_(False)


def read_config(part: str, what: str) -> Any:
    """The configuration of a part of a profile, without its weights.

    Raises:
        UserError: no such folder; no configuration that transformers can read.
    """
    try:
        return transformers.AutoConfig.from_pretrained(path_of(part), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _unreadable(path_of(part), part, what, error) from error


def load_processor(part: str, what: str) -> Any:
    """The processor of a vision-language model, with its chat template; reads no weights.

    Raises:
        UserError: no such folder; no processor in it, or one that needs a library that is not installed; no chat template.
    """
    folder = path_of(part)
    try:
        with _quiet():
            processor = transformers.AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        needed = next((name for name in ("torchvision", "sentencepiece") if name in str(error).lower()), None)
        advice = f"needs {needed}: pip install {needed}" if needed else first_line(error)
        raise UserError(f"the processor of the {what} {part} {advice}") from error
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        if not own_code(folder):
            raise UserError(f"{_no_processor(folder, part, what)} ({first_line(error)})") from error
        raise _unreadable(folder, part, what, error) from error
    # Without a processor's files transformers gives whatever else is there: a tokenizer, or an image processor.
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise UserError(_no_processor(folder, part, what))
    if not processor.chat_template:
        raise UserError(
            f"the {what} {part} has no chat template: expected chat_template.jinja in {folder} (or chat_template in "
            "processor_config.json); copy it from the model's publisher, or choose the model's instruction-tuned version"
        )
    return processor


def _no_processor(folder: Path, part: str, what: str) -> str:
    return (
        f"the {what} {part} has no processor that transformers can read: expected processor_config.json or "
        f"preprocessor_config.json beside a tokenizer in {folder} (copy them from the model's publisher)"
    )


def own_code(folder: Path) -> list[str]:
    """The files of a folder that name Python code to be run in place of transformers' own ('auto_map')."""
    naming = []
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        try:
            if "auto_map" in json.loads((folder / name).read_text(encoding="utf-8")):
                naming.append(name)
        except (OSError, ValueError, TypeError):
            continue
    return naming


def check_ids(tokenizer: Any, ids: Iterable[int], rows: int) -> None:
    """Refuses tokens for which a model of `rows` embeddings has none.

    Raises:
        UserError: naming the first of them.
    """
    beyond = next((number for number in ids if number >= rows), None)
    if beyond is not None:
        raise UserError(
            f"the text holds {tokenizer.convert_ids_to_tokens(beyond)}, a special token of the tokenizer for which the "
            f"model has no embedding ({rows} of them); leave it out of the text"
        )


def _special_tokens(tokenizer: Any) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _unreadable(folder: Path, part: str, what: str, error: Exception) -> UserError:
    if own_code(folder):
        return UserError(
            f"the {what} {part} comes with Python code of its own ({', '.join(own_code(folder))}: auto_map), which is "
            "never run (trust_remote_code is off), and transformers has no class for it; choose another model"
        )
    return UserError(f"{part} is not a {what} that transformers can read: {' '.join(str(error).split())[:500]}")


def _tokenizer(folder: Path, part: str, what: str) -> Any:
    reason: Exception | None = None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Without the files, transformers 5.0 makes an empty tokenizer, to which every word is unknown.
        if set(tokenizer("liver", add_special_tokens=False).input_ids) - {tokenizer.unk_token_id}:
            return tokenizer
    except (OSError, ValueError, ImportError) as error:
        reason = error
    if "tokenizer_config.json" in own_code(folder) and reason is not None:
        raise _unreadable(folder, part, f"{what}'s tokenizer", reason) from reason
    if (folder / "tokenizer.model").exists() and importlib.util.find_spec("sentencepiece") is None:
        advice = "tokenizer.model is a SentencePiece file, and reading it needs: pip install sentencepiece protobuf"
    else:
        advice = f"expected tokenizer.json or tokenizer.model in {folder} (copy it from the model's publisher)"
    raise UserError(f"the {what} {part} has no tokenizer that transformers can read; {advice}") from reason


def _options(loading: Loading, device: torch.device) -> dict[str, Any]:
    """What from_pretrained needs beside the precision; empty where the model is loaded first and moved then."""
    if loading.quantize == "none":
        return {"device_map": "auto"} if loading.device_map == "auto" else {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"llm_quantize={loading.quantize} needs bitsandbytes, which is not installed: pip install bitsandbytes"
        )
    # Its 8-bit layers warn of a cast at every call, one line for each layer and token.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if loading.quantize == "8bit":
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=_DTYPES[loading.precision]
        )
    return {"quantization_config": config, "device_map": "auto" if loading.device_map == "auto" else {"": device}}


def _check_shards(folder: Path, part: str, what: str) -> None:
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is not an index of weight files; copy or download it again") from error
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            raise UserError(
                f"the {what} {part} is not complete: {folder / missing[0]} is missing "
                f"({len(missing)} of {counted(len(shards), 'file')} named by {index.name})"
            )


def _first_broken(folder: Path) -> Path | None:
    """The first weight file that cannot be opened."""
    from safetensors import SafetensorError, safe_open

    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        if path.suffix == ".bin":
            # torch.save writes a zip archive, whose table of contents is at its end.
            if not zipfile.is_zipfile(path):
                return path
            continue
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return None


def _check_complete(report: Any, folder: Path, part: str, what: str) -> None:
    """transformers fills what a checkpoint lacks with random numbers and only warns."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, in_file, wanted = mismatched[0]
        raise UserError(
            f"the {what} {part} does not fit its configuration: {name} is {tuple(in_file)} in the weights, but "
            f"{tuple(wanted)} by {folder / 'config.json'} ({len(mismatched)} such tensors)"
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise UserError(
            f"the weights in {folder} are not those of the {what} that its config.json describes: {missing[0]} "
            f"is missing ({len(missing)} tensors in all); is it another model, or a part of one?"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing and unexpected keys: `_check_complete` says what matters of it."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
