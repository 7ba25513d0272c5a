"""A cache of keys and values for rows that come and go: buffers of a fixed size, one slot a row."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Columns beyond the longest possible row: everything is moved to the left at most once in so many tokens, and a move
# costs about what attention costs for one token.
SPARE_COLUMNS = 64


def tensors(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (rows, heads, columns, width) of each layer of a filled cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


class _Span:
    """Which part of the buffers is in use: `rows` from the first on, columns [start, end)."""

    def __init__(self, end: int) -> None:
        self.rows, self.start, self.end = 0, end, end


class _SlotLayer(DynamicLayer):
    """Keys and values of one layer in buffers (slots, heads, columns, width), written in place."""

    def __init__(self, keys: Tensor, values: Tensor, slots: int, columns: int, span: _Span) -> None:
        """Args: keys, values: of another cache of the same model."""
        super().__init__()
        # Zeros, not whatever was there: attention multiplies masked values by 0, and 0 x NaN is NaN.
        self._buffers = [part.new_zeros(slots, part.shape[1], columns, part.shape[3]) for part in (keys, values)]
        self.keys, self.values = self._buffers
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._span = span

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        span = self._span
        stop = span.end + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states)):
            buffer[: span.rows, :, span.end : stop] = states
        keys, values = (buffer[: span.rows, :, span.start : stop] for buffer in self._buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self._span.end - self._span.start


class SlotCache(Cache):
    """One slot a row. All rows end in the same column, so that a distance in columns is one in positions."""

    def __init__(self, like: Cache, slots: int, longest_prompt: int, max_new_tokens: int) -> None:
        """Args: like: a filled cache of the same model."""
        self._span = _Span(longest_prompt)
        self._longest_prompt = longest_prompt
        self._columns = longest_prompt + max_new_tokens + SPARE_COLUMNS
        super().__init__(layers=[_SlotLayer(*pair, slots, self._columns, self._span) for pair in tensors(like)])

    def add(self, filled: Cache, row: int, length: int) -> None:
        """Copies a row's first `length` columns into the next slot."""
        span = self._span
        for buffer, states in self._pairs(filled):
            buffer[span.rows, :, span.end - length : span.end] = states[row, :, :length]
        span.rows += 1

    def drop(self, slot: int) -> None:
        """Forgets a row; the last one moves into its slot."""
        span = self._span
        span.rows -= 1
        if slot != span.rows:
            for buffer in self._buffers():
                buffer[slot, :, span.start : span.end] = buffer[span.rows, :, span.start : span.end]

    def begin_step(self, longest: int) -> None:
        """Shows `longest` columns; moves everything to the left where there is none left to write to."""
        span = self._span
        if span.end == self._columns:
            end = max(longest, self._longest_prompt)
            for buffer in self._buffers():
                buffer[: span.rows, :, end - longest : end] = buffer[
                    : span.rows, :, span.end - longest : span.end
                ].clone()
            span.end = end
        span.start = span.end - longest

    def end_step(self) -> None:
        self._span.end += 1

    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in tensors(self) for buffer in layer]

    def _pairs(self, filled: Cache) -> list[tuple[Tensor, Tensor]]:
        """Each buffer with what another cache of the same model holds there."""
        return list(zip(self._buffers(), [states for layer in tensors(filled) for states in layer]))
