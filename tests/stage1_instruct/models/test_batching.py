"""Batches that halve when memory runs out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.batching import (
    CPU_ROWS,
    MOST_ROWS,
    is_out_of_memory,
    rows_that_fit,
    run_in_batches,
)


def doubling(most: int, error: Callable[[], Exception]) -> tuple[Callable[[slice], list[int]], list[int]]:
    """A function that doubles its items, and fails above `most` of them; the sizes it was called with."""
    sizes: list[int] = []

    def double(batch: slice) -> list[int]:
        sizes.append(batch.stop - batch.start)
        if sizes[-1] > most:
            raise error()
        return [2 * item for item in range(batch.start, batch.stop)]

    return double, sizes


ERRORS = [
    lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB"),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError,
]


@pytest.mark.parametrize("error", ERRORS)
def test_halves_until_it_fits_and_keeps_the_order(error: Callable[[], Exception]) -> None:
    double, sizes = doubling(2, error)
    said: list[str] = []
    parts, size = run_in_batches(double, 11, 8, said.append, "model")
    assert [item for part in parts for item in part] == [2 * item for item in range(11)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert size == 2
    assert said == [
        "model: out of memory with 8 at a time; continuing with 4",
        "model: out of memory with 4 at a time; continuing with 2",
    ]


def test_size_that_fitted_is_not_tried_larger_or_said_again() -> None:
    double, sizes = doubling(2, ERRORS[0])
    said: list[str] = []
    _, size = run_in_batches(double, 4, 4, said.append, "model")
    run_in_batches(double, 4, size, said.append, "model")
    assert sizes == [4, 2, 2, 2, 2]
    assert len(said) == 1


def test_failure_later_on_keeps_what_is_done() -> None:
    calls: list[slice] = []

    def fails_once(batch: slice) -> int:
        calls.append(batch)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return batch.stop - batch.start

    parts, size = run_in_batches(fails_once, 7, 4, lambda _: None, "model")
    assert calls == [slice(0, 4), slice(4, 7), slice(4, 5), slice(5, 6), slice(6, 7)]
    assert (parts, size) == ([4, 1, 1, 1], 1)


def test_failed_batch_is_freed_before_the_next_try() -> None:
    dead: list[weakref.ref[np.ndarray]] = []

    def hungry(batch: slice) -> int:
        assert all(reference() is None for reference in dead)
        held = np.zeros(10)
        dead.append(weakref.ref(held))
        if batch.stop - batch.start > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return 0

    gc.disable()
    try:
        run_in_batches(hungry, 4, 4, lambda _: None, "model")
    finally:
        gc.enable()


def test_single_item_that_does_not_fit_says_what_to_do() -> None:
    double, _ = doubling(0, ERRORS[0])
    with pytest.raises(
        UserError, match=r"sam_vit_h ran out of memory with a single item \(CUDA out of .*lower precision"
    ):
        run_in_batches(double, 3, 2, lambda _: None, "sam_vit_h")


def test_other_errors_pass_through() -> None:
    double, sizes = doubling(0, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        run_in_batches(double, 3, 2, lambda _: None, "model")
    assert sizes == [2]
    assert not is_out_of_memory(ValueError("out of memory"))


def test_nothing_to_do_gives_no_parts() -> None:
    assert run_in_batches(lambda batch: batch, 0, 4, print, "model") == ([], 4)


def test_size_0_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size 0"):
        run_in_batches(lambda batch: batch, 3, 0, print, "model")


def test_rows_that_fit_are_a_fixed_number_on_a_cpu_and_nothing_is_run_for_it() -> None:
    def run(rows: int) -> None:
        raise AssertionError

    assert rows_that_fit(run, [torch.device("cpu")]) == CPU_ROWS


class Gpu:
    """A GPU of so many bytes, of which a run of n rows takes `fixed` + n * `each`."""

    def __init__(self, total: int, fixed: int, each: int) -> None:
        self.total, self.fixed, self.each, self.peak = total, fixed, each, 0

    def run(self, rows: int) -> None:
        self.peak = self.fixed + rows * self.each
        if self.peak > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("total", "fixed", "each", "expected"),
    [
        (1000, 100, 10, 1 + int((0.8 * 900 - 10) // 10)),
        (10**9, 100, 10, MOST_ROWS),
        (1000, 100, 300, 1),  # four rows do not fit
        (1400, 100, 300, 1 + int((0.8 * 1300 - 300) // 300)),
    ],
)
def test_rows_that_fit_on_a_gpu_come_from_what_one_and_four_rows_take(
    total: int, fixed: int, each: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(total, fixed, each)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: gpu.peak)
    for name in ("memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda _: gpu.fixed)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gpu.total - gpu.fixed, gpu.total))
    rows = rows_that_fit(gpu.run, [torch.device("cuda:0"), torch.device("cpu")])
    assert rows == expected
    gpu.run(rows)
