"""Who is trained on and who is held out: by subject, never by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import UNLABELLED
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose
from zeus_union.stage2_segment.config import Split


def choose_split(
    cache: Cache, fold: int | None = None, train: Sequence[str] | None = None, test: Sequence[str] | None = None
) -> Split:
    """A fold of the cache held out (0 if nothing is said), or named subjects; who is not named is in the other group.

    Raises:
        UserError: no labelled subject; an unknown fold or subject, one without labels or in both groups; nothing to train
            on or to test on.
    """
    folds = labelled_folds(cache)
    if not folds:
        raise UserError("none of the cache's subjects has labels; training needs labelled studies")
    for name in (*(train or ()), *(test or ())):
        if name in cache.subjects and name not in folds:
            raise UserError(f"subject {name} has no labels; those with labels: {', '.join(folds)}")
    train = None if train is None else choose(train, tuple(folds), "subject")
    test = None if test is None else choose(test, tuple(folds), "subject")
    if train is None and test is None:
        fold = fold or 0
        if fold not in folds_with_test(folds):
            known = ", ".join(map(str, folds_with_test(folds)))
            raise UserError(f"there is no fold {fold}; folds of this cache: {known}")
        test = tuple(name for name, number in folds.items() if number == fold)
    elif fold is not None:
        raise UserError("--fold and named subjects exclude one another; give one of them")
    train = tuple(name for name in folds if name not in (test or ())) if train is None else train
    test = tuple(name for name in folds if name not in train) if test is None else test
    both = sorted(set(train) & set(test))
    if both:
        raise UserError(f"{', '.join(both)} would be trained on and tested on; name each subject once")
    if not train or not test:
        what = "to train on" if not train else "to test on"
        raise UserError(f"no labelled subject is left {what} of: {', '.join(folds)}; name both groups, or build more")
    if not (cache.rows["foreground"][cache.rows_of(train)] > 0).any():
        raise UserError(
            f"no slice of {', '.join(train)} shows any of {', '.join(cache.classes)}; nothing to learn from"
        )
    return Split(fold, train, test)


def labelled_folds(cache: Cache) -> dict[str, int]:
    """Fold of every labelled subject; -1 for those that no fold tests (nnU-Net's splits can leave some out)."""
    rows = cache.rows
    index, first = np.unique(rows["subject"], return_index=True)
    return {cache.subjects[i]: int(rows["fold"][f]) for i, f in zip(index, first) if rows["labelled"][f]}


def folds_with_test(folds: Mapping[str, int]) -> list[int]:
    """The folds that test somebody, of `labelled_folds`."""
    return sorted({*folds.values()} - {UNLABELLED})
