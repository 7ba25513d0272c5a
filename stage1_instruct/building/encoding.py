"""Pictures of a subject through the image encoder, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.models.assembly import Models

ENCODED_AT_ONCE = 32  # slice-modalities between encoder and disk: 128 MiB as float32


def encode_pieces(
    models: Models,
    report: BuildReport,
    batch_size: int | None,
    shape: tuple[int, int],
    pictures: Callable[[slice], NDArray[np.uint8]],
) -> Iterator[NDArray[np.float32]]:
    """Embeddings float32 (k, M, 256, 64, 64) of some slices at a time, so that memory does not grow with the study.

    Args:
        batch_size: slice-modalities at a time; None: `ENCODED_AT_ONCE`.
        shape: number of slices, and of modalities M.
        pictures: some of the slices -> uint8 (k, M, size, size), at the size the encoder reads.
    """
    slices, modalities = shape
    at_once = max(1, (batch_size or ENCODED_AT_ONCE) // modalities)
    for first in range(0, slices, at_once):
        images = pictures(slice(first, first + at_once))
        with report.timing("image encoder", len(images) * modalities):
            embeddings = _encode(models, images, batch_size)
        yield embeddings
        del embeddings


def _encode(models: Models, images: NDArray[np.uint8], batch_size: int | None) -> NDArray[np.float32]:
    """(n, M, size, size) -> (n, M, 256, 64, 64)."""
    n, modalities = images.shape[:2]
    flat = images.reshape(n * modalities, *images.shape[2:])
    parts = [models.encoder.encode(batch) for batch in _batches(flat, batch_size or len(flat))]
    stacked = torch.cat(parts).numpy()
    return stacked.reshape(n, modalities, *stacked.shape[1:])


def _batches(items: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
