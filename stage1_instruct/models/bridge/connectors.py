"""The trainable bridge from vision features to the language model's token embeddings: f_vt (Zeus, section 3.1)."""

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
from zeus_union.stage1_instruct.models.bridge.qformer import QFormer


class Connector(nn.Module):
    """Vision features (B, T, inputs) -> image tokens of the language model (B, T', outputs).

    The features are first standardised by `mean` and `std` of the training pictures (not trained, identity without
    training): pooled embeddings of different slices share most of their value, and only the rest tells them apart.

    Attributes:
        kind: 'mlp', two linear layers with GELU between them (LLaVA's `mlp2x_gelu`); 'linear', one (XrayGPT's and
            MiniGPT-4's llama_proj); 'qformer', 32 learned queries that look at all features of a picture; 'none', for
            features that are image tokens already.
        sizes: inputs, hidden (of an mlp) and outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        if kind == "mlp":
            self.layers: nn.Module = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        elif kind == "linear":
            self.layers = nn.Linear(inputs, outputs)
        elif kind == "none":
            self.layers = nn.Identity()
        elif kind == "qformer":
            self.layers = QFormer(inputs, outputs)
        else:
            raise UserError(f"connector = {kind!r} is unknown; there are: mlp, linear, qformer")
        self.kind = kind
        self.sizes = {"inputs": inputs, "hidden": hidden, "outputs": outputs}
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers((features - self.mean) / self.std)

    def standardise_by(self, features: Tensor) -> None:
        """Takes mean and spread per channel from features (..., inputs)."""
        flat = features.flatten(0, -2)
        self.mean.copy_(flat.mean(0))
        self.std.copy_(flat.std(0).clamp_min(1e-4))

    def digest(self) -> str:
        """sha256 over the weights, which stands for the connector in a recipe."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()


@torch.no_grad()
def new_connector(kind: str, inputs: int, hidden: int, embedding: Tensor, seed: int = 0) -> Connector:
    """Seeded random weights whose outputs have the spread of the language model's own token embeddings.

    Args:
        embedding: (vocabulary, width) of the language model.
    """
    generator = torch.Generator().manual_seed(seed)
    connector = Connector(kind, inputs, hidden, embedding.shape[1])
    for module in connector.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / module.in_features**0.5)
            module.bias.zero_()
    if isinstance(connector.layers, QFormer):
        connector.layers.begin(generator)
    last = [module for module in connector.modules() if isinstance(module, nn.Linear)][-1]
    probe = connector.eval()(torch.randn(8, 64, inputs, generator=generator))
    last.weight.mul_(embedding.float().std().cpu() / probe.std())
    return connector


def save_connector(connector: Connector, path: Path, facts: Mapping[str, Any]) -> None:
    """Writes the weights with their kind, sizes and `facts` (JSON-able) as metadata; atomic."""
    metadata = {"projection": json.dumps({**facts, "kind": connector.kind, **connector.sizes}, sort_keys=True)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in connector.state_dict().items()}
    write_atomically(path, save(tensors, metadata=metadata))


def load_connector(path: Path, inputs: int, outputs: int) -> tuple[Connector, dict[str, Any]]:
    """`read_connector`, for given widths.

    Args:
        inputs: width of the vision features it will be given.
        outputs: width of the language model it will feed.
    Raises:
        UserError: not a connector of ours; one for other widths.
    """
    connector, facts = read_connector(path)
    check_widths(connector, path, inputs, outputs)
    return connector, facts


def read_connector(path: Path) -> tuple[Connector, dict[str, Any]]:
    """A saved connector and the facts saved with it; or, of a .pth checkpoint, XrayGPT's or MiniGPT-4's (no facts).

    Raises:
        UserError: not a connector of ours.
    """
    if path.suffix == ".pth":
        return read_llama_proj(path), {}
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["projection"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        connector = Connector(facts["kind"], facts["inputs"], facts["hidden"], facts["outputs"])
        connector.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a projection that train-projection saved: {error}") from error
    return connector, facts


def check_widths(connector: Connector, path: Path, inputs: int, outputs: int) -> None:
    """Refuses a saved connector for features, or for a language model, of another width.

    Raises:
        UserError: naming both widths.
    """
    for side, width, expected in (
        ("takes vision features", connector.sizes["inputs"], inputs),
        ("feeds a language model", connector.sizes["outputs"], outputs),
    ):
        if width != expected:
            raise UserError(
                f"the projection {path} {side} {width} wide, but this profile's are {expected}; "
                "train one for this profile (zeus-instruct train-projection) or --set projection=untrained"
            )


def read_llama_proj(path: Path) -> Connector:
    """The linear projection of an XrayGPT or MiniGPT-4 checkpoint: `llama_proj`, Linear(768, width of the LLM).

    Their other entries (buffers of the Q-Former and the LLM) are left. It was trained on the tokens of BLIP-2's Q-Former,
    not on MedCLIP's features: a start for training, no more (XrayGPT never loads MedCLIP).

    Raises:
        UserError: no such file, a pickle that would run code, no llama_proj in it.
    """
    from zeus_union.stage1_instruct.weights.files import read_weights

    state = read_weights(path)
    names = ("llama_proj.weight", "llama_proj.bias")
    lacking = [name for name in names if name not in state]
    if lacking:
        raise UserError(f"{path} holds no {lacking[0]}; expected a checkpoint of XrayGPT or MiniGPT-4")
    weight, bias = (state[name].float() for name in names)
    connector = Connector("linear", weight.shape[1], 0, weight.shape[0])
    connector.layers.load_state_dict({"weight": weight, "bias": bias})
    return connector
