"""Several processes at one batch: sums over all of them, and each one's share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum's gradient is the sum of what every process wants of it; DDP then takes the mean over the processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_plain(values)

    @staticmethod
    def backward(ctx: Any, wanted: Tensor) -> Tensor:
        return sum_plain(wanted)


def sum_plain(values: Tensor) -> Tensor:
    """Values of one shape from every process -> their sum, in every process, outside of autograd.

    Args:
        values: on the device the processes compute on: a group of GPUs (nccl) adds up nothing else.
    """
    total = values.detach().clone().contiguous()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def sum_counts(counts: NDArray[np.int64], device: torch.device) -> NDArray[np.int64]:
    """Counts of one shape from every process -> their sum, in every process; added up on `device`."""
    if not dist.is_initialized():
        return counts
    return sum_plain(torch.from_numpy(counts).to(device)).cpu().numpy()


def add_up(values: Tensor) -> Tensor:
    """As `sum_plain`, differentiable; what came in, where there is one process."""
    return _SumOverProcesses.apply(values) if dist.is_initialized() else values


def share_buffers(*models: nn.Module) -> None:
    """Gives every process the first one's buffers: running means, where a batch norm sees its own share only."""
    if dist.is_initialized():
        for buffer in (buffer for model in models for buffer in model.buffers()):
            dist.broadcast(buffer, src=0)
