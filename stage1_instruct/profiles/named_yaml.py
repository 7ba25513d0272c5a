"""YAML files that come with Zeus and have a name, or are the user's own and have a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import nearest


def names_in(folder: Path) -> tuple[str, ...]:
    """The names of the files in a folder of ours."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def read_named_yaml(folder: Path, name_or_yaml: str, what: str) -> tuple[Path, Any]:
    """The file of that name in `folder`, or at that path if it ends in .yaml or .yml; and what it holds.

    Args:
        what: names it in messages, e.g. 'profile'.

    Raises:
        UserError: there is none, naming those there are; not YAML.
    """
    is_file = name_or_yaml.endswith((".yaml", ".yml"))
    path = Path(name_or_yaml) if is_file else folder / f"{name_or_yaml}.yaml"
    if not path.is_file():
        names = names_in(folder)
        close = "" if is_file else nearest(name_or_yaml, names)
        raise UserError(f"no {what} {name_or_yaml}; there are: {', '.join(names)}, or give a YAML file{close}")
    try:
        return path, yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
