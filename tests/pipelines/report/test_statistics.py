"""Statistics of an ablation, against scipy, hand-worked values and what must hold for any results."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import sem, wilcoxon
from scipy.stats import t as scipy_t

from zeus_union.cache.errors import UserError
from zeus_union.pipelines.report.statistics import (
    Summary,
    holm,
    pooled,
    share_interval,
    smallest_p,
    subject_scores,
    summarise,
    t_interval,
    wilcoxon_p,
)
from zeus_union.stage2_segment.chosen_postprocessing import none_because
from zeus_union.stage2_segment.evaluation.evaluate import NAMES, Evaluation
from zeus_union.stage2_segment.evaluation.metrics import mean_over_subjects

NAN = math.nan
Interval = Callable[[Sequence[float]], tuple[float, float]]


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
    one, other = (by_row(summarise(lines, reference=reference)) for lines in (results, shuffled))
    assert one.keys() == other.keys()
    assert all(same(one[row], other[row]) for row in one)


@settings(deadline=None, max_examples=40)
@given(TABLES)
def test_what_must_hold_for_any_table(scores: dict[str, dict[str, float]]) -> None:
    results = table(scores)
    reference = results[0]["row"]
    for one in summarise(results, reference=reference):
        own = list(scores[one.row].values())
        assert one.mean == pytest.approx(np.mean(own))
        assert math.isnan(one.sd_subjects) == (one.subjects == 1)
        assert math.isnan(one.low) == math.isnan(one.high) == (one.subjects < 5)
        if one.subjects > 1:
            assert one.sd_subjects == pytest.approx(np.std(own, ddof=1), abs=1e-12)
        if one.subjects >= 5:
            assert -1e-12 <= one.low <= one.mean + 1e-12 <= one.high + 2e-12 <= 1 + 3e-12
        assert math.isnan(one.p) == math.isnan(one.p_holm) == (one.is_reference or one.common < 2)
        if not math.isnan(one.p):
            assert one.smallest_p <= one.p + 1e-12 and one.p <= one.p_holm <= 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=5, max_size=40, unique=True))
def test_interval_of_differences_is_scipys_t(values: list[float]) -> None:
    theirs = scipy_t.interval(0.95, len(values) - 1, np.mean(values), sem(values))
    assert t_interval(values) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@given(st.lists(SCORE, min_size=5, max_size=30))
def test_interval_of_shares_lies_around_their_mean_and_between_0_and_1(values: list[float]) -> None:
    low, high = share_interval(values)
    assert 0 <= low <= np.mean(values) + 1e-12 and np.mean(values) - 1e-12 <= high <= 1
    assert (low < high) == (len(set(values)) > 1)


def test_interval_of_shares_is_that_of_their_means_logit() -> None:
    values = [0.7, 0.8, 0.9, 0.85, 0.6, 0.95]
    middle = np.mean(values)
    half = scipy_t.ppf(0.975, 5) * sem(values) / (middle * (1 - middle))
    logit = np.log(middle / (1 - middle))
    assert share_interval(values) == pytest.approx([1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit))])


@pytest.mark.parametrize("interval", [t_interval, share_interval])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0])
def test_equal_values_give_a_point_and_fewer_than_five_none(interval: Interval, value: float) -> None:
    assert interval([value] * 7) == (value, value)
    assert all(math.isnan(bound) for bound in interval([value, 0.3, 0.4, 0.5]))
    assert all(math.isnan(bound) for bound in interval([]))


SKEWED = {"8, 2": (8.0, 2.0), "9, 1": (9.0, 1.0), "5, 0.5": (5.0, 0.5), "18, 2": (18.0, 2.0), "4, 2": (4.0, 2.0)}


@pytest.mark.parametrize("count", [5, 8, 12, 20])
@pytest.mark.parametrize("shape", SKEWED.values(), ids=SKEWED)
def test_interval_covers_the_mean_of_skewed_dsc(shape: tuple[float, float], count: int) -> None:
    """Percentile bootstrap: 80 % at n = 5 of beta(9, 1); a plain t interval: 89 %."""
    a, b = shape
    samples = np.random.default_rng([count, 0]).beta(a, b, (1500, count))
    bounds = np.array([share_interval(values.tolist()) for values in samples])
    assert np.mean((bounds[:, 0] <= a / (a + b)) & (a / (a + b) <= bounds[:, 1])) >= 0.9


@pytest.mark.parametrize("count", [5, 8, 12, 20])
@pytest.mark.parametrize("shape", SKEWED.values(), ids=SKEWED)
def test_interval_covers_the_mean_of_paired_differences_of_skewed_dsc(shape: tuple[float, float], count: int) -> None:
    """Of a row that loses, in each subject, a share of what is left to lose."""
    random, (a, b) = np.random.default_rng([count, 1]), shape
    first = random.beta(a, b, (1500, count))
    lost = random.beta(2, 18, (1500, count))
    bounds = np.array([t_interval(values.tolist()) for values in -first * lost])
    truth = -a / (a + b) * 0.1
    assert np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])) >= 0.9


def test_the_difference_to_the_reference_has_its_interval() -> None:
    base = {f"s{n}": 0.5 + 0.02 * n for n in range(6)}
    more = {name: score + 0.1 + 0.01 * (place % 3) for place, (name, score) in enumerate(base.items())}
    reference, row = summarise(table({"base": base, "more": more}), reference="base")
    assert math.isnan(reference.difference_low) and math.isnan(reference.difference_high)
    differences = [more[name] - base[name] for name in base]
    assert (row.difference_low, row.difference_high) == pytest.approx(t_interval(differences))
    assert row.difference_low < row.difference < row.difference_high
    few = {name: base[name] for name in list(base)[:4]}
    (_, row) = summarise(table({"base": few, "more": more}), reference="base")
    assert row.common == 4 and math.isnan(row.difference_low) and not math.isnan(row.low)


def test_the_mean_of_a_run_is_that_of_its_evaluation_where_a_class_is_undefined() -> None:
    """0.5 over the subjects; the mean of the classes' means would be 0.55."""
    scores = {("ada", "liver"): 0.4, ("ada", "spleen"): 0.6, ("ben", "liver"): 0.5, ("ben", "spleen"): NAN}
    assert np.mean([np.mean([0.4, 0.5]), 0.6]) != pytest.approx(0.5)
    rows = [{"subject": s, "class": c, **dict.fromkeys(NAMES, dsc)} for (s, c), dsc in scores.items()]
    evaluation = Evaluation(rows, {}, "last", "c.h5", "", (), none_because("as it is a test"), (), ())
    assert evaluation.summary()["mean_over_classes"]["dsc"] == pytest.approx(0.5)
    assert evaluation.summary()["classes"]["spleen"]["dsc"] == 0.6
    lines = [line("a", subject, dsc, **{"class": name}) for (subject, name), dsc in scores.items()]
    assert summarise(lines)[0].mean == pytest.approx(0.5)
    assert mean_over_subjects((subject, dsc) for (subject, _), dsc in scores.items()) == pytest.approx(0.5)


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
