"""A trained run on labelled studies: per subject and class, at 256 x 256 and in the native grid."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from zeus_union.cache.errors import UserError
from zeus_union.cache.leaks import leaking
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose, counted, progress, say, warn
from zeus_union.cache.view_layers import view_of
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.chosen_postprocessing import PostProcessing, postprocessing_of
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.ensemble import as_runs, check_members_cache, ensemble_folder, load_members
from zeus_union.stage2_segment.evaluation.metrics import DEFINITIONS, mean_defined, mean_over_subjects, subject_means
from zeus_union.stage2_segment.evaluation.scoring import SubjectScores, begin_scoring
from zeus_union.stage2_segment.evaluation.surfaces import SURFACE_TOLERANCE_MM, workers
from zeus_union.stage2_segment.inputs.layers import layers_read
from zeus_union.stage2_segment.marks import as_named
from zeus_union.stage2_segment.native import predict_subject, read_subject
from zeus_union.stage2_segment.predict import write_agreement
from zeus_union.stage2_segment.trained import open_cache
from zeus_union.stage2_segment.training_subjects import trained_by_projection, trained_by_run

NAMES = {
    "dsc_256": "DSC (256 px)",
    "iou_256": "IoU (256 px)",
    "dsc": "DSC (native)",
    "iou": "IoU (native)",
    "hd95_mm": "HD95 mm",
    "nsd": "NSD",
}
AT_ONCE = 4  # subjects whose label maps wait to be measured while the next are predicted


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        rows: one per subject and class: subject, class, dsc_256, iou_256, dsc, iou, hd95_mm, nsd, dsc_raw (native DSC
            before post-processing), native voxels both, predicted and true.
        miou_256: subject -> mean IoU at 256 with the background (the paper's).
        weights: 'last' or 'best'.
        cache: path of the cache, relative to the folder of the results.
        content: digest of what it holds of these subjects.
        modalities: that were predicted from.
        postprocessing: of the masks in the native grid.
        trained_on: which of these subjects the run, or a member of the ensemble, was trained on.
        seen: which of them a projection behind the instructions was trained on.
        leaks: the run's instructions that were made from the true labels.
        members: the folders of the ensemble; empty of one run.
        slice_step: every how many-th slice the cache holds, and is measured.
        agreement: subject -> class -> mean DSC between the members' masks; empty of one run.
    """

    rows: list[dict[str, Any]]
    miou_256: dict[str, float]
    weights: str
    cache: str
    content: str
    modalities: tuple[str, ...]
    postprocessing: PostProcessing
    trained_on: tuple[str, ...]
    seen: tuple[str, ...]
    leaks: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    slice_step: int = 1
    agreement: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Means over the subjects, of each class and of all (`mean_over_subjects`); None where nothing is defined."""
        classes = list(dict.fromkeys(row["class"] for row in self.rows))
        return {
            "cache": self.cache,
            "content": self.content,
            "weights": self.weights,
            "members": list(self.members),
            "modalities": list(self.modalities),
            "slice_step": self.slice_step,
            "postprocessing": self.postprocessing.to_json(),
            "subjects": list(self.miou_256),
            "trained_on": list(self.trained_on),
            "seen_by_projection": list(self.seen),
            "made_from_true_labels": list(self.leaks),
            "miou_256": _known(mean_defined(self.miou_256.values())),
            "miou_256_of_subjects": {subject: _known(score) for subject, score in self.miou_256.items()},
            "mean_over_classes": {key: self._mean(key, classes) for key in NAMES},
            "classes": {name: {key: self._mean(key, [name]) for key in NAMES} for name in classes},
            "definitions": DEFINITIONS,
        }

    def _mean(self, key: str, classes: Sequence[str]) -> float | None:
        return _known(mean_over_subjects((row["subject"], row[key]) for row in self.rows if row["class"] in classes))


def evaluate_run(
    run: Path | Sequence[Path],
    cache: Cache | None = None,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
    out: Path | None = None,
    postprocess: bool = True,
    threads: int | None = None,
) -> Evaluation:
    """`measure_run`, written to evaluation.parquet, .csv and .json (see `results_path`).

    Of several runs also ensemble.json with how far they agree.

    Args:
        out: folder for these; None: the run's, of several `ensemble.ensemble_folder`.
    """
    runs = as_runs(run)
    folder = results_folder(runs, out)
    chosen: dict[str, Any] = {"subjects": subjects, "modalities": modalities, "which": which}
    with open_cache(runs[0]) if cache is None else nullcontext(cache) as opened:
        evaluation = measure_run(
            runs, opened, device=device, out=folder, postprocess=postprocess, threads=threads, **chosen
        )
        path = results_path(folder, [checkpoint.load_config(name) for name in runs], opened, "evaluation.json")
    checkpoint.write_table(path.with_suffix(".parquet"), evaluation.rows)
    checkpoint.write_csv(path.with_suffix(".csv"), evaluation.rows)
    checkpoint.write_json(path, evaluation.summary())
    if len(runs) > 1:
        write_agreement(folder, runs, which, evaluation.agreement)
    say(evaluation.postprocessing.summary)
    return evaluation


def results_folder(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Where results of runs go: `out`, else the run's own folder, of several that of the ensemble."""
    if out is not None:
        return out
    return runs[0] if len(runs) == 1 else ensemble_folder(runs)


def is_runs_cache(config: RunConfig, cache: Cache) -> bool:
    """Whether a cache holds of the run's subjects what the run read, wherever it lies; views were for training alone."""
    split = config.split
    subjects = {*as_named((*split.train, *split.test, *split.validation), cache.subjects)}
    return subjects <= set(cache.subjects) and all(
        layer in cache.layers and cache.content_digest(layer, subjects) == digest
        for layer, digest in config.inputs.content.items()
        if not view_of(layer)
    )


def results_path(folder: Path, configs: Sequence[RunConfig], cache: Cache, name: str) -> Path:
    """Where results on a cache go: FOLDER/NAME on the runs' own; on another one its name and content are in it.

    So no measurement overwrites one on other data: evaluation.json becomes evaluation-OTHER-1a2b3c4d.json.
    """
    if all(is_runs_cache(config, cache) for config in configs):
        return folder / name
    stem, _, ending = name.partition(".")
    content = cache.content_digest("slices", cache.subjects)[:8]
    return folder / f"{stem}-{cache.path.stem}-{content}.{ending}"


def measure_run(
    run: Path | Sequence[Path],
    cache: Cache,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
    out: Path | None = None,
    postprocess: bool = True,
    threads: int | None = None,
) -> Evaluation:
    """The masks of a run, or of several together, against the truth.

    Args:
        subjects: see `subjects_to_measure`.
        modalities: to predict from, of those the run was trained with; all if None.
        which: 'last' or 'best' weights. The best were chosen on the validation subjects, so their numbers there are
            too good.
        out: the folder of the results, to name the cache from; None: as `results_folder`.
        postprocess: with what was chosen for these weights (`postprocessing_of`).
        threads: to measure distances in, beside the prediction; None: as many as cores.

    Raises:
        UserError: subjects that are unknown or have no labels; other classes than the run's; as `load_members`.
    """
    members = load_members(run, which, device)
    configs = [member.config for member in members]
    wanted = check_members_cache(members, cache, modalities)
    classes = configs[0].inputs.classes
    if tuple(cache.classes) != classes:
        raise UserError(f"{cache.path} has the classes {', '.join(cache.classes)}, the run {', '.join(classes)}")
    postprocessing = postprocessing_of(members, which, postprocess)
    chosen = subjects_to_measure(configs, cache, subjects)
    variants = tuple(dict.fromkeys(layer for config in configs for layer in layers_read(config, cache)))
    trained_on = {name for config in configs for name in trained_by_run(config).among(cache, chosen)}
    scores, agreement = [], {}
    with workers(threads) as pool:
        waiting: deque[Callable[[], SubjectScores]] = deque()
        for subject in progress(chosen, "evaluating"):
            data = read_subject(cache, subject, members, wanted)
            predicted = predict_subject(members, data, cache.grid(subject), wanted)
            waiting.append(begin_scoring(cache, subject, predicted, postprocessing, pool))
            if predicted.agreement:
                agreement[subject] = predicted.agreement
            if len(waiting) > AT_ONCE:
                scores.append(waiting.popleft()())
        scores += [finish() for finish in waiting]
    return Evaluation(
        rows=[row for rows, _ in scores for row in rows],
        miou_256={subject: score for subject, (_, score) in zip(chosen, scores)},
        weights=which,
        cache=os.path.relpath(cache.path, results_folder(as_runs(run), out)),
        content=cache.content_digest("slices", chosen),
        modalities=wanted,
        postprocessing=postprocessing,
        trained_on=tuple(name for name in chosen if name in trained_on),
        seen=trained_by_projection(cache, variants).among(cache, chosen),
        leaks=leaking(cache, variants),
        members=tuple(str(member.folder) for member in members) if len(members) > 1 else (),
        slice_step=cache.card.slice_step,
        agreement=agreement,
    )


def subjects_to_measure(configs: Sequence[RunConfig], cache: Cache, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """`wanted`; else those that every run would be measured on alone.

    That is a run's held-out subjects of its own cache, of another all with labels that nobody trained on.

    Raises:
        UserError: one that is unknown, or without labels; none is left that no run was trained on.
    """
    labelled = tuple(name for name in cache.subjects if cache.rows["labelled"][cache.rows_of([name])].all())
    if wanted is None:
        of_each = [
            as_named(config.split.test, cache.subjects)
            if is_runs_cache(config, cache)
            else _untrained(config, cache, labelled)
            for config in configs
        ]
        wanted = [name for name in of_each[0] if all(name in names for names in of_each)]
        if labelled and not wanted:
            raise UserError(
                f"no subject of {cache.path} is held out by all {counted(len(configs), 'run')}: each was trained on what "
                "others were tested on, as folds are; take runs of one fold, a cache that none was trained on, or name --subjects"
            )
    chosen = choose(wanted, cache.subjects, "subject")
    without = [name for name in chosen if name not in labelled]
    if without or not chosen:
        names = ", ".join(without) or "any subject"
        raise UserError(f"no labels of {names}; with labels: {', '.join(labelled) or 'none'}")
    return chosen


def _untrained(config: RunConfig, cache: Cache, labelled: Sequence[str]) -> tuple[str, ...]:
    """Those that neither the run nor the projection behind the cache's instructions was trained on; says who is left out."""
    by_run = set(trained_by_run(config).among(cache, labelled))
    by_projection = set(trained_by_projection(cache, layers_read(config, cache)).among(cache, labelled))
    left_out = [name for name in labelled if name in by_run | by_projection]
    kept = tuple(name for name in labelled if name not in left_out)
    if labelled and not kept:
        raise UserError(
            f"the run (or its projection) was trained on every labelled subject of {cache.path}: {', '.join(left_out)}; "
            "name them with --subjects to measure them anyway"
        )
    if left_out:
        warn(
            f"not measured, because they were trained on (name them with --subjects to measure them anyway): {', '.join(left_out)}"
        )
    return kept


def as_table(evaluation: Evaluation) -> Table:
    """One line per subject and class, then the means."""
    table = Table(
        title=f"{_whose(evaluation)} weights on {evaluation.cache}; NSD at {SURFACE_TOLERANCE_MM:g} mm",
        caption="\n".join(filter(None, (_slices_measured(evaluation), _reservations(evaluation)))) or None,
    )
    for name in ("subject", "class"):
        table.add_column(name)
    for name in NAMES.values():
        table.add_column(name, justify="right")
    for row in evaluation.rows:
        table.add_row(row["subject"], row["class"], *_cells(row))
    table.add_section()
    classes = list(dict.fromkeys(row["class"] for row in evaluation.rows))
    for name in classes:
        table.add_row("mean", name, *_mean_cells(evaluation, [name]))
    if len(classes) > 1:
        table.add_row("mean", "over classes", *_mean_cells(evaluation, classes))
    return table


def _whose(evaluation: Evaluation) -> str:
    return (
        f"{counted(len(evaluation.members), 'run')} together, {evaluation.weights}"
        if evaluation.members
        else evaluation.weights
    )


def _slices_measured(evaluation: Evaluation) -> str:
    """What is in no number, where the cache does not hold every slice."""
    if evaluation.slice_step == 1:
        return ""
    return f"segmented slices alone, one in {evaluation.slice_step}: what is filled between them is not measured"


def _reservations(evaluation: Evaluation) -> str:
    """Why these numbers are too good, if they are."""
    named = [
        f"{what}: {', '.join(subjects)}"
        for what, subjects in (
            ("an upper bound, not a result: made from the true labels are the instructions", evaluation.leaks),
            (f"{'a member' if evaluation.members else 'the run'} was trained on", evaluation.trained_on),
            ("the instructions' projection was trained on", evaluation.seen),
        )
        if subjects
    ]
    return "; ".join(named)


def _cells(values: dict[str, Any]) -> list[str]:
    return [_number(values[key], 2 if key == "hd95_mm" else 4) for key in NAMES]


def _mean_cells(evaluation: Evaluation, classes: Sequence[str]) -> list[str]:
    total = len(evaluation.miou_256)
    rows = [row for row in evaluation.rows if row["class"] in classes]
    return [
        mean_cell([(row["subject"], row[key]) for row in rows], 2 if key == "hd95_mm" else 4, total) for key in NAMES
    ]


def mean_cell(scores: Sequence[tuple[str, float | None]], digits: int, total: int) -> str:
    """A mean over subjects; where not all of them count, also how many do: '0.8123 (1 of 3)'.

    Args:
        scores: (subject, score of a class).
        total: how many subjects there are.
    """
    subjects = len(subject_means(scores))
    some = f" ({subjects} of {total})" if 0 < subjects < total else ""
    return _number(mean_over_subjects(scores), digits) + some


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
