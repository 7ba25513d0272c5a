"""What was taken for what, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from zeus_union.pipelines.intake.study import Choice, Listed


def choice_table(study: str, choices: Sequence[Choice], missing: Sequence[str] = ()) -> Table:
    """Modality, what was taken for it, why, and how it comes onto the reference's grid."""
    table = Table(title=study, title_justify="left")
    for heading in ("modality", "taken", "because", "onto the grid"):
        table.add_column(heading)
    for number, choice in enumerate(choices):
        placing = choice.placing or ("the reference" if number == 0 else "lies on it")
        table.add_row(choice.modality, choice.taken, choice.reason, placing)
    for name in missing:
        table.add_row(name, "missing", "", "")
    return table


def listing_table(study: str, listed: Sequence[Listed]) -> Table:
    """Every series or file of a study, what it was taken for and why, or why not."""
    table = Table(title=study, title_justify="left")
    for heading in ("series", "description", "size", "taken for", "because"):
        table.add_column(heading)
    for entry in listed:
        table.add_row(entry.name, entry.description, entry.size, entry.taken_for or "-", entry.reason)
    return table
