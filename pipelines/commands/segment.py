"""zeus segment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zeus_union.cache import devices
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import (
    DATA,
    FOLDER,
    MODEL,
    OUTPUT,
    SPEED,
    PanelCommand,
    counted,
    print_tables,
    say,
    some_of,
)
from zeus_union.stage2_segment.run_options import chosen_runs, probabilities_option, runs_options

if TYPE_CHECKING:
    from zeus_union.pipelines.segment.segmentation import Segmentation
    from zeus_union.pipelines.segment.studies import StudySource
    from zeus_union.stage2_segment.config import RunConfig

ANYTHING = click.Path(path_type=Path)


@click.command(
    cls=PanelCommand,
    panels={
        DATA: "choices register only_list",
        MODEL: "runs ablation row of_fold which profile overrides send_images_to",
        SPEED: "slice_step part device",
        OUTPUT: "out overwrite probabilities postprocess report",
    },
    short_help="Masks and volumes of new studies",
)
@click.argument("studies", type=ANYTHING, metavar="STUDY...", nargs=-1, required=True)
@runs_options
@click.option(
    "--out",
    type=FOLDER,
    default=Path("segmentations"),
    show_default=True,
    help="Folder of the results, a folder in it for each STUDY.",
)
@click.option("--list", "only_list", is_flag=True, help="Show what each STUDY holds and what would be taken, and stop.")
@click.option(
    "--modality",
    "choices",
    multiple=True,
    metavar="MODALITY=SERIES|FILE|none",
    help="What a modality is, where tags and names do not say it: a series by number, UID or description, a file, or none "
    "to leave it out, e.g. T1Gd=7 or T1Gd=scan.nii.gz; repeatable.",
)
@click.option(
    "--register",
    is_flag=True,
    help="Move modalities of another frame of reference onto the first one (rigid, mutual information).",
)
@click.option("--overwrite", is_flag=True, help="Segment studies that have results again.")
@click.option("--part", metavar="I/N", help="Only the I-th of N shares of the studies, or: slurm (a job array's).")
@click.option(
    "--slice-step",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Segment every n-th slice; those between are interpolated.",
)
@probabilities_option
@click.option(
    "--report", is_flag=True, help="Also report.html of each study: its slices, volumes and texts, for a browser."
)
@click.option(
    "--postprocessing/--no-postprocessing",
    "postprocess",
    default=True,
    show_default=True,
    help="Masks with what was chosen for the run (zeus-segment postprocess), or as they come.",
)
@click.option(
    "--weights",
    "which",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="After the last epoch, or after the epoch with the best DSC on the validation subjects.",
)
@click.option("--models", "profile", help="Profile of frozen models, or a YAML file.  [default: the run's]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PART=VALUE",
    help="Replace one part of the profile, as for build-cache.",
)
@click.option("--send-images-to", metavar="HOST", help="As for build-cache, where a server writes the instructions.")
@click.option("--device", help=devices.HELP)
def segment(
    studies: tuple[Path, ...],
    runs: tuple[Path, ...],
    ablation: Path | None,
    row: str | None,
    of_fold: int | None,
    out: Path,
    only_list: bool,
    choices: tuple[str, ...],
    register: bool,
    overwrite: bool,
    part: str | None,
    slice_step: int,
    probabilities: bool,
    report: bool,
    postprocess: bool,
    which: str,
    profile: str | None,
    overrides: tuple[str, ...],
    send_images_to: str | None,
    device: str | None,
) -> None:
    """New studies through both stages: masks, volumes and a preview, in each study's own grid.

    A STUDY is a folder of DICOM as a PACS exports it, a zip of it, or a folder with a volume (NIfTI, .mha, .mhd, .nrrd) for
    each modality; a folder of such studies is all of them. Series are recognised by their tags, files by their names; what
    was taken for which modality is printed, what can be read in two ways is refused, and --modality decides. A run takes
    what there is of its modalities and says what was missing.

    OUT/STUDY gets mask.nii.gz, statistics, preview.png, instructions.json, and mask.dcm (DICOM-SEG) of a DICOM study. What
    is there already is left as it is: the same command resumes. A study that cannot be segmented goes to
    OUT/failures.csv, the others are segmented.

    \b
    zeus segment patient7 --run runs/brats
    zeus segment scans --run brats.zeus.zip --out masks
    zeus segment export.zip --run runs/prostate --list
    """
    from zeus_union.pipelines.intake.file_names import parse_choices
    from zeus_union.pipelines.segment.segmenter import Segmenter
    from zeus_union.pipelines.segment.studies import find_studies, segment_studies
    from zeus_union.stage1_instruct.building.parts import parse_part
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides
    from zeus_union.stage2_segment.checkpoint import load_config

    share = parse_part(part, os.environ) if part else None
    chosen = parse_choices(choices)
    parts = parse_overrides(overrides)
    members = chosen_runs(runs, ablation, row, of_fold)
    configs = [load_config(member) for member in members]
    sources = find_studies(studies, configs[0].inputs.channels)
    if len(sources) > 1:
        _check_bare(chosen)
    if only_list:
        _list(sources, configs, chosen)
        return
    segmenter = Segmenter(
        members,
        profile=profile,
        overrides=parts,
        device=device,
        send_images_to=send_images_to,
        which=which,
        postprocess=postprocess,
    )
    how = {"register": register, "slice_step": slice_step, "probabilities": probabilities}
    failures = segment_studies(
        segmenter,
        sources,
        out,
        partial(_write, report=report),
        part=share,
        overwrite=overwrite,
        modalities=chosen,
        **how,
    )
    if failures:
        raise UserError(
            f"{len(failures)} of {counted(len(sources), 'study')} could not be segmented: {some_of(list(failures))} "
            f"(see failures*.csv in {out}); the same command tries only those again"
        )
    click.echo(f"results in {out}")


def _write(segmentation: Segmentation, folder: Path, replace: bool, *, report: bool) -> None:
    """Puts results into a folder and says what they are."""
    from zeus_union.pipelines.outputs.results import write_results
    from zeus_union.pipelines.outputs.statistics import summary_lines
    from zeus_union.stage2_segment.predict import agreement_table

    write_results(segmentation, folder, replace=replace)
    if report:
        from zeus_union.pipelines.report.study_page import write_study_page

        say(f"open {write_study_page(folder, segmentation.images)} in a browser")
    for line in summary_lines(segmentation.statistics):
        click.echo(line)
    if segmentation.agreement:
        members = len(segmentation.made_by["members"])
        print_tables(agreement_table({segmentation.study: dict(segmentation.agreement)}, members))
    spent = {part: seconds for part, seconds in segmentation.seconds.items() if seconds >= 0.05}
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in spent.items())
    say(f"{segmentation.study}: {sum(segmentation.seconds.values()):.1f} s ({parts}); results in {folder}")


def _check_bare(chosen: Mapping[str, str]) -> None:
    """Raises UserError: one file for a modality of all studies."""
    for name, value in chosen.items():
        if Path(value).name != value:
            raise UserError(
                f"--modality {name}={value} is one file and there are several studies; give a name that is in each of them, "
                "or one study at a time"
            )


def _list(sources: Sequence[StudySource], configs: Sequence[RunConfig], chosen: Mapping[str, str]) -> None:
    from zeus_union.pipelines.intake.study import list_study
    from zeus_union.pipelines.intake.tables import listing_table
    from zeus_union.pipelines.segment.segmenter import recognised_by

    wanted, by = configs[0].inputs.modalities, recognised_by(configs)
    for source in sources:
        listed = list_study(source.path, wanted, chosen={**source.modalities, **chosen}, **by)
        print_tables(listing_table(source.name, listed))
