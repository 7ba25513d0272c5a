from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss

from zeus_union.stage2_segment.training.losses import known_pixels, one_hot, segmentation_losses


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 4), batch=st.integers(1, 4))
def test_loss_is_bce_plus_dice_over_the_batch(seed: int, classes: int, batch: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, 6, 5, generator=random, dtype=torch.float64)
    targets = (torch.rand(batch, classes, 6, 5, generator=random) > 0.6).double()
    p = logits.sigmoid()
    cross_entropy = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    dims = (0, 2, 3)
    dice = 1 - (2 * (p * targets).sum(dims) + 1e-5) / (p.sum(dims) + targets.sum(dims) + 1e-5)
    losses = segmentation_losses(logits, targets)
    torch.testing.assert_close(losses.dice, dice.mean())
    torch.testing.assert_close(losses.total, cross_entropy + dice.mean())


def test_one_hot_leaves_out_the_background() -> None:
    masks = torch.tensor([[[0, 1], [2, 2]]], dtype=torch.uint8)
    assert one_hot(masks, 2).tolist() == [[[[0, 1], [0, 0]], [[0, 0], [1, 1]]]]


def test_empty_masks_are_cheap_only_when_dice_is_taken_slice_by_slice() -> None:
    """The reason for Dice over the batch: with nine empty slices of ten, empty masks have won nine tenths per slice."""
    targets = torch.zeros(10, 1, 16, 16)
    targets[0, :, 4:12, 4:12] = 1
    empty = torch.full_like(targets, -40.0)
    assert abs(segmentation_losses(empty, targets, "slice").dice - 0.1) < 1e-3
    assert abs(segmentation_losses(empty, targets, "batch").dice - 1.0) < 1e-3


def test_a_mask_grows_back_from_empty() -> None:
    targets = torch.zeros(6, 1, 32, 32)
    targets[:4, :, 8:24, 8:24] = 1
    logits = torch.full_like(targets, -8.0).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        segmentation_losses(logits, targets).total.backward()
        optimizer.step()
    assert torch.equal(logits > 0, targets > 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), dice_over=st.sampled_from(["batch", "slice"]), weighted=st.booleans())
def test_dice_is_monais(seed: int, dice_over: str, weighted: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 8, 6, generator=random, dtype=torch.float64)
    targets = (torch.rand(3, 2, 8, 6, generator=random) > 0.7).double()
    targets[0] = 0
    weights = torch.tensor([0.4, 1.6], dtype=torch.float64) if weighted else None
    oracle = DiceLoss(sigmoid=True, batch=dice_over == "batch", weight=weights)(logits, targets)
    torch.testing.assert_close(segmentation_losses(logits, targets, dice_over, class_weights=weights).dice, oracle)


@pytest.mark.parametrize("dice_over", ["batch", "slice"])
def test_parts_of_a_batch_that_add_up_their_sums_have_the_loss_and_the_gradients_of_the_whole(dice_over: str) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2, 8, 6, generator=random, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(5, 2, 8, 6, generator=random) > 0.6).double()
    whole = segmentation_losses(logits, targets, dice_over).total
    (expected,) = torch.autograd.grad(whole, logits)
    seen: list[torch.Tensor] = []
    segmentation_losses(logits[:2], targets[:2], dice_over, slices=5, add_up=lambda sums: seen.append(sums) or sums)
    rest = segmentation_losses(logits[2:], targets[2:], dice_over, slices=5, add_up=lambda sums: sums + seen[0])
    torch.testing.assert_close(rest.total, whole)
    (found,) = torch.autograd.grad(rest.total, logits)
    torch.testing.assert_close(found, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), dice_over=st.sampled_from(["batch", "slice"]))
def test_ignored_pixels_take_no_part_in_the_loss_nor_in_its_gradient(seed: int, dice_over: str) -> None:
    """The losses are those of the picture without its ignored columns, whatever is predicted there."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 8, 6, generator=random, dtype=torch.float64).requires_grad_()
    masks = torch.randint(0, 3, (3, 8, 6), generator=random, dtype=torch.uint8)
    masks[..., 4:] = 255
    known = known_pixels(masks).double()
    losses = segmentation_losses(logits, one_hot(masks, 2).double(), dice_over, known=known)
    cropped = segmentation_losses(logits[..., :4], one_hot(masks[..., :4], 2).double(), dice_over)
    torch.testing.assert_close(losses, cropped)
    (gradient,) = torch.autograd.grad(losses.total, logits)
    assert (gradient[..., 4:] == 0).all() and (gradient[..., :4] != 0).any()


def test_without_ignored_pixels_the_loss_is_the_very_same_number() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 64, 64, generator=random)
    masks = torch.randint(0, 4, (2, 64, 64), generator=random, dtype=torch.uint8)
    for dice_over in ("batch", "slice"):
        plain = segmentation_losses(logits, one_hot(masks, 3), dice_over)
        assert plain == segmentation_losses(logits, one_hot(masks, 3), dice_over, known=known_pixels(masks))


def test_a_batch_that_nobody_labelled_costs_nothing() -> None:
    masks = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    logits = torch.randn(2, 1, 8, 8)
    losses = segmentation_losses(logits, one_hot(masks, 1), known=known_pixels(masks))
    assert losses.cross_entropy == 0 and losses.dice == 0
