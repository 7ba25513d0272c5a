"""Looks at a profile's models before hours of computing: is every file there, does it load, fit and speak?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.models.batching import is_out_of_memory
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.projected_llm import ProjectedLLM
from zeus_union.stage1_instruct.profiles.profile import SERVER, Profile
from zeus_union.stage1_instruct.weights.store import path_of

TOKENS = 10


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        part: what.
        sound: whether it is as it should be.
        report: what was found.
    """

    part: str
    sound: bool
    report: str


def examine(profile: Profile, device: str | torch.device, send_images_to: str | None = None) -> Iterator[Finding]:
    """Findings as they come: files first, then memory, then every model loaded and used once.

    One broken part does not keep the others from being looked at. Needs no data: the picture is a gradient.

    Args:
        send_images_to: as for `load_models`.
    """
    missing = False
    for part in profile.parts:
        try:
            yield Finding(part, True, f"{path_of(part)}, {_bytes(path_of(part)) / 1e9:.2f} GB")
        except UserError as error:
            missing = True
            yield Finding(part, False, str(error))
    if missing:
        return
    yield _memory(profile, torch.device(device))
    notes: list[str] = []
    models = load_models(replace(profile, max_new_tokens=TOKENS), device, notes.append, 1, send_images_to)
    checks: dict[str, Callable[[Models], str]] = {
        "image encoder": _encoder,
        "vision features": _vision,
        "projection": _projection,
        "decoding": _decoding,
        "server": _server,
        "instruction": _instruction,
        "text encoder": _text,
    }
    if not isinstance(models.instructor, ProjectedLLM):
        del checks["vision features"], checks["projection"], checks["decoding"]
    if profile.instructor != SERVER:
        del checks["server"]
    for part, check in checks.items():
        try:
            yield Finding(part, True, check(models))
        except UserError as error:
            yield Finding(part, False, str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            yield Finding(part, False, str(error))
    for message in notes:
        yield Finding("note", True, message)


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _memory(profile: Profile, device: torch.device) -> Finding:
    """Weights as they lie on the disk against free memory: a lower bound, in the precision they are stored in."""
    needed = sum(_bytes(path_of(part)) for part in profile.parts)
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    return Finding(
        "memory",
        needed < free,
        f"the weights take {needed / 1e9:.1f} GB or more, {free / 1e9:.1f} GB are free on {device}",
    )


def _picture(size: int) -> np.ndarray:
    return np.tile(np.linspace(0, 255, size).astype(np.uint8), (1, size, 1))


def _image(models: Models) -> torch.Tensor:
    """The test picture as an instructor sees it that sees anything."""
    if models.instructor.sees == "pictures":
        return torch.from_numpy(_picture(256))
    return models.encoder.encode(_picture(models.encoder.input_size))


def _encoder(models: Models) -> str:
    start = time.perf_counter()
    embedding = models.encoder.encode(_picture(models.encoder.input_size))
    seconds = time.perf_counter() - start
    if not bool(torch.isfinite(embedding).all()):
        raise UserError(f"{models.encoder.name} gives NaN or infinite values; try --set encoder_precision=fp32")
    constants = models.encoder.constants()
    return f"{models.encoder.name}: {tuple(embedding.shape)} in {seconds:.1f} s, {len(constants)} decoder constants"


def _vision(models: Models) -> str:
    features = models.projected_llm.features(_image(models))
    return f"{models.profile.vision}: {features.shape[1]} tokens, {features.shape[2]} wide"


def _projection(models: Models) -> str:
    llm = models.projected_llm
    tokens = llm.image_tokens(_image(models))
    return f"{llm.projection.kind}: {tokens.shape[1]} image tokens, {tokens.shape[2]} wide, as the language model's"


def _decoding(models: Models) -> str:
    """A few tokens by the decode loop and by transformers' own `generate`, whatever the language model."""
    served = models.projected_llm.llm.serving
    if served.by_library:
        return f"by transformers' generate, one prompt at a time, slower: {served.report}"
    return f"by the decode loop, many prompts together: {served.report}"


def _server(models: Models) -> str:
    """One question with a picture and without: a model that sees has more tokens to read with it."""
    models.instructor.load()
    return f"{models.profile.address}: {models.profile.model} answers"


def _instruction(models: Models) -> str:
    start = time.perf_counter()
    image = None if models.instructor.sees == "nothing" else _image(models)
    instruction = models.instructor.answer([question("liver", "MRI-T2")], image, [0])[0]
    seconds = time.perf_counter() - start
    if models.instructor.sees == "nothing":
        return f"no language model, the text is the question: {instruction.text!r}"
    return f"{instruction.output_tokens} tokens in {seconds:.1f} s: {instruction.text!r}"


def _text(models: Models) -> str:
    vector = models.text_encoder.encode(["The liver is bright."])
    return f"{models.profile.text_kind}: {vector.shape[1]} wide; the aligner takes any width"
