"""Trainable parameters beside the paper's (Zeus, Table 2)."""

from __future__ import annotations

from rich.table import Table

from zeus_union.cache.terminal import counted
from zeus_union.stage2_segment.baselines.table2 import PAPER, operations, rows, suggested_modalities
from zeus_union.stage2_segment.choices import BASELINES, MLP, RESIDUAL
from zeus_union.stage2_segment.model import Zeus, parameter_table

# f_vt of the paper, trained before stage 1 here: 768 -> 768 -> 4096, the width of a LLaMA 7B.
PAPER_PROJECTION = 768 * 768 + 768 + 768 * 4096 + 4096
PAPER_TOTAL = {"hybrid": "8.06M", "late": "12.44M"}
PAPER_CASE = {"modalities": 2, "classes": 4, "text_width": 512}


def totals(fusion: str, modalities: int, classes: int, text_width: int, aligner: str = RESIDUAL) -> dict[str, int]:
    """Parameters by part, without f_vt."""
    return parameter_table(Zeus(modalities, classes, text_width, fusion=fusion, aligner=aligner))


def by_modalities(classes: int, text_width: int, most: int = 4) -> Table:
    """Stage 2's total for 1 to `most` modalities: late grows with them, hybrid does not."""
    table = Table(title=f"stage 2 by number of modalities ({counted(classes, 'class')}, text {text_width})")
    table.add_column("fusion")
    for count in range(1, most + 1):
        table.add_column(str(count), justify="right")
    for fusion in ("hybrid", "late"):
        sums = [sum(totals(fusion, count, classes, text_width).values()) for count in range(1, most + 1)]
        table.add_row(fusion, *(f"{total:,}" for total in sums))
    return table


def baselines_table(modalities: int, classes: int) -> Table:
    """Millions of parameters of all baselines: published and Table 2's widths, the paper's, the reference code's; operations.

    Args:
        modalities: that hybrid and late fusion are counted for; the paper does not say how many its counts are for.
    """
    table = Table(title=f"baselines, {counted(modalities, 'modality')}, {counted(classes, 'class')}, in millions")
    for name in ("network", "fusion"):
        table.add_column(name)
    for name in ("published widths", "GFLOPs", "preset table2", "the paper's", "reference code", "the paper's fits"):
        table.add_column(name, justify="right")
    presets = zip(rows(modalities, classes), rows(modalities, classes, "table2"))
    for published, fitted in presets:
        official = "-" if published.official is None else f"{published.official:.2f}"
        fits = _fitting_modalities(published.network, published.fusion)
        table.add_row(
            BASELINES[published.network],
            published.fusion,
            f"{published.ours:.2f}",
            f"{operations(published.network, published.fusion, modalities, classes):.1f}",
            f"{fitted.ours:.2f}",
            "-" if published.paper is None else f"{published.paper:.2f}",
            official,
            fits,
            end_section=published.fusion == "late",
        )
    table.caption = (
        "GFLOPs: billions of operations of a slice's forward pass at the published widths, a multiplication with addition "
        "counting as two; reference code: of the authors or the best known implementation, as often as late fusion has it; "
        "the paper's fits: modalities for which preset table2 comes nearest to the paper's count"
    )
    return table


def _fitting_modalities(network: str, fusion: str) -> str:
    if (network, fusion) not in PAPER:
        return "-"
    return "any" if fusion == "early" else str(suggested_modalities(network, fusion))


def as_table(modalities: int, classes: int, text_width: int) -> Table:
    """A column for each fusion of this cache, and the paper's case (2 modalities, 4 classes, text width 512, its aligner)."""
    this = {"modalities": modalities, "classes": classes, "text_width": text_width}
    cases = [
        (
            f"{fusion}, {counted(case['modalities'], 'modality')}, {counted(case['classes'], 'class')}, "
            f"text {case['text_width']}, {aligner}",
            fusion,
            case,
            aligner,
        )
        for case, aligner in ((this, RESIDUAL), (PAPER_CASE, MLP))
        for fusion in ("hybrid", "late")
    ]
    columns = [totals(fusion, **case, aligner=aligner) for _, fusion, case, aligner in cases]
    with_mlp = [totals(fusion, **case, aligner=MLP) for _, fusion, case, _ in cases]
    table = Table(title="trainable parameters")
    table.add_column("part")
    for heading, *_ in cases:
        table.add_column(heading, justify="right")
    for part in columns[0]:
        table.add_row(part, *(f"{column[part]:,}" for column in columns))
    table.add_row("stage 2", *(f"{sum(column.values()):,}" for column in columns))
    table.add_row("stage 2 with --aligner mlp", *(f"{sum(column.values()):,}" for column in with_mlp))
    table.add_row("projection f_vt 768-768-4096", *[f"{PAPER_PROJECTION:,}"] * len(columns))
    table.add_section()
    table.add_row("total", *(f"{sum(column.values()) + PAPER_PROJECTION:,}" for column in columns))
    table.add_row("the paper's", "", "", PAPER_TOTAL["hybrid"], PAPER_TOTAL["late"])
    return table
