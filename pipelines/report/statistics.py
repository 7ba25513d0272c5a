"""What the results of an ablation say: means, intervals over subjects, paired tests between rows.

`results` is everywhere one mapping per (row, seed, fold, subject, class) with the keys row, seed, fold, subject, class,
the metrics dsc_256, iou_256, dsc, dsc_raw, iou, hd95_mm, nsd and miou_256 (None or NaN where undefined) and the voxels both,
predicted and true.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student
from scipy.stats import wilcoxon

from zeus_union.cache.terminal import choose
from zeus_union.stage2_segment.evaluation.metrics import mean_defined, subject_means

CONFIDENCE = 0.95
FEWEST = 5  # subjects for an interval: of fewer the spread itself is not known, and the points say more
SHARES = ("dsc", "dsc_raw", "iou", "dsc_256", "iou_256", "miou_256", "nsd")  # metrics between 0 and 1
DECIMALS = 12  # differences are rounded to as many, so that rounding of the means makes no order among equal ones

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One row of an ablation in one metric. Seeds are averaged within a subject before anything else.

    Attributes:
        subjects: those in which the metric is defined.
        seeds: seeds with results.
        sd_subjects: over the subjects (n - 1); NaN for one.
        sd_seeds: over the seeds (n - 1), of the mean over those subjects that every seed has; NaN for one seed.
        low, high: 95 % interval of the mean over subjects (`share_interval`); NaN for fewer than `FEWEST`.
        common: subjects in which it is defined for this row and the reference; 0 without a reference.
        difference: mean of this row minus the reference over those; NaN for the reference itself.
        difference_low, difference_high: its 95 % interval (`t_interval`); NaN for fewer than `FEWEST`.
        p: two-sided paired Wilcoxon; NaN for the reference itself and with fewer than 2 common subjects.
        p_holm: `p` after Holm's correction over all rows that have one.
        smallest_p: what `p` is at best with `common` subjects; with `subjects` where nothing is compared.
        is_reference: whether the others are compared with this row.
    """

    row: str
    subjects: int
    seeds: int
    mean: float
    sd_subjects: float
    sd_seeds: float
    low: float
    high: float
    common: int
    difference: float
    difference_low: float
    difference_high: float
    p: float
    p_holm: float
    smallest_p: float
    is_reference: bool = False


def subject_scores(results: Sequence[Result], metric: str, class_name: str | None) -> dict[str, dict[str, float]]:
    """Row -> subject -> mean over the classes (or of one class), then folds, then seeds; undefined ones are left out."""
    scores: dict[str, dict[str, float]] = {}
    for row, by_seed in _seed_scores(results, metric, class_name).items():
        pairs = ((subject, score) for by_subject in by_seed.values() for subject, score in by_subject.items())
        scores[row] = subject_means(pairs)
    return scores


def summarise(
    results: Sequence[Result],
    metric: str = "dsc",
    class_name: str | None = None,
    reference: str | None = None,
) -> list[Summary]:
    """One `Summary` per row, in the order of their first results.

    Args:
        class_name: of one class; None: the mean over the classes.
        reference: the row that the others are compared with; None compares nothing.

    Raises:
        UserError: the reference is not among the rows.
    """
    by_seed = _seed_scores(results, metric, class_name)
    scores = subject_scores(results, metric, class_name)
    if reference is not None:
        choose([reference], list(scores), "reference row")
        differences = {row: _differences(by_subject, scores[reference]) for row, by_subject in scores.items()}
    else:
        differences = {}
    p = {row: wilcoxon_p(values) for row, values in differences.items() if row != reference}
    corrected = dict(zip(p, holm(list(p.values()))))
    summaries = []
    for row, by_subject in scores.items():
        interval = share_interval if metric in SHARES else t_interval
        low, high = interval(list(by_subject.values()))
        compared = row in p  # the reference is not
        difference_low, difference_high = t_interval(differences[row]) if compared else (math.nan, math.nan)
        summaries.append(
            Summary(
                row=row,
                subjects=len(by_subject),
                seeds=len(by_seed[row]),
                mean=mean_defined(by_subject.values()),
                sd_subjects=_deviation(by_subject.values()),
                sd_seeds=_deviation(_seed_means(by_seed[row])),
                low=low,
                high=high,
                common=len(differences.get(row, ())),
                difference=mean_defined(differences[row]) if compared else math.nan,
                difference_low=difference_low,
                difference_high=difference_high,
                p=p.get(row, math.nan),
                p_holm=corrected.get(row, math.nan),
                smallest_p=smallest_p(len(differences[row]) if compared else len(by_subject)),
                is_reference=row == reference,
            )
        )
    return summaries


def pooled(results: Sequence[Result], class_name: str | None = None) -> dict[str, float]:
    """Row -> DSC of the voxels of all subjects together, mean over the classes (or of one), then over the seeds."""
    counts: dict[str, dict[Any, dict[str, list[int]]]] = {}
    for line in results:
        by_class = counts.setdefault(line["row"], {}).setdefault(line["seed"], {})
        if class_name in (None, line["class"]):
            fraction = by_class.setdefault(line["class"], [0, 0])
            fraction[0] += 2 * line["both"]
            fraction[1] += line["predicted"] + line["true"]
    pooled_rows = {}
    for row, by_seed in counts.items():
        pooled_rows[row] = mean_defined(
            mean_defined(above / below for above, below in by_class.values() if below) for by_class in by_seed.values()
        )
    return pooled_rows


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean; NaN for fewer than `FEWEST` values, a point where all are equal."""
    if len(values) < FEWEST:
        return math.nan, math.nan
    middle, half = mean_defined(values), _half_width(values)
    return middle - half, middle + half


def share_interval(values: Sequence[float]) -> tuple[float, float]:
    """As `t_interval` of shares from 0 to 1, on the logit of their mean (delta method), and so never beyond 0 or 1.

    DSCs near 1 are skewed. Of five beta-distributed ones with a mean of 0.9 a plain t interval covers the mean in 89 of 100
    studies, this one in 94; a percentile bootstrap in 80. None of them knows of failures that the subjects do not show.
    """
    if len(values) < FEWEST:
        return math.nan, math.nan
    middle, half = mean_defined(values), _half_width(values)
    if not half:
        return middle, middle
    steepness = middle * (1 - middle)  # of a share over its logit, at the mean
    low, high = expit(logit(middle) + np.array([-half, half]) / steepness)
    return float(low), float(high)


def _half_width(values: Sequence[float]) -> float:
    if min(values) == max(values):
        return 0.0
    quantile = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile) * _deviation(values) / math.sqrt(len(values))


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided Wilcoxon signed-rank p-value, differences of zero left out.

    Exact for up to 50 differences, with equal ones among them for up to 13; by the normal approximation above. All zero:
    1; fewer than 2 differences: NaN.
    """
    if len(differences) < 2:
        return math.nan
    rounded = np.round(np.asarray(differences, dtype=np.float64), DECIMALS)
    nonzero = rounded[rounded != 0]
    return min(1.0, float(wilcoxon(nonzero).pvalue)) if len(nonzero) else 1.0


def smallest_p(subjects: int) -> float:
    """The smallest two-sided exact Wilcoxon p-value: all differences of one sign. NaN for no subject.

    >>> smallest_p(6)
    0.03125
    """
    return 2.0 ** (1 - subjects) if subjects else math.nan


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979); NaN is no test and stays NaN.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = sorted((value, index) for index, value in enumerate(p) if not math.isnan(value))
    corrected, largest = [math.nan] * len(p), 0.0
    for rank, (value, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * value))
        corrected[index] = largest
    return corrected


def _seed_scores(
    results: Sequence[Result], metric: str, class_name: str | None
) -> dict[str, dict[Any, dict[str, float]]]:
    """Row -> seed -> subject -> mean over the classes, then over the folds."""
    rows: dict[str, dict[Any, list[tuple[tuple[str, Any], float | None]]]] = {}
    for line in results:
        scores = rows.setdefault(line["row"], {}).setdefault(line["seed"], [])
        if class_name in (None, line["class"]):
            scores.append(((line["subject"], line["fold"]), line[metric]))
    return {
        row: {
            seed: subject_means((subject, score) for (subject, _), score in subject_means(pairs).items())
            for seed, pairs in by_seed.items()
        }
        for row, by_seed in rows.items()
    }


def _seed_means(by_seed: Mapping[Any, Mapping[str, float]]) -> list[float]:
    """Each seed's mean over the subjects that all of them have: an unfinished seed would differ by its subjects."""
    shared = set.intersection(*(set(by_subject) for by_subject in by_seed.values()))
    return (
        [mean_defined(by_subject[subject] for subject in shared) for by_subject in by_seed.values()] if shared else []
    )


def _differences(scores: Mapping[str, float], reference: Mapping[str, float]) -> list[float]:
    return [scores[subject] - reference[subject] for subject in sorted(scores.keys() & reference.keys())]


def _deviation(values: Iterable[float]) -> float:
    """Standard deviation with n - 1; NaN for fewer than 2."""
    known = list(values)
    if len(known) < 2:
        return math.nan
    middle = mean_defined(known)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in known) / (len(known) - 1))
