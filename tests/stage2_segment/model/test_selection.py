"""Entries along an axis without an index on the device."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from zeus_union.stage2_segment.model import Zeus
from zeus_union.stage2_segment.model.selection import select

PLACES = st.integers(0, 2).flatmap(
    lambda dim: st.tuples(st.just(dim), st.lists(st.integers(0, 3), min_size=1, max_size=6))
)


@settings(max_examples=50, deadline=None)
@given(PLACES)
def test_it_takes_what_an_index_takes(place: tuple[int, list[int]]) -> None:
    dim, indices = place
    tensor = torch.arange(64).view(4, 4, 4)
    assert torch.equal(select(tensor, dim, indices), tensor.index_select(dim, torch.tensor(indices)))


class Indexing(TorchDispatchMode):
    """Notes whatever reads a tensor at an index tensor, which a GPU would have to be sent and waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten.index, torch.ops.aten._local_scalar_dense):
            self.calls.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_forward_pass_sends_nothing_to_the_device_and_waits_for_nothing() -> None:
    model = Zeus(3, 1, 8, fusion="hybrid", combine="learned")
    model.load_pretrained(
        {
            **{f"decoder.{name}": tensor for name, tensor in model.decoders[0].state_dict().items()},
            "dense_pe": torch.zeros(256, 64, 64),
            "no_mask": torch.zeros(256),
        }
    )
    with Indexing() as noted, torch.no_grad():
        model(torch.zeros(1, 2, 256, 64, 64), torch.zeros(1, 2, 8), [0, 2], torch.ones(1))
    assert not noted.calls
