"""Does the instruction matter, and what in it? The controls of an ablation, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zeus_union.pipelines.report.statistics import Result, Summary, summarise
from zeus_union.stage2_segment.evaluation.metrics import is_defined

SIGNIFICANT = 0.05
# What a gain over a control shows that the instruction brings; in the order in which one asks.
SHOWS = {
    "none": "a text helps at all",
    "random": "a text helps by more than being a different vector for every slice",
    "constant": "it matters that the text differs between slices",
    "shuffled-slices": "it matters that the text is that of the slice",
    "shuffled-modalities": "it matters that the text is that of the modality",
    "prompt": "the answer says more than the question",
}


UPPER_BOUND = "oracle"


@dataclass(frozen=True)
class Finding:
    """A row beside one of its controls.

    Attributes:
        difference: mean DSC of the row minus that of the control, over common subjects, seeds averaged first.
        low, high: its 95 % interval; NaN for few subjects.
        p: Wilcoxon, Holm-corrected over the row's controls.
    """

    control: str
    difference: float
    low: float
    high: float
    p: float
    smallest_p: float

    @property
    def answer(self) -> str:
        if is_defined(self.p) and self.p < SIGNIFICANT:
            return "yes" if self.difference > 0 else "no: the control is better"
        lean = "higher than" if self.difference > 0 else "lower than" if self.difference < 0 else "equal to"
        return f"not shown ({lean} the control)"


def findings(results: Sequence[Result], row: str, controls: Mapping[str, str]) -> list[Finding]:
    """`controls`: name of a control -> its row."""
    tested = {
        controls[name] for name in SHOWS if name in controls
    }  # the upper bound is no test, so not one to correct for
    compared = [line for line in results if line["row"] == row or line["row"] in tested]
    summaries: dict[str, Summary] = {summary.row: summary for summary in summarise(compared, reference=row)}
    return [
        Finding(
            name,
            -summary.difference,
            -summary.difference_high,
            -summary.difference_low,
            summary.p_holm,
            summary.smallest_p,
        )
        for name, summary in ((name, summaries.get(controls.get(name, ""))) for name in SHOWS)
        if summary is not None and summary.common
    ]


def verdict(results: Sequence[Result], row: str, controls: Mapping[str, str]) -> str:
    """Markdown: a line for each question the controls ask; empty where none has results."""
    compared = findings(results, row, controls) if any(line["row"] == row for line in results) else []
    if not compared:
        return ""
    lines = [
        f"**Does the instruction matter? {row} beside its controls (DSC)**",
        "",
        "| question | control | gain of the instruction | 95 % interval | p (Holm) | shown? |",
        "|---|---|---:|---:|---:|---|",
        *(
            f"| {SHOWS[finding.control]} | {finding.control} | {finding.difference:+.3f} | "
            f"{f'[{finding.low:+.3f}, {finding.high:+.3f}]' if is_defined(finding.low) else '-'} | "
            f"{f'{finding.p:.3f}' if is_defined(finding.p) else '-'} | {finding.answer} |"
            for finding in compared
        ),
    ]
    if all(
        not is_defined(finding.smallest_p) or finding.smallest_p * len(compared) > SIGNIFICANT for finding in compared
    ):
        lines += ["", f"With so few subjects no difference can reach p < {SIGNIFICANT}: only the signs can be read."]
    return "\n".join([*lines, *upper_bound(results, row, controls)]) + "\n"


def upper_bound(results: Sequence[Result], row: str, controls: Mapping[str, str]) -> list[str]:
    """What captions from the true labels reach above the row, and above no text; nothing where they were not trained."""
    oracle = controls.get(UPPER_BOUND, "")
    against = {f"the instruction ({row})": row, "no text": controls.get("none", "")}
    lines, differences = [], {}
    for what, other in against.items():
        pair = [line for line in results if line["row"] in (oracle, other)]
        above = (
            next((summary for summary in summarise(pair, reference=other) if summary.row == oracle), None)
            if other
            else None
        )
        if above is None or not above.common:
            continue
        differences[what] = above.difference
        interval = f" [{above.difference_low:+.3f}, {above.difference_high:+.3f}]"
        lines.append(f"{above.difference:+.3f}{interval if is_defined(above.difference_low) else ''} above {what}")
    if not lines:
        return []
    said = f"Upper bound, not a result: captions from the true labels (oracle) reach {' and '.join(lines)}."
    if differences.get("no text", 1.0) <= 0:
        said += " Not even the true labels in words help this decoder: no better text would."
    return ["", said]
