"""Options of the commands that predict: the runs that do it, one or an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import FOLDER
from zeus_union.stage2_segment.ablation_folder import runs_of_row

Command = TypeVar("Command", bound=Callable[..., Any])

probabilities_option = click.option(
    "--probabilities",
    is_flag=True,
    help="Also a probability map of each class: MASK.CLASS.prob.nii.gz, from 0 to 1, in the grid of the mask.",
)


def runs_options(command: Command) -> Command:
    """--run, repeatable, or --ablation with --row and --fold; `chosen_runs` makes folders of them."""
    for option in (
        click.option(
            "--fold", "of_fold", type=click.IntRange(0), help="Of the row only the runs that hold this fold out."
        ),
        click.option("--row", help="Which row of the ablation."),
        click.option(
            "--ablation",
            type=FOLDER,
            help="In place of --run: all runs of a --row, over its folds and seeds, together.",
        ),
        click.option(
            "--run",
            "runs",
            type=FOLDER,
            multiple=True,
            help="Folder that zeus-segment train wrote; given again for each member of an ensemble, whose probabilities are "
            "averaged.",
        ),
    ):
        command = option(command)
    return command


def chosen_runs(runs: tuple[Path, ...], ablation: Path | None, row: str | None, fold: int | None) -> tuple[Path, ...]:
    """The folders of the runs that the options of `runs_options` name.

    Raises:
        UserError: none is named, or in two ways; as `runs_of_row`.
    """
    if ablation is None:
        if row is not None or fold is not None:
            raise UserError(
                "--row and --fold choose runs of an ablation; give --ablation FOLDER with them, or --run alone"
            )
        if not runs:
            raise UserError(
                "no run to predict with; give --run FOLDER, again for each of several, or --ablation FOLDER --row NAME"
            )
        return runs
    if runs:
        raise UserError("--run and --ablation exclude one another; give the runs or the row")
    if row is None:
        raise UserError(f"--ablation {ablation} has runs of several rows; give --row NAME")
    return tuple(runs_of_row(ablation, row, fold))
