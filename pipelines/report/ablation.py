"""zeus report for an ablation: tables in three formats, a picture, a page, and what they say of the instruction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.markdown import Markdown
from rich.text import Text

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import choose, print_tables
from zeus_union.pipelines.report.forest import draw_forest
from zeus_union.pipelines.report.measurements import write_measurements
from zeus_union.pipelines.report.published import Published, with_published
from zeus_union.pipelines.report.statistics import Result, subject_scores, summarise
from zeus_union.pipelines.report.tables import Sheet, ablation_sheet, class_sheet, subject_sheet, write_sheets
from zeus_union.pipelines.report.verdict import verdict
from zeus_union.stage2_segment.ablation_folder import PLAN, RESULTS, STOPPED


@dataclass(frozen=True)
class AblationReport:
    """What an ablation's folder says.

    Attributes:
        plan: ablation.json.
        results: the lines of results.parquet, in the order of the rows.
        reference: the row that the others are compared with; None: none has results.
        table, classes, subjects: the sheets, with published values beside ours.
        verdict: Markdown; '' where the grid has no controls.
    """

    plan: Mapping[str, Any]
    results: Sequence[Result]
    reference: str | None
    table: Sheet
    classes: Sheet
    subjects: Sheet
    verdict: str

    @property
    def title(self) -> str:
        """Data set and grid."""
        dataset = self.plan.get("dataset")
        return f"{dataset}: {self.plan['title']}" if dataset else str(self.plan["title"])

    @property
    def leaks(self) -> dict[str, Sequence[str]]:
        """Row -> its instructions that were made from the true labels."""
        return {run["row"]: run["leaks"] for run in self.plan["runs"].values() if run["leaks"]}


def read_ablation(folder: Path, reference: str | None = None) -> AblationReport:
    """Raises UserError: no row has results yet; an unknown reference row."""
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    stopped_file = folder / STOPPED
    stopped_runs = json.loads(stopped_file.read_text()) if stopped_file.exists() else {}
    stopped = {plan["runs"][run]["row"]: why for run, why in stopped_runs.items()}
    if not (folder / RESULTS).exists():
        why = "; ".join(stopped_runs.values()) or "the same zeus ablate command resumes"
        raise UserError(f"{folder} has no results: {why}")
    results = pq.read_table(folder / RESULTS).to_pylist()
    order = {row: index for index, row in enumerate(plan["rows"])}
    results.sort(key=lambda line: (order[line["row"]], line["seed"], str(line["fold"]), line["subject"]))
    rows = list(dict.fromkeys(line["row"] for line in results))
    if reference is not None:
        choose([reference], rows, "row")
    elif plan["reference"] in rows:
        reference = plan["reference"]
    parameters = {run["row"]: run["parameters"] for run in plan["runs"].values()}
    seen = {run["row"]: run["seen"] for run in plan["runs"].values() if run["seen"]}
    leaks = {run["row"]: run["leaks"] for run in plan["runs"].values() if run["leaks"]}
    sheet = ablation_sheet(
        results,
        plan["paper"],
        parameters,
        stopped,
        reference,
        plan["title"],
        seen,
        leaks,
        plan.get("not_run"),
        plan["rows"],
    )
    published = [Published(**fields) for fields in plan.get("published", [])]
    tested = list(dict.fromkeys(line["subject"] for line in results))
    return AblationReport(
        plan,
        results,
        reference,
        with_published(sheet, published, tested),
        class_sheet(results, leaks=leaks),
        with_published(subject_sheet(results, leaks=leaks), published, tested),
        verdict(results, plan["controls_of"], plan["controls"]),
    )


def report_ablation(folder: Path, reference: str | None = None) -> Path:
    """Prints the table of an ablation and writes FOLDER/table.{md,csv,tex}, classes and subjects likewise, measurements.csv and
    table.png.

    Where the grid has controls, verdict.md says whether the instruction matters.

    Raises:
        UserError: as `read_ablation`.
    """
    report = read_ablation(folder, reference)
    print_tables(report.table.as_rich(), *(Text(note, "dim") for note in report.table.notes))
    write_sheets(folder, "table", report.table)
    if report.verdict:
        print_tables(Markdown(report.verdict))
        write_atomically(folder / "verdict.md", report.verdict.encode())
    write_sheets(folder, "classes", report.classes)
    write_sheets(folder, "subjects", report.subjects)
    write_measurements(folder, report.results)
    summaries = summarise(report.results, reference=report.reference)
    scores = subject_scores(report.results, "dsc", None)
    draw_forest(summaries, folder / "table.png", report.title, scores)
    return folder
