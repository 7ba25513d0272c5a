"""zeus-instruct check, make-demo: studies on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import FOLDER, counted
from zeus_union.stage1_instruct.commands.shared import (
    open_studies,
    with_data,
)


@click.command("check", short_help="Check a data set before hours of computing")
@with_data
@click.option(
    "--voxels", is_flag=True, help="Read every voxel of every image too: as long as building the slices takes."
)
def check(voxels: bool, **reading: Any) -> None:
    """Check a data set before hours of computing: headers, grids and label values of every study; loads no model.

    Exit code 2 where something is wrong; every study with which something is wrong is listed.
    """
    from zeus_union.stage1_instruct.studies.check import check_studies

    dataset = open_studies(**reading)
    subjects = dataset.card.subjects
    failures = check_studies(dataset, subjects, "voxels" if voxels else "labels")
    for subject, reason in failures.items():
        click.echo(f"WRONG  {subject}: {' '.join(reason.split())}")
    if failures:
        raise UserError(
            f"{len(failures)} of {counted(len(subjects), 'study')} cannot be used; repair them, or leave them out with --subjects"
        )
    name, root = dataset.card.name, reading["data_root"]
    where = "" if root is None else f" --data-root {root}"
    click.echo(
        f"{counted(len(subjects), 'study')} of {name}: in order. Next: zeus-instruct build-cache --dataset {name}{where}, with "
        "the same options"
    )


@click.command("make-demo", short_help="Write phantom patients to disk")
@click.option(
    "--layout",
    type=click.Choice(["chaos", "msd", "nnunet"]),
    default="chaos",
    show_default=True,
    help="chaos: DICOM and PNG; msd: 4D NIfTI; nnunet: nnU-Net v2 raw.",
)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--subjects", type=click.IntRange(1), default=6, show_default=True, help="How many phantoms.")
@click.option("--seed", type=int, default=0, show_default=True)
def make_demo(layout: str, out: Path, subjects: int, seed: int) -> None:
    """Write the phantom to disk as real DICOM + PNG or NIfTI: abdomens with liver, kidneys and spleen in three contrasts."""
    from zeus_union.stage1_instruct.phantom.write import write_demo

    write_demo(layout, out, subjects=subjects, seed=seed)
    step = f"zeus-instruct build-cache --dataset {layout} --data-root {out}"
    click.echo(f"{counted(subjects, 'phantom')} in {out}. Next: {step}")
