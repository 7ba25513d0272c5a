"""zeus-instruct: run the frozen models once and keep what they saw and said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import ZeusGroup, choose, existing, say, split_names

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.building.report import BuildReport
    from zeus_union.stage1_instruct.models.assembly import Models

DATASETS = ("demo", "chaos", "msd-prostate", "msd-brain", "msd", "nnunet")
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

profile_options = [
    click.option(
        "--models", "profile", default="lite", show_default=True, help="Profile of frozen models, or a YAML file."
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PART=VALUE",
        help="Replace one part of the profile, e.g. llm=FOLDER or llm=hf:OWNER/NAME (Hugging Face hub).",
    ),
]
data_options = [
    click.option(
        "--dataset", "dataset_name", type=click.Choice(DATASETS), required=True, help="Which reader reads the data."
    ),
    click.option("--data-root", type=FOLDER, help="Folder of the data set.  [default: data/DATASET]"),
    click.option("--modalities", help="Only these modalities, separated by commas.  [default: all]"),
    click.option("--subjects", help="Only these subjects, separated by commas.  [default: all]"),
    click.option(
        "--labels",
        type=click.Choice(["default", "binary", "native", "regions"]),
        default="default",
        show_default=True,
        help="binary merges all labels into one (the paper, for MSD); native keeps the classes; regions makes classes that "
        "share no voxel of nnU-Net's regions.",
    ),
    click.option(
        "--trust-voxels",
        is_flag=True,
        help="Lay files of one shape voxel on voxel where their headers differ: labels whose header was lost.",
    ),
]
device_option = click.option("--device", default=None, help="cpu, cuda, cuda:1, ...; the best there is if not given.")


def with_profile(command):
    for option in reversed(profile_options):
        command = option(command)
    return command


def with_data(command):
    for option in reversed(data_options):
        command = option(command)
    return command


def with_models(command):
    return with_profile(device_option(command))


@click.group(cls=ZeusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zeus-union")
def main() -> None:
    """Stage 1: run every frozen model once over every slice and write what they said and saw into a cache.

    \b
    zeus-instruct build-cache --dataset demo         a phantom, nothing to download but the models
    zeus-instruct build-cache --dataset nnunet --data-root Dataset501_BraTS2013 --slice-step 4
    zeus-instruct inspect cache/demo.h5              what is in it
    zeus-instruct sentences cache/demo.h5 --variant lite     each text without one of its sentences
    """


@main.command("build-cache")
@with_data
@with_models
@click.option("--out", type=FILE, help="The cache to write or go on with.  [default: cache/DATASET.h5]")
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
@click.option("--slice-step", type=click.IntRange(1), default=1, show_default=True, help="Every n-th slice.")
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
    "--store",
    type=click.Choice(["uint8", "fp16"]),
    default="uint8",
    show_default=True,
    help="uint8: 1 MiB a slice-modality, mask IoU 0.9986 against fp32; fp16: 2 MiB, exact to 2e-4.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Slice-modalities at a time.  [default: as many as fit]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampled instructions (temperature above 0).")
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
@click.option("--layers", default="slices,embeddings,instructions", show_default=True, help="Which layers to build.")
@click.option(
    "--pack/--no-pack", "pack", default=None, help="One file, or a folder of shards.  [default: one file below 20 GB]"
)
@click.option(
    "--part",
    metavar="I/N|slurm",
    help="Only the I-th of N shares of the subjects (slurm: this task of a job array), where the file system has no locks.",
)
def build_cache_command(
    dataset_name: str,
    data_root: Path | None,
    profile: str,
    overrides: tuple[str, ...],
    device: str | None,
    out: Path | None,
    variant: str | None,
    modalities: str | None,
    subjects: str | None,
    labels: str,
    terms: tuple[str, ...],
    instance: str | None,
    splits: Path | None,
    trust_voxels: bool,
    slice_step: int,
    view: str | None,
    windows: tuple[str, ...],
    store: str,
    batch_size: int | None,
    seed: int,
    text_window: str | None,
    grid: str | None,
    per_class: bool,
    layers: str,
    pack: bool | None,
    part: str | None,
) -> None:
    """Run the frozen models over every slice and modality; the same command again goes on where it stopped.

    A finished subject stays finished. A layer made with other models, prompt or preprocessing is never mixed in: it is
    refused with what differs, and --variant NAME makes another instruction layer beside it.

    A control: --variant prompt --set instructor=prompt makes a layer of the bare questions, without a language model.

    Many GPUs: start it with accelerate (or start the same command on several machines with a common disk). Each process
    takes the next subject that is free, and a process that is lost costs the subject it had in work. Where the file
    system has no locks (it says so), each process needs --part; the last one, or the same command without it, finishes.

    A study that cannot be read is left out and named at the end; mend it, and the same command takes up only that.

    \b
    accelerate launch --multi_gpu --num_processes 8 --max_restarts 3 -m zeus_union.stage1_instruct.cli build-cache --dataset chaos
    """
    import os
    from dataclasses import replace

    from zeus_union.stage1_instruct.building.failures import BuildFailures
    from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache, parse_layers
    from zeus_union.stage1_instruct.building.parts import parse_part
    from zeus_union.stage1_instruct.building.variants import VariantRow, class_variants, read_grid
    from zeus_union.stage1_instruct.datasets import open_dataset
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides
    from zeus_union.stage1_instruct.studies.intensity import parse_windows

    if grid and variant:
        raise UserError("--grid names its variants itself; leave out --variant")
    wanted = choose(split_names(layers), ("slices", "embeddings", "instructions"), "layer")
    share = parse_part(part, os.environ) if part else None
    if per_class and "instructions" not in wanted:
        raise UserError("--per-class makes layers of instructions and --layers leaves them out; give one of the two")
    if per_class and instance is not None:
        raise UserError("--per-class asks for each class by its name; leave out --instance")
    dataset = open_dataset(
        dataset_name,
        data_root,
        labels=labels,
        modalities=split_names(modalities),
        terms=terms,
        instance=instance,
        splits=splits,
        trust_voxels=trust_voxels,
    )
    card = replace(dataset.card, subjects=choose(split_names(subjects), dataset.card.subjects, "subject"))
    dataset = replace(dataset, card=card)
    say(f"{card.name}: {len(card.subjects)} subjects, {', '.join(card.modalities)}; to segment: {card.instance}")
    parts = parse_overrides(overrides)
    if text_window:
        parts["text_window"] = text_window
    rows = read_grid(grid) if grid else (VariantRow(variant or "", {}),)
    out = out or Path("cache") / f"{dataset_name}.h5"
    next_steps = []
    complete, failures = True, None
    for row in rows:
        models = _models(profile, {**row.parts, **parts}, device, batch_size)
        options = BuildOptions(
            out=out,
            layers=parse_layers(wanted),
            variant=row.variant or models.profile.name,
            per_class=per_class,
            store=store,
            slice_step=slice_step,
            batch_size=batch_size,
            pack=pack if row is rows[-1] else False,  # packing once, at the end
            seed=seed,
            part=share,
            check=True,
            view=view,
            windows=parse_windows(windows),
        )
        if grid:
            say(f"variant {row.variant}: {', '.join(f'{part}={value}' for part, value in row.parts.items())}")
        step = f"zeus-segment train --cache {out}"
        if per_class:
            step += f" --variant {','.join(class_variants(options.variant, card.classes))} --instructions class"
        try:
            report = build_cache(dataset, models, options)
        except BuildFailures as error:  # the other variants of the other subjects are built all the same
            failures = error
            continue
        _say_report(report)
        complete = complete and report.complete
        next_steps.append(step)
    if failures is not None:
        failures.say()
        raise failures
    if not complete:
        click.echo(f"part {share} of {out} is built")
        return
    _say_views(out)
    click.echo(f"{out} is complete: {len(card.subjects)} subjects. Next: {'; '.join(dict.fromkeys(next_steps))}")


def _say_views(path: Path) -> None:
    """Says how many subjects have which view, where they differ."""
    from collections import Counter

    from zeus_union.cache.reader import Cache

    with Cache(path, allow_partial=True) as cache:
        views = Counter(cache.grid(subject).view for subject in cache.subjects)
    if len(views) > 1:
        counts = ", ".join(f"{count} {view}" for view, count in views.most_common())
        say(f"{path} mixes views, since its studies were acquired so: {counts}; --view gives all of them one")


def _say_report(report: BuildReport) -> None:
    for part, seconds in report.per_slice_modality().items():
        say(f"  {part}: {seconds:.3f} s a slice-modality")
    say(f"  peak memory {report.peak_memory_bytes() / 2**30:.1f} GiB")
    if report.empty or report.endless:
        count = report.done["LLM"]
        say(
            f"  of {count} instructions {report.empty} are empty and {report.endless} were cut at max_new_tokens; "
            "the Parquet table's stop_reason names them"
        )
    if report.cut_by_encoder:
        say(
            f"  of {report.done['text encoder']} texts {report.cut_by_encoder} are longer than the text encoder reads: their "
            "ends do not count, and texts that differ there only get the same vector. Fewer max_new_tokens or classes, "
            "--per-class, --text-window extended or mean (MedCLIP), or another text encoder"
        )


def _models(
    profile_name: str,
    parts: Mapping[str, str],
    device: str | None,
    batch_size: int | None = None,
    text_only: bool = False,
) -> Models:
    """The frozen models of a profile; their weights (`text_only`: the text encoder's) are fetched when missing."""
    from zeus_union.stage1_instruct.models.assembly import best_device, load_models
    from zeus_union.stage1_instruct.profiles.profile import load_profile
    from zeus_union.stage1_instruct.weights.fetch import fetch
    from zeus_union.stage1_instruct.weights.store import is_present

    profile = load_profile(profile_name, parts)
    wanted = profile.text_needs if text_only else profile
    if not is_present(wanted):
        fetch(wanted)
    return load_models(profile, device or best_device(), batch_size=batch_size)


@main.command()
@with_data
@click.option(
    "--voxels", is_flag=True, help="Read every voxel of every image too: as long as building the slices takes."
)
def check(
    dataset_name: str,
    data_root: Path | None,
    modalities: str | None,
    subjects: str | None,
    labels: str,
    trust_voxels: bool,
    voxels: bool,
) -> None:
    """Check a data set before hours of computing: headers, grids and label values of every study; loads no model.

    Exit code 2 where something is wrong; every study with which something is wrong is listed.
    """
    from zeus_union.stage1_instruct.datasets import open_dataset
    from zeus_union.stage1_instruct.studies.check import check_studies

    dataset = open_dataset(
        dataset_name, data_root, labels=labels, modalities=split_names(modalities), trust_voxels=trust_voxels
    )
    wanted = choose(split_names(subjects), dataset.card.subjects, "subject")
    failures = check_studies(dataset, wanted, "voxels" if voxels else "labels")
    for subject, reason in failures.items():
        click.echo(f"WRONG  {subject}: {' '.join(reason.split())}")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(wanted)} studies cannot be used; mend them, or leave them out with --subjects"
        )
    click.echo(f"{len(wanted)} studies of {dataset.card.name} are in order")


@main.command()
@with_profile
def fetch(profile: str, overrides: tuple[str, ...]) -> None:
    """Download a profile's weights into ZEUS_HOME, check their sha256, convert them once.

    ZEUS_HOME is a folder of your choice (environment variable), or a per-user cache folder.
    """
    from zeus_union.stage1_instruct.profiles.profile import load_profile, parse_overrides
    from zeus_union.stage1_instruct.weights.fetch import fetch
    from zeus_union.stage1_instruct.weights.store import zeus_home

    fetch(load_profile(profile, parse_overrides(overrides)))
    click.echo(f"the weights of {profile} are in {zeus_home()}")


@main.command()
@with_models
def doctor(profile: str, overrides: tuple[str, ...], device: str | None) -> None:
    """Check a profile before hours of computing: every file there, loads, right shapes, fits, and speaks ten tokens.

    Exit code 2 where something is wrong; everything that is wrong is listed.
    """
    from zeus_union.stage1_instruct.doctor import examine
    from zeus_union.stage1_instruct.models.assembly import best_device
    from zeus_union.stage1_instruct.profiles.profile import load_profile, parse_overrides

    sound = True
    for finding in examine(load_profile(profile, parse_overrides(overrides)), device or best_device()):
        click.echo(f"{'ok   ' if finding.sound else 'WRONG'}  {finding.part}: {' '.join(finding.report.split())}")
        sound = sound and finding.sound
    if not sound:
        raise click.exceptions.Exit(2)
    click.echo(f"{profile} is ready")


@main.command("make-demo")
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
    click.echo(f"{subjects} phantoms in {out}")


@main.command("make-pairs")
@click.argument("cache", type=FILE)
@click.option("--subjects", help="Only these subjects: leave out those you will test on.  [default: all]")
@click.option("--out", type=FILE, required=True, help="JSONL file to write.")
def make_pairs_command(cache: Path, subjects: str | None, out: Path) -> None:
    """Write captions of a cache's labelled slices, to train the projection on.

    A caption says which organs a slice shows, where, how large and how bright, from the labels: so never caption subjects
    that you test on.
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.projection.label_captions import make_pairs

    with Cache(existing(cache, "the cache")) as opened:
        count = make_pairs(opened, choose(split_names(subjects), opened.subjects, "subject"), out)
    click.echo(f"{count} captions in {out}")


@main.command()
@click.argument("cache", type=FILE)
@click.option("--variant", required=True, help="Which instructions.")
@click.option("--out", type=FILE, help="Parquet file to write.  [default: CACHE.VARIANT.sentences.parquet beside it]")
@click.option("--subjects", help="Only these subjects, e.g. those a run holds out.  [default: all]")
@with_models
@click.option("--allow-partial", is_flag=True, help="Open an unfinished cache.")
def sentences(
    cache: Path,
    variant: str,
    out: Path | None,
    subjects: str | None,
    profile: str,
    overrides: tuple[str, ...],
    device: str | None,
    allow_partial: bool,
) -> None:
    """Embed each instruction again without one of its sentences: which of them does a trained run listen to?

    Only the text encoder of the profile is loaded; it has to be the one the variant was made with. A sentence ends at '.',
    '!', '?', ';' or a line's end. A row a sentence: subject, slice, modality, sentence (its number; -1: the whole text),
    text, and the embedding of the text without it.

    \b
    zeus-instruct sentences cache/brats.h5 --variant lite --out brats.sentences.parquet
    zeus-segment probe --run runs/brats-late-fold0-seed0 --sentences brats.sentences.parquet
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides
    from zeus_union.stage1_instruct.sentences import write_sentences

    with Cache(existing(cache, "the cache"), allow_partial=allow_partial) as opened:
        choose([variant], opened.variants, "variant")
        chosen = choose(split_names(subjects), opened.subjects, "subject")
        models = _models(profile, parse_overrides(overrides), device, text_only=True)
        out = out or cache.with_name(f"{cache.stem}.{variant}.sentences.parquet")
        count = write_sentences(opened, variant, models.text_encoder, out, chosen)
    click.echo(f"{count} sentences in {out}. Next: zeus-segment probe --run RUN --sentences {out}")


@main.command("train-projection")
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    required=True,
    help="JSONL or Parquet: caption, and an image path or subject, slice, modality; or XrayGPT's folder.",
)
@click.option("--cache", type=FILE, help="The cache that pairs with subject, slice and modality refer to.")
@with_models
@click.option(
    "--out",
    type=FILE,
    help="Weights to write.  [default: in ZEUS_HOME, one file for each vision, LLM and connector, where build-cache finds it]",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the pairs.  [default: about 150 steps]")
@click.option("--lr", type=float, default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Pairs a step.")
@click.option("--at-once", type=click.IntRange(1), help="Pairs computed together, where a batch does not fit.")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the subjects (pictures, where pairs name no subject) that is never trained on; 0: none.",
)
@click.option("--warm-up", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Share of the steps.")
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="auto: bf16 where the device is fast in it; fp16 needs a GPU.",
)
@click.option("--lora-rank", type=click.IntRange(0), default=0, show_default=True, help="Train a LoRA on the LLM too.")
@click.option("--start", type=FILE, help="Begin from this projection, or from an XrayGPT or MiniGPT-4 checkpoint.")
@click.option("--seed", type=int, default=0, show_default=True)
def train_projection_command(
    pairs: Path,
    cache: Path | None,
    profile: str,
    overrides: tuple[str, ...],
    device: str | None,
    out: Path | None,
    start: Path | None,
    **options: Any,
) -> None:
    """Train the projection from vision features to the LLM, both frozen, on image-caption pairs.

    Which kind: --set connector=mlp|linear|qformer. A training that was stopped goes on with the same command; accelerate
    launch -m zeus_union.stage1_instruct.cli train-projection ... splits it over GPUs.
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides
    from zeus_union.stage1_instruct.projection.train import read_pairs, train_projection

    models = _models(profile, parse_overrides(overrides), device)
    opened = Cache(existing(cache, "the cache")) if cache else None
    written = train_projection(
        read_pairs(existing(pairs, "the pairs file")),
        models,
        cache=opened,
        out=out,
        start=start,
        **options,
    )
    click.echo(f"trained: {written}")


@main.command()
@click.argument("cache", type=FILE)
@click.option("--subject", help="Show one of its slices.")
@click.option("--slice", "number", type=int, help="Slice number in the view of the subject, e.g. axial: from below.")
@click.option("--variant", help="Which instructions.  [default: the first]")
@click.option("--png", type=FILE, help="Write images, labels and instructions of that slice as a picture.")
@click.option("--allow-partial", is_flag=True, help="Open an unfinished cache.")
def inspect(
    cache: Path, subject: str | None, number: int | None, variant: str | None, png: Path | None, allow_partial: bool
) -> None:
    """What is in a cache: layers, sizes, recipes; and an instruction beside its image."""
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.inspect import describe, draw_slice, pick_slice

    with Cache(existing(cache, "the cache"), allow_partial=allow_partial) as opened:
        if subject is None and number is None and png is None:
            describe(opened)
            return
        row = pick_slice(opened, subject, number)
        draw_slice(opened, row, variant, png)


@main.command()
@click.argument("cache", type=FILE)
def verify(cache: Path) -> None:
    """Check every byte and every row of a cache; exit code 1 and a list where something is wrong."""
    from zeus_union.cache.verify import verify as verify_cache

    findings = verify_cache(existing(cache, "the cache"))
    for finding in findings:
        click.echo(finding)
    if findings:
        raise click.exceptions.Exit(1)
    click.echo(f"{cache} is sound")


@main.command()
@click.argument("cache", type=FILE)
@click.argument("out", type=FILE)
def pack(cache: Path, out: Path) -> None:
    """Copy a sharded cache (chaos.h5 beside chaos.h5.d) into one file that can be taken anywhere.

    Also a cache that was built in parts, when all of them are there.

    Needs the space twice for a while; every row is verified before OUT appears.
    """
    from zeus_union.cache.pack import pack as pack_cache

    pack_cache(existing(cache, "the cache"), out)
    click.echo(f"{out} holds all of {cache}")


if __name__ == "__main__":
    main()
