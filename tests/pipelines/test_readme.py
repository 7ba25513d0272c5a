"""The README's own-data block runs from top to bottom as it is written, on patients of that name and tiny models."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.stage1_instruct.conftest import random_litemedsam, tiny_bert, tiny_llama, tiny_parts  # noqa: F401
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage1_instruct.profiles.profile import FOLDER, load_profile, parse_overrides
from zeus_union.stage1_instruct.projection import fold
from zeus_union.stage2_segment.cli import main as zeus_segment
from zeus_union.stage2_segment.model.decoder import MaskDecoder

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"zeus": zeus, "zeus-instruct": zeus_instruct, "zeus-segment": zeus_segment}
# What a person would wait for: the tiny models, and one pass where the default is many.
SHORTER = {"train": ["--epochs", "1"]}
WITH_MODELS = ("build-cache", "segment")


def own_data_block() -> list[list[str]]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Your own data\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]


def write_patient(folder: Path, names: list[str], seed: int, label: Path | None = None) -> None:
    """A bright ball in a box, 24 x 24 x 8 voxels."""
    random = np.random.default_rng(seed)
    x, y, z = np.indices((24, 24, 8))
    ball = (x - 11) ** 2 + (y - 12) ** 2 + (3 * (z - 4)) ** 2 < 40
    for channel, name in enumerate(names):
        volume = 100 + 80 * (1 - 2 * channel) * ball + random.normal(0, 3, ball.shape)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    if label is not None:
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), np.eye(4)), label)


@pytest.mark.slow
def test_the_own_data_block_runs_as_written(
    tiny_parts: dict[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "Dataset501_BraTS2013"
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir(parents=True)
    for number in range(1, 7):
        patient = f"pat000{number}"
        channels = [f"{patient}_000{channel}" for channel in range(2)]
        write_patient(data / "imagesTr", channels, number, data / "labelsTr" / f"{patient}.nii.gz")
    channels_and_labels = {"channel_names": {"0": "FLAIR", "1": "T1Gd"}, "labels": {"background": 0, "tumour": 1}}
    (data / "dataset.json").write_text(json.dumps({**channels_and_labels, "numTraining": 6, "file_ending": ".nii.gz"}))
    (tmp_path / "patient7").mkdir()
    write_patient(tmp_path / "patient7", ["FLAIR", "T1Gd"], 7)
    # The tiny encoder comes with one tensor of a decoder; stage 2 needs it whole.
    weights = load_file(tiny_parts["encoder_weights"])
    weights |= {f"mask_decoder.{key}": part for key, part in MaskDecoder(4, keep_iou_token=True).state_dict().items()}
    save_file(weights, tmp_path / "encoder.safetensors")
    encoder = {"encoder_weights": str(tmp_path / "encoder.safetensors")}
    profile = {**yaml.safe_load((FOLDER / "lite.yaml").read_text()), **tiny_parts, **encoder}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fold, "RECIPE", replace(fold.RECIPE, steps=2))

    for program, command, *arguments in own_data_block():
        more = ["--models", "tiny.yaml"] if command in WITH_MODELS else []
        result = CliRunner().invoke(COMMANDS[program], [command, *arguments, *more, *SHORTER.get(command, [])])
        assert result.exit_code == 0, f"{program} {command}: {result.output} {result.exception!r}"
    made = (
        "cache/brats.h5",
        "slice.png",
        "runs/brats/picture.png",
        "runs/brats/curves.png",
        "runs/brats/projection.safetensors",
    )
    assert all((tmp_path / name).is_file() for name in (*made, "masks/pat0001.nii.gz", "patient7-mask.nii.gz"))


def test_commands_of_the_page_on_views_are_ones_that_there_are() -> None:
    text = (ROOT / "docs" / "views.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert len(lines) > 2
    for program, name, *arguments in lines:
        COMMANDS[program].commands[name].make_context(name, arguments, help_option_names=["-h", "--help"])


def test_commands_of_the_page_on_instructors_are_ones_that_there_are() -> None:
    text = (ROOT / "docs" / "instructors.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("zeus")]
    assert len(lines) > 2
    for program, name, *arguments in lines:
        command = COMMANDS[program].commands[name]
        context = command.make_context(
            name, list(arguments), resilient_parsing=False, help_option_names=["-h", "--help"]
        )
        load_profile(context.params["profile"], parse_overrides(context.params["overrides"]))


def test_commands_of_the_page_on_baselines_are_ones_that_there_are() -> None:
    text = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    for program, name, *arguments in lines:
        COMMANDS[program].commands[name].make_context(name, list(arguments))
