"""Early, hybrid and late fusion, and what each makes of a missing modality."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.baselines.networks import NETWORKS
from zeus_union.stage2_segment.choices import FUSIONS, MERGES

Make = Callable[..., FusedNetwork]


def slices(modalities: int, seed: int = 1) -> Tensor:
    return torch.randn(1, modalities, 256, 256, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_late_with_one_modality_is_early_with_one(name: str, narrow: Make) -> None:
    early, late = narrow(name, 1, "early", seed=0).eval(), narrow(name, 1, "late", seed=1).eval()
    images = slices(1)
    with torch.no_grad():
        assert not torch.equal(early(images), late(images))
        late.load_state_dict(early.state_dict())
        assert torch.equal(early(images), late(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_late_is_the_mean_of_whole_networks(name: str, narrow: Make) -> None:
    model, images = narrow(name, 2, "late").eval(), slices(2)
    with torch.no_grad():
        each = [model.decoders[m](model.encoders[m](images[:, m : m + 1])) for m in range(2)]
        torch.testing.assert_close(model(images), (each[0] + each[1]) / 2)
        torch.testing.assert_close(model(images[:, 1:], [1]), each[1])


def test_early_sees_zeros_for_a_missing_modality(narrow: Make) -> None:
    model, images = narrow("unet", 3, "early").eval(), slices(3)
    without = images.clone()
    without[:, 1] = 0
    with torch.no_grad():
        assert torch.equal(model(images[:, [0, 2]], [0, 2]), model(without))
        assert not torch.equal(model(without), model(images))


def test_hybrid_concat_sees_maps_of_zeros_for_a_missing_modality(narrow: Make) -> None:
    model, images = narrow("unet", 2, "hybrid").eval(), slices(2)
    with torch.no_grad():
        given = model(images[:, :1], [0])
        for parameter in model.encoders[1].units.parameters():  # with these, every map of modality 1 is zero
            parameter.zero_()
        assert torch.equal(given, model(images))


def test_hybrid_mean_leaves_a_missing_modality_out(narrow: Make) -> None:
    both, images = narrow("unet", 2, "hybrid", merge="mean").eval(), slices(2)
    alone = narrow("unet", 1, "hybrid", merge="mean", seed=1).eval()
    alone.encoders[0].load_state_dict(both.encoders[1].state_dict())
    alone.decoders[0].load_state_dict(both.decoders[0].state_dict())
    with torch.no_grad():
        torch.testing.assert_close(both(images[:, 1:], [1]), alone(images[:, 1:]))
        maps = [both.encoders[m](images[:, m : m + 1]) for m in range(2)]
        expected = both.decoders[0]([(first + second) / 2 for first, second in zip(*maps)])
        torch.testing.assert_close(both(images), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_hybrid_concat_can_pick_a_modality(name: str, narrow: Make) -> None:
    """A 1 x 1 convolution that copies the second modality's maps makes a network of that modality alone."""
    model, images = narrow(name, 2, "hybrid").eval(), slices(2)
    with torch.no_grad():
        for merge in model.merges:
            assert isinstance(merge, nn.Conv2d) and merge.bias is not None
            count = merge.out_channels
            merge.bias.zero_()
            merge.weight.copy_(torch.cat([torch.zeros(count, count), torch.eye(count)], dim=1)[:, :, None, None])
        alone = model.decoders[0](model.encoders[1](images[:, 1:]))
        torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_present_says_which_modality_is_which(fusion: str, merge: str, narrow: Make) -> None:
    model, images = narrow("unext", 3, fusion, merge=merge).eval(), slices(3)
    order = [2, 0, 1]
    with torch.no_grad():
        torch.testing.assert_close(model(images[:, order], order), model(images))
        assert torch.equal(model(images, range(3)), model(images))
        for missing in range(3):
            present = [m for m in range(3) if m != missing]
            assert not torch.equal(model(images[:, present], present), model(images))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_number_of_images_must_be_the_number_present(fusion: str, narrow: Make) -> None:
    with pytest.raises(ValueError, match="2 images a slice, but 1"):
        narrow("unext", 3, fusion)(slices(2), [0])


def test_hybrid_has_an_encoder_each_and_one_decoder_and_late_two_of_all() -> None:
    def count(fusion: str, modalities: int, merge: str = "concat") -> int:
        with torch.device("meta"):
            model = FusedNetwork("unet", modalities, 4, fusion, merge)
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        encoder = NETWORKS["unet"].encoder(1)
    one, in_encoder = count("early", 1), sum(parameter.numel() for parameter in encoder.parameters())
    merges = sum(3 * c * c + c for c in (64, 128, 256, 512, 1024))
    assert count("late", 3) == 3 * one
    assert count("hybrid", 3, "mean") == one + 2 * in_encoder
    assert count("hybrid", 3) == one + 2 * in_encoder + merges
    assert [b - a for a, b in pairwise(count("early", m) for m in (1, 2, 3))] == [64 * 9, 64 * 9]


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (("vnet", "early", "concat", "published"), "vnet"),
        (("unet", "middle", "concat", "published"), "middle"),
        (("unet", "hybrid", "max", "published"), "max"),
        (("unet", "early", "concat", "huge"), "huge"),
    ],
)
def test_unknown_option_is_refused_by_name(options: tuple[str, str, str, str], wrong: str) -> None:
    network, fusion, merge, preset = options
    with pytest.raises(UserError, match=f"'{wrong}'.*choose one of"):
        FusedNetwork(network, 2, 2, fusion, merge, preset)
