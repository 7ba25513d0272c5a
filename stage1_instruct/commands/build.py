"""zeus-instruct build-cache: every frozen model over every slice, into a cache."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import (
    DATA,
    FILE,
    MODEL,
    OUTPUT,
    SPEED,
    PanelCommand,
    choose,
    counted,
    say,
    split_names,
    warn,
)
from zeus_union.stage1_instruct.commands.shared import (
    encoder_of,
    load_models,
    open_studies,
    send_option,
    with_data,
    with_models,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from zeus_union.cache.layout import DatasetCard
    from zeus_union.stage1_instruct.building.job import Splits
    from zeus_union.stage1_instruct.building.loop import BuildOptions
    from zeus_union.stage1_instruct.building.report import BuildReport
    from zeus_union.stage1_instruct.building.variants import VariantRow
    from zeus_union.stage1_instruct.models.assembly import Models
    from zeus_union.stage1_instruct.studies.study import Dataset

# Those that say how studies are read, beside the ones that `check` has too.
READING = (
    "dataset_name",
    "data_root",
    "modalities",
    "subjects",
    "labels",
    "trust_voxels",
    "terms",
    "instance",
    "splits",
)


@click.command(
    "build-cache",
    cls=PanelCommand,
    panels={
        DATA: "dataset_name data_root modalities subjects labels trust_voxels terms instance splits",
        "Slices and views": "slice_step view windows views mirror_views",
        MODEL: "profile overrides variant grid per_class text_window seed send_images_to",
        "Projection": "projection fold folds train_subjects",
        SPEED: "batch_size part device",
        OUTPUT: "out layers store pack dry_run",
    },
    short_help="Run the frozen models over every slice",
)
@partial(with_data, required=False)
@with_models
@send_option
@click.option("--out", type=FILE, help="The cache to write, or to resume.  [default: cache/DATASET.h5]")
@click.option("--variant", help="Name of the instruction layer.  [default: the profile's name]")
@click.option(
    "--term",
    "terms",
    multiple=True,
    metavar="NAME=TERM",
    help="What instructions call a modality, e.g. noNorm=CBCT; may be repeated.  [default: by the channel's name]",
)
@click.option("--instance", help='What instructions ask to segment, e.g. "lung tumour".  [default: the classes]')
@click.option(
    "--splits",
    type=FILE,
    help="nnU-Net's splits_final.json, for the folds.  [default: the data set's own, else five folds are drawn]",
)
@click.option(
    "--slice-step",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Every n-th slice; the masks that predict writes are filled between them. Slices 1 mm apart are near-copies: every "
    "4th of BraTS 2013 gave masks no worse than all of them, in a quarter of the time.",
)
@click.option(
    "--view",
    type=click.Choice(["axial", "coronal", "sagittal"]),
    help="How to cut every study into slices.  [default: each in its plane of acquisition, across a spacing that is 1.5 "
    "times both others; axial where there is none]",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    metavar="MODALITY=LEVEL,WIDTH",
    help="Grey values of a modality, e.g. CT=-600,1500 (Hounsfield), or MODALITY=percentiles; repeatable.  [default: 40,400 for "
    "CT, the 0.5 and 99.5 percentiles of the foreground for others]",
)
@click.option(
    "--views",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Augmented copies of every labelled slice, through the image encoder too, to train on: turned, scaled, bent, "
    "shifted, other grey values. Each costs as much disk and time as the embeddings; more can be added later.",
)
@click.option(
    "--mirror-views",
    is_flag=True,
    help="Mirror half of the views, left for right; runs that read instructions, which name sides, refuse them.",
)
@click.option(
    "--store",
    type=click.Choice(["uint8", "fp16"]),
    default="uint8",
    show_default=True,
    help="uint8: 1 MiB a slice-modality, mask IoU 0.9986 against fp32; fp16: 2 MiB, exact to 2e-4.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Slice-modalities at a time.  [default: as many as fit]")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seeds sampled instructions (temperature above 0)."
)
@click.option(
    "--text-window",
    type=click.Choice(["truncate", "extended", "mean"]),
    help="What MedCLIP reads of a long instruction: 77 tokens, 512, or the mean over windows.  [default: the profile's]",
)
@click.option(
    "--grid",
    help="One instruction layer for every row of a grid: table3, table4 (the paper's), or a YAML file.",
)
@click.option(
    "--per-class",
    is_flag=True,
    help="An instruction layer for every class, VARIANT.CLASS, each asked for that class alone.",
)
@click.option(
    "--fold",
    type=click.IntRange(0),
    help="Train the projection, where the profile has none, on captions of the training subjects of this fold.  [default: 0]",
)
@click.option("--folds", type=click.Choice(["all"]), help="A projection and a layer of instructions for every fold.")
@click.option(
    "--train-subjects",
    help="Train the projection on captions of these subjects, for zeus-segment train --train-subjects with the same.",
)
@click.option(
    "--projection",
    metavar="untrained|FILE|RUN",
    help="Train none: take an untrained one, a file of train-projection, or the one that a run carries.",
)
@click.option("--layers", default="slices,embeddings,instructions", show_default=True, help="Which layers to build.")
@click.option(
    "--pack/--no-pack", "pack", default=None, help="One file, or a folder of shards.  [default: one file below 20 GB]"
)
@click.option(
    "--part",
    metavar="I/N|slurm",
    help="Only the I-th of N shares of the subjects (slurm: this task of a job array or of srun), where the file system has no "
    "locks.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what is missing, slices and MiB of every layer, and the time of every part, measured here on slices of a study; "
    "leave nothing behind.",
)
@click.pass_context
def build_cache_command(
    context: click.Context,
    profile: str,
    overrides: tuple[str, ...],
    device: str | None,
    send_images_to: str | None,
    text_window: str | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Run the frozen models over every slice and modality; the same command again resumes.

    A finished subject stays finished. A layer made with other models, prompt or preprocessing is never mixed in: it is
    refused with what differs, and --variant NAME makes another instruction layer beside it.

    A control: --variant prompt --set instructor=prompt makes a layer of the bare questions, without a language model.

    A layer that comes later needs no raw data where it is made from what the cache holds: with --out alone, or where the
    data root is gone, the data set is the cache's own. It is said where something needs the studies.

    Many GPUs: start the same command once for each, on any machines with a common disk (docs/cluster.md has the scripts).
    Each process takes the next subject that is free, and a process that is lost costs the subject it had in work;
    zeus-instruct status shows them. Where the file system has no locks (it says so), each process needs --part; the last
    one, or the same command without it, finishes.

    A study that cannot be read is left out and named at the end; repair it, and the same command builds only that.

    \b
    zeus-instruct build-cache --dataset chaos --data-root CHAOS
    CUDA_VISIBLE_DEVICES=1 zeus-instruct build-cache --dataset chaos --data-root CHAOS     at the same time
    """
    from zeus_union.stage1_instruct.building.variants import VariantRow, read_grid
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides

    _check_together(given)
    given["trained_for"] = _splits(given)
    grid, variant = given.pop("grid"), given.pop("variant")
    rows = read_grid(grid) if grid else (VariantRow(variant or "", {}),)
    chosen = {name for name in given if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    dataset = _open_data(chosen, given)
    card = dataset.card
    say(
        f"{card.name}: {counted(len(card.subjects), 'subject')}, {', '.join(card.modalities)}; to segment: {card.instance}"
    )
    parts = parse_overrides(overrides)
    if text_window:
        parts["text_window"] = text_window
    if projection := given.pop("projection"):
        folder = Path(projection)
        parts["projection"] = str(folder / "projection.safetensors") if folder.is_dir() else projection
    rows = tuple(replace(row, parts={**row.parts, **parts}) for row in rows)
    if dry_run:
        from zeus_union.stage1_instruct.commands.dry_run import dry_run as say_forecast

        say_forecast(dataset, rows, _options(given), profile, device)
        return
    _build_rows(dataset, rows, _options(given), profile, device, send_images_to)


def _open_data(chosen: Collection[str], given: dict[str, Any]) -> Dataset:
    """The data set from its studies or, where they are not here, as the cache knows it.

    Takes the options of `READING` out of `given`, puts the default of --out in, and, of a cache's data set, what its
    pictures were made with.

    Args:
        chosen: which options the user gave.

    Raises:
        UserError: no such data set; options that ask for other pictures than those of the cache.
    """
    from zeus_union.stage1_instruct.building.cached import cached_dataset, check_same_pictures, store_of
    from zeus_union.stage1_instruct.datasets import is_missing

    reading = {name: given.pop(name) for name in READING}
    name, root = reading["dataset_name"], reading["data_root"]
    if name is None and (given["out"] is None or root is not None):
        raise click.UsageError("Missing option '--dataset' (or --out alone, for an existing cache).")
    out = given["out"] = given["out"] or Path("cache") / f"{name}.h5"
    if name is not None and not (out.is_file() and is_missing(name, root)):
        return open_studies(**reading)
    if not out.is_file():
        raise UserError(f"cache {out} does not exist; give --dataset (and --data-root) to build it")
    dataset = cached_dataset(out)
    check_same_pictures(out, dataset, _pictures_chosen(chosen, {**reading, **given}, dataset.card))
    given |= {"slice_step": dataset.card.slice_step, "view": None, "windows": ()}
    given["store"] = given["store"] if "store" in chosen else store_of(out) or given["store"]
    say(f"without the raw data: the data set and its pictures are those of {out}")
    return dataset


def _pictures_chosen(chosen: Collection[str], options: Mapping[str, Any], card: DatasetCard) -> dict[str, Any]:
    """What the user chose of the options that decide pictures, as `check_same_pictures` takes it.

    Raises:
        UserError: an option that only the raw data can answer.
    """
    from zeus_union.stage1_instruct.studies.intensity import parse_windows, windows_recipe
    from zeus_union.stage1_instruct.studies.modality_terms import parse_terms

    if "splits" in chosen:
        raise UserError(
            "--splits names cases of the raw data, which are not here; leave it out, folds stay as they are"
        )
    if options["labels"] == "binary" and len(card.classes) > 1:
        raise UserError(
            f"--labels binary has one class and the cache has {', '.join(card.classes)}; leave it out, or give the raw "
            "data with --data-root and another --out"
        )
    values = {
        "name": options["dataset_name"],
        "modalities": split_names(options["modalities"]),
        "subjects": split_names(options["subjects"]),
        "terms": parse_terms(options["terms"], card.modalities),
        "instance": (options["instance"] or "").strip(),
        "slice_step": options["slice_step"],
        "view": options["view"],
        "windows": windows_recipe(parse_windows(options["windows"])),
    }
    return {name: value for name, value in values.items() if ("dataset_name" if name == "name" else name) in chosen}


def _check_together(given: dict[str, Any]) -> None:
    """Raises UserError: options that exclude one another."""
    layers = choose(split_names(given["layers"]), ("slices", "embeddings", "instructions"), "layer")
    if given["grid"] and given["variant"]:
        raise UserError("--grid names its variants itself; leave out --variant")
    if given["per_class"] and "instructions" not in layers:
        raise UserError("--per-class makes layers of instructions and --layers leaves them out; give one of the two")
    if given["per_class"] and given["instance"] is not None:
        raise UserError("--per-class asks for each class by its name; leave out --instance")


def _splits(given: dict[str, Any]) -> Splits | None:
    """Whom projections are trained for, None where no instructions are built; takes its options out of `given`.

    Raises:
        UserError: options that exclude one another.
    """
    from zeus_union.stage1_instruct.building.job import Splits

    fold, folds, subjects = (given.pop(name) for name in ("fold", "folds", "train_subjects"))
    named = [
        flag
        for flag, value in {"--fold": fold, "--folds": folds, "--train-subjects": subjects}.items()
        if value is not None
    ]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} exclude one another; give one of them")
    if named and given["projection"]:
        raise UserError(f"{named[0]} trains a projection and --projection gives one; leave out one of the two")
    if "instructions" not in given["layers"]:
        if named:
            raise UserError(f"{named[0]} is about instructions and --layers leaves them out; give one of the two")
        return None
    if subjects is not None:
        return Splits(None, tuple(split_names(subjects) or ()), asked=True)
    return Splits(None if folds else (fold or 0,), asked=bool(named))


def _options(given: dict[str, Any]) -> BuildOptions:
    """The options as click types them -> as the build does."""
    from zeus_union.stage1_instruct.building.loop import BuildOptions, parse_layers
    from zeus_union.stage1_instruct.building.parts import parse_part
    from zeus_union.stage1_instruct.studies.intensity import parse_windows

    layers, part, windows = (given.pop(name) for name in ("layers", "part", "windows"))
    return BuildOptions(
        layers=parse_layers(choose(split_names(layers), ("slices", "embeddings", "instructions"), "layer")),
        part=parse_part(part, os.environ) if part else None,
        windows=parse_windows(windows),
        check=True,
        **given,
    )


def _build_rows(
    dataset: Dataset,
    rows: Sequence[VariantRow],
    options: BuildOptions,
    profile: str,
    device: str | None,
    send_images_to: str | None,
) -> None:
    """A layer of instructions for every row; subjects that cannot be built are named when all others are."""
    from zeus_union.stage1_instruct.building.failures import BuildFailures
    from zeus_union.stage1_instruct.building.loop import build_cache
    from zeus_union.stage1_instruct.building.variants import class_variants
    from zeus_union.stage1_instruct.models.language.loaded_once import LoadedOnce

    rows, loaded = _by_language_model(rows, profile), LoadedOnce()
    out, complete, failures = options.out, True, None
    next_steps = []
    for row in rows:
        models = load_models(
            profile, row.parts, device, options.batch_size, encoder_of(options.layers), send_images_to, loaded
        )
        variant = row.variant or models.profile.name
        if len(rows) > 1:
            say(f"variant {variant}: {', '.join(f'{part}={value}' for part, value in row.parts.items())}")
        pack = options.pack if row is rows[-1] else False  # once, at the end
        trained_for = options.trained_for if _is_trained(models, options) else None
        if trained_for is None and len(rows) == 1 and options.trained_for and options.trained_for.asked:
            raise UserError(
                f"{models.profile.name} has no projection to train (instructor {models.profile.instructor}, projection "
                f"{models.profile.projection}); leave out --fold, --folds and --train-subjects"
            )
        try:
            report = build_cache(dataset, models, replace(options, variant=variant, pack=pack, trained_for=trained_for))
        except BuildFailures as error:  # the other variants of the other subjects are built all the same
            failures = error
            continue
        _say_report(report)
        complete = report.complete  # what the last row ends with is what the cache is
        step = f"zeus-segment train --cache {out}{_how_to_train(report, trained_for)}"
        if options.per_class:
            step += f" --variant {','.join(class_variants(variant, dataset.card.classes))} --instructions class"
        next_steps.append(step)
    if failures is not None:
        failures.say()
        raise failures
    if not complete:
        click.echo(
            f"part {options.part} of {out} is built" if options.part else f"{out} does not hold its new subjects yet"
        )
        return
    _say_views(out)
    click.echo(
        f"{out} is complete: {counted(len(dataset.card.subjects), 'subject')}. Next: {'; '.join(dict.fromkeys(next_steps))}"
    )


def _by_language_model(rows: Sequence[VariantRow], profile: str) -> list[VariantRow]:
    """The rows in an order in which each language model is loaded once; without a LoRA first, which changes it in place."""
    from zeus_union.stage1_instruct.models.language.loaded_once import language_model_of
    from zeus_union.stage1_instruct.profiles.profile import load_profile

    keys = [language_model_of(load_profile(profile, row.parts)) for row in rows]
    first = {key[:-1]: index for index, key in reversed(list(enumerate(keys)))}
    order = sorted(range(len(rows)), key=lambda index: (first[keys[index][:-1]], keys[index][-1], index))
    return [rows[index] for index in order]


def _is_trained(models: Models, options: BuildOptions) -> bool:
    """Whether the build trains a projection for these models."""
    if models.profile.instructor != "llm" or models.profile.projection != "auto":
        return False
    return options.trained_for is not None and (options.trained_for.asked or models.projected_llm.can_be_trained)


def _how_to_train(report: BuildReport, trained_for: Splits | None) -> str:
    """The options that fit what was built."""
    if report.without_texts:
        return " --text none"
    if trained_for is None:
        return ""
    if trained_for.subjects is not None:
        return f" --train-subjects {','.join(trained_for.subjects)}"
    folds = trained_for.folds or (0,)
    return f" --fold {folds[0]}" if folds != (0,) else ""


def _say_views(path: Path) -> None:
    """Says how many subjects have which view, where they differ."""
    from collections import Counter

    from zeus_union.cache.reader import Cache

    with Cache(path, allow_partial=True) as cache:
        views = Counter(cache.grid(subject).view for subject in cache.subjects)
    if len(views) > 1:
        counts = ", ".join(f"{count} {view}" for view, count in views.most_common())
        warn(f"{path} mixes views, since its studies were acquired so: {counts}; --view gives all of them one")


def _say_report(report: BuildReport) -> None:
    for part, seconds in report.per_slice_modality().items():
        say(f"  {part}: busy for {seconds:.3f} s a slice-modality, {report.share(part):.0%} of the time")
    say(f"  peak memory {report.peak_memory_bytes() / 2**30:.1f} GiB")
    if report.cut_by_encoder:
        warn(
            f"  {report.cut_by_encoder} of {counted(report.done['text encoder'], 'text')} longer than the text encoder reads: "
            "their ends are ignored. Remedies: fewer max_new_tokens or classes, --per-class, --text-window extended or mean "
            "(MedCLIP), or another text encoder"
        )
