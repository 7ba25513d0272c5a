"""Several processes at one batch: sums over all of them, and each one's share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverProcesses(torch.autograd.Function):
    """The sum's gradient is the sum of what every process wants of it; DDP then takes the mean over the processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_plain(values)

    @staticmethod
    def backward(ctx: Any, wanted: Tensor) -> Tensor:
        return sum_plain(wanted)


def sum_plain(values: Tensor) -> Tensor:
    """Values of one shape from every process -> their sum, in every process, outside of autograd."""
    total = values.detach().clone().contiguous()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def add_up(values: Tensor) -> Tensor:
    """As `sum_plain`, differentiable; what came in, where there is one process."""
    return _SumOverProcesses.apply(values) if dist.is_initialized() else values
