"""SAM and MedSAM from official-looking checkpoints, against segment_anything 1.0, which needs no torchvision for it."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.image import sam as sam_module
from zeus_union.stage1_instruct.models.image.sam import (
    SIZES,
    SamEncoder,
    Size,
    build_sam,
    fitting_batch,
    normalise,
    sam_modeling,
)

TINY = Size(32, 2, 2, (1,))


@pytest.fixture
def fresh() -> Iterator[None]:
    """As in a process that has not imported segment_anything yet; afterwards as before."""

    def take_out() -> dict[str, ModuleType]:
        sam_module._modeling.cache_clear()
        names = [name for name in sys.modules if name.split(".")[0] == "segment_anything"]
        return {name: sys.modules.pop(name) for name in names}

    before = take_out()
    yield
    take_out()
    sys.modules.update(before)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every SAM is two narrow blocks, one of them global; prompt encoder and mask decoder are whole."""
    monkeypatch.setattr(sam_module, "SIZES", dict.fromkeys(SIZES, TINY))


@pytest.fixture(scope="module")
def random_sam() -> Any:
    try:
        sam = build_sam(TINY)
    except UserError as error:
        pytest.skip(f"segment_anything, the oracle, is not here: {error}")
    return randomise(sam)


def randomise(sam: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for tensor in sam.state_dict().values():
        nn.init.normal_(tensor, std=0.2)
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
    return sam.requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(random_sam: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b_01ec64.pth"
    torch.save(random_sam.state_dict(), path)
    return path


def pictures(count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(20, 220, (count, 1024, 1024), dtype=np.uint8)


def difference(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


# segment_anything's modules


def write_package(folder: Path) -> Path:
    """A segment_anything whose __init__ counts how often it runs."""
    (folder / "segment_anything" / "modeling").mkdir(parents=True)
    (folder / "segment_anything" / "__init__.py").write_text("from . import modeling\nwhole = True\n")
    (folder / "segment_anything" / "modeling" / "__init__.py").write_text("Sam = 'of this package'\n")
    return folder


def test_modules_load_without_running_the_package(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write_package(tmp_path))
    (tmp_path / "segment_anything" / "__init__.py").write_text("import no_torchvision_here\n")
    assert sam_modeling().Sam == "of this package"
    assert not [name for name in sys.modules if name.startswith("segment_anything")]


def test_later_import_by_the_user_gets_the_whole_package(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(write_package(tmp_path))
    sam_modeling()
    assert importlib.import_module("segment_anything").whole


def test_package_that_is_imported_already_stays(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write_package(tmp_path))
    package = importlib.import_module("segment_anything")
    assert sam_modeling() is package.modeling
    assert sys.modules["segment_anything"] is package


def test_without_segment_anything_the_error_says_what_to_install(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"medsam needs segment_anything.*No module named.*pip install segment-anything"
    ):
        SamEncoder("medsam", "medsam_vit_b.pth")


def test_torchvision_is_never_imported(random_sam: nn.Module, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name.split(".")[0] != "torchvision"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert sam_modeling().ImageEncoderViT


@pytest.mark.parametrize("size", SIZES)
def test_architecture_is_that_of_segment_anythings_builder(
    size: str, random_sam: nn.Module, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("segment_anything")
    package.__path__ = list(importlib.util.find_spec("segment_anything").submodule_search_locations)  # type: ignore
    monkeypatch.setitem(sys.modules, "segment_anything", package)
    builders = importlib.import_module("segment_anything.build_sam").sam_model_registry
    monkeypatch.setattr(nn.Module, "to_empty", lambda module, device: module)  # 2.6 GB for ViT-H, not needed here
    with torch.device("meta"):
        expected = builders[size]()
    ours = build_sam(SIZES[size])
    assert shapes(ours.state_dict()) == shapes(expected.state_dict())
    assert str(ours) == str(expected)  # layers, their order, kernel sizes and epsilons
    for block, other in zip(ours.image_encoder.blocks, expected.image_encoder.blocks, strict=True):
        assert (block.window_size, block.attn.num_heads) == (other.window_size, other.attn.num_heads)


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


# Grey values


def test_sam_takes_its_own_mean_and_standard_deviation() -> None:
    x = normalise(torch.full((1, 4, 4), 116.28), "sam_vit_h")
    assert x.shape == (1, 3, 4, 4)
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([(116.28 - 123.675) / 58.395, 0.0, (116.28 - 103.53) / 57.375]))


def test_medsam_stretches_as_bowang_labs_inference() -> None:
    """MedSAM_Inference.py: (image - min) / clip(max - min, 1e-8), of each uint8 picture, 3 equal channels."""
    images = np.concatenate([pictures(2)[:, :64, :64], np.full((1, 64, 64), 7, np.uint8)])
    images[1] //= 3
    for image, ours in zip(images, normalise(torch.from_numpy(images).float(), "medsam"), strict=True):
        low, high = float(image.min()), float(image.max())
        expected = np.repeat(((image - low) / np.clip(high - low, 1e-8, None))[None], 3, axis=0)
        assert np.abs(ours.numpy() - expected).max() < 1e-6


# Embeddings


def test_sam_embeds_as_segment_anything(tiny: None, random_sam: Any, checkpoint: Path) -> None:
    images = pictures(2)
    with torch.inference_mode():
        rgb = torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1).float()
        expected = random_sam.image_encoder(random_sam.preprocess(rgb))
    embeddings = SamEncoder("sam_vit_l", str(checkpoint)).encode(images)
    assert (embeddings.shape, embeddings.dtype) == ((2, 256, 64, 64), torch.float32)
    assert difference(embeddings, expected) < 1e-5


def test_medsam_embeds_stretched_slices(tiny: None, random_sam: Any, checkpoint: Path) -> None:
    images = pictures()
    with torch.inference_mode():
        expected = random_sam.image_encoder(normalise(torch.from_numpy(images).float(), "medsam"))
    encoder = SamEncoder("medsam", str(checkpoint))
    assert difference(encoder.encode(images), expected) < 1e-5
    assert encoder.recipe()["intensity"].startswith("min-max of each slice to 0..1")


def test_half_precision_gives_float32_near_fp32(tiny: None, checkpoint: Path) -> None:
    images = pictures()
    encoder = SamEncoder("sam_vit_b", str(checkpoint), precision="bf16")
    embeddings = encoder.encode(images)
    assert embeddings.dtype == torch.float32
    assert 0 < difference(embeddings, SamEncoder("sam_vit_b", str(checkpoint)).encode(images)) < 0.05
    assert encoder.recipe()["precision"] == "bf16"


def test_batches_and_no_slices_at_all(tiny: None, checkpoint: Path) -> None:
    images = pictures(3)
    whole, by_two = (SamEncoder("sam_vit_b", str(checkpoint), batch_size=size).encode(images) for size in (None, 2))
    assert difference(whole, by_two) < 1e-5
    assert SamEncoder("sam_vit_b", str(checkpoint)).encode(images[:0]).shape == (0, 256, 64, 64)


def test_out_of_memory_halves_the_batch_and_says_so_once(
    tiny: None, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sam_module, "say", said.append)
    images = pictures(3)
    encoder = SamEncoder("sam_vit_b", str(checkpoint), batch_size=2)
    expected = encoder.encode(images)
    fail_above(encoder, 1)
    assert difference(encoder.encode(images), expected) < 1e-5
    encoder.encode(images[:2])
    assert said == ["sam_vit_b: out of memory with 2 at a time; continuing with 1"]
    fail_above(encoder, 0)
    with pytest.raises(UserError, match="sam_vit_b ran out of memory with a single item"):
        encoder.encode(images[:1])


def fail_above(encoder: SamEncoder, most: int) -> None:
    def check(model: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    encoder._model.register_forward_pre_hook(check)


def test_batch_is_found_from_the_gpus_memory_whatever_is_free_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    batches = []
    for gibibytes in (0.1, 6, 141):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, g=gibibytes: (0, int(2 * g * 2**30)))
        batches.append(fitting_batch(SIZES["vit_h"], cuda, torch.float32))
    assert batches == [1, 6, 16]
    assert fitting_batch(SIZES["vit_h"], cuda, torch.bfloat16) == 16
    assert fitting_batch(SIZES["vit_h"], torch.device("cpu"), torch.float32) == 1


def test_constants_equal_the_prompt_encoders_own(tiny: None, random_sam: Any, checkpoint: Path) -> None:
    constants = SamEncoder("sam_vit_b", str(checkpoint)).constants()
    assert np.abs(constants["dense_pe"] - random_sam.prompt_encoder.get_dense_pe()[0].numpy()).max() < 1e-5
    assert np.array_equal(constants["no_mask"], random_sam.prompt_encoder.no_mask_embed.weight[0].numpy())
    decoder = {f"decoder.{name}": tensor.shape for name, tensor in random_sam.mask_decoder.state_dict().items()}
    assert {name: array.shape for name, array in constants.items() if name.startswith("decoder.")} == decoder


# Bad input


def test_checkpoint_of_another_model_names_the_first_keys(tiny: None, random_sam: Any, tmp_path: Path) -> None:
    state = random_sam.state_dict()
    del state["image_encoder.blocks.1.attn.rel_pos_h"]
    state["image_encoder.blocks.2.norm1.weight"] = torch.ones(32)
    state["image_encoder.pos_embed"] = torch.zeros(1, 64, 64, 48)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError) as caught:
        SamEncoder("sam_vit_h", str(tmp_path / "other.pth"))
    said = str(caught.value)
    assert "not that of sam_vit_h: 1 missing, first image_encoder.blocks.1.attn.rel_pos_h" in said
    assert "1 unexpected, first image_encoder.blocks.2.norm1.weight" in said
    assert "1 of another shape, first image_encoder.pos_embed" in said


def test_half_a_file_is_refused(tiny: None, checkpoint: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.pth"
    half.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    with pytest.raises(UserError, match=r"half\.pth cannot be read as weights .*cut short"):
        SamEncoder("sam_vit_b", str(half))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"precision": "int8"}, "there are: fp32, bf16, fp16"), ({"batch_size": 0}, "batch_size = 0, expected 1 or more")],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SamEncoder("sam_vit_b", "sam_vit_b_01ec64.pth", **options)


def test_precision_that_torch_lacks_is_said_clearly(tiny: None, checkpoint: Path) -> None:
    encoder = SamEncoder("sam_vit_b", str(checkpoint), precision="fp16")

    def lack(*_: Any) -> None:
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    encoder._model.register_forward_pre_hook(lack)
    with pytest.raises(UserError, match=r"cannot compute sam_vit_b in fp16 on cpu .*use precision fp32 or bf16"):
        encoder.encode(pictures())


def test_overflow_in_fp16_is_said_clearly(tiny: None, checkpoint: Path) -> None:
    encoder = SamEncoder("sam_vit_b", str(checkpoint), precision="fp16")
    assert {parameter.dtype for parameter in encoder._model.parameters()} == {torch.float16}
    assert encoder.recipe()["precision"] == "fp16"
    # A real fp16 pass takes 15 s on a CPU.
    encoder._model = nn.Threshold(1e9, float("inf"))
    with pytest.raises(UserError, match="not finite; fp16 overflows, use bf16 or fp32"):
        encoder.encode(pictures())
