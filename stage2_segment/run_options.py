"""Options of the commands that predict: the runs that do it, one or an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import FOLDER
from zeus_union.stage2_segment.ablation_folder import runs_of_row

RUN = click.Path(path_type=Path)
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
            "--fold", "of_fold", type=click.IntRange(0), help="Only the runs of the row that hold this fold out."
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
            type=RUN,
            multiple=True,
            help="Folder that zeus-segment train or zeus import wrote, or a NAME.zeus.zip; given again for each member of an "
            "ensemble, whose probabilities are averaged.",
        ),
    ):
        command = option(command)
    return command


def chosen_runs(runs: tuple[Path, ...], ablation: Path | None, row: str | None, fold: int | None) -> tuple[Path, ...]:
    """The folders of the runs that the options of `runs_options` name; files of zeus export are unpacked until the command ends.

    Raises:
        UserError: none is named, or in two ways; as `runs_of_row`; as `sharing.archive.unpack`.
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
        return open_runs(runs)
    if runs:
        raise UserError("--run and --ablation exclude one another; give the runs or the row")
    if row is None:
        raise UserError(f"--ablation {ablation} has runs of several rows; give --row NAME")
    return tuple(runs_of_row(ablation, row, fold))


def open_runs(runs: Sequence[Path]) -> tuple[Path, ...]:
    """As `sharing.archive.opened_runs`, until the command that is running ends."""
    from zeus_union.stage2_segment.sharing.archive import opened_runs  # torch: not for a command line's help

    return click.get_current_context().with_resource(opened_runs(runs))


def results_of_shared(runs: Sequence[Path]) -> Path | None:
    """Where results go if nothing is said and one of the runs is a file: a folder beside it, of its name; None: elsewhere."""
    from zeus_union.stage2_segment.sharing.archive import stem_of

    return next((run.with_name(stem_of(run)) for run in runs if run.is_file()), None)
