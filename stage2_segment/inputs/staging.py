"""Batches on their way to a GPU: through pinned memory that is used again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Stored(NamedTuple):
    """As they are stored; the last three may be absent."""

    values: Tensor
    scale: Tensor | None
    offset: Tensor | None
    masks: Tensor | None


class Staging:
    """Pinned memory for one batch on its way to a GPU: used again, and never before its last copy has arrived.

    Copies out of pinned memory run beside the computation; fresh memory costs more than the reading that fills it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[Tensor | None] = [None] * 4
        self._sent: torch.cuda.Event | None = None

    def room(self, count: int, like: Stored) -> Stored:
        """Space for `count` slices of the dtypes and shapes of `like`."""
        if self._sent is not None:
            self._sent.synchronize()
        for index, part in enumerate(like):
            buffer = self._buffers[index]
            if part is not None and (buffer is None or len(buffer) < count):
                shape = (count, *part.shape[1:])
                self._buffers[index] = torch.empty(shape, dtype=part.dtype, pin_memory=self._device.type == "cuda")
        views = (None if part is None else buffer[:count] for part, buffer in zip(like, self._buffers))  # type: ignore[index]
        return Stored(*views)  # type: ignore[arg-type]

    def take(self, stored: Stored) -> Stored:
        """`stored`, of which some is in this memory already, as a whole in it."""
        taken = []
        for part, buffer in zip(stored, self._buffers):
            if part is None or buffer is None or part.data_ptr() == buffer.data_ptr():
                taken.append(part)
            else:
                taken.append(buffer[: len(part)].copy_(part))
        return Stored(*taken)  # type: ignore[arg-type]

    def gather(self, whole: Stored, index: Tensor) -> Stored:
        """The slices at `index` of `whole`."""
        room = self.room(len(index), whole)
        for part, target in zip(whole, room):
            if part is not None and target is not None:
                torch.index_select(part, 0, index, out=target)
        return room

    def sent(self) -> None:
        """The copies to the GPU are on their way."""
        if self._device.type == "cuda":
            self._sent = torch.cuda.Event()
            self._sent.record(torch.cuda.current_stream(self._device))
