"""UNeXt, TransUNet and MISSFormer against the authors' own modules, on copied weights.

The modules come from clones that stand side by side in the folder that ZEUS_REFERENCES names, each at the commit named:

- UNeXt-pytorch: github.com/jeya-maria-jose/UNeXt-pytorch, 6ad0855114a35afbf81decf5dc912cd8de70476a (MIT)
- TransUNet: github.com/Beckschen/TransUNet, 02ef0010b36eb8328b5e689eadaf613602edf9b8 (Apache 2.0)
- MISSFormer: github.com/ZhifangDeng/MISSFormer, 007424e8f1c5f9f452d37f83ce85d57f5a7dbffb (no licence: only run)

Without them the tests are skipped. Of the packages that they import, those that are not installed are stood in for.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from zeus_union.stage2_segment.baselines.fusion import FusedNetwork

CLASSES = 4
TOLERANCE = 1e-12  # of the largest logit, in double precision


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """As the default type, since TransUNet's ResNet pads its maps with zeros of that."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def clone_of(repository: str) -> Path:
    """The clone of "owner/name"; the test is skipped where it is not."""
    home = os.environ.get("ZEUS_REFERENCES")
    if not home:
        pytest.skip("set ZEUS_REFERENCES to a folder of clones: UNeXt-pytorch, TransUNet and MISSFormer")
    clone = Path(home) / repository.partition("/")[2]
    if not clone.is_dir():
        pytest.skip(f"ZEUS_REFERENCES is set, but there is no clone of github.com/{repository} in it")
    return clone


def stand_in(patch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    """A module of that name, with the packages around it, where the real one cannot be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        parts = name.split(".")
        for around in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if around not in sys.modules:
                patch.setitem(sys.modules, around, ModuleType(around))
        vars(sys.modules[name]).update(contents)


def opened(patch: pytest.MonkeyPatch, folder: Path, name: str) -> ModuleType:
    """A module of a clone's folder, by a name that none of the project's has; nothing stays in sys.modules."""
    package = ModuleType("reference")
    package.__path__ = [str(folder)]
    patch.setitem(sys.modules, "reference", package)
    module = importlib.import_module(f"reference.{name}")
    for part in [part for part in sys.modules if part.startswith("reference.")]:
        del sys.modules[part]
    return module


class ConfigDict(dict):
    """What TransUNet needs of ml_collections': keys that are attributes too."""

    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


def rearrange(maps: Tensor, pattern: str, p1: int, p2: int, c: int) -> Tensor:
    """The one pattern of einops' that MISSFormer has."""
    assert re.sub(r"\s", "", pattern) == "bhw(p1p2c)->b(hp1)(wp2)c"
    batch, height, width, _ = maps.shape
    patches = maps.reshape(batch, height, width, p1, p2, c)
    return torch.einsum("bhwpqc->bhpwqc", patches).reshape(batch, height * p1, width * p2, c)


def official_unext() -> nn.Module:
    clone = clone_of("jeya-maria-jose/UNeXt-pytorch")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, "torchvision", transforms=None)
        stand_in(patch, "torchvision.utils", save_image=None)
        stand_in(patch, "mmcv.cnn", ConvModule=None)
        # No DropPath: at its rate of 0, none is made.
        layers = {"DropPath": None, "to_2tuple": lambda x: (x, x), "trunc_normal_": nn.init.trunc_normal_}
        stand_in(patch, "timm.models.layers", **layers)
        patch.setitem(sys.modules, "utils", opened(patch, clone, "utils"))
        return opened(patch, clone, "archs").UNext(CLASSES, img_size=256)


def official_transunet() -> nn.Module:
    clone = clone_of("Beckschen/TransUNet")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, "ml_collections", ConfigDict=ConfigDict)
        module = opened(patch, clone / "networks", "vit_seg_modeling")
    config = module.CONFIGS["R50-ViT-B_16"]
    config.n_classes, config.n_skip, config.patches.grid = CLASSES, 3, (16, 16)  # as its train.py sets them
    return module.VisionTransformer(config, img_size=256, num_classes=CLASSES)


def official_missformer() -> nn.Module:
    clone = clone_of("ZhifangDeng/MISSFormer")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, "einops", rearrange=rearrange)
        return opened(patch, clone / "networks", "MISSFormer").MISSFormer(CLASSES)


# The names of layers, theirs -> ours. Several of theirs that are one of ours stand on top of each other in it.
Names = Mapping[str, str]


def within(theirs: str, ours: str, names: Names) -> Names:
    """The names of what is in a part, from outside it."""
    return {f"{theirs}.{their}": f"{ours}.{our}" for their, our in names.items()}


def unext_names() -> Names:
    mlp = {
        "norm2": "norm",
        "mlp.fc1": "over_rows",
        "mlp.dwconv.dwconv": "depthwise.convolution",
        "mlp.fc2": "over_columns",
    }
    encoder, decoder = "encoders.0", "decoders.0"
    names = {"decoder5": f"{decoder}.last", "final": f"{decoder}.head"}
    for i in range(3):
        names[f"encoder{i + 1}"] = f"{encoder}.stages.{i}.convolution"
        names[f"ebn{i + 1}"] = f"{encoder}.stages.{i}.norm"
    for i in range(2):
        stage = f"{encoder}.stages.{3 + i}"
        names[f"patch_embed{3 + i}.proj"] = f"{stage}.embedding.projection"
        names[f"patch_embed{3 + i}.norm"] = f"{stage}.embedding.norm"
        names |= within(f"block{1 + i}.0", f"{stage}.block", mlp)
        names[f"norm{3 + i}"] = f"{stage}.norm"
        names |= within(f"dblock{1 + i}.0", f"{decoder}.blocks.{i}", mlp)
        names[f"dnorm{3 + i}"] = f"{decoder}.norms.{i}"
    for i in range(4):
        names[f"decoder{i + 1}"] = f"{decoder}.ups.{i}.convolution"
        names[f"dbn{i + 1}"] = f"{decoder}.ups.{i}.norm"
    return names


def transunet_names() -> Names:
    bottleneck = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"gn{i}": f"norm{i}" for i in (1, 2, 3)}
    shortcut = {"downsample": "downsample.0", "gn_proj": "downsample.1"}
    block = {
        "attention_norm": "norm1",
        "attn.query": "qkv",
        "attn.key": "qkv",
        "attn.value": "qkv",
        "attn.out": "projection",
        "ffn_norm": "norm2",
        "ffn.fc1": "expand",
        "ffn.fc2": "reduce",
    }
    embeddings, resnet = "transformer.embeddings", "transformer.embeddings.hybrid_model"
    encoder, decoder = "encoders.0", "decoders.0"
    names = {
        f"{resnet}.root.conv": f"{encoder}.stem.0",
        f"{resnet}.root.gn": f"{encoder}.stem.1",
        f"{embeddings}.patch_embeddings": f"{encoder}.embedding",
        f"{embeddings}.position_embeddings": f"{encoder}.positions",
        "transformer.encoder.encoder_norm": f"{encoder}.norm",
        "decoder.conv_more.0": f"{decoder}.neck.0",
        "decoder.conv_more.1": f"{decoder}.neck.1",
        "segmentation_head.0": f"{decoder}.head",
    }
    for stage, units in enumerate((3, 4, 9)):
        for unit in range(units):
            layers = bottleneck if unit else bottleneck | shortcut
            names |= within(
                f"{resnet}.body.block{stage + 1}.unit{unit + 1}", f"{encoder}.stages.{stage}.{unit}", layers
            )
    for i in range(12):
        names |= within(f"transformer.encoder.layer.{i}", f"{encoder}.blocks.{i}", block)
    for i in range(4):
        for half in range(2):
            both = {"0": "0", "1": "1"}  # a convolution and its batch norm
            names |= within(f"decoder.blocks.{i}.conv{half + 1}", f"{decoder}.steps.{i}.{half}", both)
    return names


def missformer_names() -> Names:
    mlp = {"fc1": "expand", "dwconv.dwconv": "depthwise.convolution", "norm1": "norm", "fc2": "reduce"}
    attention = {"q": "query", "kv": "key_value", "proj": "projection"}
    block = {
        "norm1": "norm1",
        "norm2": "norm2",
        **within("attn", "attention", attention),
        **within("mlp", "mlp", mlp),
    }
    reduction = {"attn.sr": "reduction", "attn.norm": "reduction_norm"}
    encoder, decoder = "encoders.0", "decoders.0"
    names = {
        "decoder_3.layer_up.expand": f"{decoder}.coarsest.expand",
        "decoder_3.layer_up.norm": f"{decoder}.coarsest.norm",
        "decoder_0.last_layer": f"{decoder}.head",
    }
    for level in range(4):
        layers = block | reduction if level < 3 else block  # the coarsest level's keys and values are not reduced
        stage = f"{encoder}.stages.{level}"
        names[f"backbone.patch_embed{level + 1}.proj"] = f"{stage}.embedding.projection"
        names[f"backbone.patch_embed{level + 1}.norm"] = f"{stage}.embedding.norm"
        names[f"backbone.norm{level + 1}"] = f"{stage}.norm"
        for i in range(2):
            names |= within(f"backbone.block{level + 1}.{i}", f"{stage}.blocks.{i}", layers)
        if level < 3:
            up = f"{decoder}.ups.{2 - level}"
            names[f"decoder_{level}.concat_linear"] = f"{up}.merge"
            names |= within(f"decoder_{level}.layer_up", f"{up}.expansion", {"expand": "expand", "norm": "norm"})
            for i in range(2):
                names |= within(f"decoder_{level}.layer_former_{i + 1}", f"{up}.blocks.{i}", layers)
    for i in range(4):
        theirs, ours = f"bridge.bridge_layer{i + 1}", f"{decoder}.bridge.{i}"
        names |= {f"{theirs}.norm1": f"{ours}.norm1", f"{theirs}.norm2": f"{ours}.norm2"}
        names |= within(f"{theirs}.attn", f"{ours}.attention", attention)
        names[f"{theirs}.attn.scale_reduce.norm"] = f"{ours}.reduction_norm"
        for level in range(3):
            names[f"{theirs}.attn.scale_reduce.sr{level}"] = f"{ours}.reductions.{level}"
        for level in range(4):
            names |= within(f"{theirs}.mixffn{level + 1}", f"{ours}.mlps.{level}", mlp)
    return names


def randomise(reference: nn.Module) -> None:
    """No two tensors alike, norms and their statistics included; activations stay near one."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in reference.state_dict().items():
        if not tensor.is_floating_point():  # the batches that a batch norm has counted
            continue
        tensor.normal_(generator=random)
        if tensor.dim() in (2, 4):  # linear layers and convolutions
            tensor.div_(tensor[0].numel() ** 0.5)
        elif name.endswith("running_var"):
            tensor.abs_().add_(0.5)
        elif tensor.dim() == 1:
            tensor.mul_(0.3).add_(name.endswith("weight"))


def copy_weights(reference: nn.Module, ours: nn.Module, names: Names) -> dict[str, Tensor]:
    """Fills every tensor of ours, or fails; returns those of the reference that are not used, which share memory."""
    given = reference.state_dict()
    parts: defaultdict[str, list[Tensor]] = defaultdict(list)
    for their, our in names.items():
        tensors = [name for name in given if name == their or name.rpartition(".")[0] == their]
        assert tensors, f"the reference has no {their}"
        for name in tensors:
            parts[our + name.removeprefix(their)].append(given.pop(name))
    ours.load_state_dict({name: torch.cat(part) if len(part) > 1 else part[0] for name, part in parts.items()})
    return given


def logits(model: nn.Module, side: int) -> Tensor:
    """Of two random images of three channels."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_unext_gives_the_references_logits() -> None:
    reference, ours = official_unext(), FusedNetwork("unext", 3, CLASSES, "early")
    randomise(reference)
    assert copy_weights(reference, ours, unext_names()) == {}
    assert_same(logits(ours, 256), logits(reference, 256))


@pytest.mark.slow
def test_transunet_gives_the_references_logits() -> None:
    reference, ours = official_transunet(), FusedNetwork("transunet", 3, CLASSES, "early")
    randomise(reference)
    assert copy_weights(reference, ours, transunet_names()) == {}
    assert_same(logits(ours, 256), logits(reference, 256))


def test_missformer_gives_the_references_logits() -> None:
    """At 224 x 224, since the reference's bridge counts the tokens of that size; ours takes any multiple of 32."""
    reference, ours = official_missformer(), FusedNetwork("missformer", 3, CLASSES, "early")
    randomise(reference)
    unused = copy_weights(reference, ours, missformer_names())
    left_out = r".+\.(mlp|mixffn\d)\.norm[23]\..+|decoder_3\.(concat_linear|layer_former_[12])\..+"
    assert [name for name in unused if not re.fullmatch(left_out, name)] == []
    for tensor in unused.values():
        tensor.fill_(torch.nan)  # none of them reaches the mask, or it would be lost
    assert_same(logits(ours, 224), logits(reference, 224))
