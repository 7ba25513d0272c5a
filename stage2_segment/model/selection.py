"""Some of a tensor's entries along one axis, by numbers that the program knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def select(tensor: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
    """`tensor` at `indices` along `dim`; a view where they are neighbours in order.

    Indexing with a list would send it to the device in every step and wait until it has arrived.
    """
    numbers = list(indices)
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return tensor.narrow(dim, numbers[0], len(numbers))
    return torch.stack([tensor.select(dim, number) for number in numbers], dim)
