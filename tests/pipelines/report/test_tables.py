"""Tables of an ablation: one small table in four formats, each parsed back."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zeus_union.cache.errors import UserError
from zeus_union.pipelines.report.statistics import pooled, summarise
from zeus_union.pipelines.report.tables import Sheet, ablation_sheet, class_sheet, write_sheets
from zeus_union.stage2_segment.evaluation.metrics import DEFINITIONS

SMALL = Sheet(
    title="Table 1: 50 % of R&D",
    columns=("row", "DSC", "95 % interval", "difference"),
    rows=(
        ("late_fusion & 100 %", "0.812", "[0.797, 0.834]", "-"),
        ("[a|b]", "0.700", "-", "-0.112"),
        ("*c* \\ {d}~^ $e# <f>", "-", "-", "+0.001"),
    ),
    notes=("DSC: 2 |P and T| / (|P| + |T|)", "p < 0.05_x"),
    best=frozenset({(0, 1)}),
)

MARKDOWN = r"""**Table 1: 50 % of R&D**

| row                        |       DSC |  95 % interval | difference |
| -------------------------- | --------: | -------------: | ---------: |
| late\_fusion & 100 %       | **0.812** | [0.797, 0.834] |          - |
| [a\|b]                     |     0.700 |              - |     -0.112 |
| \*c\* \\ {d}\~^ \$e# \<f\> |         - |              - |     +0.001 |

- DSC: 2 \|P and T\| / (\|P\| + \|T\|)
- p \< 0.05\_x
"""

LATEX = r"""\begin{table}
\centering\footnotesize
\caption{Table 1: 50 \% of R\&D}
\begin{tabular}{lrrr}
\toprule
row & DSC & 95 \% interval & difference \\
\midrule
late\_fusion \& 100 \% & \textbf{0.812} & {[}0.797, 0.834] & - \\
{[}a\textbar{}b] & 0.700 & - & $-$0.112 \\
{*}c* \textbackslash{} \{d\}\textasciitilde{}\textasciicircum{} \$e\# \textless{}f\textgreater{} & - & - & +0.001 \\
\bottomrule
\end{tabular}
\par\medskip\raggedright
\par DSC: 2 \textbar{}P and T\textbar{} / (\textbar{}P\textbar{} + \textbar{}T\textbar{})
\par p \textless{} 0.05\_x
\end{table}
"""


def results(**rows: dict[str, list[float | None]]) -> list[dict[str, Any]]:
    """row -> class -> DSC of each subject; one seed, voxels that fit."""
    return [
        {
            **{"row": row, "seed": 0, "fold": 0, "subject": f"s{number}", "class": name},
            **{"dsc": dsc, "miou_256": 0.5, "hd95_mm": 4.0 if dsc else None},
            **{"both": round(100 * (dsc or 0)), "predicted": 100 if dsc else 0, "true": 0 if dsc is None else 100},
        }
        for row, classes in rows.items()
        for name, scores in classes.items()
        for number, dsc in enumerate(scores)
    ]


THREE = results(
    late={"liver": [0.9, 0.8, 0.7], "spleen": [0.7, 0.6, 0.5]},
    hybrid={"liver": [0.8, 0.6, 0.6], "spleen": [0.8, 0.6, None]},
)


def cells(sheet: Sheet, row: str) -> dict[str, str]:
    return next(dict(zip(sheet.columns, line)) for line in sheet.rows if line[0] == row)


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_as_written_by_hand() -> None:
    assert SMALL.as_markdown() == MARKDOWN


def test_markdown_has_the_same_columns_in_every_line() -> None:
    text = SMALL.as_markdown()
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    lines = markdown_cells(text)
    assert {len(line) for line in lines} == {len(SMALL.columns)}
    back = [[re.sub(r"\\(.)", r"\1", cell) for cell in line] for line in lines]
    assert back[0] == list(SMALL.columns)
    assert back[2][1] == "**0.812**"
    assert back[3:] == [list(line) for line in SMALL.rows[1:]]


def test_csv_parses_back_to_the_very_cells() -> None:
    assert list(csv.reader(io.StringIO(SMALL.as_csv()))) == [
        list(SMALL.columns),
        *[["" if cell == "-" else cell for cell in line] for line in SMALL.rows],
    ]


def test_latex_as_written_by_hand() -> None:
    assert SMALL.as_latex() == LATEX


def test_latex_leaves_no_special_unescaped() -> None:
    body = SMALL.as_latex().partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    assert not re.search(r"(?<!\\)[%#]", body) and not re.search(r"(?<!\\)_", body)
    lines = [line for line in body.splitlines() if line]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [len(SMALL.columns) - 1] * len(SMALL.rows)
    assert not any(line.startswith(("[", "*")) for line in lines)  # the \\ before would take it for its argument


def test_line_breaks_in_a_cell_break_no_table() -> None:
    sheet = Sheet("t", ("row", "stopped"), (("a", "loss\nnan"),), ())
    assert "| loss nan |" in sheet.as_markdown() and r"a & loss nan \\" in sheet.as_latex()
    assert list(csv.reader(io.StringIO(sheet.as_csv())))[1] == ["a", "loss\nnan"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_terminal_shows_every_number_whole_whatever_its_width(width: int) -> None:
    sheet = ablation_sheet(THREE, {"late": {"dsc": 85.8, "miou": 84.19}}, {"late": 4_012_345}, {}, "late")
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(sheet.as_rich(width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for line in sheet.rows:
        for cell in line:
            assert re.search(rf"(?:^|\s){re.escape(cell)}(?:\s|$)", text, re.M), cell


def test_terminal_takes_no_name_for_markup() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(Sheet("[bold]t", ("row", "[red]"), (("[/x]", "[i]"),), ()).as_rich(80))
    text = console.export_text()
    assert all(word in text for word in ("[bold]t", "[red]", "[/x]", "[i]"))


def test_sheets_are_written_whole_and_replaced(tmp_path: Path) -> None:
    for sheet in (Sheet("older", ("row",), (("a",),), ()), SMALL):
        write_sheets(tmp_path / "new", "table", sheet)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["table.csv", "table.md", "table.tex"]
    assert (tmp_path / "new" / "table.md").read_text() == SMALL.as_markdown()
    assert (tmp_path / "new" / "table.csv").read_text() == SMALL.as_csv()
    assert (tmp_path / "new" / "table.tex").read_text() == SMALL.as_latex()


def test_ablation_shows_what_the_statistics_say() -> None:
    sheet = ablation_sheet(THREE, {}, {"late": 4_012_345, "hybrid": 8_060_000}, {}, "late")
    late, hybrid = summarise(THREE, reference="late")
    shown = cells(sheet, "hybrid")
    assert shown == {
        "row": "hybrid",
        "params (M)": "8.06",
        "DSC mean": "0.667",  # (0.8 + 0.6 + 0.6) / 3: the last subject has a liver only
        "95 % interval": "-",  # of three subjects
        "sd over subjects": f"{hybrid.sd_subjects:.3f}",
        "sd over seeds": "-",
        "pooled DSC": f"{pooled(THREE)['hybrid']:.3f}",
        "mIoU": "0.500",
        "HD95 mm": "4.00",
        "difference to reference": "-0.033",
        "its 95 % interval": "-",
        "p (Holm)": f"{hybrid.p_holm:.3f}",
    }
    assert cells(sheet, "late")["DSC mean"] == f"{late.mean:.3f}" == "0.700"
    assert (cells(sheet, "late")["difference to reference"], cells(sheet, "late")["p (Holm)"]) == ("-", "-")
    assert sheet.best == {(0, sheet.columns.index("DSC mean"))}


def test_without_a_reference_nothing_is_compared() -> None:
    sheet = ablation_sheet(THREE, {}, {}, {}, None)
    assert not {"difference to reference", "p (Holm)"} & set(sheet.columns)
    assert not any("Wilcoxon" in note or "p <" in note for note in sheet.notes)
    assert cells(sheet, "late")["params (M)"] == "-"


def test_papers_figures_stand_beside_ours_only_where_there_are_any() -> None:
    assert not any("paper" in column for column in ablation_sheet(THREE, {"other": {"dsc": 1.0}}, {}, {}, None).columns)
    sheet = ablation_sheet(THREE, {"late": {"dsc": 85.80, "miou": 84.19}}, {}, {}, None)
    assert (cells(sheet, "late")["paper's DSC %"], cells(sheet, "late")["paper's mIoU %"]) == ("85.80", "84.19")
    assert (cells(sheet, "hybrid")["paper's DSC %"], cells(sheet, "hybrid")["paper's mIoU %"]) == ("-", "-")


def test_stopped_row_shows_its_reason_and_one_to_come_is_named() -> None:
    params = {"hybrid": 1, "diverged": 2_000_000, "late": 3, "waiting": 4}
    sheet = ablation_sheet(THREE, {}, params, {"diverged": "loss is nan in step 7"}, "late")
    assert [line[0] for line in sheet.rows] == ["hybrid", "diverged", "late"]
    diverged = cells(sheet, "diverged")
    assert (diverged["stopped"], diverged["params (M)"]) == ("loss is nan in step 7", "2.00")
    assert {diverged[column] for column in sheet.columns} == {"diverged", "2.00", "-", "loss is nan in step 7"}
    assert cells(sheet, "late")["stopped"] == "-"
    assert "no results yet: waiting" in sheet.notes


def test_unknown_reference_is_refused() -> None:
    with pytest.raises(UserError, match="reference row"):
        ablation_sheet(THREE, {}, {}, {}, "nobody")


@pytest.mark.parametrize("undefined", [None, math.nan])
def test_undefined_numbers_are_a_dash(undefined: float | None) -> None:
    lines = [{**line, "hd95_mm": undefined, "miou_256": undefined} for line in results(a={"liver": [0.5]})]
    shown = cells(ablation_sheet(lines, {}, {}, {}, "a"), "a")
    assert shown.pop("DSC mean") == "0.500" and shown.pop("row") == "a" and shown.pop("pooled DSC") == "0.500"
    assert set(shown.values()) == {"-"}


def subjects(count: int) -> list[dict[str, Any]]:
    """Two rows beside the reference, each better in every subject."""
    steps = [0.01 * number for number in range(count)]
    return results(
        a={"liver": [0.2 + step for step in steps]},
        b={"liver": [0.3 + 2 * step for step in steps]},
        c={"liver": [0.4 + 3 * step for step in steps]},
    )


@pytest.mark.parametrize(
    ("count", "warning"),
    [
        (1, "with 1 subject no difference can reach p < 0.05"),
        (5, "with 5 subjects no difference can reach p < 0.05"),
        (6, "with 6 subjects and 2 comparisons no difference can reach p < 0.05 after Holm's correction"),
        (7, None),
    ],
)
def test_too_few_subjects_for_any_significance_are_said_to_be(count: int, warning: str | None) -> None:
    sheet = ablation_sheet(subjects(count), {}, {}, {}, "a")
    assert [note for note in sheet.notes if "no difference can reach" in note] == ([warning] if warning else [])
    reached = [cells(sheet, row)["p (Holm)"] for row in "bc"]
    assert all(p != "-" and float(p) < 0.05 for p in reached) == (warning is None)


def test_notes_define_what_is_shown_and_say_how_many_it_is_over() -> None:
    notes = "\n".join(ablation_sheet(THREE, {}, {}, {}, "late").notes)
    for name in ("DSC", "mIoU", "HD95", "empty", "mean"):
        assert DEFINITIONS[name] in notes
    assert "3 subjects, 1 seed)" in notes
    assert "HD95 counts only some" not in notes
    assert "(a: 2 subjects, 1 seed; b: 1 subject, 1 seed)" in "\n".join(
        ablation_sheet(results(a={"x": [0.1, 0.2]}, b={"x": [0.1]}), {}, {}, {}, None).notes
    )


def test_row_that_finds_nothing_is_not_praised_for_its_distances() -> None:
    lines = results(a={"liver": [0.5, 0.5]}, nothing={"liver": [0.0, 0.5]})
    assert any(
        "HD95 counts only some" in note and "nothing 1 of 2" in note
        for note in ablation_sheet(lines, {}, {}, {}, None).notes
    )


def test_intervals_stand_beside_means_and_differences_from_five_subjects_up() -> None:
    lines = subjects(6)
    sheet, (_, b, _) = ablation_sheet(lines, {}, {}, {}, "a"), summarise(lines, reference="a")
    shown = cells(sheet, "b")
    assert shown["95 % interval"] == f"[{b.low:.3f}, {b.high:.3f}]"
    assert shown["its 95 % interval"] == f"[{b.difference_low:+.3f}, {b.difference_high:+.3f}]"
    assert cells(sheet, "a")["its 95 % interval"] == "-"
    liver = summarise(lines, class_name="liver")[1]
    assert cells(class_sheet(lines), "b")["liver 95 % interval"] == f"[{liver.low:.3f}, {liver.high:.3f}]"
    assert cells(ablation_sheet(subjects(4), {}, {}, {}, "a"), "b")["95 % interval"] == "-"


def test_rows_tested_on_what_their_projection_has_seen_are_named() -> None:
    notes = ablation_sheet(THREE, {}, {}, {}, None, seen={"late": ("s0", "s2")}).notes
    assert "too good: tested on subjects that the projection was trained on (--allow-seen): late: s0, s2" in notes


@pytest.mark.parametrize("width", [40, 80])
def test_a_long_word_goes_on_in_the_next_line_and_is_whole_in_a_pipe(width: int) -> None:
    name = "BraTS-GLI-00001-000-and-a-very-long-subject-name"
    sheet = Sheet("t", ("row", "DSC"), ((name, "0.812"),), ())
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(sheet.as_rich(width))
    assert name in re.sub(r"\s|0\.812|DSC|row|\u2500", "", console.export_text())
    pipe = Console(width=10_000, file=io.StringIO(), record=True)
    pipe.print(sheet.as_rich(10_000))
    assert re.search(rf"{name} +0\.812", pipe.export_text())


def test_classes_side_by_side() -> None:
    sheet = class_sheet(THREE)
    assert sheet.columns == ("row", "liver DSC", "liver 95 % interval", "spleen DSC", "spleen 95 % interval")
    late, hybrid = cells(sheet, "late"), cells(sheet, "hybrid")
    assert (late["liver DSC"], late["liver 95 % interval"]) == ("0.800", "-")
    assert (hybrid["liver DSC"], hybrid["spleen DSC"]) == ("0.667", "0.700")
    assert sheet.best == {(0, 1), (1, 3)}
    assert any(DEFINITIONS["DSC"] in note for note in sheet.notes)


def test_equal_best_means_are_all_marked_and_a_single_row_is_not() -> None:
    twins = results(a={"x": [0.5]}, b={"x": [0.5]}, c={"x": [0.4]})
    assert class_sheet(twins).best == {(0, 1), (1, 1)}
    assert class_sheet(results(a={"x": [0.5]})).best == frozenset()


def test_csv_is_numbers_in_all_their_digits_with_the_ends_of_an_interval_apart() -> None:
    six = results(
        late={"liver": [0.91, 0.82, 0.73, 0.64, 0.55, 0.46]}, hybrid={"liver": [0.9, None, None, None, None, 0.4]}
    )
    sheet = ablation_sheet(
        six, {}, {"late": 4_012_345}, {"off": "loss is not finite"}, "late", order=("late", "hybrid", "off")
    )
    late, hybrid, off = csv.DictReader(io.StringIO(sheet.as_csv()))
    summary = summarise(six, reference="late")[0]
    assert (float(late["DSC mean"]), float(late["ci_low"]), float(late["ci_high"])) == (
        summary.mean,
        summary.low,
        summary.high,
    )
    assert float(late["params (M)"]) == 4.012345
    assert {"difference to reference", "difference ci_low", "difference ci_high"} <= late.keys()
    assert (hybrid["ci_low"], late["difference to reference"]) == ("", "")
    assert off["stopped"] == "loss is not finite" and set(off.values()) == {"off", "loss is not finite", ""}
    numbers = [line[name] for line in (late, hybrid) for name in line if name not in ("row", "stopped")]
    assert all(cell == "" or math.isfinite(float(cell)) for cell in numbers)


def test_csv_of_the_classes_has_an_interval_of_each() -> None:
    line = next(csv.DictReader(io.StringIO(class_sheet(THREE).as_csv())))
    assert list(line) == [
        "row", "liver DSC", "liver ci_low", "liver ci_high", "spleen DSC", "spleen ci_low", "spleen ci_high",
    ]  # fmt: skip
    assert float(line["liver DSC"]) == pytest.approx(0.8)
