"""What a layer was made from: canonical JSON, its fingerprint, and what differs between two recipes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ABSENT = "(absent)"


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no white space, no NaN or infinity.

    Raises:
        TypeError, ValueError: a value that JSON cannot hold (a path, an array, NaN).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key in value:
            yield from _leaves(value[key], f"{name}.{key}" if name else key)
    else:
        yield name, value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields that differ -> (old, new); a field that one side lacks is `ABSENT` there.

    >>> differences({"encoder": {"name": "sam"}}, {"encoder": {"name": "sam", "precision": "bf16"}})
    {'encoder.precision': ('(absent)', 'bf16')}
    """
    before = dict(_leaves(json.loads(canonical_json(old)), ""))
    after = dict(_leaves(json.loads(canonical_json(new)), ""))
    return {
        name: (before.get(name, ABSENT), after.get(name, ABSENT))
        for name in sorted(before.keys() | after.keys())
        if canonical_json(before.get(name, ABSENT)) != canonical_json(after.get(name, ABSENT))
    }


def describe(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The differing fields on one line, long values shortened."""

    def short(value: Any) -> str:
        text = value if isinstance(value, str) else canonical_json(value)
        return text if len(text) <= 40 else text[:37] + "..."

    return "; ".join(f"{name}: {short(old)} -> {short(new)}" for name, (old, new) in changed.items())


def sha256_file(path: Path | str) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
