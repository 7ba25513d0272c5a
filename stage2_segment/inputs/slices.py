"""Batches from a cache: which slices, in which order, and the bytes on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import cycle, repeat
from typing import NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.quantize import decode_channels_last
from zeus_union.cache.reader import Cache, StoredEmbeddings
from zeus_union.cache.terminal import progress
from zeus_union.stage2_segment.inputs.read_ahead import read_ahead
from zeus_union.stage2_segment.inputs.staging import Staging, Stored

READ_AT_ONCE = 32  # rows; 64 MiB for two modalities
# Batches that are read from a disk or mount before their turn, all at once: what an object store takes to answer (20 to 50 ms a
# request) passes while others are on their way. 8 MiB each with four slices of two modalities.
AHEAD = 4
SHARE_OF_MEMORY = 0.5  # of what is free, that a resident copy may take


class Batch(NamedTuple):
    """On the device.

    Attributes:
        images: float32, embeddings (B, M, 256, 64, 64) or pictures (B, M, 256, 256) from 0 to 1.
        masks: uint8 (B, 256, 256); None without labels.
    """

    images: Tensor
    masks: Tensor | None


class SliceData:
    """Some rows of a cache, with some modalities.

    Args:
        encoder: whose embeddings; None: the pictures.
        rows: row indices of the cache.
        labelled: whether batches carry masks.
        resident: where the rows are kept, a key of `choices.RESIDENT`.
        augmented: whether `batches` will be; that is done in main memory, and auto keeps the rows there.
        views: augmented copies of each row that are read beside it.

    A place is a row at a view: `positions + len(self) * views`, with view 0 for the rows themselves, so that positions are
    places too.

    Attributes:
        resident: 'device', 'ram' or 'disk'.

    Raises:
        UserError: they were to be kept on a device that is no GPU.
    """

    def __init__(
        self,
        cache: Cache,
        encoder: str | None,
        modalities: Sequence[str],
        rows: NDArray[np.intp],
        device: torch.device,
        labelled: bool = True,
        resident: str = "auto",
        augmented: bool = False,
        views: int = 0,
    ):
        self.cache = cache
        self.rows = np.asarray(rows)
        self.device = device
        self.labelled = labelled
        self.encoder = encoder
        self.augmented = augmented
        self.views = views
        self.modalities = [cache.modalities.index(name) for name in modalities]
        self.resident = self._choose_resident() if resident == "auto" else resident
        if self.resident == "device" and device.type == "cpu":
            raise UserError("--resident device needs a GPU; --resident ram keeps the rows in main memory")
        if self.resident != "disk":
            self._whole = self._read_all(torch.device("cpu") if self.resident == "ram" else device)

    def __len__(self) -> int:
        return len(self.rows)

    def _choose_resident(self) -> str:
        per_image = 256 * 256
        if self.encoder is not None:
            per_image = 2**20 * (2 if self.cache.store(self.encoder) == "fp16" else 1)
        per_slice = len(self.modalities) * per_image
        needed = len(self) * (self.views + 1) * (per_slice + 256 * 256)
        on_device = self.device.type == "cuda" and not self.augmented
        if on_device and needed < SHARE_OF_MEMORY * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        return "ram" if needed < SHARE_OF_MEMORY * psutil.virtual_memory().available else "disk"

    def _read(self, places: NDArray[np.intp], out: Stored | None = None) -> Stored:
        """From the cache, the embeddings into the memory of `out` where it is given."""
        rows = self.rows[places % len(self)]
        views = places // len(self) if self.views else None
        masks = self.cache.masks(rows, views) if self.labelled else None
        arrays: tuple[NDArray | None, ...]
        if self.encoder is None:
            arrays = (self.cache.images(rows, views)[:, self.modalities], None, None, masks)
        else:
            buffers = None
            if out is not None:
                buffers = StoredEmbeddings(*(None if part is None else part.numpy() for part in out[:3]))  # type: ignore[arg-type]
            stored = self.cache.read_embeddings(self.encoder, rows, self.modalities, buffers, views)
            arrays = (stored.values, stored.scale, stored.offset, masks)
        return Stored(*(None if array is None else torch.from_numpy(array) for array in arrays))  # type: ignore[arg-type]

    def _read_all(self, device: torch.device) -> Stored:
        count = len(self) * (self.views + 1)
        whole = [
            None if part is None else torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=device)
            for part in self._sample
        ]
        for start in progress(range(0, count, READ_AT_ONCE), "reading the cache"):
            at = np.arange(start, min(start + READ_AT_ONCE, count))
            for target, part in zip(whole, self._read(at)):
                if target is not None and part is not None:
                    target[start : start + len(at)] = part
        return Stored(*whole)  # type: ignore[arg-type]

    def _stored(self, places: NDArray[np.intp], staging: Staging | None = None) -> Stored:
        """The slices at `places`, wherever they are kept; in main memory, in that of `staging`."""
        if self.resident == "disk":
            if staging is None or not len(places):
                return self._read(places)
            return staging.take(self._read(places, staging.room(len(places), self._sample)))
        index = torch.from_numpy(np.asarray(places)).to(self._whole.values.device)
        if staging is None or self.resident == "device":
            return Stored(*(None if part is None else part[index] for part in self._whole))  # type: ignore[arg-type]
        return staging.gather(self._whole, index)

    @cached_property
    def _sample(self) -> Stored:
        """One slice, for dtypes and shapes."""
        return self._read(np.zeros(min(1, len(self)), np.intp))

    def _on_device(self, stored: Stored, staging: Staging | None = None) -> Batch:
        """Embeddings travel as stored and are decoded on the device."""
        # To Apple's GPUs a copy that nobody waits for may read the buffer when something else is in it.
        ahead = self.device.type == "cuda"
        moved = [None if part is None else part.to(self.device, non_blocking=ahead) for part in stored]
        if staging is not None:
            staging.sent()
        values, scale, offset, masks = moved
        assert values is not None
        if self.encoder is None:
            return Batch(values.float().div_(255), masks)
        return Batch(decode_channels_last(values, scale, offset), masks)

    def batch(self, places: NDArray[np.intp]) -> Batch:
        """The slices at `places`."""
        return self._on_device(self._stored(places))

    def _augmented(
        self, positions: NDArray[np.intp], staging: Staging | None = None, *, seeds: Sequence[Sequence[int]]
    ) -> Stored:
        """As `_stored`, of pictures, each slice changed as its seed says."""
        from zeus_union.cache.augmentation import augment  # seconds, which a run without it need not wait

        stored = self._stored(positions)
        assert self.encoder is None and stored.masks is not None
        images, masks = stored.values.cpu().numpy(), stored.masks.cpu().numpy()
        for index, seed in enumerate(seeds):
            images[index], masks[index] = augment(images[index], masks[index], seed, self.modalities)
        augmented = Stored(torch.from_numpy(images), None, None, torch.from_numpy(masks))
        if staging is None or not len(positions):
            return augmented
        staging.room(len(positions), augmented)
        return staging.take(augmented)

    def batches(
        self, many: Iterable[NDArray[np.intp]], seeds: Iterable[Sequence[Sequence[int]]] | None = None
    ) -> Iterator[Batch]:
        """`batch` of each, the next ones being read while one is used; for a GPU through pinned buffers.

        Args:
            seeds: per batch one for each slice, which its pictures and mask are augmented by; None: they stay as they are.
        """
        ahead = AHEAD if self.resident == "disk" else 1
        stagings = [Staging(self.device) for _ in range(ahead + 2)] if self.device.type == "cuda" else [None]

        def jobs() -> Iterator[Callable[[], tuple[Stored, Staging | None]]]:
            every = repeat(None) if seeds is None else seeds
            for places, seeds_here, staging in zip(many, every, cycle(stagings)):
                yield partial(self._prepared, places, seeds_here, staging)

        for stored, staging in read_ahead(jobs(), ahead, ahead, str(self.cache.path)):
            yield self._on_device(stored, staging)

    def _prepared(
        self, places: NDArray[np.intp], seeds: Sequence[Sequence[int]] | None, staging: Staging | None
    ) -> tuple[Stored, Staging | None]:
        if seeds is None:
            return self._stored(places, staging), staging
        return self._augmented(places, staging, seeds=seeds), staging

    def in_order(self, batch_size: int) -> Iterator[tuple[NDArray[np.intp], Batch]]:
        """All slices once, in the order of `rows`, each batch with its positions."""
        places = [np.arange(start, min(start + batch_size, len(self))) for start in range(0, len(self), batch_size)]
        yield from zip(places, self.batches(places))


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
    showing, empty = np.flatnonzero(foreground), np.flatnonzero(~foreground)
    if share == 0 or not len(showing) or not len(empty):
        order = random.permutation(count)
        return [order[i : i + batch_size] for i in range(0, count, batch_size)]
    share = max(share, len(showing) / count)
    edges = np.minimum(np.arange(0, count + batch_size, batch_size), count)
    showing_until = np.ceil(edges * share - 1e-9).astype(int)
    showing_order = _rounds(showing, int(showing_until[-1]), random)
    empty_order = _rounds(empty, int((edges - showing_until)[-1]), random)
    batches = []
    for b in range(len(edges) - 1):
        a, z = showing_until[b], showing_until[b + 1]
        picked = np.concatenate([showing_order[a:z], empty_order[edges[b] - a : edges[b + 1] - z]])
        if len(picked):
            batches.append(random.permutation(picked))
    return batches


def draw_views(
    positions: NDArray[np.intp], slices: int, views: int, seed: int, epoch: int, batch: int
) -> NDArray[np.intp]:
    """The places (see `SliceData`) of a batch: each slice itself or one of its views, all of them equally likely.

    Decided by seed, epoch and the batch's number, so that a resumed run draws the same; for the whole batch, of which
    several processes take their shares.

    Args:
        positions: of the batch.
        slices: that there are to train on.
        views: that each of them has.
    """
    if not views:
        return positions
    random = np.random.default_rng([seed, epoch, batch, len(positions), 2])  # with 1 the texts to leave out are drawn
    return positions + slices * random.integers(0, views + 1, len(positions))


def _rounds(items: NDArray[np.intp], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """`count` draws: every item once before any comes again."""
    rounds = [random.permutation(items) for _ in range(math.ceil(count / len(items)))]
    return np.concatenate([*rounds, items[:0]])[:count]
