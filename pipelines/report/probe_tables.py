"""What zeus-segment probe measured, as a table and a sentence of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zeus_union.cache.page.render import PageTable
from zeus_union.stage2_segment.choices import TEXTS
from zeus_union.stage2_segment.evaluation.metrics import mean_over_subjects


def probe_table(lines: Sequence[Mapping[str, Any]]) -> PageTable | None:
    """The same weights with other texts: DSC, and how much of the mask moved; None where it was not probed."""
    if not lines:
        return None
    means = _probe_means(lines)
    reference = means["instruction"][0]
    rows = tuple(
        (TEXTS[name], f"{score:.3f}", f"{reference - score:+.3f}", f"{changed:.3f}")
        for name, (score, changed) in means.items()
    )
    notes = (
        "DSC (256 px): on the pictures that the decoder sees, the mean over classes, then subjects.",
        "DSC lost: with the slice's own instruction minus with this text; the weights are the same.",
        "Mask changed: 1 minus the DSC between the masks with this text and with the slice's own.",
    )
    return PageTable(("what each slice is given", "DSC (256 px)", "DSC lost", "mask changed"), rows, notes=notes)


def _probe_means(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    return {
        name: [
            mean_over_subjects((line["subject"], line[key]) for line in lines if line["text"] == name)
            for key in ("dsc_256", "changed")
        ]
        for name in dict.fromkeys(line["text"] for line in lines)
    }


def probe_answer(lines: Sequence[Mapping[str, Any]]) -> str:
    """What a probe says, in a sentence; it is about these weights, not about what training with another text would give."""
    if not lines:
        return ""
    means = _probe_means(lines)
    own = means["instruction"][0]
    other = {name: own - means[name][0] for name in ("shuffled-slices", "none") if name in means}
    said = {"shuffled-slices": "another slice's instruction costs", "none": "no text at all costs"}
    parts = [f"{said[name]} {loss:.3f} DSC" for name, loss in other.items()]
    return f"With the same weights, {', and '.join(parts)}." if parts else ""
