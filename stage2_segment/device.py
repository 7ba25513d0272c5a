"""The device a run computes on, and the processes that share its batches."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from zeus_union.cache.errors import UserError


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; the best there is for None.

    Raises:
        UserError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"device {name} cannot be used: {why}; --device cpu always works") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def make_accelerator(device: str | None, unused_parameters: bool = False) -> Accelerator:
    """For one device, or the device of this process where accelerate launch started several.

    Args:
        unused_parameters: a step may leave some of a model out.
    """
    chosen = pick_device(device)
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)
    return Accelerator(cpu=chosen.type == "cpu", kwargs_handlers=[kwargs])
