"""LoRA on the frozen language model (Hu et al. 2021; Table 3's rows with it), through peft."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError

# LLaMA's and OPT's names; the paper gives no rank and no targets, these are Hu et al.'s.
TARGETS = ("q_proj", "v_proj")
ALPHA_PER_RANK = 2


def add_lora(model: nn.Module, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Puts low-rank updates beside the query and value projections, in place; returns what is to be trained.

    The model's answers do not change before training: the second factor begins at zero.

    Raises:
        UserError: peft is not installed; the model has no such projections.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("a LoRA needs peft, which is not installed: pip install peft") from error
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules=list(TARGETS), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise UserError(f"the language model has no {' or '.join(TARGETS)} to put a LoRA on: {error}") from error
    added = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for parameter in added:
        parameter.requires_grad_(True)
    return added


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's LoRA; empty where it has none."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if "lora_" in name}


def save_lora(model: nn.Module, path: Path, rank: int, facts: Mapping[str, Any]) -> None:
    """Writes the LoRA of a model with its rank and `facts` (JSON-able) as metadata; atomic."""
    metadata = {"lora": json.dumps({**facts, "rank": rank}, sort_keys=True)}
    write_atomically(path, save(lora_state(model), metadata=metadata))


def load_lora(model: nn.Module, path: Path) -> None:
    """Puts a saved LoRA on a frozen model, in place.

    Raises:
        UserError: not a LoRA that train-projection saved; one for another language model; no peft.
    """
    try:
        with safe_open(path, "pt") as file:
            rank = int(json.loads((file.metadata() or {})["lora"])["rank"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a LoRA that train-projection saved: {error}") from error
    add_lora(model, rank)
    added = lora_state(model)
    if {name: tensor.shape for name, tensor in added.items()} != {
        name: tensor.shape for name, tensor in tensors.items()
    }:
        raise UserError(
            f"the LoRA {path} was trained on another language model; train one for this profile, or --set lora=none"
        )
    model.load_state_dict(tensors, strict=False)
    model.eval().requires_grad_(False)


def lora_subjects(path: Path) -> set[str]:
    """The subjects of a cache that a saved LoRA was trained on.

    Raises:
        UserError: not a LoRA that train-projection saved.
    """
    try:
        with safe_open(path, "pt") as file:
            return set(json.loads((file.metadata() or {})["lora"]).get("subjects", ()))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a LoRA that train-projection saved: {error}") from error


def lora_digest(path: Path) -> str:
    """sha256 of its file, which stands for it in a recipe."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
