"""Does the instruction matter, and what in it? The controls of an ablation, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zeus_union.pipelines.report.statistics import Result, Summary, is_defined, summarise

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


@dataclass(frozen=True)
class Finding:
    """A row beside one of its controls.

    Attributes:
        difference: mean DSC of the row minus that of the control, over common subjects, seeds averaged first.
        p: Wilcoxon, Holm-corrected over the row's controls.
    """

    control: str
    difference: float
    p: float
    smallest_p: float

    @property
    def answer(self) -> str:
        if is_defined(self.p) and self.p < SIGNIFICANT:
            return "yes" if self.difference > 0 else "no: the control is better"
        lean = "higher" if self.difference > 0 else "lower" if self.difference < 0 else "equal"
        return f"not shown ({lean} than the control)"


def findings(results: Sequence[Result], row: str, controls: Mapping[str, str]) -> list[Finding]:
    """`controls`: name of a control -> its row."""
    own = [line for line in results if line["row"] == row or line["row"] in controls.values()]
    summaries: dict[str, Summary] = {one.row: one for one in summarise(own, reference=row)}
    return [
        Finding(name, -summaries[other].difference, summaries[other].p_holm, summaries[other].smallest_p)
        for name, other in ((name, controls.get(name, "")) for name in SHOWS)
        if other in summaries and summaries[other].common
    ]


def verdict(results: Sequence[Result], row: str, controls: Mapping[str, str]) -> str:
    """Markdown: a line for each question the controls ask; empty where none has results."""
    found = findings(results, row, controls) if any(line["row"] == row for line in results) else []
    if not found:
        return ""
    lines = [
        f"**Does the instruction matter? {row} beside its controls (DSC)**",
        "",
        "| what a gain would show | control | gain of the instruction | p (Holm) | shown? |",
        "|---|---|---:|---:|---|",
        *(
            f"| {SHOWS[one.control]} | {one.control} | {one.difference:+.3f} | "
            f"{f'{one.p:.3f}' if is_defined(one.p) else '-'} | {one.answer} |"
            for one in found
        ),
    ]
    if all(not is_defined(one.smallest_p) or one.smallest_p * len(found) > SIGNIFICANT for one in found):
        lines += ["", f"With so few subjects no difference can reach p < {SIGNIFICANT}: only the signs can be read."]
    return "\n".join(lines) + "\n"
