"""The decoder against segment_anything 1.0, and what the paper says of its size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zeus_union.stage1_instruct.models.image.sam import sam_modeling
from zeus_union.stage1_instruct.profiles.profile import Profile
from zeus_union.stage1_instruct.weights.store import path_of
from zeus_union.stage2_segment.model.aligner import Aligner
from zeus_union.stage2_segment.model.decoder import MaskDecoder
from zeus_union.stage2_segment.model.fusion import COMBINES
from zeus_union.stage2_segment.model.transformer import Attention
from zeus_union.stage2_segment.model.zeus import Zeus, class_map
from zeus_union.stage2_segment.params import PAPER_CASE, PAPER_PROJECTION, totals


def sam_decoder() -> Any:
    """segment_anything's own mask decoder."""
    modeling = sam_modeling()
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    return modeling.MaskDecoder(transformer_dim=256, transformer=transformer, num_multimask_outputs=3)


def without_iou_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("iou_prediction_head")}


def largest_difference(sam: Any, ours: MaskDecoder, prompts: int, dtype: torch.dtype) -> float:
    """Over the four masks, relative to the largest logit."""
    sam, ours = sam.to(dtype), ours.to(dtype)
    random = torch.Generator().manual_seed(3)
    image, pe = (torch.randn(1, 256, 64, 64, generator=random, dtype=dtype) for _ in range(2))
    prompt = torch.randn(1, prompts, 256, generator=random, dtype=dtype)
    dense = torch.randn(1, 256, 1, 1, generator=random, dtype=dtype).expand_as(image)
    with torch.no_grad():
        theirs, _ = sam.predict_masks(image, pe, prompt, dense)
        mine = ours((image + dense).flatten(2).transpose(1, 2), pe[0].flatten(1).T, prompt)
    return float((theirs - mine).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("prompts", [1, 20], ids=["few tokens, folded", "many tokens"])
def test_mask_logits_equal_segment_anythings(prompts: int) -> None:
    torch.manual_seed(0)
    sam, ours = sam_decoder(), MaskDecoder(4, keep_iou_token=True)
    ours.load_state_dict(without_iou_head(sam.state_dict()))
    assert largest_difference(sam, ours, prompts, torch.float32) < 1e-5
    assert largest_difference(sam, ours, prompts, torch.float64) < 1e-13


def test_mask_logits_equal_segment_anythings_with_litemedsam_weights(lite: Profile) -> None:
    state = {
        name.removeprefix("mask_decoder."): t
        for name, t in load_file(path_of("litemedsam") / "model.safetensors").items()
        if "mask_decoder." in name
    }
    sam, ours = sam_decoder(), MaskDecoder(4, keep_iou_token=True)
    sam.load_state_dict(state)
    ours.load_state_dict(without_iou_head(state))
    assert largest_difference(sam, ours, 1, torch.float32) < 1e-5


def test_folded_attention_has_the_gradients_of_plain_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, downsample=2).double()
    image, tokens = torch.randn(2, 50, 32).double(), torch.randn(2, 3, 32).double()
    place, valid = torch.randn(50, 32).double(), torch.tensor([[True, True, True], [True, False, True]])

    def gradients(call: Any) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (image, tokens, tokens.roll(1))]
        out = call(*leaves)
        return list(torch.autograd.grad(out.pow(3).sum(), [*leaves, *attention.parameters()], allow_unused=True))

    calls = [
        (
            lambda x, t, _: attention.tokens_read_image(t, x + place, x),
            lambda x, t, _: attention(t, x + place, x),
        ),
        (
            lambda x, t, v: attention.image_reads_tokens(x + place, x, t, v, valid),
            lambda x, t, v: x + attention(x + place, t, v, valid),
        ),
    ]
    for folded, plain in calls:
        for a, b in zip(gradients(folded), gradients(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_papers() -> None:
    assert count(MaskDecoder(4)) == 3_925_472
    assert count(MaskDecoder(4, keep_iou_token=True)) == 3_925_472 + 256
    assert count(Aligner(512)) == 393_984
    assert count(Aligner(512, depth=1)) == 512 * 256 + 256
    assert PAPER_PROJECTION == 3_740_416
    hybrid = sum(totals("hybrid", **PAPER_CASE, aligner="mlp").values()) + PAPER_PROJECTION
    late = sum(totals("late", **PAPER_CASE, aligner="mlp").values()) + PAPER_PROJECTION
    assert round(hybrid / 1e6, 2) == 8.06
    assert late == 12_379_328


def constants() -> dict[str, Any]:
    torch.manual_seed(1)
    state = {f"decoder.{name}": tensor for name, tensor in MaskDecoder(4, keep_iou_token=True).state_dict().items()}
    return {**state, "dense_pe": torch.randn(256, 64, 64), "no_mask": torch.randn(256)}


def test_every_class_starts_from_sams_single_mask() -> None:
    model = Zeus(2, 3, 8, fusion="late")
    loaded = constants()
    model.load_pretrained(loaded)
    for decoder in model.decoders:
        for label in range(3):
            assert torch.equal(decoder.mask_tokens.weight[label], loaded["decoder.mask_tokens.weight"][0])
    logits = model(torch.randn(1, 2, 256, 64, 64), torch.randn(1, 2, 8))
    assert logits.shape == (1, 3, 256, 256)
    torch.testing.assert_close(logits[:, 0], logits[:, 2])


@pytest.mark.parametrize("aligner", ["residual", "mlp"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_text_reaches_the_masks_and_gradients_reach_every_layer(fusion: str, depth: int, aligner: str) -> None:
    model = Zeus(2, 1, 8, fusion=fusion, aligner=aligner, aligner_depth=depth)
    model.load_pretrained(constants())
    if aligner == "residual":
        for part in model.aligners:
            torch.nn.init.normal_(part.layers[-1].weight, std=0.1)  # as after its first step
    images, text = torch.randn(1, 2, 256, 64, 64), torch.randn(1, 2, 8)
    logits = model(images, text)
    logits.square().mean().backward()
    for aligner in model.aligners:
        for name, parameter in aligner.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        for modality in (0, 1):
            other = text.clone()
            other[:, modality] = torch.randn(8)
            assert (model(images, other) - logits).abs().max() > 1e-4


def test_hybrid_reads_the_modalities_one_by_one() -> None:
    model = Zeus(3, 2, 8, fusion="hybrid", combine="mean")
    model.load_pretrained(constants())
    images, text = torch.randn(2, 3, 256, 64, 64), torch.randn(2, 3, 8)
    with torch.no_grad():
        alone = Zeus(1, 2, 8, fusion="hybrid")
        parts = []
        for m in range(3):
            state = {name: t for name, t in model.state_dict().items() if not name.startswith("bases.")}
            alone.load_state_dict({**state, "bases.0": model.bases[m], "text_mean": model.text_mean[m : m + 1]})
            parts.append(alone(images[:, m : m + 1], text[:, m : m + 1]))
        torch.testing.assert_close(model(images, text), torch.stack(parts, dim=1).mean(dim=1))


def test_combine_takes_mean_max_or_learned_weights() -> None:
    logits = torch.randn(2, 3, 4, 8, 8)
    every = range(3)
    torch.testing.assert_close(COMBINES["mean"](3, 4)(logits, every), logits.mean(1))
    torch.testing.assert_close(COMBINES["max"](3, 4)(logits, every), logits.max(1).values)
    learned = COMBINES["learned"](3, 4)
    torch.testing.assert_close(learned(logits, every), logits.mean(1))
    with torch.no_grad():
        learned.weights[2, 1] = 50.0  # class 1 trusts modality 2 alone
    torch.testing.assert_close(learned(logits, every)[:, 1], logits[:, 2, 1])
    torch.testing.assert_close(learned(logits[:, :2], [0, 1]), logits[:, :2].mean(1))  # and does without it


def test_class_map_is_background_where_no_logit_is_positive() -> None:
    logits = torch.tensor([[-1.0, -2.0], [0.5, 2.0], [3.0, -1.0]]).T[None, :, :, None]
    assert class_map(logits).flatten().tolist() == [0, 2, 1]
