"""Work in batches that shrink when memory runs out, for every frozen model of stage 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from zeus_union.cache.errors import UserError, first_line

T = TypeVar("T")

# How torch words it beside its own exception type: CUDA, the CPU allocator on Linux and on Windows, cuBLAS.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def run_in_batches(
    function: Callable[[slice], T], count: int, size: int, say: Callable[[str], None], what: str
) -> tuple[list[T], int]:
    """Calls `function` on slice(0, size), slice(size, ...) up to `count`; out of memory halves the batch and goes on.

    Args:
        function: handles one batch; called again with a shorter slice where it ran out of memory.
        count: how many items there are.
        size: items in a batch, at first.
        say: told of each halving.
        what: names the model in messages, e.g. 'sam_vit_h'.
    Returns:
        one result a batch, in order; and the batch size that fitted: pass it to the next call, so that nothing is tried
        or said twice.
    Raises:
        UserError: a batch of one item does not fit. Other exceptions of `function` pass through.
        ValueError: size below 1.
    """
    if size < 1:
        raise ValueError(f"batch size {size}, expected 1 or more")
    parts: list[T] = []
    at = 0
    while at < count:
        stop = min(at + size, count)
        try:
            parts.append(function(slice(at, stop)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - at == 1:
                raise UserError(
                    f"{what} ran out of memory with a single item ({first_line(error)}); free memory on the device, "
                    "choose a smaller model or a lower precision (bf16), or run on the CPU"
                ) from error
        else:
            at = stop
            continue
        # Only here, after the except block, is the traceback gone that kept the failed batch's tensors alive.
        size = (stop - at) // 2
        say(f"{what}: out of memory with {stop - at} at a time; going on with {size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return parts, size


def run_in_chosen_batches(
    function: Callable[[list[int]], T], order: Sequence[int], size: int, say: Callable[[str], None], what: str
) -> tuple[list[tuple[list[int], T]], int]:
    """`run_in_batches` over positions in an order of one's own; each result comes with its positions."""

    def call(batch: slice) -> tuple[list[int], T]:
        chosen = list(order[batch])
        return chosen, function(chosen)

    return run_in_batches(call, len(order), size, say, what)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or numpy ran out of memory, on any device."""
    # torch.cuda.OutOfMemoryError is torch.OutOfMemoryError from 2.5 on, and the only name before.
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
