"""MedCLIP's image half: its preprocessing and its features are the original's, however its checkpoint is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from medclip_shapes import SCALE, SMALL_BERT, hollow_state, swin_shapes
from safetensors.torch import save_file
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.vision.medclip import MedCLIPVision, preprocess


def pictures(count: int = 2, height: int = 256, width: int = 256) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height, width), np.uint8))


@pytest.mark.parametrize("change", ["transformers 5 names", "no buffers", "safetensors"])
def test_every_way_the_checkpoint_is_written_gives_the_same_features(
    vit: str, vit_state: dict[str, Tensor], tmp_path: Path, change: str
) -> None:
    state = {
        name: tensor
        for name, tensor in vit_state.items()
        if not (change != "safetensors" and name.endswith(("relative_position_index", "position_ids")))
    }
    if change == "transformers 5 names":
        state = {swin_name_of_transformers_5(name): tensor for name, tensor in state.items()}
        assert len(state) == 421
    path = tmp_path / "pytorch_model.bin"
    if change == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    expected = MedCLIPVision("vit", vit).tokens(pictures(1))
    assert torch.equal(MedCLIPVision("vit", str(tmp_path)).tokens(pictures(1)), expected)


def swin_name_of_transformers_5(name: str) -> str:
    if ".blocks." not in name:
        return name
    head, _, tail = name.partition(".blocks.")
    block, _, part = tail.partition(".")
    for old, new in [
        ("attention.self.query", "attention.q_proj"),
        ("attention.self.key", "attention.k_proj"),
        ("attention.self.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("attention.self.relative", "attention.relative_position_bias.relative"),
        ("intermediate.dense", "mlp.fc1"),
    ]:
        part = part.replace(old, new)
    if part.startswith("output.dense"):
        part = part.replace("output.dense", "mlp.fc2")
    return f"{head}.blocks.{block}.{part}"


def test_one_of_the_two_namings_is_that_of_the_installed_swin(vit_state: dict[str, Tensor]) -> None:
    """Transformers 5.0 still has the names of 4.24."""
    with torch.device("meta"):
        own = transformers.SwinModel(transformers.SwinConfig()).state_dict()
    released = {name for name in vit_state if name.startswith("vision_model.model.")}
    renamed = {swin_name_of_transformers_5(name) for name in released}
    names = {f"vision_model.model.{name}" for name in own}
    assert names <= released or names <= renamed


@pytest.mark.parametrize(("asked", "held"), [("vit", "resnet"), ("resnet", "vit")])
def test_file_of_the_other_variant_is_refused_and_named(request: pytest.FixtureRequest, asked: str, held: str) -> None:
    with pytest.raises(UserError, match=rf"seems to be MedCLIP's .* variant \('{held}'\), expected .* \('{asked}'\)"):
        MedCLIPVision(asked, request.getfixturevalue(held))


def test_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    shapes = swin_shapes() | SMALL_BERT | {"vision_model.projection_head.weight": (256, 768)}
    torch.save(hollow_state(shapes) | SCALE, tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"of another shape, first projection_head\.weight"):
        MedCLIPVision("vit", str(tmp_path / "a.bin"))


def test_file_cut_short_is_one_clear_error(vit: str, tmp_path: Path) -> None:
    whole = (Path(vit) / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        MedCLIPVision("vit", str(tmp_path))


def test_folder_without_a_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no MedCLIP checkpoint in .*expected pytorch_model\.bin"):
        MedCLIPVision("vit", str(tmp_path))


def test_unknown_choices_are_named(vit: str) -> None:
    with pytest.raises(UserError, match="variant vit_b: expected one of vit, resnet"):
        MedCLIPVision("vit_b", vit)
    with pytest.raises(UserError, match="feature last: expected one of pooled, projected, tokens"):
        MedCLIPVision("vit", vit, "last")


def formula(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((x * x + 3 * y * y + x * y) // 97 % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "points", "mean", "spread"),
    [
        ((256, 256), (-2.09759092, -1.01723385, -1.28381538, 1.10138881, 1.18557239), -0.350382609, 1.00134735),
        ((512, 400), (-2.09759092, 0.245521292, -1.31187665, 0.596286774, -2.09759092), -0.710046797, 1.06859826),
        ((100, 150), (-2.09759092, 0.32970497, -2.09759092, -2.09759092, -2.09759092), -1.61994527, 0.923589781),
        ((301, 517), (-2.09759092, -1.53636646, -0.680499017, -2.09759092, 0.0210315213), -1.06610686, 1.12381084),
    ],
)
def test_preprocessing_is_that_of_medclip_under_transformers_4_24(
    size: tuple[int, int], points: tuple[float, ...], mean: float, spread: float
) -> None:
    """The numbers are those of MedCLIPFeatureExtractor (medclip 0.0.3, transformers 4.24.0, PIL input)."""
    values = preprocess(formula(*size)[None])
    assert (values.shape, values.dtype) == ((1, 3, 224, 224), torch.float32)
    grey = values[0, 0].numpy()
    got = [grey[place] for place in [(0, 0), (112, 112), (60, 150), (200, 100), (112, 223)]]
    assert np.abs(np.array(got) - points).max() < 5e-7
    assert abs(grey.mean(dtype=np.float64) - mean) < 5e-7
    assert abs(grey.std(dtype=np.float64) - spread) < 5e-7


def test_only_grey_bytes_are_preprocessed() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        preprocess(np.zeros((1, 224, 224), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(("variant", "width"), [("vit", 768), ("resnet", 2048)])
def test_features_of_one_image_belong_together(request: pytest.FixtureRequest, variant: str, width: int) -> None:
    weights = request.getfixturevalue(variant)
    found = {}
    for feature, shape in [("pooled", (2, 1, width)), ("projected", (2, 1, 512)), ("tokens", (2, 49, width))]:
        vision = MedCLIPVision(variant, weights, feature)
        found[feature] = vision.tokens(pictures())
        assert (found[feature].shape, found[feature].dtype) == (shape, torch.float32)
        assert (vision.count, vision.width) == shape[1:]
    assert (found["tokens"].mean(1, keepdim=True) - found["pooled"]).abs().max() < 1e-5
    path = Path(weights) / "pytorch_model.bin" if variant == "vit" else Path(weights)
    name = "vision_model.projection_head.weight" if variant == "vit" else "vision_model.model.fc.weight"
    head = torch.load(path)[name]
    assert (found["pooled"] @ head.T - found["projected"]).abs().max() < 1e-5


def test_sizes_and_batches_before_do_not_change_a_feature(vit: str) -> None:
    fresh = MedCLIPVision("vit", vit).tokens(pictures(1))
    used = MedCLIPVision("vit", vit, batch_size=2)
    used.tokens(pictures(3, 300, 180))
    assert (used.tokens(pictures(3))[:1] - fresh).abs().max() < 1e-5
    assert used.tokens(pictures(0)).shape == (0, 1, 768)


def test_recipe_tells_the_feature_and_not_the_place(vit: str) -> None:
    recipe = MedCLIPVision("vit", vit, "tokens").recipe()
    assert recipe["feature"] == "tokens"
    assert vit not in json.dumps(recipe)
    assert recipe == MedCLIPVision("vit", f"{vit}/pytorch_model.bin", "tokens").recipe()
