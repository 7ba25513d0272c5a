"""The trainable bridge from vision features to the language model's token embeddings: f_vt (Zeus, section 3.1)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cache.errors import UserError


class Projection(nn.Module):
    """Two linear layers with GELU between them, LLaVA's `mlp2x_gelu`.

    The features are first standardised by `mean` and `std` of the training pictures (not trained, identity without
    training): pooled embeddings of different slices share most of their value, and only the rest tells them apart.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))

    @property
    def sizes(self) -> dict[str, int]:
        first, second = self.first, self.second
        return {"inputs": first.in_features, "hidden": first.out_features, "outputs": second.out_features}

    def forward(self, features: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.second(nn.functional.gelu(self.first((features - self.mean) / self.std)))

    def standardise_by(self, features: Tensor) -> None:
        """Takes mean and spread per channel from features (..., inputs)."""
        flat = features.flatten(0, -2)
        self.mean.copy_(flat.mean(0))
        self.std.copy_(flat.std(0).clamp_min(1e-4))

    @classmethod
    def untrained(cls, inputs: int, hidden: int, embedding: Tensor, seed: int = 0) -> Projection:
        """Seeded random weights whose outputs have the spread of the LLM's own token embeddings.

        Args:
            embedding: (vocabulary, width) of the LLM.
        """
        generator = torch.Generator().manual_seed(seed)
        projection = cls(inputs, hidden, embedding.shape[1]).requires_grad_(False)
        for layer in (projection.first, projection.second):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
            layer.bias.zero_()
        probe = projection(torch.randn(512, inputs, generator=generator))
        projection.second.weight.mul_(embedding.float().std().cpu() / probe.std())
        return projection.requires_grad_(True)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Writes the weights with their sizes and `facts` (JSON-able) as metadata; atomic."""
        metadata = {"projection": json.dumps({**facts, **self.sizes}, sort_keys=True)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(save(tensors, metadata=metadata))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, inputs: int, outputs: int) -> tuple[Projection, dict[str, Any]]:
        """A saved projection and the facts saved with it.

        Args:
            inputs: width of the vision features it will be given.
            outputs: width of the language model it will feed.
        Raises:
            UserError: not a projection of ours; one for other widths.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["projection"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            projection = cls(facts["inputs"], facts["hidden"], facts["outputs"])
            projection.load_state_dict(tensors)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is not a projection that train-projection saved: {error}") from error
        for side, found, expected in (
            ("takes vision features", facts["inputs"], inputs),
            ("feeds a language model", facts["outputs"], outputs),
        ):
            if found != expected:
                raise UserError(
                    f"the projection {path} {side} {found} wide, but this profile's are {expected}; "
                    "train one for this profile (zeus-instruct train-projection) or --set projection=untrained"
                )
        return projection, facts

    def digest(self) -> str:
        """sha256 over the weights, which stands for the projection in a recipe."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()
