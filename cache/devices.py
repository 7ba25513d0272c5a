"""Which device a model computes on: one rule for both stages."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zeus_union.cache.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

HELP = "cpu, cuda, cuda:1, mps (Apple's GPUs), ...; the best there is if not given."


def best_device() -> torch.device:
    """A GPU that torch calls 'cuda' where there is one, else Apple's ('mps'), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def usable_device(name: str | torch.device) -> torch.device:
    """The device called `name`.

    Raises:
        UserError: there is no such device.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name} cannot be used: {first_line(error)}; --device cpu always works") from error
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bf16, so that it is faster than fp32 there.

    torch's own answer for processors is yes for any with AVX-512, most of which turn every bf16 number into fp32 first.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def synchronise(device: torch.device) -> None:
    """Waits for what a device has been told to compute; nothing on the CPU, which is done by then."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn or seeded in the block, the generators of the CPU and of `device` go on as before it."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        state = torch.mps.get_rng_state() if device.type == "mps" else None
        try:
            yield
        finally:
            if state is not None:
                torch.mps.set_rng_state(state)


def release_memory() -> None:
    """Gives back the memory that torch keeps on GPUs for later, after a computation that did not fit."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
