"""Who is trained on and who is held out: by subject, never by slice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import UNLABELLED, subjects_of_fold
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose
from zeus_union.stage2_segment.config import Split


def choose_split(
    cache: Cache,
    fold: int | None = None,
    train: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    validation: Sequence[str] | None = None,
) -> Split:
    """A fold of the cache held out (0 if nothing is said), or named subjects; who is not named is in the other group.

    Whom a fold is validated on was drawn with the folds; of named subjects nobody is, unless they are named too.

    Raises:
        UserError: no labelled subject; an unknown fold or subject, one without labels or in two groups; nothing to train
            on or to test on.
    """
    folds = labelled_folds(cache)
    if not folds:
        raise UserError("none of the cache's subjects has labels; training needs labelled studies")
    if train is None and test is None:
        if validation is not None:
            raise UserError(
                "--validation-subjects goes with --train-subjects or --test-subjects; whom a fold is validated on was drawn "
                "when the cache was created"
            )
        split = _of_fold(cache, folds, fold or 0)
    elif fold is not None:
        raise UserError("--fold and named subjects exclude one another; give one of them")
    else:
        split = _of_named(cache, folds, train, test, validation or ())
    if not split.train or not split.test:
        what = "to train on" if not split.train else "to test on"
        raise UserError(f"no labelled subject is left {what} of: {', '.join(folds)}; name both groups, or build more")
    if not (cache.rows["foreground"][cache.rows_of(split.train)] > 0).any():
        raise UserError(
            f"no slice of {', '.join(split.train)} shows any of {', '.join(cache.classes)}; nothing to learn from"
        )
    return split


def _of_fold(cache: Cache, folds: Mapping[str, int], fold: int) -> Split:
    if fold not in folds_with_test(folds):
        known = ", ".join(map(str, folds_with_test(folds)))
        raise UserError(f"there is no fold {fold}; folds of this cache: {known}")
    groups = subjects_of_fold(fold, folds, {fold: cache.validation(fold)})
    return Split(fold, groups.train, groups.test, groups.validation)


def _of_named(
    cache: Cache,
    folds: Mapping[str, int],
    train: Sequence[str] | None,
    test: Sequence[str] | None,
    validation: Sequence[str],
) -> Split:
    named = [*(train or ()), *(test or ()), *validation]
    for name in named:
        if name in cache.subjects and name not in folds:
            raise UserError(f"subject {name} has no labels; those with labels: {', '.join(folds)}")
        choose([name], tuple(folds), "subject")
    groups = {"trained on": set(train or ()), "tested on": set(test or ()), "validated on": set(validation)}
    for (role, names), (other, others) in itertools.combinations(groups.items(), 2):
        if both := sorted(names & others):
            raise UserError(f"{', '.join(both)} would be {role} and {other}; name each subject once")
    rest = [name for name in folds if name not in named]
    return Split(
        None,
        *(
            tuple(name for name in folds if name in (rest if group is None else group))
            for group in (train, test, validation)
        ),
    )


def labelled_folds(cache: Cache) -> dict[str, int]:
    """Fold of every labelled subject; -1 for those that no fold tests (nnU-Net's splits can leave some out)."""
    rows = cache.rows
    index, first = np.unique(rows["subject"], return_index=True)
    return {cache.subjects[i]: int(rows["fold"][f]) for i, f in zip(index, first) if rows["labelled"][f]}


def folds_with_test(folds: Mapping[str, int]) -> list[int]:
    """The folds that test somebody, of `labelled_folds`."""
    return sorted({*folds.values()} - {UNLABELLED})
