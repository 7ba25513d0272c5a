"""Commands, grids and Python of the README and docs/ are parsed by what would run them; `test_docs_run` runs those that it can."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import click
import pytest

import zeus_union
from tests.pipelines.documentation import COMMANDS, PAGES, ROOT, blocks, fenced
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import split_names
from zeus_union.pipelines.ablation.grid import CONTROLS, grid_names, read_grid
from zeus_union.stage1_instruct.profiles.profile import load_profile, parse_overrides
from zeus_union.stage2_segment.options import BY_NAME, read_row

MODULES = {
    "zeus_union.pipelines.cli": "zeus",
    "zeus_union.stage1_instruct.cli": "zeus-instruct",
    "zeus_union.stage2_segment.cli": "zeus-segment",
}


@dataclass(frozen=True)
class DocumentedCommand:
    """A command of a page: a line of a bash block."""

    page: str
    program: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {' '.join(self.arguments)}"


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


# Those that no test runs.
EXAMPLES = [
    (page, block.text)
    for page in PAGES
    for block in fenced(page)
    if block.language == "python" and not block.runs and not block.reason.startswith("needs its own test")
]
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
