"""Imports run one way: pipelines -> stage1_instruct, stage2_segment -> cache; the face over all imports lazily."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import zeus_union

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cache", "stage1_instruct", "stage2_segment", "pipelines")
HOMES = {"zeus_union": "src/zeus_union", **{f"zeus_union.{room}": room for room in ROOMS}}
FACE = "zeus_union"
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "cache": (),
    "stage1_instruct": ("cache",),
    "stage2_segment": ("cache",),
    "pipelines": ("cache", "stage1_instruct", "stage2_segment"),
}
# For the type checker alone: the training's recipe lies beside the function that takes it.
KNOWN_CIRCLE = ("zeus_union.stage1_instruct.projection.loop", "zeus_union.stage1_instruct.projection.train")


@cache
def modules() -> dict[str, ast.Module]:
    """Import name -> syntax tree, of every module."""
    found = {}
    for package, folder in HOMES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def names_imported(nodes: Iterable[ast.AST]) -> set[str]:
    """What import statements ask for; of `from package import module` the module."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively; write zeus_union. and the rest"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in modules() else str(node.module))
    return names


@cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of zeus_union that it imports anywhere, inside functions and for the type checker too."""
    return {
        name: {other for other in names_imported(ast.walk(tree)) if other.split(".")[0] == FACE}
        for name, tree in modules().items()
    }


def room_of(name: str) -> str:
    return name.split(".")[1] if name != FACE else FACE


def test_every_import_of_the_project_exists() -> None:
    assert {(name, other) for name, others in imports().items() for other in others if other not in modules()} == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = {room, *MAY_IMPORT[room]}
    wrong = {
        (name, other)
        for name, others in imports().items()
        for other in others
        if room_of(name) == room and room_of(other) not in allowed
    }
    assert wrong == set()


def test_no_modules_import_one_another() -> None:
    graph = {name: {other for other in others if (name, other) != KNOWN_CIRCLE} for name, others in imports().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_face_imports_nothing_of_the_rooms_when_it_is_imported() -> None:
    at_import = [node for node in modules()[FACE].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert names_imported(at_import) == {"typing"}


def test_the_face_has_the_same_names_for_type_checker_interpreter_and_star() -> None:
    shown = {
        alias.name: str(node.module)
        for node in ast.walk(modules()[FACE])
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{FACE}.")
        for alias in node.names
    }
    assert {name: f"{FACE}.{home}" for name, home in zeus_union._HOMES.items()} == shown
    assert sorted(zeus_union.__all__) == sorted([*shown, "__version__"])


def test_the_face_is_imported_at_once() -> None:
    """Under 0.2 s at the best of three, and without the packages that take seconds."""
    code = (
        "import sys, time; start = time.perf_counter(); import zeus_union; took = time.perf_counter() - start; "
        "print(took, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    best = float("inf")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took, *loaded = done.stdout.split()
        assert {"torch", "numpy", "h5py", "pyarrow", "transformers", "click", "rich"}.isdisjoint(loaded)
        best = min(best, float(took))
    assert best < 0.2


def test_the_face_lists_its_names_and_refuses_others() -> None:
    assert set(zeus_union.__all__) <= set(dir(zeus_union))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        zeus_union.nonsense  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(zeus_union.__all__) - {"__version__"}))
def test_the_face_gives_the_thing_itself(name: str) -> None:
    home = import_module(f"{FACE}.{zeus_union._HOMES[name]}")
    assert getattr(zeus_union, name) is getattr(home, name)
    assert getattr(home, name).__module__ == home.__name__


def test_the_version_is_the_distribution_s() -> None:
    assert zeus_union.__version__.count(".") == 2
