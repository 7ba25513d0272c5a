"""zeus: whole jobs made of the two stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from zeus_union.cache import devices
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import (
    DATA,
    FILE,
    FOLDER,
    MODEL,
    OPTIMISATION,
    OUTPUT,
    SPEED,
    PanelCommand,
    ZeusGroup,
    counted,
    existing,
    print_tables,
    say,
    split_names,
    warn,
)
from zeus_union.pipelines.commands.segment import segment
from zeus_union.stage2_segment.choices import RESIDENT
from zeus_union.stage2_segment.run_options import (
    RUN,
    open_runs,
    results_of_shared,
)


@click.group(cls=ZeusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zeus-union")
def main() -> None:
    """Whole jobs made of the two stages; zeus-instruct and zeus-segment are the stages themselves.

    \b
    zeus demo                  from nothing to masks, on a phantom
    zeus ablate --cache cache/brats.h5 --grid controls      what is the instruction worth?
    zeus segment patient7 --run runs/NAME                   a new study, DICOM or NIfTI: mask, volumes, preview
    zeus report runs/NAME      a run, an ablation or a segmented study as a page for a browser
    zeus export runs/NAME NAME.zeus.zip                     a run as a file to hand over; zeus import reads it
    """


@main.command(short_help="The whole job on phantoms, on a CPU")
@click.option("--out", type=FOLDER, default=Path("zeus-demo"), show_default=True, help="Folder to write.")
@click.option("--subjects", type=click.IntRange(2), default=6, show_default=True, help="How many phantoms.")
@click.option("--slice-step", type=click.IntRange(1), default=2, show_default=True, help="Every n-th slice.")
@click.option("--epochs", type=click.IntRange(1), default=16, show_default=True, help="Epochs of stage 2.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default=None, help=devices.HELP)
def demo(
    out: Path,
    subjects: int,
    slice_step: int,
    epochs: int,
    seed: int,
    device: str | None,
) -> None:
    """The whole thing on the embedded models, from nothing: data, cache, run, masks, picture.

    Says first what it downloads and how long it takes. The same command again resumes.
    """
    from zeus_union.pipelines.demo import run_demo

    picture = run_demo(out, subjects, slice_step, epochs, seed, device)
    click.echo(f"{picture} shows the result; the masks are in {out / 'masks'}. Next: zeus report {out / 'run'}")


@main.command(
    cls=PanelCommand,
    panels={
        DATA: "cache_path seeds folds allow_partial",
        MODEL: "grid_name controls overrides weights skip_missing",
        OPTIMISATION: "epochs minutes",
        SPEED: "stacked at_once resident device",
        OUTPUT: "out overwrite dry_run",
    },
    short_help="Train the rows of a grid from one cache",
)
@click.option("--cache", "cache_path", type=FILE, required=True, help="The cache to train from.")
@click.option(
    "--grid", "grid_name", required=True, help="table2, table3, table4, table5 (the paper's), controls, or a YAML file."
)
@click.option("--out", type=FOLDER, help="Folder to write, or to resume.  [default: ablations/CACHE-GRID]")
@click.option("--seeds", help="Every row with each of these, separated by commas.  [default: the grid's, else 0]")
@click.option("--folds", help="Hold out each of these, or: all.  [default: the grid's, else 0]")
@click.option("--controls", help="Rows to add with the first row's text replaced, or: all.  [default: the grid's]")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of every row; short for --set epochs=N.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Train every run for as many epochs as fit into this time, instead of --epochs; a step of each model is "
    "measured first.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="OPTION=VALUE",
    help="A train option for every row, e.g. fusion=hybrid or modalities=FLAIR,T2w; one that only Zeus has (variant) or "
    "only baselines (preset) for theirs.",
)
@click.option(
    "--pretrained",
    "weights",
    multiple=True,
    metavar="MODEL=FILE",
    help="Published weights that this model's rows begin from (transunet, pretrained_unet); a row whose weights are not "
    "there is not run, and the table says so.",
)
@click.option("--overwrite", is_flag=True, help="Start again where the folder holds an ablation.")
@click.option("--skip-missing", is_flag=True, help="Leave out rows whose layers or modalities the cache lacks.")
@click.option("--dry-run", is_flag=True, help="List the runs, their parameters and the expected time, and stop.")
@click.option(
    "--stacked/--in-turn",
    default=None,
    help="Models of one shape as one (torch.func.vmap), or one after the other on each batch.  "
    "[default: stacked on a GPU]",
)
@click.option("--at-once", type=click.IntRange(1), help="Runs side by side.  [default: as fit into half the memory]")
@click.option(
    "--resident",
    type=click.Choice(list(RESIDENT)),
    default="auto",
    show_default=True,
    help="Where the cached embeddings are kept while training.",
)
@click.option("--allow-partial", is_flag=True, help="Use the finished subjects of an unfinished cache.")
@click.option("--device", help=devices.HELP)
def ablate(
    cache_path: Path,
    grid_name: str,
    out: Path | None,
    seeds: str | None,
    folds: str | None,
    controls: str | None,
    epochs: int | None,
    minutes: float | None,
    overrides: tuple[str, ...],
    weights: tuple[str, ...],
    overwrite: bool,
    skip_missing: bool,
    dry_run: bool,
    allow_partial: bool,
    **how: Any,
) -> None:
    """Train every row of a grid from one cache, side by side, and print the table with intervals and tests.

    Each batch is read, moved and decoded once and feeds every run that sees it: all rows of one seed and fold. A run's
    numbers are those of zeus-segment train with the same options and --validate-every 0. Stopped and started again with
    the same command, it resumes. A run whose loss is not finite is stopped alone; its last good weights stay.

    \b
    A grid is a YAML file:
      options: {fusion: late}                        train options of every row that has them
      rows:
        - {name: all, set: {}}
        - {name: FLAIR, set: {modalities: [FLAIR]}, paper: {MSD-Brain: [80.0, 78.0]}}
      lists: {combine: [mean, max]}                  every row with each
      controls: [none, constant, shuffled-slices, shuffled-modalities, random, prompt, oracle]
      seeds: [0, 1, 2]
      folds: all
      minutes: 5                                     of training for every run, in place of epochs
      reference: all                                 the row the others are tested against
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.pipelines.ablation.forecast import forecast, forecast_table
    from zeus_union.pipelines.ablation.grid import CONTROLS, read_grid, read_weights, with_possible_oracle
    from zeus_union.pipelines.ablation.plan import plan_ablation
    from zeus_union.pipelines.ablation.run import run_ablation
    from zeus_union.pipelines.ablation.timing import StepTimes
    from zeus_union.pipelines.report.ablation import report_ablation
    from zeus_union.stage2_segment.ablation_folder import remove_ablation
    from zeus_union.stage2_segment.device import pick_device

    options: dict[str, Any] = dict(_assignment(text) for text in overrides)
    if epochs is not None:
        options["epochs"] = epochs
    chosen = CONTROLS if controls == "all" else split_names(controls)
    grid = read_grid(grid_name, options, chosen, read_weights(weights))
    if seeds is not None:
        grid = replace(grid, seeds=_numbers(seeds, "--seeds"))
    if folds is not None:
        grid = replace(grid, folds=None if folds == "all" else _numbers(folds, "--folds"))
    if minutes is not None:
        grid = replace(grid, minutes=minutes)
    times = StepTimes(pick_device(how["device"]))
    out = out or Path("ablations") / f"{cache_path.stem}-{Path(grid_name).stem}"
    with Cache(cache_path, allow_partial=allow_partial) as cache:
        if controls == "all":
            grid = with_possible_oracle(grid, cache)
        runs = plan_ablation(cache, grid, out, skip_missing, times)
        if dry_run:
            print_tables(forecast_table(forecast(cache, runs, times)))
            return
        if overwrite:
            remove_ablation(out)
        try:
            run_ablation(cache, grid, runs, out, **how)
        except KeyboardInterrupt:
            say("interrupted; run the same command again to resume")
            raise
    click.echo(
        f"tables and picture in {report_ablation(out)}. Next: zeus report {out} makes a page of them for a browser"
    )


def _assignment(text: str) -> tuple[str, str]:
    option, equals, value = text.partition("=")
    if not equals or not option.strip() or not value.strip():
        raise UserError(f"--set {text!r}: expected option=value, e.g. --set fusion=hybrid")
    return option.strip(), value.strip()


def _numbers(text: str, what: str) -> tuple[int, ...]:
    names = split_names(text) or ()
    if not all(name.isdecimal() for name in names):
        raise UserError(f"{what} {text}: expected numbers from 0, separated by commas")
    return tuple(dict.fromkeys(int(name) for name in names))


main.add_command(segment)


@main.command(short_help="Hand a run over as one file, without names")
@click.argument("runs", type=RUN, nargs=-1, required=True)
@click.argument("out", type=FILE, metavar="NAME.zeus.zip")
@click.option(
    "--licence", help="Licence of the weights, for the model card: a name (CC-BY-4.0), a sentence or an address."
)
def export(runs: tuple[Path, ...], out: Path, licence: str | None) -> None:
    """Runs as one file that can be handed over: all that a prediction needs, and nobody's name.

    Several RUNs (folds, seeds) become the members of an ensemble. Inside are weights as safetensors, JSON and a model card;
    no paths, and in place of subjects salted digests of their names and pictures, by which a training subject is still
    recognised. DSC on the held-out subjects goes along where zeus-segment evaluate was run, and of fewer modalities with its
    --missing.

    \b
    zeus export runs/chaos-late-fold0-seed0 chaos.zeus.zip --licence CC-BY-4.0
    zeus export runs/chaos-late-fold?-seed0 chaos.zeus.zip
    zeus segment patient7 --run chaos.zeus.zip --out masks
    """
    from zeus_union.stage2_segment.sharing.export import export_runs

    card = export_runs(open_runs(runs), out, licence=licence)
    if licence is None:
        warn("no licence given: others cannot know what they may do with the weights; export again with --licence TEXT")
    unmeasured = sum(member["measured"] is None for member in card["members"])
    if unmeasured:
        warn(
            f"{unmeasured} of {counted(len(card['members']), 'run')} without DSC in the model card: "
            "run zeus-segment evaluate, then export again"
        )
    for part, name in {part: name for member in card["members"] for part, name in member["to_give"].items()}.items():
        say(f"not inside: {part}" + (f" ({name})" if name else "") + f"; whoever uses the file gives --set {part}=...")
    what = f"{out.stat().st_size / 1e6:.1f} MB, {counted(len(card['members']), 'run')} of {card['dataset']}"
    click.echo(f"{out}: {what}. Next: zeus segment STUDY --run {out}")


@main.command("import", short_help="Read a file of zeus export")
@click.argument("archive", type=FILE, metavar="NAME.zeus.zip")
@click.option("--out", type=FOLDER, help="Folder to write.  [default: runs/NAME]")
def import_(archive: Path, out: Path | None) -> None:
    """A file of zeus export as a run folder, or as a folder of them, which --run takes too.

    Everything in the file is checked first: names, sizes, digests, and that the runs load.
    """
    from zeus_union.stage2_segment.sharing.importing import import_runs

    runs = import_runs(archive, out)
    members = "".join(f" --run {run}" for run in runs)
    click.echo(f"{counted(len(runs), 'run')} in {', '.join(map(str, runs))}. Next: zeus segment STUDY{members}")


@main.command(short_help="A page for a browser: curves, slices, texts")
@click.argument("folder", type=RUN, metavar="RUN_OR_ABLATION_OR_STUDY")
@click.option("--cache", type=FILE, help="The cache that slices are of.  [default: the run's]")
@click.option(
    "--subjects",
    help="Subjects to draw, separated by commas.  [default: those held out; in report.html best, median and worst]",
)
@click.option("--slices", type=click.IntRange(1), default=4, show_default=True, help="How many slices picture.png has.")
@click.option("--reference", help="The row of an ablation that the others are tested against.  [default: the grid's]")
@click.option(
    "--images", type=RUN, help="Of a segmented study: the study itself, whose images the results do not hold."
)
@click.option("--out", type=FILE, help="PNG to write of a run.  [default: RUN/picture.png]")
def report(
    folder: Path,
    cache: Path | None,
    subjects: str | None,
    slices: int,
    reference: str | None,
    images: Path | None,
    out: Path | None,
) -> None:
    """A run, an ablation or a segmented study as one page for a browser: report.html in its folder.

    Metrics with intervals, every subject as a point, training curves, slices to leaf through with truth, prediction, their
    difference and what the language model said, what the instruction is worth, recipe, digests and commands. The file needs
    nothing else, no network either, and can be mailed. A run also gets picture.png and curves.png, an ablation its tables
    in three formats. DSC is in the page of a run that zeus-segment evaluate has measured.

    \b
    zeus report runs/brats
    zeus report ablations/brats-controls --reference Zeus
    zeus report segmentations/patient7 --images patient7
    """
    from zeus_union.pipelines.report.ablation import report_ablation
    from zeus_union.pipelines.report.ablation_page import write_ablation_page
    from zeus_union.pipelines.report.run import report_run
    from zeus_union.pipelines.report.study_page import is_study, read_images, write_study_page
    from zeus_union.stage2_segment.ablation_folder import PLAN

    if (existing(folder, "the run, ablation or study") / PLAN).is_file():
        click.echo(f"tables and picture in {report_ablation(folder, reference)}")
        page = write_ablation_page(folder, reference, cache, split_names(subjects))
    elif is_study(folder):
        page = write_study_page(folder, read_images(images, folder) if images else None)
    else:
        runs = open_runs([folder])
        if len(runs) != 1:
            raise UserError(
                f"{folder} holds {counted(len(runs), 'run')}; zeus import unpacks them into folders, report one of those"
            )
        picture, page = report_run(runs[0], cache, subjects, slices, out, results_of_shared([folder]))
        click.echo(f"picture in {picture}")
    click.echo(f"open {page} in a browser")


if __name__ == "__main__":
    main()
