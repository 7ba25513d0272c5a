"""The baselines' parameter counts beside the paper's Table 2."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.baselines.networks import NETWORKS
from zeus_union.stage2_segment.baselines.table2 import (
    OFFICIAL,
    PAPER,
    operations,
    parameters,
    rows,
    suggested_modalities,
)

# Early, hybrid (concatenation) and late, 2 modalities, 4 classes, published widths; counted once, so that no change of
# a network goes unseen. test_networks holds the networks against their references.
PUBLISHED = {
    "unet": [31_043_140, 52_688_004, 62_085_128],
    "attention_unet": [34_878_192, 56_523_056, 69_755_232],
    "res_unet": [32_438_852, 54_782_020, 64_876_424],
    "unext": [1_471_828, 2_475_156, 2_943_368],
    "unet_plus_plus": [9_049_284, 14_463_972, 18_097_992],
    "transunet": [105_319_300, 205_089_348, 210_632_328],
    "pretrained_unet": [5_367_264, 9_197_052, 10_733_952],
    "missformer": [35_449_284, 49_378_756, 70_892_296],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_counts(name: str) -> None:
    assert [parameters(name, fusion, 2, 4) for fusion in ("early", "hybrid", "late")] == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in NETWORKS if (name, "early") in PAPER])
def test_table2_preset_has_the_papers_count_with_early_fusion(name: str) -> None:
    # TransUNet's width goes in steps of a 64th, 1.8 million parameters.
    tolerance = 0.011 if name == "transunet" else 0.002
    assert parameters(name, "early", 2, 4, "table2") / 1e6 == pytest.approx(PAPER[name, "early"], rel=tolerance)


def test_rows_are_table_2s_baselines() -> None:
    table = list(rows(3, 4))
    assert [(row.network, row.fusion) for row in table if row.paper is not None] == list(PAPER)
    assert {row.network for row in table if row.paper is None} == {"pretrained_unet"}
    by_key = {(row.network, row.fusion): row for row in table}
    early, hybrid, late = (by_key["transunet", fusion] for fusion in ("early", "hybrid", "late"))
    assert early.official == pytest.approx(OFFICIAL["transunet"].parameters / 1e6)
    assert late.official == pytest.approx(3 * OFFICIAL["transunet"].parameters / 1e6)
    assert hybrid.official is None and by_key["res_unet", "early"].official is None
    # The paper's late TransUNet is the published one, three times.
    assert late.paper == 315.96 and late.ours == pytest.approx(315.96, abs=0.05)


def test_operations_are_counted_in_billions() -> None:
    """Of a convolution two for each weight and pixel of its map; late fusion's are those of as many networks."""
    one = operations("unext", "early", 1)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        FusedNetwork("unext", 3, 4, "late")(torch.empty(1, 3, 256, 256))
    assert operations("unext", "late", 3) == pytest.approx(3 * one) == pytest.approx(counter.get_total_flops() / 1e9)
    # Of one channel more, the first convolution's 3 x 3 weights to 16 maps of 256 x 256.
    assert operations("unext", "early", 2) - one == pytest.approx(2 * 9 * 16 * 256**2 / 1e9)


def test_paper_counted_three_modalities_most_often() -> None:
    suggested = {(name, fusion): suggested_modalities(name, fusion) for name, fusion in PAPER if fusion != "early"}
    four = {key for key, modalities in suggested.items() if modalities == 4}
    assert four == {("unext", "late"), ("missformer", "hybrid")}
    assert set(suggested.values()) == {3, 4}
