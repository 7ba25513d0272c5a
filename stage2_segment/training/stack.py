"""Several models of one architecture in one forward and one backward pass (torch.func.vmap)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap


class Stack:
    """Models side by side: their weights as one tensor a name, of which each model's own are views.

    So every model keeps an optimiser, clipping and a schedule of its own; only forward and backward are shared. The
    numbers are each model's own up to the rounding of a batched matrix product.

    Args:
        models: of the same architecture, on one device. They stay usable; their parameters become views.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self._skeleton = copy.deepcopy(models[0]).to("meta")
        named = [dict(model.named_parameters()) for model in models]
        self._weights = {
            name: torch.stack([parameters[name].detach() for parameters in named]).requires_grad_() for name in named[0]
        }
        for index, parameters in enumerate(named):
            for name, parameter in parameters.items():
                parameter.data = self._weights[name].data[index]
        buffers = [dict(model.named_buffers()) for model in models]
        self._buffers = {name: torch.stack([of_model[name] for of_model in buffers]) for name in buffers[0]}

    def logits(
        self, embeddings: Tensor, text: Tensor, present: Sequence[int], use_text: Tensor | None = None
    ) -> Tensor:
        """(V, B, K, 256, 256).

        Args:
            embeddings: (B, m, 256, 64, 64) for all models, or (V, B, m, 256, 64, 64).
            text: (V, B, m, D).
            use_text: (B,), for all models; see `Zeus.forward`.
        """

        def forward(weights: dict[str, Tensor], buffers: dict[str, Tensor], embeddings: Tensor, text: Tensor) -> Tensor:
            return functional_call(self._skeleton, (weights, buffers), (embeddings, text, present, use_text))

        every = (0, 0, None if embeddings.dim() == 5 else 0, 0)
        return vmap(forward, in_dims=every)(self._weights, self._buffers, embeddings, text)

    def hand_out_gradients(self) -> None:
        """Adds the gradients of the last backward pass to each model's own."""
        for name, stacked in self._weights.items():
            if stacked.grad is None:
                continue
            for model, gradient in zip(self.models, stacked.grad):
                parameter = model.get_parameter(name)
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            stacked.grad = None
