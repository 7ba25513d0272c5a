"""The README's own-data block runs from top to bottom as it is written, on patients of that name and tiny models.

All other commands, grids and Python of the README and docs/ are parsed by what would run them.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import click
import nibabel
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import zeus_union
from tests.stage1_instruct.conftest import random_litemedsam, tiny_bert, tiny_llama, tiny_parts  # noqa: F401
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import split_names
from zeus_union.pipelines.ablation.grid import CONTROLS, grid_names, read_grid
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage1_instruct.profiles.profile import FOLDER, load_profile, parse_overrides
from zeus_union.stage1_instruct.projection import fold
from zeus_union.stage2_segment.cli import main as zeus_segment
from zeus_union.stage2_segment.model.decoder import MaskDecoder
from zeus_union.stage2_segment.options import BY_NAME, read_row

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
COMMANDS = {"zeus": zeus, "zeus-instruct": zeus_instruct, "zeus-segment": zeus_segment}
MODULES = {
    "zeus_union.pipelines.cli": "zeus",
    "zeus_union.stage1_instruct.cli": "zeus-instruct",
    "zeus_union.stage2_segment.cli": "zeus-segment",
}
# What a person would wait for: the tiny models, and one pass where the default is many.
SHORTER = {"train": ["--epochs", "1"]}
WITH_MODELS = ("build-cache",)  # a run carries them


def own_data_block() -> list[list[str]]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Your own data\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]


def write_patient(folder: Path, names: list[str], seed: int, label: Path | None = None) -> None:
    """A bright ball in a box, 24 x 24 x 4 voxels."""
    random = np.random.default_rng(seed)
    x, y, z = np.indices((24, 24, 4))
    ball = (x - 11) ** 2 + (y - 12) ** 2 + (3 * (z - 2)) ** 2 < 40
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
    assert all((tmp_path / name).is_file() for name in (*made, "masks/pat0001.nii.gz", "brats.zeus.zip"))
    assert {"mask.nii.gz", "statistics.csv", "preview.png"} <= {
        path.name for path in (tmp_path / "segmentations/patient7").iterdir()
    }


@dataclass(frozen=True)
class DocumentedCommand:
    """A command of a page: a line of a bash block."""

    page: str
    program: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {' '.join(self.arguments)}"


def blocks(page: Path, language: str) -> list[str]:
    """A page's fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def documented_commands(page: Path) -> list[DocumentedCommand]:
    """All of zeus, zeus-instruct and zeus-segment; those that accelerate launches by their module, too.

    Variables that the page exports are put in.
    """
    commands = []
    exported = dict(re.findall(r'^export (\w+)="(.*)"$', page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    for block in (Template(text).safe_substitute(exported) for text in blocks(page, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                stop = words.index("&&") if "&&" in words else len(words)
                program, *arguments = words[:stop] or [""]
                if program == "accelerate" and "-m" in arguments:
                    program, *arguments = arguments[arguments.index("-m") + 1 :]
                if (name := MODULES.get(program, Path(program).name)) in COMMANDS:
                    commands.append(DocumentedCommand(page.relative_to(ROOT).as_posix(), name, tuple(arguments)))
                words = words[stop + 1 :]
    return commands


DOCUMENTED = [command for page in PAGES for command in documented_commands(page)]


def test_the_pages_hold_commands_of_every_program() -> None:
    assert len(DOCUMENTED) > 50
    assert {command.program for command in DOCUMENTED} == set(COMMANDS)


@pytest.mark.parametrize("documented", DOCUMENTED, ids=str)
def test_a_command_of_the_pages_is_one_that_there_is(documented: DocumentedCommand) -> None:
    group = COMMANDS[documented.program]
    name, *arguments = documented.arguments
    assert name in group.commands, f"{documented.program} has no command {name}"
    with click.Context(group, info_name=documented.program, help_option_names=["-h", "--help"]) as parent:
        given = group.commands[name].make_context(name, arguments, parent=parent).params
    # What click takes as it comes is read by the functions that read it in the command.
    if name == "ablate":
        read_row(dict(text.split("=", 1) for text in given["overrides"]), "--set")
        if given["grid_name"] in grid_names():
            controls = CONTROLS if given["controls"] == "all" else split_names(given["controls"])
            read_grid(given["grid_name"], {}, controls)
    elif "profile" in given and "overrides" in given:
        load_profile(given["profile"] or "lite", parse_overrides(given["overrides"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_command_within_a_sentence_has_that_name_and_those_options(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for program, name, rest in re.findall(r"`(zeus(?:-instruct|-segment)?)\s+([a-z-]+)([^`]*)`", text):
        if name in ("--help", "--version"):
            continue
        assert name in COMMANDS[program].commands, f"{program} has no command {name}"
        options = {flag for option in COMMANDS[program].commands[name].params for flag in option.opts}
        options |= {flag for option in COMMANDS[program].commands[name].params for flag in option.secondary_opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= {*options, "--help"}, f"{program} {name}{rest}"


GRIDS = [(page, block) for page in PAGES for block in blocks(page, "yaml") if "rows:" in block]


@pytest.mark.parametrize(("page", "block"), GRIDS, ids=[page.relative_to(ROOT).as_posix() for page, _ in GRIDS])
def test_a_grid_of_the_pages_can_be_read(page: Path, block: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(block, encoding="utf-8")
    assert read_grid(str(tmp_path / "grid.yaml"), {}).rows


EXAMPLES = [(page, block) for page in PAGES for block in blocks(page, "python")]
EXAMPLE_NAMES = [f"{page.relative_to(ROOT).as_posix()}-{number}" for number, (page, _) in enumerate(EXAMPLES)]


@pytest.mark.parametrize(("page", "block"), EXAMPLES, ids=EXAMPLE_NAMES)
def test_python_of_the_pages_names_what_there_is(page: Path, block: str) -> None:
    """Every import, every name below zeus and every method of a cache exists and takes the arguments it is given."""
    tree = ast.parse(block)
    compile(tree, str(page), "exec")
    names = imported(tree)
    caches = {
        item.optional_vars.id
        for item in with_items(tree)
        if isinstance(item.optional_vars, ast.Name) and "Cache" in ast.unparse(item.context_expr)
    }
    checked = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "zeus":
                assert node.attr in zeus_union.__all__, f"zeus_union.{node.attr}"
            elif node.value.id in caches:
                assert hasattr(Cache, node.attr) or node.attr in Cache.__init__.__code__.co_names, f"Cache.{node.attr}"
        if isinstance(node, ast.Call) and (function := called(node.func, names, caches)) is not None:
            checked += 1
            takes(function, node)
    assert checked


def with_items(tree: ast.Module) -> list[ast.withitem]:
    return [item for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items]


def imported(tree: ast.Module) -> dict[str, Any]:
    """What an example imports from the package, by the name it has there."""
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("zeus_union"):
            module = import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    return names


def called(function: ast.expr, names: Mapping[str, Any], caches: Collection[str]) -> Any:
    """The function of the package that an expression calls; None where it is another's."""
    if isinstance(function, ast.Name):
        return names.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        if function.value.id == "zeus":
            return getattr(zeus_union, function.attr)
        if function.value.id in caches:
            return partial(getattr(Cache, function.attr), None)
    return None


def takes(function: Any, call: ast.Call) -> None:
    """Raises TypeError, or fails, where a function does not take a call's arguments."""
    keywords = [str(keyword.arg) for keyword in call.keywords]
    bound = inspect.signature(function).bind(*call.args, **dict.fromkeys(keywords))
    if function is zeus_union.train_run:
        assert set(bound.arguments.get("options", {})) <= set(BY_NAME), keywords
