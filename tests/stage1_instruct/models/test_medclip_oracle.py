"""Ours against the classes of the package medclip 0.0.3, from a checkpoint that they saved: both variants, 1e-5.

The package is installed without its dependencies or not at all (then skipped). Its imports that play no part here are
stand-ins; torchvision's ResNet-50 is stated again below, and so are the few methods that MedCLIP's feature extractor
inherits from transformers 4.24, which transformers 5 no longer has.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn

from zeus_union.stage1_instruct.models.text.medclip import MedCLIPText
from zeus_union.stage1_instruct.models.vision.medclip import MedCLIPVision, preprocess

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "liver", "spleen", "is", "dark", "large", "."]
TEXTS = ["The liver is dark.", "spleen", "liver " * 60, "Large large spleen is dark, liver is large", ""]


class Bottleneck(nn.Module):
    """torchvision's, v1.5: the stride is on the 3 x 3 convolution."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """torchvision.models.resnet50."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, depth in enumerate([3, 4, 6, 3]):
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(inputs, 64 * 2**stage, stride=2 if stage and not block else 1))
                inputs = 256 * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, 1000)

    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class FeatureExtractor424:
    """CLIPFeatureExtractor of transformers 4.24, of which MedCLIP's inherits, for PIL pictures."""

    def __init__(self, *values: Any, **_: Any) -> None:
        names = "do_resize size resample do_center_crop crop_size do_normalize image_mean image_std do_convert_rgb"
        self.__dict__.update(zip(names.split(), values))

    def resize(self, image: Image.Image, size: int, resample: int) -> Image.Image:
        return image.resize((size, size), resample=resample)

    def center_crop(self, image: Image.Image, size: int) -> Image.Image:
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return image.crop((left, top, left + size, top + size))

    def normalize(self, image: Image.Image, mean: float, std: float) -> np.ndarray:
        return (np.array(image).astype(np.float32) / 255.0 - mean) / std


@pytest.fixture(scope="module")
def medclip() -> Iterator[SimpleNamespace]:
    """The package's modules, by recipe: without its __init__, without the hub, without CUDA."""
    spec = importlib.util.find_spec("medclip")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the package medclip is not installed")
    if importlib.util.find_spec("requests") is None:
        pytest.skip("medclip imports requests, which is not installed")
    # Before the stand-ins: transformers asks for the real pandas and scikit-learn when it first opens a class.
    assert all([transformers.SwinModel, transformers.BertModel, transformers.AutoModel, transformers.CLIPProcessor])
    with pytest.MonkeyPatch.context() as patch:
        package = ModuleType("medclip")
        package.__path__ = list(spec.submodule_search_locations)
        patch.setitem(sys.modules, "medclip", package)
        for absent in ("torchvision", "torchvision.transforms", "pandas", "nltk", "sklearn", "sklearn.preprocessing"):
            patch.setitem(sys.modules, absent, MagicMock())
        # transformers 5 puts another object in its place in sys.modules when it first opens a model class.
        patch.setattr(sys.modules["transformers"], "CLIPFeatureExtractor", FeatureExtractor424, raising=False)
        modeling = importlib.import_module("medclip.modeling_medclip")
        dataset = importlib.import_module("medclip.dataset")
        for part in [name for name in sys.modules if name.startswith("medclip.")]:
            del sys.modules[part]
    modeling.torchvision.models.resnet50 = lambda pretrained: ResNet50()
    modeling.AutoTokenizer = MagicMock()
    modeling.AutoModel = SimpleNamespace(from_pretrained=_untrained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)
        yield SimpleNamespace(modeling=modeling, dataset=dataset)


def _untrained(name: str, **_: Any) -> nn.Module:
    if "swin" in name:
        return transformers.SwinModel(transformers.SwinConfig())
    config = transformers.BertConfig(vocab_size=len(WORDS), intermediate_size=64, output_hidden_states=True)
    return transformers.BertModel(config)


@dataclass(frozen=True)
class Saved:
    """MedCLIP's own model with noise on everything, its checkpoint, and a tokenizer for it."""

    model: Any
    weights: str
    tokenizer: str


@pytest.fixture(scope="module", params=["vit", "resnet"])
def saved(request: pytest.FixtureRequest, medclip: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    modeling = medclip.modeling
    classes = {"vit": modeling.MedCLIPVisionModelViT, "resnet": modeling.MedCLIPVisionModel}
    model = modeling.MedCLIPModel(vision_cls=classes[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
        # One pass in training mode gives batch norms statistics that keep the activations of 50 layers in range.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        vision = model.vision_model.train()
        vision(preprocess(pictures()))
        vision.eval()
    folder = tmp_path_factory.mktemp(request.param)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Saved(model, str(folder), str(folder))


def variant_of(saved: Saved) -> Any:
    return "resnet" if hasattr(saved.model.vision_model.model, "fc") else "vit"


def pictures() -> np.ndarray:
    """Uint8 (3, 256, 256): fine noise on coarse squares, so that the three differ after pooling too."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 200, (3, 8, 8)).repeat(32, axis=1).repeat(32, axis=2)
    return (coarse + random.integers(0, 56, (3, 256, 256))).astype(np.uint8)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1))


@torch.inference_mode()
def test_image_features_are_medclips(saved: Saved, medclip: SimpleNamespace) -> None:
    variant = variant_of(saved)
    extractor = medclip.dataset.MedCLIPFeatureExtractor()
    pixels = extractor([Image.fromarray(picture) for picture in pictures()], return_tensors="pt")["pixel_values"]
    projected = saved.model.vision_model(pixels)
    if variant == "vit":
        pooled = saved.model.vision_model(pixels, project=False)
        tokens = saved.model.vision_model.model(pixels.repeat(1, 3, 1, 1)).last_hidden_state
    else:
        places = saved.model.vision_model.model.features(pixels.repeat(1, 3, 1, 1))
        pooled, tokens = places.mean((2, 3)), places.flatten(2).transpose(1, 2)
    assert projected.std(0).max() > 1e-2
    for feature, expected in [("pooled", pooled[:, None]), ("projected", projected[:, None]), ("tokens", tokens)]:
        ours = MedCLIPVision(variant, saved.weights, feature)
        assert relative_error(ours.tokens(torch.from_numpy(pictures())), expected) < 1e-5


@torch.inference_mode()
def test_text_vectors_are_medclips_of_one_unpadded_text(saved: Saved) -> None:
    tokenizer = transformers.BertTokenizer.from_pretrained(saved.tokenizer, do_lower_case=True)
    ours = MedCLIPText(saved.weights, saved.tokenizer).encode(TEXTS)
    for text, vector in zip(TEXTS, ours):
        tokens = tokenizer(text, return_tensors="pt")
        expected = saved.model.encode_text(tokens["input_ids"], tokens["attention_mask"])[0]
        assert np.abs(vector - expected.numpy()).max() < 1e-5
    assert np.abs(ours[0] - ours[1]).max() > 1e-3


@torch.inference_mode()
def test_padding_would_change_medclips_vector(saved: Saved) -> None:
    """Why ours never pads: the oracle's mean counts the pads."""
    tokens = transformers.BertTokenizer.from_pretrained(saved.tokenizer, do_lower_case=True)(
        TEXTS[0], padding="max_length", max_length=20, return_tensors="pt"
    )
    padded = saved.model.encode_text(tokens["input_ids"], tokens["attention_mask"])[0].numpy()
    assert np.abs(MedCLIPText(saved.weights, saved.tokenizer).encode(TEXTS[:1])[0] - padded).max() > 1e-3


@torch.inference_mode()
def test_long_text_is_medclips_at_77_tokens(saved: Saved) -> None:
    text = " ".join(["liver", "is", "dark"] * 50)
    tokenizer = transformers.BertTokenizer.from_pretrained(saved.tokenizer, do_lower_case=True)
    for window, length in [("truncate", 77), ("extended", 512)]:
        tokens = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        expected = saved.model.encode_text(tokens["input_ids"], tokens["attention_mask"]).numpy()
        ours = MedCLIPText(saved.weights, saved.tokenizer, window)
        assert np.abs(ours.encode([text]) - expected).max() < 1e-5


@pytest.mark.parametrize("size", [(256, 256), (512, 400), (100, 150), (301, 517)])
def test_preprocessing_is_medclips_feature_extractor(medclip: SimpleNamespace, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    extractor = medclip.dataset.MedCLIPFeatureExtractor()
    expected = extractor([Image.fromarray(image)], return_tensors="np")["pixel_values"]
    assert np.abs(preprocess(image[None]).numpy() - expected).max() < 3e-7
