"""Batches from a cache: which slices, in which order, and the bytes on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.quantize import decode
from cache.reader import Cache
from cache.terminal import progress
from stage2_segment.config import RunConfig

READ_AT_ONCE = 32  # rows; 64 MiB for two modalities
SHARE_OF_MEMORY = 0.5  # of what is free, that a resident copy may take


class Batch(NamedTuple):
    """On the device: embeddings float32 (B, M, 256, 64, 64), text float32 (B, M, D), masks uint8 (B, 256, 256).

    D is 0 for a run without text.
    """

    embeddings: Tensor
    text: Tensor
    masks: Tensor | None  # None without labels


class SliceData:
    """Some rows of a cache, for one run's encoder, variant and modalities; in memory as a whole where they fit.

    Args:
        rows: row indices of the cache.
        labelled: whether batches carry masks.
    """

    def __init__(
        self, cache: Cache, config: RunConfig, rows: NDArray[np.intp], device: torch.device, labelled: bool = True
    ):
        self.cache = cache
        self.rows = np.asarray(rows)
        self.device = device
        self.labelled = labelled
        self.encoder, self.variant = config.encoder, config.variant
        self.modalities = [cache.modalities.index(name) for name in config.modalities]
        bytes_needed = len(rows) * len(self.modalities) * 2**20 * (2 if cache.store(config.encoder) == "fp16" else 1)
        self.resident = bytes_needed < SHARE_OF_MEMORY * psutil.virtual_memory().available
        if self.resident:
            self._arrays = self._read_all()

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, rows: NDArray[np.intp]) -> tuple[NDArray | None, ...]:
        """values, scale, offset, text, masks of rows of the cache."""
        stored = self.cache.read_embeddings(self.encoder, rows, self.modalities)
        if self.variant is None:
            text = np.empty((len(rows), len(self.modalities), 0), np.float32)
        else:
            text = self.cache.text_embeddings(self.variant, rows)[:, self.modalities]
        masks = self.cache.masks(rows) if self.labelled else None
        return stored.values, stored.scale, stored.offset, text, masks

    def _read_all(self) -> list[NDArray | None]:
        one = self._read(self.rows[:1])
        whole = [None if array is None else np.empty((len(self), *array.shape[1:]), array.dtype) for array in one]
        for start in progress(range(0, len(self), READ_AT_ONCE), "reading the cache"):
            part = slice(start, start + READ_AT_ONCE)
            for target, array in zip(whole, self._read(self.rows[part])):
                if target is not None:
                    target[part] = array
        return whole

    def batch(self, positions: NDArray[np.intp]) -> Batch:
        """The slices at `positions` of `self.rows`; embeddings travel as stored and are decoded on the device."""
        if self.resident:
            arrays = [None if array is None else array[positions] for array in self._arrays]
        else:
            arrays = list(self._read(self.rows[positions]))
        values, scale, offset, text, masks = arrays
        embeddings = decode(self._there(values), scale, offset)
        return Batch(embeddings, self._there(text), None if masks is None else self._there(masks))

    def _there(self, array: NDArray | None) -> Tensor:
        return torch.as_tensor(array).to(self.device)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All slices once, in the order of `rows`."""
        for start in range(0, len(self.rows), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self.rows))))


def epoch_batches(
    foreground: Sequence[bool] | NDArray[np.bool_], batch_size: int, share: float, seed: int, epoch: int
) -> list[NDArray[np.intp]]:
    """The batches of one epoch, decided by seed and epoch alone, so that a resumed run draws the same.

    With `share` 0 every slice comes once, shuffled. Otherwise at least that share of every batch has foreground: as
    many draws as slices, foreground and empty slices each in shuffled rounds, so that a kind that is rarer than its
    share is seen more than once and the other less.

    Args:
        foreground: per slice, whether it shows any class.
        share: smallest share of foreground slices.
    Returns:
        positions, `batch_size` each but for the last.
    """
    random = np.random.default_rng([seed, epoch])
    foreground = np.asarray(foreground, dtype=bool)
    count = len(foreground)
    shown, empty = np.flatnonzero(foreground), np.flatnonzero(~foreground)
    if share == 0 or not len(shown) or not len(empty):
        order = random.permutation(count)
        return [order[i : i + batch_size] for i in range(0, count, batch_size)]
    share = max(share, len(shown) / count)
    edges = np.minimum(np.arange(0, count + batch_size, batch_size), count)
    shown_until = np.ceil(edges * share - 1e-9).astype(int)
    shown_order = _rounds(shown, int(shown_until[-1]), random)
    empty_order = _rounds(empty, int((edges - shown_until)[-1]), random)
    batches = []
    for b in range(len(edges) - 1):
        a, z = shown_until[b], shown_until[b + 1]
        picked = np.concatenate([shown_order[a:z], empty_order[edges[b] - a : edges[b + 1] - z]])
        if len(picked):
            batches.append(random.permutation(picked))
    return batches


def _rounds(items: NDArray[np.intp], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """`count` draws: every item once before any comes again."""
    rounds = [random.permutation(items) for _ in range(math.ceil(count / len(items)))]
    return np.concatenate([*rounds, items[:0]])[:count]
