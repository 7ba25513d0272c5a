"""The device a run computes on, and the processes that share its batches."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from zeus_union.cache.devices import best_device, usable_device
from zeus_union.cache.errors import UserError

# What `accelerate config` can switch on that wraps or shards the model; none of it is made for models of a few millions.
WRAPPERS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
AUTOCAST = {"fp32": "no", "bf16": "bf16"}  # a run's precision -> accelerate's word for it


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; the best there is for None (`cache.devices`). fp32 is fp32 on it: TF32 is off.

    Raises:
        UserError: no such device.
    """
    # cuDNN's convolutions would round to 10 bits by default, so that no GPU gives the numbers of a CPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name is None:
        return best_device()
    device = usable_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def make_accelerator(
    device: str | None, unused_parameters: bool = False, precisions: Iterable[str] = ("fp32",)
) -> Accelerator:
    """For one device, or the device of this process where accelerate launch started several.

    Nothing of `accelerate config` changes what is computed: a run's own recipe says its precision.

    Args:
        unused_parameters: a step may leave some of a model out.
        precisions: of the runs that will be trained, 'fp32' or 'bf16'.

    Raises:
        UserError: no such device; the environment asks for another precision, or for a wrapped model.
    """
    check_environment(precisions)
    chosen = pick_device(device)
    # Buffers are shared once an epoch (`processes.share_buffers`), not before every forward pass.
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters, broadcast_buffers=False)
    return Accelerator(cpu=chosen.type == "cpu", mixed_precision="no", dynamo_backend="no", kwargs_handlers=[kwargs])


def check_environment(precisions: Iterable[str]) -> None:
    """Raises UserError: what `accelerate config` or launch put into the environment contradicts the runs' precision."""
    chosen = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()  # 'no': nothing was chosen
    contradicted = sorted(name for name in set(precisions) if chosen not in ("no", AUTOCAST[name]))
    if contradicted:
        raise UserError(
            f"ACCELERATE_MIXED_PRECISION is {chosen} (accelerate config, or launch --mixed_precision) and the run's precision "
            f"{', '.join(contradicted)}; the run's alone decides: choose it with --precision, and start with "
            "accelerate launch --mixed_precision no"
        )
    wrappers = [name for name in WRAPPERS if os.environ.get(name, "false").lower() in ("1", "true", "yes", "on")]
    if wrappers:
        raise UserError(
            f"{', '.join(wrappers)} is on (accelerate config), which stage 2 does not use: its models fit into any GPU; "
            "start with accelerate launch --multi_gpu"
        )
