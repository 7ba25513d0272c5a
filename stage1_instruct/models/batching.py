"""Work in batches that shrink when memory runs out, for every frozen model of stage 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from zeus_union.cache.devices import release_memory
from zeus_union.cache.errors import UserError, first_line

T = TypeVar("T")

# Rows of a language model together: on a CPU more gain nothing (its steps grow with the rows), on a GPU at most so many.
CPU_ROWS, MOST_ROWS = 16, 128
# Of the memory that is free: the rest is for longer prompts than those that were measured, and for gaps.
SHARE = 0.8

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
        say(f"{what}: out of memory with {stop - at} at a time; continuing with {size}")
        release_memory()
    return parts, size


def run_in_chosen_batches(
    function: Callable[[list[int]], T], order: Sequence[int], size: int, say: Callable[[str], None], what: str
) -> tuple[list[tuple[list[int], T]], int]:
    """`run_in_batches` over positions in an order of one's own; each result comes with its positions."""

    def call(batch: slice) -> tuple[list[int], T]:
        chosen = list(order[batch])
        return chosen, function(chosen)

    return run_in_batches(call, len(order), size, say, what)


def rows_that_fit(run: Callable[[int], object], devices: Iterable[torch.device]) -> int:
    """How many rows of a model fit together: a fixed number on a CPU; on GPUs by what a run of 1 and one of 4 rows take.

    Args:
        run: computes so many rows.
        devices: where the model lies.
    """
    gpus = sorted({device for device in devices if device.type == "cuda"}, key=str)
    if not gpus:
        return CPU_ROWS
    try:
        single, several = (_peaks(run, rows, gpus) for rows in (1, 4))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    fitting = [MOST_ROWS]
    for gpu, of_single, of_several in zip(gpus, single, several):
        taken = torch.cuda.memory_allocated(gpu)
        free = torch.cuda.mem_get_info(gpu)[0] + torch.cuda.memory_reserved(gpu) - taken
        fitting.append(rows_within(SHARE * free - (of_single - taken), of_single, of_several))
    return max(1, min(fitting))


def rows_within(room: float, of_single: int, of_several: int) -> int:
    """Rows for which `room` bytes beside the first one suffice, from the bytes of 1 row and of 4."""
    return 1 + int(max(0.0, room) // max(1.0, (of_several - of_single) / 3))


def _peaks(run: Callable[[int], object], rows: int, gpus: Sequence[torch.device]) -> list[int]:
    """Bytes in use at most on each GPU during a run."""
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    run(rows)
    return [torch.cuda.max_memory_allocated(gpu) for gpu in gpus]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or numpy ran out of memory, on any device."""
    # torch.cuda.OutOfMemoryError is torch.OutOfMemoryError from 2.5 on, and the only name before.
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
