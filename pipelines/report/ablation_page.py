"""An ablation as a page: its table, every subject of every row, what the instruction is worth, and slices to leaf through."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.page.pictures import class_legend, error_legend
from zeus_union.cache.page.render import Chart, KeyFigure, PageTable, render_page, write_page
from zeus_union.cache.page.slices import SubjectView, subjects_json
from zeus_union.cache.terminal import counted, progress, warn
from zeus_union.pipelines.report.ablation import AblationReport, read_ablation
from zeus_union.pipelines.report.charts import POINT, REFERENCE, PointRow, curve_charts, points_chart
from zeus_union.pipelines.report.reproduce import train_command
from zeus_union.pipelines.report.run_page import PAGE, telling_subjects
from zeus_union.pipelines.report.slice_views import read_probed, subject_view
from zeus_union.pipelines.report.statistics import Result, subject_scores, summarise
from zeus_union.pipelines.report.verdict import SHOWS, findings, upper_bound
from zeus_union.stage2_segment.ablation_folder import run_folder
from zeus_union.stage2_segment.checkpoint import METRICS, load_config, read_table
from zeus_union.stage2_segment.evaluation.metrics import DEFINITIONS, is_defined
from zeus_union.stage2_segment.trained import load_trained, open_cache

TEMPLATE = Path(__file__).with_name("templates") / "ablation.html.j2"
MOST_CURVES = 16  # runs whose training is drawn; more lines nobody tells apart
ANSWERS = {
    "yes": "Yes: {row} is better with its instruction than without text ({difference}, p = {p}).",
    "no": "No: without text the same training does better ({difference}, p = {p}).",
    "open": "Not shown: {row} with its instruction minus without text is {difference}.",
}


def write_ablation_page(
    folder: Path, reference: str | None = None, cache_path: Path | None = None, subjects: Sequence[str] | None = None
) -> Path:
    """FOLDER/report.html. Where the cache is not there it has no slices, and says so.

    Args:
        reference: the row that the others are compared with.
        cache_path: None: the runs' cache.
        subjects: with slices; None: best, median and worst of the row that slices are of.

    Raises:
        UserError: as `read_ablation`.
    """
    report = read_ablation(folder, reference)
    row = report.reference or _first_row(report)
    try:
        views, without = _views(folder, report, row, cache_path, subjects), ""
    except UserError as error:
        if cache_path is not None or subjects is not None:
            raise
        warn(f"the page has no slices: {error}")
        views, without = [], "The cache of this ablation was not there when this page was written, so it has no slices."
    names = list(report.plan["runs"])
    html = render_page(
        TEMPLATE,
        kind="Ablation",
        title=report.plan["title"],
        lead=_lead(report),
        reservations=_reservations(report),
        figures=_figures(report, row),
        table=report.table,
        points=_points(report),
        classes=report.classes,
        subject_table=report.subjects,
        answer=_answer(report),
        verdict=_verdict_table(report),
        upper_bound=upper_bound(report.results, report.plan["controls_of"], report.plan["controls"]),
        row=row,
        subjects=subjects_json(views),
        without_slices=without,
        class_legend=class_legend(list(dict.fromkeys(line["class"] for line in report.results))),
        error_legend=error_legend(),
        curves=_curves(folder, names),
        commands=_commands(folder, names),
        digests={f"recipe of {layer}": digest for layer, digest in report.plan["cache"].items()},
        contents=report.plan["content"],
        definitions=DEFINITIONS,
    )
    return write_page(folder / PAGE, html)


def _first_row(report: AblationReport) -> str:
    """The first row with results that is no upper bound."""
    rows = list(dict.fromkeys(line["row"] for line in report.results))
    return next((row for row in rows if row not in report.leaks), rows[0])


def _views(
    folder: Path, report: AblationReport, row: str, cache_path: Path | None, subjects: Sequence[str] | None
) -> list[SubjectView]:
    """Subjects of a row, each with the masks of the run that held it out, beside those of the row without text."""
    lines = _first_seed(report, row)
    run_of = {line["subject"]: line["run"] for line in lines}
    other = report.plan["controls"].get("none", "")
    compared_run_of = {line["subject"]: line["run"] for line in _first_seed(report, other)} if other != row else {}
    chosen = telling_subjects(lines, list(run_of))
    if subjects is not None:
        unknown = [subject for subject in subjects if subject not in run_of]
        if unknown:
            raise UserError(f"{row} was not tested on {', '.join(unknown)}; it was on: {', '.join(run_of)}")
        chosen = [telling_subjects(lines, [subject])[0] for subject in subjects]
    views = []
    for subject, role, note in progress(chosen, "slices of the page"):
        run = run_folder(folder, run_of[subject])
        compared = compared_run_of.get(subject)
        with open_cache(run, cache_path) as cache:
            views.append(
                subject_view(
                    load_trained(run),
                    cache,
                    subject,
                    role,
                    f"{row}. {note}",
                    read_probed(run / "sentences.parquet"),
                    (other, load_trained(run_folder(folder, compared))) if compared else None,
                )
            )
    return views


def _first_seed(report: AblationReport, row: str) -> list[Result]:
    """The lines of a row's first seed."""
    lines = [line for line in report.results if line["row"] == row]
    return [line for line in lines if line["seed"] == lines[0]["seed"]]


def _lead(report: AblationReport) -> str:
    rows = list(dict.fromkeys(line["row"] for line in report.results))
    subjects = {line["subject"] for line in report.results}
    seeds, folds = ({line[key] for line in report.results} for key in ("seed", "fold"))
    parts = [(rows, "row"), (subjects, "subject"), (seeds, "seed")] + [(folds, "fold")] * (folds != {None})
    return ", ".join(counted(len(those), noun) for those, noun in parts) + "."


def _reservations(report: AblationReport) -> list[str]:
    lines = [f"Upper bounds, no results: the instructions of {', '.join(report.leaks)} were made from the true labels."]
    seen = {run["row"]: run["seen"] for run in report.plan["runs"].values() if run["seen"]}
    too_good = f"Too good: tested on subjects that the projection was trained on (--allow-seen): {', '.join(seen)}."
    return lines * bool(report.leaks) + [too_good] * bool(seen)


def _figures(report: AblationReport, row: str) -> list[KeyFigure]:
    summaries = [one for one in summarise(report.results) if one.row not in report.leaks and is_defined(one.mean)]
    if not summaries:
        return []
    best = max(summaries, key=lambda summary: summary.mean)
    figures = [KeyFigure("Best row", f"{best.mean:.3f}", f"{best.row}, mean DSC")]
    here = next((summary for summary in summaries if summary.row == row), None)
    if here is not None and row != best.row:
        figures.append(KeyFigure("Reference", f"{here.mean:.3f}", f"{row}, mean DSC"))
    for finding in _findings(report):
        if finding.control == "none":
            interval = (
                f"95 % interval {signed(finding.low)} to {signed(finding.high)}"
                if is_defined(finding.low)
                else "too few subjects"
            )
            figures.append(KeyFigure("Instruction minus no text", signed(finding.difference), interval))
    runs = {line["run"] for line in report.results}
    return [*figures, KeyFigure("Runs", f"{len(runs)} of {len(report.plan['runs'])}", "have results")]


def _points(report: AblationReport) -> Chart:
    scores = subject_scores(report.results, "dsc", None)
    rows = [
        PointRow(
            one.row,
            scores[one.row],
            one.mean,
            one.low,
            one.high,
            REFERENCE if one.is_reference else "#8a8a8a" if one.row in report.leaks else POINT,
            one.is_reference,
        )
        for one in summarise(report.results, reference=report.reference)
    ]
    return points_chart(
        "points", "DSC of every subject, row by row", rows, "DSC in the study's own grid, mean over the classes"
    )


def signed(value: float) -> str:
    """'+0.012', '-0.012'; what rounds to nothing has no sign."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _findings(report: AblationReport) -> list[Any]:
    row = report.plan["controls_of"]
    has_results = any(line["row"] == row for line in report.results)
    return findings(report.results, row, report.plan["controls"]) if has_results else []


def _verdict_table(report: AblationReport) -> PageTable | None:
    """A line for each question the controls ask; None where none has results."""
    compared = _findings(report)
    if not compared:
        return None
    rows = tuple(
        (
            SHOWS[finding.control],
            finding.control,
            signed(finding.difference),
            f"[{signed(finding.low)}, {signed(finding.high)}]" if is_defined(finding.low) else "-",
            f"{finding.p:.3f}" if is_defined(finding.p) else "-",
            finding.answer,
        )
        for finding in compared
    )
    notes = (
        "Gain: mean DSC with the instruction minus that of the control, over the subjects of both, seeds averaged first.",
        "p: two-sided paired Wilcoxon test over the subjects, Holm-corrected over the controls.",
    )
    columns = ("question", "control", "gain of the instruction", "95 % interval", "p (Holm)", "shown?")
    return PageTable(columns, rows, notes=notes)


def _answer(report: AblationReport) -> str:
    """Beside no text, in a sentence; '' where that was not trained."""
    finding = next((finding for finding in _findings(report) if finding.control == "none"), None)
    if finding is None:
        return ""
    key = "open" if finding.answer.startswith("not shown") else finding.answer.partition(":")[0]
    interval = f" [{signed(finding.low)}, {signed(finding.high)}]" if is_defined(finding.low) else ""
    return ANSWERS[key].format(
        row=report.plan["controls_of"], difference=f"{signed(finding.difference)} DSC{interval}", p=f"{finding.p:.3f}"
    )


def _commands(folder: Path, names: Sequence[str]) -> list[str]:
    """How each run would be trained alone; of runs whose config can be read."""
    commands = []
    for name in names:
        with suppress(UserError):  # not begun, or of another version: the tables stand without its command
            commands.append(train_command(load_config(run_folder(folder, name)), name))
    return [command for command in commands if command]


def _curves(folder: Path, names: Sequence[str]) -> list[Chart]:
    metrics = {name: rows for name in names if (rows := read_table(run_folder(folder, name) / METRICS))}
    return curve_charts(dict(list(metrics.items())[:MOST_CURVES]))
