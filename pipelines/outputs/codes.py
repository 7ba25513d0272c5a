"""The code that a class has in DICOM: SNOMED CT or NCI Thesaurus where codes.yaml knows it, else a private one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

PRIVATE_SCHEME = "99ZEUS"  # DICOM leaves what begins with 99 to everybody
_SPELLING: Mapping[str, str] = {"tumour": "tumor", "tumours": "tumors", "oedema": "edema", "grey": "gray"} | {
    "oesophagus": "esophagus"
}
_MOST_LETTERS = 64  # of a meaning (VR LO)


@dataclass(frozen=True)
class Code:
    """A coded concept: value, scheme that has it, meaning in words."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class ClassCode:
    """How DICOM describes a class.

    Attributes:
        side: left or right, of a paired structure.
        private: the type is in no public dictionary.
    """

    category: Code
    type: Code
    side: Code | None = None

    @property
    def private(self) -> bool:
        return self.type.scheme == PRIVATE_SCHEME


def class_code(name: str) -> ClassCode:
    """The code of a class by its name: 'left kidney', 'kidney_left', 'Non-enhancing tumour'."""
    table = code_table()
    words = [_SPELLING.get(word, word) for word in re.findall(r"[a-z0-9]+", name.casefold())]
    by_name = {known: entry for entry in table["types"] for known in entry["names"]}
    entry, side = by_name.get(" ".join(words)), None
    sides = [word for word in words if word in table["sides"]]
    if entry is None and len(sides) == 1:
        entry = by_name.get(" ".join(word for word in words if word not in sides))
        entry, side = (entry, sides[0]) if entry is not None and entry.get("paired") else (None, None)
    if entry is None:
        return ClassCode(_code(table["categories"]["anatomy"]), private_code(name))
    return ClassCode(
        _code(table["categories"][entry["category"]]), _code(entry), _code(table["sides"][side]) if side else None
    )


def private_code(name: str) -> Code:
    """The same for a name in every run and study."""
    digest = hashlib.sha256(" ".join(name.casefold().split()).encode()).hexdigest()
    return Code(digest[:12].upper(), PRIVATE_SCHEME, dicom_text(name))


def dicom_text(name: str, most: int = _MOST_LETTERS) -> str:
    """A name as DICOM's short texts can hold it: no control characters or backslashes, at most `most` letters."""
    printable = "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in name)
    return " ".join(printable.split())[:most].strip() or "class"


@lru_cache
def code_table() -> Mapping[str, Any]:
    """codes.yaml."""
    return yaml.safe_load((Path(__file__).parent / "codes.yaml").read_text(encoding="utf-8"))


def _code(entry: Mapping[str, str]) -> Code:
    return Code(entry["value"], entry["scheme"], entry["meaning"])
