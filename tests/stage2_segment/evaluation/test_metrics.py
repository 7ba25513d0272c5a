"""Metrics against MONAI 1.4+ and against distances one can work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_iou

from zeus_union.stage2_segment.evaluation.metrics import (
    dsc,
    iou,
    mean_defined,
    overlap_counts,
    stack_slices,
)
from zeus_union.stage2_segment.evaluation.surfaces import surface_scores


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 4), levels=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_dsc_and_iou_agree_with_monai(seed: int, classes: int, levels: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    predicted, truth = (random.integers(0, min(top, classes + 1), (3, 7, 6)).astype(np.uint8) for top in levels)
    one_hot = [torch.from_numpy(np.stack([v == k for k in range(classes + 1)]))[None] for v in (predicted, truth)]
    counts = overlap_counts(predicted, truth, classes)
    empty = ~(one_hot[0].flatten(2).any(2) | one_hot[1].flatten(2).any(2))[0].numpy()
    for ours, theirs in ((dsc(counts), compute_dice), (iou(counts), compute_iou)):
        expected = theirs(*one_hot, include_background=True, ignore_empty=False)[0].numpy()
        np.testing.assert_allclose(ours[~empty], expected[~empty], rtol=1e-6)
        assert np.isnan(ours[empty]).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_ignored_voxels_are_in_no_count(seed: int) -> None:
    random = np.random.default_rng(seed)
    predicted, truth = (random.integers(0, 4, (3, 7, 6)).astype(np.uint8) for _ in range(2))
    ignored = truth.copy()
    ignored[:, 4:] = 255
    np.testing.assert_array_equal(
        overlap_counts(predicted, ignored, 3), overlap_counts(predicted[:, :4], truth[:, :4], 3)
    )


def box(shape: tuple[int, int, int], low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    volume = np.zeros(shape, bool)
    volume[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return volume


def test_surface_distances_are_in_millimetres() -> None:
    truth = box((6, 20, 20), (2, 5, 5), (4, 15, 15))
    moved = box((6, 20, 20), (2, 5, 7), (4, 15, 17))  # by two columns
    assert surface_scores(truth, truth, (5, 1, 1)) == surface_scores(truth, truth, (1, 1, 1))
    assert surface_scores(truth, truth, (5, 1, 1)).hd95_mm == 0
    assert surface_scores(truth, truth, (5, 1, 1)).nsd == 1
    assert surface_scores(moved, truth, (5, 1, 0.8)).hd95_mm == pytest.approx(1.6)
    assert surface_scores(moved, truth, (5, 1, 0.8)).nsd == 1  # within 2 mm
    assert surface_scores(moved, truth, (5, 1, 3)).hd95_mm == pytest.approx(6)
    assert surface_scores(moved, truth, (5, 1, 3)).nsd == pytest.approx(0.8)  # 8 of 10 columns coincide
    higher = box((6, 20, 20), (3, 5, 5), (5, 15, 15))  # by one slice of 5 mm
    assert surface_scores(higher, truth, (5, 1, 1)).hd95_mm == pytest.approx(5)


def test_what_touches_the_edge_of_the_volume_has_a_surface_there() -> None:
    whole = np.ones((3, 8, 8), bool)
    assert surface_scores(whole, whole, (1, 1, 1)).nsd == 1
    assert surface_scores(box((3, 8, 8), (0, 0, 0), (3, 8, 4)), whole, (1, 1, 1)).hd95_mm > 2


def test_empty_masks_follow_the_stated_convention() -> None:
    empty, full = np.zeros((3, 8, 8), bool), box((3, 8, 8), (1, 2, 2), (2, 5, 5))
    both = surface_scores(empty, empty, (1, 1, 1))
    assert math.isnan(both.hd95_mm) and math.isnan(both.nsd)
    for pair in ((empty, full), (full, empty)):
        scores = surface_scores(*pair, (1, 1, 1))
        assert math.isnan(scores.hd95_mm) and scores.nsd == 0
        counts = overlap_counts(*(v.astype(np.uint8) for v in pair), 1)
        assert dsc(counts)[1] == 0 and iou(counts)[1] == 0
    assert mean_defined(np.array([np.nan, 0.5])) == 0.5
    assert math.isnan(mean_defined(np.array([np.nan])))


def test_slices_missing_between_cached_ones_keep_their_place() -> None:
    slices = np.ones((3, 2, 2), np.uint8)
    volume = stack_slices(slices, np.array([4, 6, 12], np.int32), 2)
    assert volume[:, 0, 0].tolist() == [1, 1, 0, 0, 1]
