"""Statistics of an ablation, against scipy, hand-worked values and what must hold for any results."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, wilcoxon

from zeus_union.cache.errors import UserError
from zeus_union.pipelines.report.statistics import (
    Summary,
    bootstrap_interval,
    holm,
    pooled,
    smallest_p,
    subject_scores,
    summarise,
    wilcoxon_p,
)

NAN = math.nan


def line(row: str, subject: str, dsc: float | None, **other: Any) -> dict[str, Any]:
    """One result; DSC is given, counts are 0 unless said."""
    defaults = {"seed": 0, "fold": 0, "class": "liver", "both": 0, "predicted": 0, "true": 0, "hd95_mm": NAN}
    return {"row": row, "subject": subject, "dsc": dsc, **defaults, **other}


def table(scores: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One seed, one class."""
    return [line(row, subject, dsc) for row, own in scores.items() for subject, dsc in own.items()]


def by_row(summaries: list[Summary]) -> dict[str, Summary]:
    return {one.row: one for one in summaries}


def same(one: Summary, other: Summary) -> bool:
    """Equal, NaN equal to NaN."""
    return repr(one) == repr(other)


SCORE = st.floats(0, 1).map(lambda value: round(value, 3))
SUBJECTS = [f"subject {number}" for number in range(9)]
TABLES = st.dictionaries(
    st.sampled_from("abcde"), st.dictionaries(st.sampled_from(SUBJECTS), SCORE, min_size=1), min_size=1
)


def test_classes_then_folds_then_seeds_are_averaged_and_undefined_ones_left_out() -> None:
    results = [
        line("a", "ada", 0.2),
        line("a", "ada", 0.6, **{"class": "spleen"}),  # seed 0, fold 0: 0.4
        line("a", "ada", 0.8, fold=1),
        line("a", "ada", None, fold=1, **{"class": "spleen"}),  # seed 0, fold 1: 0.8
        line("a", "ada", 1.0, seed=1, fold=None),  # seed 1: 1.0
        line("a", "ben", NAN),
        line("b", "ben", None),
    ]
    assert subject_scores(results, "dsc", None) == {"a": {"ada": pytest.approx((0.6 + 1.0) / 2)}, "b": {}}
    assert subject_scores(results, "dsc", "spleen") == {"a": {"ada": 0.6}, "b": {}}


def test_summary_of_a_table_worked_by_hand() -> None:
    results = [
        *(line("base", name, dsc, seed=seed) for seed in (0, 1) for name, dsc in {"ada": 0.5, "ben": 0.7}.items()),
        *(line("more", name, dsc, seed=0) for name, dsc in {"ada": 0.6, "ben": 0.8, "cyd": 0.9}.items()),
        *(line("more", name, dsc, seed=1) for name, dsc in {"ada": 0.8, "ben": 0.8, "cyd": 0.9}.items()),
    ]
    base, more = summarise(results, reference="base")
    assert (base.row, base.subjects, base.seeds, base.is_reference) == ("base", 2, 2, True)
    assert base.mean == pytest.approx(0.6) and base.sd_subjects == pytest.approx(math.sqrt(0.02)) and base.sd_seeds == 0
    assert math.isnan(base.difference) and math.isnan(base.p) and math.isnan(base.p_holm)
    assert (more.row, more.subjects, more.seeds, more.common, more.is_reference) == ("more", 3, 2, 2, False)
    assert more.mean == pytest.approx((0.7 + 0.8 + 0.9) / 3) and more.sd_subjects == pytest.approx(0.1)
    means = np.mean([[0.6, 0.8, 0.9], [0.8, 0.8, 0.9]], axis=1)
    assert more.sd_seeds == pytest.approx(np.std(means, ddof=1))
    assert more.difference == pytest.approx((0.2 + 0.1) / 2)
    assert more.p == more.p_holm == more.smallest_p == 0.5


def test_one_subject_has_no_spread_and_no_test() -> None:
    base, more = summarise(table({"base": {"ada": 0.5}, "more": {"ada": 0.9}}), reference="base")
    assert (more.subjects, more.mean, more.difference) == (1, 0.9, pytest.approx(0.4))
    assert all(math.isnan(value) for value in (more.sd_subjects, more.sd_seeds, more.low, more.high, more.p))
    assert more.smallest_p == 1.0 and base.mean == 0.5


def test_row_without_a_defined_score_is_there_without_numbers() -> None:
    base, nothing = summarise([line("base", "ada", 0.5), line("nothing", "ada", None)], reference="base")
    assert base.mean == 0.5
    assert nothing.subjects == nothing.common == 0
    assert all(math.isnan(value) for value in (nothing.mean, nothing.low, nothing.difference, nothing.smallest_p))


def test_unfinished_seed_adds_nothing_to_the_spread_over_seeds() -> None:
    results = [
        line("a", "ada", 0.4),
        line("a", "ben", 0.9),
        line("a", "ada", 0.6, seed=1),  # ben's fold of seed 1 is still to come
    ]
    assert summarise(results)[0].sd_seeds == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_without_reference_nothing_is_compared() -> None:
    for one in summarise(table({"a": {"ada": 0.1, "ben": 0.3}, "b": {"ada": 0.2, "ben": 0.3}})):
        assert math.isnan(one.difference) and math.isnan(one.p) and one.common == 0 and not one.is_reference


def test_unknown_reference_is_refused() -> None:
    with pytest.raises(UserError, match="reference row"):
        summarise(table({"a": {"ada": 0.1}}), reference="b")


def test_no_results_make_no_rows() -> None:
    assert summarise([]) == [] and pooled([]) == {} and subject_scores([], "dsc", None) == {}


@settings(deadline=None, max_examples=40)
@given(TABLES, st.randoms(use_true_random=False))
def test_order_of_rows_and_subjects_changes_no_number(
    scores: dict[str, dict[str, float]], shuffler: random.Random
) -> None:
    results = table(scores)
    reference = results[0]["row"]
    shuffled = list(results)
    shuffler.shuffle(shuffled)
    one, other = (by_row(summarise(lines, reference=reference, resamples=50)) for lines in (results, shuffled))
    assert one.keys() == other.keys()
    assert all(same(one[row], other[row]) for row in one)


@settings(deadline=None, max_examples=40)
@given(TABLES)
def test_what_must_hold_for_any_table(scores: dict[str, dict[str, float]]) -> None:
    results = table(scores)
    reference = results[0]["row"]
    for one in summarise(results, reference=reference, resamples=400):
        own = list(scores[one.row].values())
        assert one.mean == pytest.approx(np.mean(own))
        assert math.isnan(one.sd_subjects) == math.isnan(one.low) == (one.subjects == 1)
        if one.subjects > 1:
            assert one.sd_subjects == pytest.approx(np.std(own, ddof=1), abs=1e-12)
            assert min(own) - 1e-12 <= one.low <= one.mean + 1e-12 <= one.high + 2e-12 <= max(own) + 3e-12
        assert math.isnan(one.p) == math.isnan(one.p_holm) == (one.is_reference or one.common < 2)
        if not math.isnan(one.p):
            assert one.smallest_p <= one.p + 1e-12 and one.p <= one.p_holm <= 1


@settings(deadline=None, max_examples=15)
@given(st.integers(8, 40), st.integers(0, 1000))
def test_interval_is_scipys(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).beta(4, 2, count)
    theirs = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(seed + 1)
    ).confidence_interval
    # A bound from 10,000 resamples has an error of 0.027 standard errors of the mean.
    allowed = 0.2 * np.std(values) / math.sqrt(count)
    assert bootstrap_interval(values, seed=seed) == pytest.approx((theirs.low, theirs.high), abs=allowed)


def test_interval_is_scipys_closely_where_the_mean_is_nearly_continuous() -> None:
    values = np.random.default_rng(5).normal(0.8, 0.1, 40)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=50_000, rng=np.random.default_rng(1))
    assert bootstrap_interval(values, 50_000) == pytest.approx(tuple(theirs.confidence_interval), abs=8e-4)


def test_interval_is_the_same_twice_and_moves_with_the_seed() -> None:
    values = np.random.default_rng(0).random(7)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """A percentile interval of 25 values covers a little less often than 95 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.normal(0.7, 0.1, 25), resamples=500)
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 300 <= 0.98


@pytest.mark.parametrize("count", [2, 5, 9, 30, 80])
def test_p_is_scipys(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.05, 0.1, count)
    method = "exact" if count <= 50 else "asymptotic"
    assert wilcoxon_p(differences.tolist()) == pytest.approx(wilcoxon(differences, method=method).pvalue)


def exact_p(differences: list[float]) -> float:
    """By going through all signs of the differences that are not zero."""
    sizes = np.abs([value for value in differences if value])
    ranks = np.array([(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes])
    observed = abs(ranks @ np.sign([value for value in differences if value]))
    sums = [abs(ranks @ signs) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return float(np.mean([value >= observed - 1e-9 for value in sums]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8))
def test_p_is_exact_with_ties_and_zeros(differences: list[int]) -> None:
    expected = exact_p([float(value) for value in differences]) if any(differences) else 1.0
    assert wilcoxon_p([value / 10 for value in differences]) == pytest.approx(expected)


def test_rounding_of_the_means_breaks_no_tie() -> None:
    noisy = [0.9 - 0.8, 0.8 - 0.7, -(0.4 - 0.3), 0.5 - 0.4, 0.3 - 0.1 - 0.2]
    assert len({abs(value) for value in noisy}) > 2
    assert wilcoxon_p(noisy) == wilcoxon_p([0.1, 0.1, -0.1, 0.1, 0.0])


def test_all_differences_zero_is_no_difference_and_one_is_no_test() -> None:
    assert wilcoxon_p([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(wilcoxon_p([0.3])) and math.isnan(wilcoxon_p([]))


@pytest.mark.parametrize("count", [2, 3, 6, 10])
def test_smallest_p_is_that_of_differences_of_one_sign(count: int) -> None:
    assert smallest_p(count) == 2 / 2**count == pytest.approx(wilcoxon_p([0.1 * (n + 1) for n in range(count)]))


def test_holm_by_hand() -> None:
    # Holm's own scheme: sorted p times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, NAN, 0.02]) == [pytest.approx(0.04), pytest.approx(NAN, nan_ok=True), pytest.approx(0.04)]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lowers_nothing(p: list[float]) -> None:
    corrected = holm(p)
    assert all(raw <= value <= 1 for raw, value in zip(p, corrected))
    assert [value for _, value in sorted(zip(p, corrected))] == sorted(corrected)
    if p:
        assert min(corrected) == pytest.approx(min(1.0, len(p) * min(p)))


def test_pooled_counts_voxels_not_subjects() -> None:
    results = [
        line("a", "ada", 0.5, both=1, predicted=2, true=2),
        line("a", "ben", 1.0, both=98, predicted=98, true=98),
        line("a", "ada", 0.0, **{"class": "spleen"}, both=0, predicted=5, true=0),
        line("a", "ben", NAN, **{"class": "spleen"}),
        line("a", "ada", 1.0, seed=1, both=3, predicted=3, true=3),
        line("a", "ada", NAN, seed=2),  # nothing there, nothing found: this seed says nothing
        line("b", "ada", NAN),
    ]
    first = (2 * 99 / 200 + 0.0) / 2
    assert pooled(results) == {"a": pytest.approx((first + 1.0) / 2), "b": pytest.approx(NAN, nan_ok=True)}
    assert pooled(results, "spleen")["a"] == 0.0
