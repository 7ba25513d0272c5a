"""Which subject is tested in which fold: by subject, never by slice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from zeus_union.cache.errors import UserError

FOLDS = 5
UNLABELLED = -1


def assign_folds(subjects: Sequence[str], labelled: Iterable[str], seed: int = 0) -> dict[str, int]:
    """Five folds of the labelled subjects (fewer where there are fewer subjects), equal in size to one subject.

    The order is that of a hash of seed and name, which is the same on every machine and with every library version.

    Returns:
        subject -> fold, `UNLABELLED` (-1) for those without labels.
    """
    drawn = sorted(labelled, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    folds = {name: index % FOLDS for index, name in enumerate(drawn)}
    return {name: folds.get(name, UNLABELLED) for name in subjects}


def folds_of_labelled(subjects: Sequence[str], labelled: Iterable[str], decided: Mapping[str, int]) -> dict[str, int]:
    """`decided` (drawn over all subjects where a cache has none), `UNLABELLED` for those without labels."""
    decided = decided or assign_folds(subjects, subjects)
    with_labels = set(labelled)
    return {name: decided[name] if name in with_labels else UNLABELLED for name in subjects}


def check_same_folds(path: Path, stored: Mapping[str, int], given: Mapping[str, int]) -> None:
    """Raises a UserError where subjects of the cache at `path` are in other folds than those given."""
    changed = {
        name: f"{name} {fold} -> {given.get(name, UNLABELLED)}"
        for name, fold in stored.items()
        if fold not in (UNLABELLED, given.get(name, UNLABELLED))
    }
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{path} was begun with other folds ({', '.join(list(changed.values())[:5])}{more}); a subject's fold never "
            "changes, give another --out"
        )
