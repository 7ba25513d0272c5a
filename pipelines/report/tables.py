"""The tables of an ablation, for the terminal, a README, a spreadsheet and a paper."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.terminal import counted, terminal_width
from zeus_union.pipelines.report.statistics import (
    FEWEST,
    Result,
    Summary,
    pooled,
    smallest_p,
    subject_scores,
    summarise,
)
from zeus_union.stage2_segment.evaluation.metrics import DEFINITIONS, is_defined, mean_defined

UNDEFINED, NOT_RUN = "-", "not run"
INTERVAL, ITS = "95 % interval", "its"  # of column heads
SIGNIFICANT = 0.05
LONGEST_NUMBER, LONGEST_TEXT = 16, 26  # characters of a cell in the terminal: an interval, a row's name
LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


class Shown(str):
    """A cell as people read it, which knows the numbers that it shows: one, or the two ends of an interval."""

    values: tuple[float, ...]

    def __new__(cls, text: str, *values: float) -> Shown:
        cell = super().__new__(cls, text)
        cell.values = values
        return cell


@dataclass(frozen=True)
class Sheet:
    """A table as text, its first column the rows' names.

    Attributes:
        rows: cells; those that show numbers are `Shown`.
        best: (row, column) of the cells to mark.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    best: frozenset[tuple[int, int]] = frozenset()

    def as_markdown(self) -> str:
        """GitHub's, with columns of equal width; the best in bold, the notes as a list below."""
        cells = [[_markdown(name) for name in self.columns]]
        cells += self._marked(_markdown, "**{}**")
        widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(self.columns))]
        aligned = [
            [
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths))
            ]
            for line in cells
        ]
        aligned.insert(1, ["-" * (width - 1) + ":" if column else "-" * width for column, width in enumerate(widths)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in aligned)
        notes = "\n".join(f"- {_markdown(note)}" for note in self.notes)
        return f"**{_markdown(self.title)}**\n\n{table}\n" + (f"\n{notes}\n" if notes else "")

    def as_csv(self) -> str:
        """Header and rows alone, for a program: numbers in all their digits, those that are undefined empty.

        An interval is two columns, ci_low and ci_high.
        """
        columns = [_csv_column(name, [line[index] for line in self.rows]) for index, name in enumerate(self.columns)]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(zip(*(line for lines in columns for line in lines)))
        return out.getvalue()

    def as_latex(self) -> str:
        """A table environment that needs the package booktabs; the best in bold, the notes below."""
        lines = [" & ".join(line) + r" \\" for line in self._marked(_latex, r"\textbf{{{}}}")]
        notes = "\n".join(rf"\par {_latex(note)}" for note in self.notes)
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering\footnotesize",
                rf"\caption{{{_latex(self.title)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                " & ".join(map(_latex, self.columns)) + r" \\",
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                *([r"\par\medskip\raggedright", notes] if notes else []),
                r"\end{table}",
                "",
            ]
        )

    def as_rich(self, width: int | None = None) -> Group:
        """For the terminal, without the notes; columns too many for `width` (None: the terminal's) follow below."""
        width = width or terminal_width()
        whole = [max(map(len, [self.columns[c], *(line[c] for line in self.rows)])) for c in range(len(self.columns))]
        if 1 + sum(whole) + 3 * len(whole) <= width:
            return Group(self._block(range(len(self.columns)), whole, self.title))
        widths = [self._least_width(column) for column in range(len(self.columns))]
        needs = [least + 3 for least in widths]  # with padding and a divider
        blocks: list[list[int]] = [[]]
        for column in range(1, len(self.columns)):
            if blocks[-1] and 1 + needs[0] + sum(needs[other] for other in [*blocks[-1], column]) > width:
                blocks.append([])
            blocks[-1].append(column)
        titles = [self.title] + [""] * (len(blocks) - 1)
        return Group(*(self._block([0, *block], widths, title) for block, title in zip(blocks, titles)))

    def _least_width(self, column: int) -> int:
        """Numbers stay whole; headers, names and reasons break between words."""
        cells = [line[column] for line in self.rows]
        if not column or any(len(cell) > LONGEST_NUMBER for cell in cells):
            return min(LONGEST_TEXT, max(map(len, [self.columns[column], *cells])))
        return max(map(len, [*self.columns[column].split(), *cells]))

    def _block(self, columns: Sequence[int], widths: Sequence[int], title: str) -> Table:
        table = Table(title=Text(title, "italic") if title else None, title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            table.add_column(
                Text(self.columns[column]),
                justify="right" if column else "left",
                min_width=widths[column],
                max_width=widths[column],
                overflow="fold",  # a long word goes on in the next line, where rich would cut it off
            )
        for index, line in enumerate(self.rows):
            table.add_row(*(Text(line[column], "bold" if (index, column) in self.best else "") for column in columns))
        return table

    def _marked(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        return [
            [
                bold.format(escape(cell)) if (index, column) in self.best else escape(cell)
                for column, cell in enumerate(line)
            ]
            for index, line in enumerate(self.rows)
        ]


def _csv_column(name: str, cells: Sequence[str]) -> list[list[str]]:
    """A column, or the two of an interval, each with its head first; the text of a column without numbers as it is."""
    width = max((len(cell.values) for cell in cells if isinstance(cell, Shown)), default=0)
    if not width:
        return [[name, *("" if cell == UNDEFINED else cell for cell in cells)]]
    numbers = [cell.values if isinstance(cell, Shown) else (math.nan,) * width for cell in cells]
    of = name.removesuffix(INTERVAL).strip().replace(ITS, "difference")
    heads = [name] if width == 1 else [f"{of} {end}".strip() for end in ("ci_low", "ci_high")]
    return [
        [head, *(repr(float(values[part])) if is_defined(values[part]) else "" for values in numbers)]
        for part, head in enumerate(heads)
    ]


def write_sheets(folder: Path, stem: str, sheet: Sheet) -> None:
    """FOLDER/STEM.md, .csv and .tex, each whole or not there at all; replaces what had the names."""
    for ending, text in (("md", sheet.as_markdown()), ("csv", sheet.as_csv()), ("tex", sheet.as_latex())):
        write_atomically(folder / f"{stem}.{ending}", text.encode())


def ablation_sheet(
    results: Sequence[Result],
    paper: Mapping[str, Mapping[str, float]],
    params: Mapping[str, int],
    stopped: Mapping[str, str],
    reference: str | None,
    title: str = "Ablation",
    seen: Mapping[str, Sequence[str]] | None = None,
    leaks: Mapping[str, Sequence[str]] | None = None,
    not_run: Mapping[str, str] | None = None,
    order: Sequence[str] = (),
) -> Sheet:
    """One line per row that has results, was stopped or not run: means over the classes.

    Args:
        paper: row -> the paper's 'dsc' and 'miou', in per cent.
        params: row -> trainable parameters.
        stopped: row -> why a run of it ended before its time.
        reference: the row that the others are compared with.
        seen: row -> test subjects that its instructions' projection was trained on (--allow-seen).
        leaks: row -> its variants that were made from the true labels: an upper bound, never marked as the best.
        not_run: row -> why it has no runs.
        order: of the rows; those that it does not name follow in the order of `params`.

    Raises:
        UserError: the reference is not among the rows with results.
    """
    summaries = {summary.row: summary for summary in summarise(results, reference=reference)}
    miou, hd95 = (_means(results, metric) for metric in ("miou_256", "hd95_mm"))
    together = pooled(results)
    not_run = {name: why for name, why in (not_run or {}).items() if name not in summaries}
    known = dict.fromkeys([*order, *params, *summaries, *stopped, *not_run])
    names = [name for name in known if name in summaries or name in stopped or name in not_run]
    cells: dict[str, list[str]] = {
        "row": names,
        "params (M)": [_number(params[name] / 1e6 if name in params else None, 2) for name in names],
        "DSC mean": [
            NOT_RUN if name in not_run else cell
            for name, cell in zip(names, _column(names, summaries, lambda summary: _number(summary.mean)))
        ],
        INTERVAL: _column(names, summaries, _interval),
        "sd over subjects": _column(names, summaries, lambda summary: _number(summary.sd_subjects)),
        "sd over seeds": _column(names, summaries, lambda summary: _number(summary.sd_seeds)),
        "pooled DSC": [_number(together.get(name)) for name in names],
        "mIoU": [_number(miou.get(name)) for name in names],
        "HD95 mm": [_number(hd95.get(name), 2) for name in names],
    }
    if reference is not None:
        cells["difference to reference"] = _column(
            names, summaries, lambda summary: _number(summary.difference, sign="+")
        )
        cells[f"{ITS} {INTERVAL}"] = _column(names, summaries, _difference_interval)
        cells["p (Holm)"] = _column(names, summaries, lambda summary: _p(summary.p_holm))
    if any(name in paper for name in names):
        cells["paper's DSC %"] = [_number(paper.get(name, {}).get("dsc"), 2) for name in names]
        cells["paper's mIoU %"] = [_number(paper.get(name, {}).get("miou"), 2) for name in names]
    if stopped:
        cells["stopped"] = [stopped.get(name, UNDEFINED) for name in names]
    notes = [
        f"DSC: {DEFINITIONS['DSC']}, in the study's own grid; the mean over the classes, then over the subjects",
        f"pooled DSC: of all subjects' voxels together, the mean over the classes{_each_seed(results)}",
        f"mIoU: {DEFINITIONS['mIoU']}, {DEFINITIONS['256'].partition(';')[0]}",
        f"HD95: {DEFINITIONS['HD95']}; the mean over the classes, then over the subjects",
        f"surface: {DEFINITIONS['surface']}",
        f"post-processing: {DEFINITIONS['post-processing']}{_gains(results)}",
        *_incomplete_distances(results),
        f"empty: {DEFINITIONS['empty']}",
        f"mean: {DEFINITIONS['mean']}",
        _interval_note(results),
        "sd: with n - 1; over the seeds of the mean over the subjects that all seeds have",
        *(_test_notes(list(summaries.values()), reference) if reference is not None else ()),
    ]
    if "paper's DSC %" in cells:
        notes.append("paper's: as printed there, in per cent; the other numbers are fractions")
    if seen:
        rows = "; ".join(f"{row}: {', '.join(subjects)}" for row, subjects in seen.items())
        notes.append(f"too good: tested on subjects that the projection was trained on (--allow-seen): {rows}")
    notes += _leak_notes(leaks or {}, names)
    notes += [f"{NOT_RUN}: {name}: {why}" for name, why in not_run.items()]
    waiting = [name for name in params if name not in names]
    if waiting:
        notes.append(f"no results yet: {', '.join(waiting)}")
    means = {name: summary.mean for name, summary in summaries.items() if name not in (leaks or {})}
    return _sheet(title, cells, notes, {"DSC mean": means})


def class_sheet(
    results: Sequence[Result], title: str = "DSC of each class", leaks: Mapping[str, Sequence[str]] | None = None
) -> Sheet:
    """Mean DSC and its interval of every class, one line per row; `leaks` as for `ablation_sheet`."""
    cells: dict[str, list[str]] = {"row": list(dict.fromkeys(line["row"] for line in results))}
    means = {}
    for name in dict.fromkeys(line["class"] for line in results):
        summaries = {summary.row: summary for summary in summarise(results, class_name=name)}
        cells[f"{name} DSC"] = _column(cells["row"], summaries, lambda summary: _number(summary.mean))
        cells[f"{name} {INTERVAL}"] = _column(cells["row"], summaries, _interval)
        means[f"{name} DSC"] = {row: summary.mean for row, summary in summaries.items() if row not in (leaks or {})}
    notes = [
        f"DSC: {DEFINITIONS['DSC']}, in the study's own grid",
        f"empty: {DEFINITIONS['empty']}",
        f"mean: {DEFINITIONS['mean']}",
        _interval_note(results),
        *_leak_notes(leaks or {}, cells["row"]),
    ]
    return _sheet(title, cells, notes, means)


def subject_sheet(
    results: Sequence[Result], title: str = "DSC of each subject", leaks: Mapping[str, Sequence[str]] | None = None
) -> Sheet:
    """Every subject's DSC, the mean over the classes and seeds, one line per row; `leaks` as for `ablation_sheet`."""
    scores = subject_scores(results, "dsc", None)
    subjects = list(dict.fromkeys(line["subject"] for line in results))
    cells: dict[str, list[str]] = {"row": list(scores)}
    cells["DSC mean"] = [_number(mean_defined(by_subject.values())) for by_subject in scores.values()]
    for subject in subjects:
        cells[subject] = [_number(by_subject.get(subject)) for by_subject in scores.values()]
    notes = [
        f"DSC: {DEFINITIONS['DSC']}, in the study's own grid; the mean over the classes{_each_seed(results)}",
        f"empty: {DEFINITIONS['empty']}",
        *_leak_notes(leaks or {}, cells["row"]),
    ]
    best = {
        subject: {row: by_subject[subject] for row, by_subject in scores.items() if subject in by_subject}
        for subject in subjects
    }
    return _sheet(title, cells, notes, {name: _without(by_row, leaks) for name, by_row in best.items()})


def _without(by_row: Mapping[str, float], leaks: Mapping[str, Sequence[str]] | None) -> dict[str, float]:
    return {row: score for row, score in by_row.items() if row not in (leaks or {})}


def _leak_notes(leaks: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    rows = "; ".join(f"{row} ({', '.join(variants)})" for row, variants in leaks.items() if row in names)
    return [f"an upper bound, not a result: made from the true labels are the instructions of {rows}"] * bool(rows)


def _sheet(
    title: str, cells: Mapping[str, list[str]], notes: Sequence[str], means: Mapping[str, Mapping[str, float]]
) -> Sheet:
    """Marks in each column of `means` the highest of several, and all that look like it."""
    columns, names = tuple(cells), cells["row"]
    best = set()
    for column, by_row in means.items():
        known = {row: score for row, score in by_row.items() if is_defined(score)}
        if len(known) > 1:
            highest = cells[column][names.index(max(known, key=known.__getitem__))]
            best |= {
                (index, columns.index(column))
                for index, (row, cell) in enumerate(zip(names, cells[column]))
                if row in by_row and cell == highest
            }
    return Sheet(title, columns, tuple(zip(*cells.values())), tuple(notes), frozenset(best))


def _means(results: Sequence[Result], metric: str) -> dict[str, float]:
    return {row: mean_defined(by_subject.values()) for row, by_subject in subject_scores(results, metric, None).items()}


def _column(names: Sequence[str], summaries: Mapping[str, Summary], show: Callable[[Summary], str]) -> list[str]:
    return [show(summaries[name]) if name in summaries else UNDEFINED for name in names]


def _each_seed(results: Sequence[Result]) -> str:
    return ", of each seed and then averaged" if len({line["seed"] for line in results}) > 1 else ""


def _gains(results: Sequence[Result]) -> str:
    """What post-processing did to each row's mean DSC, of rows where it did anything."""
    raw = _means([line for line in results if is_defined(line.get("dsc_raw"))], "dsc_raw")
    gains = {row: mean - raw[row] for row, mean in _means(results, "dsc").items() if row in raw}
    named = [f"{row} {gain:+.3f}" for row, gain in gains.items() if round(gain, 3)]
    return f"; its gain in DSC: {', '.join(named)}" if named else ""


def _incomplete_distances(results: Sequence[Result]) -> list[str]:
    """Which rows' HD95 leaves measurements out: a row that finds nothing would otherwise look no worse for it."""
    lacking = []
    for row in dict.fromkeys(line["row"] for line in results):
        measured = [line for line in results if line["row"] == row and is_defined(line["dsc"])]
        defined = sum(is_defined(line["hd95_mm"]) for line in measured)
        if defined < len(measured):
            lacking.append(f"{row} {defined} of {len(measured)}")
    return [f"HD95 counts only some of the measurements (subjects, classes, runs): {'; '.join(lacking)}"] * bool(
        lacking
    )


def _interval_note(results: Sequence[Result]) -> str:
    seeds: dict[str, set[int]] = {}
    for line in results:
        seeds.setdefault(line["row"], set()).add(line["seed"])
    scores = subject_scores(results, "dsc", None)
    sizes = {
        row: f"{counted(len(by_subject), 'subject')}, {counted(len(seeds[row]), 'seed')}"
        for row, by_subject in scores.items()
    }
    if len(set(sizes.values())) == 1:
        said = next(iter(sizes.values()))
    else:
        said = "; ".join(f"{row}: {size}" for row, size in sizes.items())
    return (
        f"95 % interval: of the mean over the subjects, Student's t on the logit of the mean, seeds averaged first ({said}); "
        f"none for fewer than {FEWEST} subjects; a failure that none of them shows is not in it"
    )


def _test_notes(summaries: Sequence[Summary], reference: str) -> list[str]:
    compared = [summary for summary in summaries if not summary.is_reference]
    if not compared:
        return []
    tests = sum(is_defined(summary.p) for summary in compared)
    notes = [
        f"difference to reference: row minus {reference}, mean over the subjects of both; its interval: Student's t of the "
        f"paired differences, none for fewer than {FEWEST} subjects"
    ]
    if tests:
        notes.append(
            "p (Holm): two-sided paired Wilcoxon signed-rank test over those subjects, seeds averaged first, "
            f"Holm-corrected for {counted(tests, 'comparison')}"
        )
    subjects = max(summary.common for summary in compared)
    best = min(1.0, smallest_p(subjects) if subjects else 1.0)
    if best > SIGNIFICANT:
        notes.append(f"with {counted(subjects, 'subject')} no difference can reach p < {SIGNIFICANT:g}")
    elif best * tests > SIGNIFICANT:
        notes.append(
            f"with {counted(subjects, 'subject')} and {tests} comparisons no difference can reach p < {SIGNIFICANT:g} "
            "after Holm's correction"
        )
    return notes


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    if value is None or not is_defined(value):
        return Shown(UNDEFINED, math.nan)
    return Shown(f"{value:{sign}.{digits}f}", value)


def _interval(summary: Summary) -> str:
    return _bounds(summary.low, summary.high)


def _difference_interval(summary: Summary) -> str:
    return _bounds(summary.difference_low, summary.difference_high, "+")


def _bounds(low: float, high: float, sign: str = "") -> str:
    text = f"[{_number(low, sign=sign)}, {_number(high, sign=sign)}]" if is_defined(low) else UNDEFINED
    return Shown(text, low, high)


def _p(value: float) -> str:
    return Shown("<0.001", value) if value < 0.001 else _number(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>~$])", r"\\\1", _one_line(text))


def _latex(text: str) -> str:
    """Also a minus before a number, and a bracket or star that the line break before would take for its own."""
    escaped = "".join(LATEX.get(character, character) for character in _one_line(text))
    escaped = re.sub(r"^-(?=\d)", "$-$", escaped)
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped
