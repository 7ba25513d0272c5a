"""How much of a study's files is read: all, or what a check before hours of work can afford.

A check goes through the very reader that the build will use, so that the two never differ in what they refuse; only the
functions that take voxels from a file ask `wanted` and give zeros of the right shape instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Depth = Literal["headers", "labels", "voxels"]

_depth: ContextVar[Depth] = ContextVar("depth", default="voxels")


@contextmanager
def reading(depth: Depth) -> Iterator[None]:
    """Readers take, for the time of the block, 'headers' only, the voxels of 'labels' too, or all 'voxels'."""
    token = _depth.set(depth)
    try:
        yield
    finally:
        _depth.reset(token)


def wanted(labels: bool = False) -> bool:
    """Whether voxels are to be read; `labels`: those of a label map."""
    return _depth.get() == "voxels" or (labels and _depth.get() == "labels")
