"""zeus-instruct probe-texts: what instructions know of the labels, asked before anything is trained on them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from zeus_union.cache.errors import UserError
from zeus_union.cache.projections import trained_on
from zeus_union.cache.quantize import decode
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import progress, some_of
from zeus_union.cache.text_statistics import text_statistics
from zeus_union.stage1_instruct.texts.knowledge_scores import FEWEST, draw_subjects, score
from zeus_union.stage1_instruct.texts.knowledge_targets import AUC, CHANCE, R2, Target, find_targets
from zeus_union.stage1_instruct.texts.linear_probes import Split, answer, grouped_splits

TEXT, SHUFFLED, IMAGE = "text", "shuffled text", "image"
POOLED = 4  # cells along a side of the image embedding, each its mean: place is not lost
GAP = 0.15  # of the mean AUC between training and test subjects, beyond which a decoder trusts the text too much
POINTS_AT_CHANCE = {AUC: 0.65, R2: 0.1}  # without intervals: the best target's score below which nothing is known


@dataclass(frozen=True)
class Knowledge:
    """What one source says of one target.

    Attributes:
        source: `TEXT`, `SHUFFLED` or `IMAGE`.
        class_name, target: '' is the mean over all targets of the metric.
        train: the score on the subjects that the probes were fitted on.
        test: on the others.
        low, high: its 95 % interval over draws of test subjects; NaN for fewer than `FEWEST`.
        surely: whether it is above chance, corrected for the number of targets; without intervals False.
        subjects, slices: tested on.
    """

    variant: str
    source: str
    class_name: str
    target: str
    metric: str
    train: float
    test: float
    low: float
    high: float
    surely: bool
    subjects: int
    slices: int


@dataclass(frozen=True, eq=False)
class TextKnowledge:
    """All of `Knowledge` of a variant, and what it means, in sentences."""

    lines: list[Knowledge]
    notes: list[str]

    def mean(self, source: str, metric: str) -> Knowledge | None:
        return next(
            (line for line in self.lines if not line.target and line.source == source and line.metric == metric), None
        )


def measure_knowledge(
    cache: Cache,
    variant: str,
    encoder: str | None = None,
    subjects: Sequence[str] | None = None,
    most: int = 4000,
    seed: int = 0,
) -> TextKnowledge:
    """Linear probes from the text to presence, side, third and area of every class, on subjects they were not fitted on.

    Fitted and tested on the subjects that the projection behind the text was trained on and on the others, where its recipe
    names any; else every subject is held out in one of up to five folds. Beside it the same from the pooled image embedding
    and from the text of other slices.

    Args:
        encoder: whose embeddings; None: no probe of the image.
        most: slices, drawn evenly over the subjects where there are more.

    Raises:
        UserError: fewer than two labelled subjects; nothing that differs between slices.
    """
    rows = _labelled_rows(cache, subjects, most, seed)
    of_row = cache.rows["subject"][rows].astype(np.intp)
    names = [cache.subjects[index] for index in np.unique(of_row)]
    if len(names) < 2:
        raise UserError(
            f"{cache.path} has {len(names)} labelled subjects to probe; two are needed, one to fit on and one to test on"
        )
    splits, notes = _splits(cache, variant, of_row)
    if warning := text_statistics(cache.instructions(variant)).warning:
        notes.append(f"warning: {variant}: {warning}")
    targets = find_targets(cache, rows)
    if not targets:
        raise UserError(f"all labelled slices of {cache.path} show the same classes: there is nothing to predict")
    text = cache.text_embeddings(variant, rows).reshape(len(rows), -1)
    features = {TEXT: text, SHUFFLED: text[np.random.default_rng(seed).permutation(len(rows))]}
    if encoder is not None:
        features[IMAGE] = _pooled_images(cache, encoder, rows)
    lines: list[Knowledge] = []
    for source in progress(list(features), "probing"):
        lines += _lines(variant, source, features[source], targets, of_row, splits, seed)
    known = TextKnowledge(lines, notes)
    known.notes.extend(conclusions(known, variant))
    return known


def _labelled_rows(cache: Cache, subjects: Sequence[str] | None, most: int, seed: int) -> NDArray[np.intp]:
    rows = cache.rows_of(cache.subjects if subjects is None else subjects)
    rows = rows[cache.rows["labelled"][rows]]
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _splits(cache: Cache, variant: str, of_row: NDArray[np.intp]) -> tuple[list[Split], list[str]]:
    """What is fitted on and tested on, and what is to be said of it."""
    names = [cache.subjects[index] for index in np.unique(of_row)]
    seen = _trained_on(cache, variant)
    fit_on = [name for name in names if name in seen]
    if fit_on and len(fit_on) < len(names):
        is_seen = np.isin(of_row, [cache.subjects.index(name) for name in fit_on])
        note = f"the projection of {variant} was trained on {some_of(fit_on)}: fitted on these, tested on the others"
        return [(np.flatnonzero(is_seen), np.flatnonzero(~is_seen))], [note]
    notes = []
    if fit_on:
        notes.append(f"warning: the projection of {variant} was trained on all these subjects; the scores are too good")
    return grouped_splits(of_row), notes


def _trained_on(cache: Cache, variant: str) -> set[str]:
    """Subjects whose labels the text of a variant may know: its projection's, else those outside its fold."""
    if subjects := trained_on(cache.recipe(f"instructions/{variant}")).get("subjects"):
        return set(subjects)
    fold = re.search(r"@fold(\d+)$", variant)
    if fold is None:
        return set()
    outside = cache.rows["fold"] != int(fold[1])
    return {cache.subjects[index] for index in np.unique(cache.rows["subject"][outside])}


def _pooled_images(cache: Cache, encoder: str, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """(n, F): the means of the embeddings' cells, of all modalities."""
    pooled = []
    modalities = range(len(cache.modalities))
    for start in progress(range(0, len(rows), 8), "reading embeddings"):
        stored = cache.read_embeddings(encoder, rows[start : start + 8], modalities)
        values = decode(stored.values, stored.scale, stored.offset)
        *outer, height, width = values.shape
        cells = values.reshape(*outer, POOLED, height // POOLED, POOLED, width // POOLED).mean((-3, -1))
        pooled.append(cells.flatten(1).numpy())
    return np.concatenate(pooled)


def _lines(
    variant: str,
    source: str,
    features: NDArray[np.float32],
    targets: Sequence[Target],
    of_row: NDArray[np.intp],
    splits: Sequence[Split],
    seed: int,
) -> list[Knowledge]:
    tested = np.unique(np.concatenate([test for _, test in splits]))
    names, of_tested = np.unique(of_row[tested], return_inverse=True)
    everyone = np.ones((1, len(names)))
    draws = draw_subjects(len(names), seed) if len(names) >= FEWEST else None
    fold_of = np.array([next(k for k, (_, test) in enumerate(splits) if name in of_row[test]) for name in names])
    comparable = fold_of[:, None] == fold_of
    lines, drawn = [], []
    for target, said in zip(targets, answer(features, targets, of_row, splits)):
        fitted = np.flatnonzero(~np.isnan(said.fitted[:, 0]))
        held = ~np.isnan(said.held_out[tested, 0])
        rows, subjects = tested[held], of_tested[held]
        together = np.zeros(len(fitted), np.intp)
        alone = (np.ones((1, 1)), np.ones((1, 1), bool))
        train = score(target.metric, target.values[fitted], said.fitted[fitted], together, *alone)[0]
        arguments = (target.metric, target.values[rows], said.held_out[rows], subjects)
        test = score(*arguments, everyone, comparable)[0] if len(rows) else np.nan
        if not np.isfinite(test):
            continue
        scores = score(*arguments, draws, comparable) if draws is not None else np.full(1, np.nan)
        drawn.append(scores)
        low, high, lowest = _quantiles(scores, 0.025, 0.975, 0.05 / len(targets))
        surely = bool(lowest > CHANCE[target.metric])
        counts = (len(np.unique(subjects)), len(rows))
        about = (target.class_name, target.name, target.metric)
        lines.append(Knowledge(variant, source, *about, float(train), float(test), low, high, surely, *counts))
    return lines + _means(lines, drawn, len(names), len(tested))


def _means(
    lines: Sequence[Knowledge], drawn: Sequence[NDArray[np.float64]], subjects: int, slices: int
) -> list[Knowledge]:
    """A line for each metric: the mean over its targets, in the same draws of subjects."""
    means = []
    for metric in (AUC, R2):
        of_metric = [(line, scores) for line, scores in zip(lines, drawn) if line.metric == metric]
        if not of_metric:
            continue
        stacked = np.stack([scores for _, scores in of_metric])
        defined = np.isfinite(stacked)
        together = np.where(defined, stacked, 0).sum(0) / np.maximum(defined.sum(0), 1)
        low, high, lowest = _quantiles(np.where(defined.any(0), together, np.nan), 0.025, 0.975, 0.025)
        train, test = (
            float(np.nanmean([getattr(line, which) for line, _ in of_metric])) for which in ("train", "test")
        )
        first = of_metric[0][0]
        surely = bool(lowest > CHANCE[metric])
        means.append(
            Knowledge(first.variant, first.source, "", "", metric, train, test, low, high, surely, subjects, slices)
        )
    return means


def _quantiles(scores: NDArray[np.float64], *shares: float) -> tuple[float, ...]:
    defined = scores[np.isfinite(scores)]
    return tuple(float(np.quantile(defined, share)) if len(defined) else float("nan") for share in shares)


def conclusions(known: TextKnowledge, variant: str) -> list[str]:
    """What the scores mean, in sentences; the warnings begin with 'warning'."""
    said = []
    text = {line.metric: line for line in known.lines if line.source == TEXT and not line.target}
    shuffled = {(line.class_name, line.target): line.test for line in known.lines if line.source == SHUFFLED}
    single = [line for line in known.lines if line.source == TEXT and line.target]
    figures = ", ".join(
        f"mean {metric} {line.test:.2f}, of shuffled text {other.test:.2f}"
        for metric, line in text.items()
        if (other := known.mean(SHUFFLED, metric)) is not None
    )
    subjects = next(iter(text.values())).subjects
    known_of = [line for line in single if _is_known(line, shuffled.get((line.class_name, line.target), np.nan))]
    if not known_of:
        alone = "" if subjects >= FEWEST else f"; {subjects} test subjects give points, no intervals"
        said.append(
            f"warning: the text of {variant} is at chance on held-out subjects ({figures}{alone}): it says nothing of their "
            "slices that a linear probe can read, so no decoder can be expected to gain by it"
        )
    else:
        best = max(known_of, key=lambda line: line.test - CHANCE[line.metric])
        said.append(
            f"the text of {variant} knows {len(known_of)} of {len(single)} things about held-out subjects ({figures}); best: "
            f"{best.target} of {best.class_name}, {best.metric} {best.test:.2f}"
        )
    line = text.get(AUC)
    if line is not None and line.train - line.test > GAP:
        said.append(
            f"warning: the text of {variant} answers for the subjects it was fitted on with a mean AUC of {line.train:.2f}, for "
            f"others with {line.test:.2f}: a decoder learns to trust it more than it deserves"
        )
    image = known.mean(IMAGE, AUC)
    if known_of and line is not None and image is not None and image.test >= line.test:
        said.append(
            f"the image embedding answers no worse (mean AUC {image.test:.2f} against {line.test:.2f}): what the text says is in "
            "the image already"
        )
    return said


def _is_known(line: Knowledge, shuffled: float) -> bool:
    """Above chance, and above the same probe of other slices' text."""
    if np.isfinite(line.low):
        return line.surely and not line.test <= shuffled
    return line.test > max(POINTS_AT_CHANCE[line.metric], np.nan_to_num(shuffled, nan=-np.inf))


def knowledge_table(known: TextKnowledge) -> Table:
    """A line for each target, then the means: test score, its interval, and (train) of every source."""
    sources = list(dict.fromkeys(line.source for line in known.lines))
    subjects = max(line.subjects for line in known.lines)
    table = Table(
        title=f"what {known.lines[0].variant} knows of {subjects} held-out subjects",
        caption="score [95 % interval over subjects] (on the subjects fitted on); chance is AUC 0.5, R2 0",
    )
    for name in ("class", "what", "score"):
        table.add_column(name)
    for name in sources:
        table.add_column(name, justify="right")
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for line in sorted(known.lines, key=lambda line: not line.target):
        cells.setdefault((line.class_name, line.target, line.metric), {})[line.source] = _cell(line)
    first_mean = next(key for key in cells if not key[1])
    for (class_name, target, metric), by_source in cells.items():
        if (class_name, target, metric) == first_mean:
            table.add_section()
        table.add_row(class_name or "mean", target or "all", metric, *(by_source.get(name, "-") for name in sources))
    return table


def _cell(line: Knowledge) -> str:
    interval = f" [{line.low:.2f}, {line.high:.2f}]" if np.isfinite(line.low) else ""
    return f"{line.test:.2f}{interval} ({line.train:.2f})"


def as_csv(known: TextKnowledge) -> str:
    """One line for each source and target, and their means; undefined numbers are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(Knowledge)])
    for line in known.lines:
        writer.writerow(["" if value != value else value for value in asdict(line).values()])
    return out.getvalue()
