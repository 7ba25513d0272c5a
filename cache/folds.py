"""Which subject is tested in which fold: by subject, never by slice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeus_union.cache.errors import UserError

FOLDS = 5
UNLABELLED = -1
# Of fewer training subjects none is spared for validation; of more, every eighth.
VALIDATED_FROM, VALIDATION_SHARE = 5, 1 / 8


@dataclass(frozen=True)
class FoldSubjects:
    """The labelled subjects of one fold, each in one of the groups, in the cache's order."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def assign_folds(subjects: Sequence[str], labelled: Iterable[str], seed: int = 0) -> dict[str, int]:
    """Five folds of the labelled subjects (fewer where there are fewer subjects), equal in size to one subject.

    The order is that of a hash of seed and name, which is the same on every machine and with every library version.

    Returns:
        subject -> fold, `UNLABELLED` (-1) for those without labels.

    >>> assign_folds(["anna", "ben", "carl"], labelled=["anna", "carl"])
    {'anna': 0, 'ben': -1, 'carl': 1}
    """
    folds = join_folds({}, set(labelled), seed)
    return {name: folds.get(name, UNLABELLED) for name in subjects}


def draw_validation(folds: Mapping[str, int], seed: int = 0) -> dict[int, tuple[str, ...]]:
    """Fold -> the subjects to validate on while training on the others: about an eighth of those it does not test.

    Drawn as folds are; folds of fewer than `VALIDATED_FROM` such subjects have none and are left out.
    """
    return join_validation(folds, {}, folds, seed)


def join_folds(folds: Mapping[str, int], new: Collection[str], seed: int = 0) -> dict[str, int]:
    """New subjects -> their folds: each joins the smallest, in the order of a hash of seed and name.

    Where so far every subject is a fold of its own, since there are fewer than five, they make folds of their own too.
    """
    sizes = Counter({fold: 0 for fold in range(FOLDS)})
    sizes.update(fold for fold in folds.values() if fold != UNLABELLED)
    existing = [fold for fold, size in sizes.items() if size]
    if existing and max(sizes.values()) > 1:  # that many folds, be they five or as many as a file of splits had
        sizes = Counter({fold: sizes[fold] for fold in existing})
    joined = {}
    for name in sorted(new, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        smallest = min(sizes, key=lambda fold: (sizes[fold], fold))
        joined[name] = smallest
        sizes[smallest] += 1
    return joined


def join_validation(
    folds: Mapping[str, int], validation: Mapping[int, Sequence[str]], new: Collection[str], seed: int = 0
) -> dict[int, tuple[str, ...]]:
    """Fold -> the subjects to validate on: those there were, and new ones, so that they are an eighth again.

    A fold in which nobody was validated on, as there were too few subjects, draws among all.

    Args:
        folds: of all subjects, old and new.
    """
    grown = {}
    for fold in sorted({*folds.values()} - {UNLABELLED}):
        others = [name for name, number in folds.items() if number != fold]
        if len(others) < VALIDATED_FROM:
            continue
        kept = tuple(validation.get(fold, ()))
        candidates = [name for name in others if name in set(new) or not kept]
        candidates.sort(key=lambda name: hashlib.sha256(f"validation {seed}:{fold}:{name}".encode()).digest())
        grown[fold] = kept + tuple(candidates[: max(0, max(1, int(len(others) * VALIDATION_SHARE)) - len(kept))])
    return grown


def subjects_of_fold(fold: int, folds: Mapping[str, int], validation: Mapping[int, Sequence[str]]) -> FoldSubjects:
    """Who is trained on, validated on and tested.

    Args:
        folds: of the labelled subjects, `UNLABELLED` (-1) for those that no fold tests: they are trained on.
        validation: what `draw_validation` drew when it was not known who has labels.
    """
    others = [name for name, number in folds.items() if number != fold]
    spared = set(validation.get(fold, ())) if len(others) >= VALIDATED_FROM else set()
    if len(spared & set(others)) == len(others):
        spared = set()
    return FoldSubjects(
        tuple(name for name in others if name not in spared),
        tuple(name for name in others if name in spared),
        tuple(name for name, number in folds.items() if number == fold),
    )


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
            f"{path} was started with other folds ({', '.join(list(changed.values())[:5])}{more}); a subject's fold never "
            "changes, give another --out"
        )
