"""A data set that has more subjects than its cache: who joins, and which folds they are in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import UNLABELLED, join_folds, join_validation
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
