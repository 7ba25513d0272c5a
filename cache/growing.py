"""A data set that has more subjects than its cache: who joins, and which folds they are in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import FOLDS, UNLABELLED, VALIDATED_FROM, VALIDATION_SHARE
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.manifest import Manifest
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.terminal import some_of


def with_new_subjects(
    path: Path,
    index: Manifest,
    card: DatasetCard,
    folds: Mapping[str, int] | None,
    labelled: Collection[str],
) -> Manifest:
    """The index of the cache at `path` with the subjects that `card` has beyond it, behind the old ones.

    Old subjects stay in their folds, tested or validated on. So a run that was trained before tests and validates on whom
    it did, and the same subjects in the same order of builds end in the same folds on every machine.

    Args:
        folds: subject -> fold, of a data set with folds of its own; None: new ones are drawn.
        labelled: subjects to draw folds for.

    Raises:
        UserError: the cache is of another data set, or has subjects that `card` lacks.
    """
    stored = index.card
    new = tuple(name for name in card.subjects if name not in set(stored.subjects))
    gone = [name for name in stored.subjects if name not in set(card.subjects)]
    if changed := differences(stored.to_json(), replace(card, subjects=stored.subjects).to_json()):
        raise UserError(f"{path} holds another dataset ({describe(changed)}); give another --out")
    if gone:
        remedy = "give another --out, or take them out of the cache with zeus-instruct remove"
        if new:
            remedy = f"build {some_of(new)} with another --out, and zeus-instruct merge makes one cache of the two"
        raise UserError(f"{path} holds subjects that are not chosen here (subjects: {some_of(gone)}); {remedy}")
    if not new:
        return index
    if folds is None:
        joined = join_folds(index.folds, [name for name in new if name in set(labelled)])
    else:
        joined = {name: folds.get(name, UNLABELLED) for name in new}
    decided = {**index.folds, **dict.fromkeys(new, UNLABELLED), **joined}
    return replace(
        index,
        card=replace(stored, subjects=(*stored.subjects, *new)),
        folds=decided,
        validation=join_validation(decided, index.validation, new),
    )


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
