"""A run as a page: what it is, how it was trained, how good it is, and its slices to leaf through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zeus_union.cache.colours import class_hex
from zeus_union.cache.page.pictures import class_legend, error_legend
from zeus_union.cache.page.render import KeyFigure, PageTable, render_page
from zeus_union.cache.page.slices import subjects_json
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, progress, time_in_words
from zeus_union.pipelines.report.charts import PointRow, curve_charts, points_chart
from zeus_union.pipelines.report.probe_tables import probe_answer, probe_table
from zeus_union.pipelines.report.reproduce import facts, train_command
from zeus_union.pipelines.report.slice_views import read_probed, subject_view
from zeus_union.pipelines.report.statistics import Result, Summary, subject_scores, summarise
from zeus_union.stage2_segment.checkpoint import METRICS, read_table
from zeus_union.stage2_segment.choices import BASELINES, TEXTS
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.evaluate import NAMES, mean_cell, results_path
from zeus_union.stage2_segment.evaluation.metrics import DEFINITIONS, is_defined
from zeus_union.stage2_segment.marks import spoken
from zeus_union.stage2_segment.trained import TrainedRun

TEMPLATE = Path(__file__).with_name("templates") / "run.html.j2"
PAGE = "report.html"
FEW = 3  # subjects with slices on a page
LEAK = "An upper bound, not a result: the instructions of this run were made from the true labels."


def run_page(trained: TrainedRun, cache: Cache, subjects: Sequence[str], wanted: bool, name: str, results: Path) -> str:
    """The HTML of a run's page.

    Args:
        subjects: that it is measured on.
        wanted: whether the user named them: then all of them have slices, else best, median and worst.
        name: of the run, as the page calls it.
        results: the folder of its evaluation and probes.
    """
    config = trained.config
    measured = read_results(results_path(results, [config], cache, "evaluation.parquet"), name, config)
    probes = read_table(results_path(results, [config], cache, "probe.parquet"))
    probed = read_probed(results_path(results, [config], cache, "sentences.parquet"))
    metrics = read_table(trained.folder / METRICS)
    chosen = [(subject, "", "") for subject in subjects] if wanted else telling_subjects(measured, subjects)
    views = [subject_view(trained, cache, *which, probed=probed) for which in progress(chosen, "slices of the page")]
    return render_page(
        TEMPLATE,
        kind="Run",
        title=name,
        lead=_lead(config),
        reservations=_reservations(config),
        figures=_figures(measured, metrics),
        classes=None if not measured else class_table(measured),
        points=None if not measured else class_points(measured, config.inputs.classes),
        subject_table=None if not measured else subject_table(measured),
        curves=curve_charts({name: metrics} if metrics else {}),
        subjects=subjects_json(views),
        class_legend=class_legend(config.inputs.classes),
        error_legend=error_legend(),
        reads=TEXTS[config.inputs.text]
        if config.is_zeus
        else "nothing: it is a baseline, which sees the pictures alone",
        reads_own=bool(config.inputs.texts_read) and config.inputs.text == "instruction",
        probes=probe_table(probes),
        probe_answer=probe_answer(probes),
        sentences_probed=bool(probed),
        facts=facts(config, trained.folder),
        commands=_commands(config, name, bool(measured)),
        definitions=DEFINITIONS,
    )


def read_results(path: Path, name: str, config: RunConfig) -> list[dict[str, Any]]:
    """The lines of evaluation.parquet as those of an ablation with one row; empty where it was not evaluated."""
    return [{"row": name, "seed": config.seed, "fold": config.split.fold, **line} for line in read_table(path)]


def telling_subjects(results: Sequence[Result], subjects: Sequence[str]) -> list[tuple[str, str, str]]:
    """(subject, role, note) of the best, the median and the worst by mean DSC; the first few where nothing was measured."""
    scores = next(iter(subject_scores(results, "dsc", None).values()), {}) if results else {}
    order = sorted((subject for subject in subjects if is_defined(scores.get(subject))), key=lambda name: scores[name])
    if not order:
        return [(subject, "", "Not evaluated.") for subject in subjects[:FEW]]
    roles = {order[-1]: "best", order[0]: "worst"} if len(order) > 1 else {order[0]: ""}
    if len(order) > 2:
        roles[order[(len(order) - 1) // 2]] = "median"
    ordered = sorted(roles, key=lambda subject: -scores[subject])
    return [(subject, roles[subject], f"DSC {scores[subject]:.3f}, the mean over its classes.") for subject in ordered]


def class_table(results: Sequence[Result]) -> PageTable:
    """A line for each class and for their mean: DSC with interval, and the other metrics."""
    classes = list(dict.fromkeys(line["class"] for line in results))
    lines = [_class_line(name, results, name) for name in classes]
    if len(classes) > 1:
        lines.append(_class_line("mean over the classes", results, None))
    total = len({line["subject"] for line in results})
    notes = (
        f"DSC: {DEFINITIONS['DSC']}, in the study's own grid.",
        f"HD95: {DEFINITIONS['HD95']}.",
        f"NSD: {DEFINITIONS['NSD']}.",
        f"256 px: {DEFINITIONS['256'].partition(';')[0]}.",
        f"Empty: {DEFINITIONS['empty']}. (1 of {total}) means that one of {counted(total, 'subject')} counts.",
        "95 % interval: of the mean over the subjects, Student's t on the logit of the mean; none for fewer than 5 subjects.",
    )
    columns = ("class", "DSC", "95 % interval", "IoU", "HD95 mm", "NSD", "DSC (256 px)", "IoU (256 px)", "subjects")
    return PageTable(columns, tuple(lines), notes=notes)


def _class_line(title: str, results: Sequence[Result], name: str | None) -> tuple[str, ...]:
    (summary,) = summarise(results, class_name=name)
    lines = [line for line in results if name in (None, line["class"])]
    total = len({line["subject"] for line in results})
    cells = {
        key: mean_cell([(line["subject"], line[key]) for line in lines], 2 if key == "hd95_mm" else 3, total)
        for key in NAMES
    }
    subjects = str(total) if summary.subjects == total else f"{summary.subjects} of {total}"
    interval = f"[{summary.low:.3f}, {summary.high:.3f}]" if is_defined(summary.low) else "-"
    order = ("iou", "hd95_mm", "nsd", "dsc_256", "iou_256")
    return (title, cells["dsc"], interval, *(cells[key] for key in order), subjects)


def class_points(results: Sequence[Result], classes: Sequence[str]) -> Any:
    """Every subject's DSC in every class."""
    rows = []
    for label, name in enumerate(classes, 1):
        summaries = summarise(results, class_name=name)
        scores = subject_scores(results, "dsc", name)
        rows += [_point_row(name, summary, scores[summary.row], class_hex(label)) for summary in summaries]
    if len(classes) > 1:
        scores = subject_scores(results, "dsc", None)
        rows += [_point_row("mean over the classes", one, scores[one.row], "#8a8a8a") for one in summarise(results)]
    return points_chart("points", "DSC of every subject", rows)


def _point_row(name: str, summary: Summary, scores: Mapping[str, float], colour: str) -> PointRow:
    return PointRow(name, scores, summary.mean, summary.low, summary.high, colour)


def subject_table(results: Sequence[Result]) -> PageTable:
    """A line for each subject: its DSC in every class and their mean."""
    classes = list(dict.fromkeys(line["class"] for line in results))
    mean = next(iter(subject_scores(results, "dsc", None).values()))
    by_class = {name: next(iter(subject_scores(results, "dsc", name).values()), {}) for name in classes}
    subjects = sorted(dict.fromkeys(line["subject"] for line in results), key=lambda name: -mean.get(name, -1))
    rows = tuple(
        (
            subject,
            *(_number(by_class[name].get(subject)) for name in classes),
            *([_number(mean.get(subject))] if len(classes) > 1 else []),
        )
        for subject in subjects
    )
    columns = ("subject", *classes, *(["mean"] if len(classes) > 1 else []))
    return PageTable(columns, rows, notes=("DSC in the study's own grid, best subject first.",))


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}" if value is not None and is_defined(value) else "-"


def _lead(config: RunConfig) -> str:
    model = "Zeus" if config.is_zeus else BASELINES[config.architecture.model]
    split = f"fold {config.split.fold} held out" if config.split.fold is not None else "named subjects held out"
    return (
        f"{model}, {config.architecture.fusion} fusion, of {', '.join(config.inputs.modalities)}: "
        f"{', '.join(config.inputs.classes)}. Trained on {counted(len(config.split.train), 'subject')} of "
        f"{config.inputs.card.name}, {split} ({counted(len(config.split.test), 'subject')})."
    )


def _reservations(config: RunConfig) -> list[str]:
    lines = [LEAK] if config.inputs.leaks else []
    if config.inputs.seen:
        lines.append(f"Too good: the projection behind the instructions was trained on {spoken(config.inputs.seen)}.")
    return lines


def _figures(results: Sequence[Result], metrics: Sequence[Mapping[str, Any]]) -> list[KeyFigure]:
    figures = []
    if results:
        (summary,) = summarise(results)
        interval = f"95 % interval {summary.low:.3f} to {summary.high:.3f}" if is_defined(summary.low) else ""
        pairs = {key: [(line["subject"], line[key]) for line in results] for key in NAMES}
        total = len({line["subject"] for line in results})
        figures = [
            KeyFigure("Mean DSC", _number(summary.mean), interval or f"over {counted(total, 'subject')}, no interval"),
            KeyFigure("HD95", f"{mean_cell(pairs['hd95_mm'], 1, total)} mm", "distance of the surfaces"),
            KeyFigure("NSD", mean_cell(pairs["nsd"], 3, total), "surface within 2 mm"),
            KeyFigure("Subjects", str(total), "held out, measured"),
        ]
    if metrics:
        last = metrics[-1]
        seconds = sum(line["seconds"] for line in metrics if line.get("seconds"))
        figures.append(KeyFigure("Epochs", str(last["epoch"]), f"in {time_in_words(seconds)}"))
    return figures


def _commands(config: RunConfig, name: str, evaluated: bool) -> list[str]:
    train = train_command(config, name)
    return [
        *([train] if train else [f"# {name} was exported: it cannot be trained again from this file"]),
        f"zeus-segment evaluate --run {name}"
        + ("" if evaluated else "   # not done yet: without it no DSC is on this page"),
        f"zeus-segment probe --run {name}",
        f"zeus report {name}",
    ]
