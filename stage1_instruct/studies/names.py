"""Names of cases as a cache can hold them: letters, digits, '.', '_' and '-'."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from zeus_union.cache.layout import is_subject_name
from zeus_union.cache.terminal import say

SPELLED = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "ø": "o", "Ø": "O"}
)
SHOWN = 5


def same_name(name: str) -> str:
    """`name` in the form in which two writings of one name are equal: file systems differ in how they keep accents."""
    return unicodedata.normalize("NFC", name)


def subject_names(cases: Iterable[str]) -> dict[str, str]:
    """Case -> subject; those that a cache can hold keep their name, and it is said of the others.

    A subject's name depends on the case's alone, but for a few characters of its digest where two would be one.
    """
    cases = list(cases)
    safe = {case: case if is_subject_name(case) else _spelled(case) for case in cases}
    shared = Counter(name.casefold() for name in safe.values())
    for case, name in safe.items():
        if case != name and shared[name.casefold()] > 1:
            safe[case] = f"{name}-{hashlib.sha256(same_name(case).encode()).hexdigest()[:8]}"
    changed = [f"{case!r} is {name}" for case, name in safe.items() if case != name]
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        say(f"a cache's subjects have letters, digits, '.', '_' and '-': {', '.join(changed[:SHOWN])}{more}")
    return safe


def _spelled(case: str) -> str:
    plain = unicodedata.normalize("NFKD", same_name(case).translate(SPELLED)).encode("ascii", "ignore").decode()
    spelled = re.sub(r"[^A-Za-z0-9._]+", "-", plain).strip("-.")
    return (
        spelled if is_subject_name(spelled) else f"case{spelled}"
    )  # nothing left, or a name the cache keeps for itself
