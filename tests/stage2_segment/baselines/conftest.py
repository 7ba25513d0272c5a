"""Small baselines: a sixteenth of the published widths, so that all of them take seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from zeus_union.stage2_segment.baselines.fusion import FusedNetwork

NARROW = 1 / 16


@pytest.fixture()
def narrow() -> Callable[..., FusedNetwork]:
    """A narrow network with fixed random weights, for two classes."""

    def make(network: str, modalities: int, fusion: str, merge: str = "concat", seed: int = 0) -> FusedNetwork:
        torch.manual_seed(seed)
        return FusedNetwork(network, modalities, 2, fusion, merge, width=NARROW)

    return make
