"""What the results of an ablation say: means, intervals over subjects, paired tests between rows.

`results` is everywhere one mapping per (row, seed, fold, subject, class) with the keys row, seed, fold, subject, class,
the metrics dsc_256, iou_256, dsc, iou, hd95_mm, nsd and miou_256 (None or NaN where undefined) and the voxels both,
predicted and true.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from zeus_union.cache.terminal import choose

CONFIDENCE = 0.95
RESAMPLES = 10_000
DECIMALS = 12  # differences are rounded to as many, so that rounding of the means makes no order among equal ones

Result = Mapping[str, Any]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """One row of an ablation in one metric. Seeds are averaged within a subject before anything else.

    Attributes:
        subjects: those in which the metric is defined.
        seeds: seeds with results.
        sd_subjects: over the subjects (n - 1); NaN for one.
        sd_seeds: over the seeds (n - 1), of the mean over those subjects that every seed has; NaN for one seed.
        low, high: 95 % percentile bootstrap interval of the mean over subjects; NaN for one subject.
        common: subjects in which it is defined for this row and the reference; 0 without a reference.
        difference: mean of this row minus the reference over those; NaN for the reference itself.
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
    p: float
    p_holm: float
    smallest_p: float
    is_reference: bool = False


def subject_scores(results: Sequence[Result], metric: str, class_name: str | None) -> dict[str, dict[str, float]]:
    """Row -> subject -> mean over the classes (or of one class), then folds, then seeds; undefined ones are left out."""
    scores: dict[str, dict[str, float]] = {}
    for row, by_seed in _seed_scores(results, metric, class_name).items():
        pairs = ((subject, score) for own in by_seed.values() for subject, score in own.items())
        scores[row] = _grouped_means(pairs)
    return scores


def summarise(
    results: Sequence[Result],
    metric: str = "dsc",
    class_name: str | None = None,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Summary]:
    """One `Summary` per row, in the order of their first results.

    Args:
        class_name: of one class; None: the mean over the classes.
        reference: the row that the others are compared with; None compares nothing.
        resamples, seed: of the bootstrap.

    Raises:
        UserError: the reference is not among the rows.
    """
    by_seed = _seed_scores(results, metric, class_name)
    scores = subject_scores(results, metric, class_name)
    if reference is not None:
        choose([reference], list(scores), "reference row")
        differences = {row: _differences(own, scores[reference]) for row, own in scores.items()}
    else:
        differences = {}
    p = {row: wilcoxon_p(values) for row, values in differences.items() if row != reference}
    corrected = dict(zip(p, holm(list(p.values()))))
    summaries = []
    for row, own in scores.items():
        values = np.array([own[subject] for subject in sorted(own)])
        low, high = bootstrap_interval(values, resamples, seed)
        compared = row in p  # the reference is not
        summaries.append(
            Summary(
                row=row,
                subjects=len(own),
                seeds=len(by_seed[row]),
                mean=mean(own.values()),
                sd_subjects=_deviation(own.values()),
                sd_seeds=_deviation(_seed_means(by_seed[row])),
                low=low,
                high=high,
                common=len(differences.get(row, ())),
                difference=mean(differences[row]) if compared else math.nan,
                p=p.get(row, math.nan),
                p_holm=corrected.get(row, math.nan),
                smallest_p=smallest_p(len(differences[row]) if compared else len(own)),
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
            own = by_class.setdefault(line["class"], [0, 0])
            own[0] += 2 * line["both"]
            own[1] += line["predicted"] + line["true"]
    pooled_rows = {}
    for row, by_seed in counts.items():
        seeds = [mean(above / below for above, below in by_class.values() if below) for by_class in by_seed.values()]
        pooled_rows[row] = mean(filter(is_defined, seeds))
    return pooled_rows


def bootstrap_interval(values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of (n,); NaN for fewer than 2 values, which show no spread."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[drawn].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


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
    """The smallest two-sided exact Wilcoxon p-value: all differences of one sign. NaN for no subject."""
    return 2.0 ** (1 - subjects) if subjects else math.nan


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979); NaN is no test and stays NaN."""
    tested = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    corrected, largest = [math.nan] * len(p), 0.0
    for rank, (value, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * value))
        corrected[place] = largest
    return corrected


def mean(values: Iterable[float]) -> float:
    """Exactly summed, so that the order of the results changes no digit; NaN for none."""
    known = list(values)
    return math.fsum(known) / len(known) if known else math.nan


def is_defined(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _seed_scores(
    results: Sequence[Result], metric: str, class_name: str | None
) -> dict[str, dict[Any, dict[str, float]]]:
    """Row -> seed -> subject -> mean over the classes, then over the folds."""
    rows: dict[str, dict[Any, list[tuple[tuple[str, Any], float]]]] = {}
    for line in results:
        own = rows.setdefault(line["row"], {}).setdefault(line["seed"], [])
        if class_name in (None, line["class"]) and is_defined(line[metric]):
            own.append(((line["subject"], line["fold"]), line[metric]))
    return {
        row: {
            seed: _grouped_means((subject, score) for (subject, _), score in _grouped_means(pairs).items())
            for seed, pairs in by_seed.items()
        }
        for row, by_seed in rows.items()
    }


def _seed_means(by_seed: Mapping[Any, Mapping[str, float]]) -> list[float]:
    """Each seed's mean over the subjects that all of them have: an unfinished seed would differ by its subjects."""
    shared = set.intersection(*(set(own) for own in by_seed.values()))
    return [mean(own[subject] for subject in shared) for own in by_seed.values()] if shared else []


def _differences(scores: Mapping[str, float], reference: Mapping[str, float]) -> list[float]:
    return [scores[subject] - reference[subject] for subject in sorted(scores.keys() & reference.keys())]


def _grouped_means(pairs: Iterable[tuple[K, float]]) -> dict[K, float]:
    grouped: dict[K, list[float]] = {}
    for key, value in pairs:
        grouped.setdefault(key, []).append(value)
    return {key: mean(values) for key, values in grouped.items()}


def _deviation(values: Iterable[float]) -> float:
    """Standard deviation with n - 1; NaN for fewer than 2."""
    known = list(values)
    if len(known) < 2:
        return math.nan
    middle = mean(known)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in known) / (len(known) - 1))
