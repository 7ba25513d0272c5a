"""The README's own-data block, and every block of docs/ that is marked `<!-- run -->`, runs as it is written.

The README's block runs from top to bottom on patients of that name, with tiny models under the name of `lite`; each page then
runs in a copy of the folder that it leaves. What needs weights, a GPU, a cluster or the network says so, and is only parsed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from tests.pipelines.documentation import COMMANDS, DOCS, Block, command_lines, fenced, own_data_block, page_name
from tests.stage1_instruct.conftest import random_litemedsam, tiny_bert, tiny_llama  # noqa: F401
from zeus_union.stage1_instruct.models.image.tiny_vit import TinyViT
from zeus_union.stage1_instruct.profiles import profile
from zeus_union.stage1_instruct.projection import fold
from zeus_union.stage2_segment.model.decoder import MaskDecoder

CHANNELS = ("FLAIR", "T1Gd")
# What a person would wait for: one epoch, two rows of one seed, one subject.
SHORTER = {
    "train": ["--epochs", "1"],
    "ablate": ["--epochs", "1", "--seeds", "0", "--controls", "none"],
    "probe": ["--subjects", "pat0001"],
}
REASONS = (
    "needs weights",
    "needs a GPU",
    "needs a cluster",
    "needs the network",
    "needs public data",
    "needs a scanner's export",
    "needs two caches",
    "takes too long for a test",
    "needs its own test",
)


def write_patient(folder: Path, names: list[str], seed: int, label: Path | None = None, depth: int = 8) -> None:
    """A bright ball in a box of 24 x 24 voxels; every fourth slice: of depth 8 one without it and one with it, of 4 one with it."""
    random = np.random.default_rng(seed)
    x, y, z = np.indices((24, 24, depth))
    ball = (x - 9 - seed % 4) ** 2 + (y - 12) ** 2 + (2 * (z - depth / 2)) ** 2 < 40
    for channel, name in enumerate(names):
        volume = 100 + 80 * (1 - 2 * channel) * ball + random.normal(0, 3, ball.shape)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    if label is not None:
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), np.eye(4)), label)


def write_data_set(folder: Path, first: int, patients: int, labels: bool = True) -> None:
    """nnU-Net's raw layout, patients pat000N from `first`; imagesTs where they have no labels."""
    images = folder / ("imagesTr" if labels else "imagesTs")
    images.mkdir(parents=True)
    if labels:
        (folder / "labelsTr").mkdir()
    for number in range(first, first + patients):
        patient = f"pat{number:04d}"
        label = folder / "labelsTr" / f"{patient}.nii.gz" if labels else None
        depth = 2 if not labels else 8 if number < 4 else 4
        names = [f"{patient}_{channel:04d}" for channel in range(len(CHANNELS))]
        write_patient(images, names, number, label, depth)
    description = {
        "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": patients if labels else 0,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def run_commands(lines: list[list[str]], where: str) -> None:
    for program, command, *arguments in lines:
        result = CliRunner().invoke(COMMANDS[program], [command, *arguments, *SHORTER.get(command, [])])
        assert result.exit_code == 0, f"{where}: {program} {command}: {result.output} {result.exception!r}"


def cells_of_pixels(network: TinyViT, pictures: Tensor) -> Tensor:
    """In place of a random network's embeddings, which cost 0.6 s a picture: (B, 3, 256, 256) -> (B, 256, 64, 64)."""
    return pixel_unshuffle(pictures[:, :1], 4).repeat(1, 16, 1, 1)


@pytest.fixture(scope="module")
def readers_folder(
    random_litemedsam: Path,  # noqa: F811
    tiny_llama: Path,  # noqa: F811
    tiny_bert: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """Where the README's own-data block has run: its data, cache, run, masks; Dataset600_New has patients without labels."""
    folder = tmp_path_factory.mktemp("reader")
    write_data_set(folder / "Dataset501_BraTS2013", 1, 7)
    write_data_set(folder / "Dataset600_New", 11, 2, labels=False)
    (folder / "patient7").mkdir()
    write_patient(folder / "patient7", list(CHANNELS), 70, depth=2)
    reports = [f"pat{number:04d},report {number}: a tumour on the left" for number in range(1, 8)]
    (folder / "reports.csv").write_text("\n".join(["subject,text", *reports]), encoding="utf-8")
    # The tiny encoder comes with one tensor of a decoder; stage 2 needs it whole.
    models = tmp_path_factory.mktemp("models")
    weights = load_file(random_litemedsam)
    weights |= {f"mask_decoder.{key}": part for key, part in MaskDecoder(4, keep_iou_token=True).state_dict().items()}
    save_file(weights, models / "encoder.safetensors")
    profiles = Path(shutil.copytree(profile.FOLDER, models / "profiles"))
    tiny = {
        "encoder_weights": str(models / "encoder.safetensors"),
        "llm": str(tiny_llama),
        "text_encoder": str(tiny_bert),
        "max_new_tokens": "8",
    }
    lite = yaml.safe_load((profiles / "lite.yaml").read_text(encoding="utf-8"))
    (profiles / "lite.yaml").write_text(yaml.safe_dump({**lite, **tiny}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEUS_HOME", str(models / "home"))
        patch.setattr(profile, "FOLDER", profiles)
        patch.setattr(fold, "RECIPE", replace(fold.RECIPE, steps=2))
        patch.setattr(TinyViT, "forward", cells_of_pixels)
        patch.chdir(folder)
        run_commands(own_data_block(), "README.md")
        yield folder


@pytest.mark.slow
def test_the_own_data_block_runs_as_written(readers_folder: Path) -> None:
    made = (
        "cache/brats.h5",
        "slice.png",
        "runs/brats/picture.png",
        "runs/brats/curves.png",
        "runs/brats/projection.safetensors",
        "masks/pat0001.nii.gz",
        "brats.zeus.zip",
    )
    assert all((readers_folder / name).is_file() for name in made)
    assert {"mask.nii.gz", "statistics.csv", "preview.png"} <= {
        path.name for path in (readers_folder / "segmentations/patient7").iterdir()
    }


def run_block(block: Block, names: dict[str, object]) -> None:
    if block.language == "bash":
        run_commands(command_lines(block.text), str(block))
    else:
        text = re.sub(r"\bepochs=\d+", "epochs=1", block.text)
        exec(compile("\n" * block.line + text, block.page, "exec"), names)


RUN = {page: [block for block in fenced(page) if block.runs] for page in DOCS}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCS if RUN[page]], ids=page_name)
def test_the_marked_blocks_of_a_page_run_in_order(
    page: Path, readers_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(readers_folder, tmp_path / "reader"))
    names: dict[str, object] = {"__name__": "page"}
    for block in RUN[page]:
        run_block(block, names)


@pytest.mark.parametrize("page", DOCS, ids=page_name)
def test_every_command_of_a_page_is_run_or_says_why_not(page: Path) -> None:
    for block in fenced(page):
        if block.language in ("bash", "python"):
            assert block.runs or block.reason.startswith(REASONS), f"{block}: mark it run, or not run: {REASONS}"
