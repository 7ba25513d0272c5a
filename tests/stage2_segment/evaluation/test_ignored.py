"""A cache with pixels that nobody labelled: trained on and measured without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zeus_union.cache.grid import Grid, to_square
from zeus_union.cache.layout import IGNORE, DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, SubjectSlices
from zeus_union.stage1_instruct.projection.label_captions import caption
from zeus_union.stage2_segment.chosen_postprocessing import PostProcessing
from zeus_union.stage2_segment.evaluation.scoring import begin_scoring
from zeus_union.stage2_segment.native import SubjectPrediction
from zeus_union.stage2_segment.postprocessing import LARGEST
from zeus_union.stage2_segment.training.learner import inverse_weights


@pytest.fixture
def partly_labelled(tmp_path: Path) -> Cache:
    """One subject, three slices of 256 x 256 mm: liver (1) and spleen (2) in the left half, the right half ignored."""
    card = DatasetCard("toy", ("T1",), {"T1": "MRI-T1"}, ("liver", "spleen"), "liver and spleen", ("ann",))
    native = np.zeros((3, 256, 256), np.uint8)
    native[:, 20:60, 20:100], native[:, 80:100, 20:100], native[:, :, 128:] = 1, 2, IGNORE
    grid = Grid((256, 256, 3), np.diag([-1.0, -1.0, 1.0, 1.0]))
    masks = to_square(native, grid.slice_spacing[1:], 256)
    images = np.full((3, 1, 256, 256), 9, np.uint8)
    writer = CacheWriter(tmp_path / "c.h5", card)
    writer.begin_layer("slices", {"toy": 1})
    writer.write_slices("ann", SubjectSlices(grid, np.arange(3, dtype=np.int32), images, masks, None, native, {}))
    writer.finalize()
    return Cache(tmp_path / "c.h5")


def test_a_mask_that_is_right_where_there_are_labels_is_perfect(partly_labelled: Cache) -> None:
    predicted = np.where(partly_labelled.masks(range(3)) == IGNORE, 1, partly_labelled.masks(range(3)))
    predicted = predicted.astype(np.uint8)
    rows, miou = begin_scoring(partly_labelled, "ann", SubjectPrediction(predicted, predicted, None, None, {}))()
    assert miou == 1
    for row in rows:
        assert (row["dsc_256"], row["dsc"], row["hd95_mm"], row["nsd"]) == (1, 1, 0, 1)
    assert [row["true"] for row in rows] == [3 * 40 * 80, 3 * 20 * 80]


def test_class_weights_count_no_ignored_pixels(partly_labelled: Cache) -> None:
    from types import SimpleNamespace

    config = SimpleNamespace(inputs=SimpleNamespace(classes=("liver", "spleen")), split=SimpleNamespace(train=("ann",)))
    weights = inverse_weights(partly_labelled, config)  # type: ignore[arg-type]
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(2.0**0.5))


def test_a_caption_calls_nothing_absent_where_pixels_are_ignored() -> None:
    image = np.full((256, 256), 50, np.uint8)
    mask = np.zeros((256, 256), np.uint8)
    mask[100:120, 100:120] = 1
    assert "no spleen" in caption(image, mask, ("liver", "spleen"), "CT")
    mask[0] = IGNORE
    of_known = caption(image, mask, ("liver", "spleen"), "CT")
    assert "liver" in of_known and "no " not in of_known
    assert caption(image, np.full_like(mask, IGNORE), ("liver",), "CT") == ""


def test_post_processing_sees_the_prediction_alone(partly_labelled: Cache) -> None:
    """A mask is the same whatever is known of its truth: the larger piece, where nobody labelled, is the one that stays."""
    predicted = np.where(partly_labelled.masks(range(3)) == 1, 1, 0).astype(np.uint8)
    predicted[:, 10:120, 140:250] = 1
    chosen = PostProcessing("largest liver", {"liver": (LARGEST,)}, ("liver", "spleen"), ("eve",))
    rows, _ = begin_scoring(partly_labelled, "ann", SubjectPrediction(predicted, predicted, None, None, {}), chosen)()
    liver = rows[0]
    assert liver["dsc_raw"] == liver["dsc_256"] == 1 and liver["dsc"] == 0 and liver["predicted"] == 0
