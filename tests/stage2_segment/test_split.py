"""Subjects that no fold tests are trained on, and -1 is no fold."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import ROW
from zeus_union.stage2_segment.split import choose_split, folds_with_test, labelled_folds


def test_subjects_of_fold_minus_1_are_trained_on_and_never_tested() -> None:
    rows = np.array([(0, 0, 0, True, 5), (1, 0, 1, True, 5), (2, 0, -1, True, 5), (3, 0, -1, False, -1)], ROW)
    cache = SimpleNamespace(
        rows=rows.view(np.recarray),
        subjects=("a", "b", "c", "d"),
        classes=("liver",),
        rows_of=lambda names: [0, 1, 2],
        validation=lambda fold: (),
    )
    assert folds_with_test(labelled_folds(cache)) == [0, 1]  # type: ignore[arg-type]
    split = choose_split(cache, 1)  # type: ignore[arg-type]
    assert (split.train, split.test) == (("a", "c"), ("b",))
    named = choose_split(cache, train=["a"], validation=["b"])  # type: ignore[arg-type]
    assert (named.train, named.validation, named.test) == (("a",), ("b",), ("c",))
    with pytest.raises(UserError, match="a would be trained on and validated on"):
        choose_split(cache, train=["a"], validation=["a"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--validation-subjects goes with --train-subjects"):
        choose_split(cache, 0, validation=["a"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no fold -1; folds of this cache: 0, 1"):
        choose_split(cache, -1)  # type: ignore[arg-type]
