"""MedCLIP's checkpoint is loaded whole or refused, its preprocessing and its features are the original's."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.medclip import MedCLIPText, MedCLIPVision, preprocess

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, "liver", "spleen", "is", "The", "."]
# [CLS] and [SEP] stand for 2 of the 77 tokens of a window.
LONG = " ".join(["liver", "is", "spleen"] * 40)

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def swin_shapes() -> Shapes:
    """vision_model.* of the ViT variant as transformers 4.24 writes it."""
    top = "vision_model.model"
    shapes: Shapes = {f"{top}.embeddings.patch_embeddings.projection.weight": (96, 3, 4, 4)}
    shapes |= {f"{top}.embeddings.patch_embeddings.projection.bias": (96,)} | norm(f"{top}.embeddings.norm", 96)
    for stage, (depth, heads) in enumerate([(2, 3), (2, 6), (6, 12), (2, 24)]):
        width = 96 * 2**stage
        layer = f"{top}.encoder.layers.{stage}"
        for block in (f"{layer}.blocks.{i}" for i in range(depth)):
            attention = f"{block}.attention.self"
            shapes |= norm(f"{block}.layernorm_before", width) | norm(f"{block}.layernorm_after", width)
            for part in ("query", "key", "value"):
                shapes |= linear(f"{attention}.{part}", width, width)
            shapes[f"{attention}.relative_position_bias_table"] = (169, heads)
            shapes[f"{attention}.relative_position_index"] = (49, 49)
            shapes |= linear(f"{block}.attention.output.dense", width, width)
            shapes |= linear(f"{block}.intermediate.dense", 4 * width, width)
            shapes |= linear(f"{block}.output.dense", width, 4 * width)
        if stage < 3:
            shapes[f"{layer}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= norm(f"{layer}.downsample.norm", 4 * width)
    return shapes | norm(f"{top}.layernorm", 768) | {"vision_model.projection_head.weight": (512, 768)}


def resnet_shapes() -> Shapes:
    """vision_model.* of the ResNet variant as torchvision writes it."""
    top = "vision_model.model"
    shapes: Shapes = {}

    def convolution(place: str, number: str, outputs: int, inputs: int, side: int) -> None:
        conv, bn = ("0", "1") if place.endswith("downsample.") else (f"conv{number}", f"bn{number}")
        shapes[f"{place}{conv}.weight"] = (outputs, inputs, side, side)
        shapes.update(norm(place + bn, outputs))
        shapes.update({f"{place}{bn}.running_mean": (outputs,), f"{place}{bn}.running_var": (outputs,)})
        shapes[f"{place}{bn}.num_batches_tracked"] = ()

    convolution(f"{top}.", "1", 64, 3, 7)
    inputs = 64
    for stage, depth in enumerate([3, 4, 6, 3]):
        inner = 64 * 2**stage
        for block in range(depth):
            place = f"{top}.layer{stage + 1}.{block}."
            convolution(place, "1", inner, inputs, 1)
            convolution(place, "2", inner, inner, 3)
            convolution(place, "3", 4 * inner, inner, 1)
            if block == 0:
                convolution(f"{place}downsample.", "", 4 * inner, inputs, 1)
            inputs = 4 * inner
    return shapes | {f"{top}.fc.weight": (512, 2048)}


def bert_shapes(words: int = 28996, inner: int = 3072) -> Shapes:
    """text_model.* as transformers 4.24 writes it."""
    top = "text_model.model"
    shapes: Shapes = {f"{top}.embeddings.position_ids": (1, 512)}
    shapes |= {f"{top}.embeddings.{name}_embeddings.weight": (rows, 768) for name, rows in _tables(words)}
    shapes |= norm(f"{top}.embeddings.LayerNorm", 768)
    for layer in (f"{top}.encoder.layer.{i}" for i in range(12)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", 768, 768)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", 768) | norm(f"{layer}.output.LayerNorm", 768)
        shapes |= linear(f"{layer}.intermediate.dense", inner, 768) | linear(f"{layer}.output.dense", 768, inner)
    return shapes | linear(f"{top}.pooler.dense", 768, 768) | {"text_model.projection_head.weight": (512, 768)}


def _tables(words: int) -> list[tuple[str, int]]:
    return [("word", words), ("position", 512), ("token_type", 2)]


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    """Noise that keeps activations of order 1; buffers that are counted, not learned, are zeros of int64."""
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith(("relative_position_index", "position_ids", "num_batches_tracked")):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif len(shape) > 1:
            state[name] = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
        else:
            around = 1 if name.endswith(("weight", "running_var")) else 0
            state[name] = around + 0.05 * torch.randn(shape)
    return state


def hollow_state(shapes: Shapes) -> dict[str, Tensor]:
    """Zeros of the right shapes that need hardly any room in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


SMALL_BERT = bert_shapes(words=len(WORDS), inner=16)
SCALE = {"logit_scale": torch.tensor(2.6593)}


def write_words(folder: Path, words: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("medclip")


@pytest.fixture(scope="session")
def vit_state() -> dict[str, Tensor]:
    return random_state(swin_shapes()) | hollow_state(SMALL_BERT) | SCALE


@pytest.fixture(scope="session")
def vit(folder: Path, vit_state: dict[str, Tensor]) -> str:
    """A checkpoint of the ViT variant under its released names, in the folder its zip would make."""
    (folder / "vit").mkdir()
    torch.save(vit_state, folder / "vit" / "pytorch_model.bin")
    return str(folder / "vit")


@pytest.fixture(scope="session")
def resnet(folder: Path) -> str:
    torch.save(random_state(resnet_shapes()) | hollow_state(SMALL_BERT) | SCALE, folder / "resnet.bin")
    return str(folder / "resnet.bin")


@pytest.fixture(scope="session")
def text(folder: Path) -> str:
    torch.save(hollow_state(resnet_shapes()) | random_state(SMALL_BERT) | SCALE, folder / "text.bin")
    return str(folder / "text.bin")


@pytest.fixture(scope="session")
def words(folder: Path) -> str:
    return str(write_words(folder / "words", WORDS))


def pictures(count: int = 2, height: int = 256, width: int = 256) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height, width), np.uint8))


def test_released_checkpoint_has_434_tensors_and_the_published_number_of_parameters() -> None:
    shapes = swin_shapes() | bert_shapes() | {"logit_scale": ()}
    counted = {name: shape for name, shape in shapes.items() if not name.endswith(("_index", "position_ids"))}
    assert (len(shapes), len(counted)) == (434, 421)
    assert sum(math.prod(shape) for shape in counted.values()) == 136_616_059
    learned = [shape for name, shape in resnet_shapes().items() if not name.endswith(("_mean", "_var", "_tracked"))]
    assert (len(resnet_shapes()), sum(math.prod(shape) for shape in learned)) == (319, 24_556_608)


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


def refused(state: Mapping[str, Tensor], path: Path, words: str) -> list[str]:
    """What both halves say of a checkpoint."""
    torch.save(dict(state), path)
    said = []
    with pytest.raises(UserError) as vision:
        MedCLIPVision("vit", str(path))
    said.append(str(vision.value))
    with pytest.raises(UserError) as text:
        MedCLIPText(str(path), words)
    return [*said, str(text.value)]


def test_half_a_file_is_refused_by_either_half_naming_the_first_missing_tensor(words: str, tmp_path: Path) -> None:
    whole = hollow_state(swin_shapes() | SMALL_BERT) | SCALE
    without_text = {name: tensor for name, tensor in whole.items() if not name.startswith("text_model")}
    last = "text_model.model.encoder.layer.11.output.dense.bias"
    without_one = {name: tensor for name, tensor in whole.items() if name != last}
    for message in refused(without_text, tmp_path / "a.bin", words):
        assert "missing, first text_model.model." in message
    for message in refused(without_one, tmp_path / "b.bin", words):
        assert f"1 missing, first {last}" in message


def test_tensor_too_many_is_refused_by_either_half(words: str, tmp_path: Path) -> None:
    state = hollow_state(swin_shapes() | SMALL_BERT) | SCALE | {"vision_model.model.head.weight": torch.zeros(1)}
    for message in refused(state, tmp_path / "a.bin", words):
        assert "1 unexpected, first vision_model.model.head.weight" in message


def test_ordinary_bert_is_refused_as_no_medclip(tiny_bert: Path, words: str, tmp_path: Path) -> None:
    state = transformers.AutoModel.from_pretrained(tiny_bert).state_dict()
    for message in refused(state, tmp_path / "bert.bin", words):
        assert "is no MedCLIP checkpoint" in message


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


def test_unknown_choices_are_named(vit: str, words: str) -> None:
    with pytest.raises(UserError, match="variant vit_b: expected one of vit, resnet"):
        MedCLIPVision("vit_b", vit)
    with pytest.raises(UserError, match="feature last: expected one of pooled, projected, tokens"):
        MedCLIPVision("vit", vit, "last")
    with pytest.raises(UserError, match="window all: expected one of truncate, extended, mean"):
        MedCLIPText(vit, words, "all")


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


TEXTS = ["The liver is a", "", "spleen spleen spleen", "liver.", LONG, "a b c d e f g h i j k l m"]


@pytest.mark.parametrize("window", ["truncate", "extended", "mean"])
def test_vectors_are_of_unit_length_in_order_whatever_else_is_in_the_batch(text: str, words: str, window: str) -> None:
    encoder = MedCLIPText(text, words, window, batch_size=2)
    together = encoder.encode(TEXTS)
    assert (together.dtype, together.shape, encoder.width) == (np.float32, (6, 512), 512)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert np.abs(together - np.concatenate([encoder.encode([one]) for one in TEXTS])).max() < 1e-5
    assert np.abs(together[0] - together[2]).max() > 1e-3
    assert encoder.encode([]).shape == (0, 512)


def test_truncate_keeps_75_words_and_extended_510(text: str, words: str) -> None:
    many = ["liver", "is", "spleen"] * 200
    truncate, extended = MedCLIPText(text, words), MedCLIPText(text, words, "extended")
    whole = " ".join(many)
    assert np.abs(truncate.encode([whole]) - extended.encode([" ".join(many[:75])])).max() < 1e-6
    assert np.abs(truncate.encode([whole]) - extended.encode([" ".join(many[:76])])).max() > 1e-5
    assert np.abs(extended.encode([whole]) - extended.encode([" ".join(many[:510])])).max() < 1e-6
    assert np.abs(extended.encode([whole]) - extended.encode([" ".join(many[:509])])).max() > 1e-6


def test_mean_averages_consecutive_windows(text: str, words: str) -> None:
    many = LONG.split()
    encoder = MedCLIPText(text, words, "mean")
    parts = encoder.encode([" ".join(many[:75]), " ".join(many[75:])]).mean(0)
    assert np.abs(encoder.encode([LONG])[0] - parts / np.linalg.norm(parts)).max() < 1e-6
    assert np.abs(encoder.encode(["liver"]) - MedCLIPText(text, words).encode(["liver"])).max() < 1e-6


def test_text_is_lower_cased_as_medclip_does_unless_the_folder_says_otherwise(
    text: str, words: str, tmp_path: Path
) -> None:
    encoder = MedCLIPText(text, words)
    assert encoder.recipe()["lower_case"] is True
    assert np.array_equal(encoder.encode(["Liver A"]), encoder.encode(["liver a"]))
    cased = write_words(tmp_path / "cased", WORDS)
    (cased / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert MedCLIPText(text, str(cased)).recipe()["lower_case"] is False


def test_tokenizer_json_gives_the_same_vectors_and_recipe(text: str, words: str, tmp_path: Path) -> None:
    transformers.BertTokenizer.from_pretrained(words, do_lower_case=True).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    first, second = MedCLIPText(text, words), MedCLIPText(text, str(tmp_path))
    assert np.array_equal(first.encode(TEXTS), second.encode(TEXTS))
    assert first.recipe() == second.recipe()
    assert text not in json.dumps(first.recipe())


def test_missing_and_foreign_tokenizers_are_one_clear_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer in .*expected vocab\.txt or tokenizer\.json"):
        MedCLIPText(text, str(tmp_path))
    with pytest.raises(UserError, match=f"has {len(WORDS)} embeddings but the tokenizer .* {len(WORDS) - 1} tokens"):
        MedCLIPText(text, str(write_words(tmp_path / "fewer", WORDS[:-1])))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        MedCLIPText(text, str(tmp_path))


@pytest.mark.slow
def test_checkpoint_of_full_size_loads_in_both_halves(tmp_path: Path) -> None:
    state = random_state(swin_shapes() | bert_shapes()) | SCALE
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert len(state) == 434
    words = write_words(tmp_path / "words", [*WORDS, *(f"word{i}" for i in range(28996 - len(WORDS)))])
    assert MedCLIPVision("vit", str(tmp_path), "projected").tokens(pictures(1)).isfinite().all()
    vectors = MedCLIPText(str(tmp_path), str(words)).encode(["The liver is a", "spleen"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
