"""zeus-instruct import-texts, export-texts, make-oracle: instructions that no model of ours wrote."""

from __future__ import annotations

from pathlib import Path

import click

from zeus_union.cache.terminal import FILE, counted, existing
from zeus_union.stage1_instruct.commands.shared import load_text_encoder, with_models


@click.command("import-texts", short_help="Bring reports or other texts of your own")
@click.argument("cache", type=FILE)
@click.argument("file", type=FILE)
@click.option("--variant", required=True, help="Name of the layer to make, e.g. radiologist.")
@click.option("--fill", metavar="TEXT", help='Text of slices that FILE does not speak of, e.g. "".  [default: refused]')
@with_models
@click.pass_context
def import_texts_command(
    context: click.Context,
    cache: Path,
    file: Path,
    variant: str,
    fill: str | None,
    profile: str,
    overrides: tuple[str, ...],
    device: str | None,
) -> None:
    """Bring your own text: reports or notes of people, or of another model, as a layer of instructions.

    FILE is CSV (.csv, .tsv), Parquet or JSON Lines (.jsonl), in UTF-8, with the columns subject and text, and slice,
    modality and class where a text is about one of them alone: without slice a text serves all slices of its subject,
    without modality all modalities. The row that names most goes first. Slices are numbered as export-texts numbers them,
    from 0 in the view of the study's grid.

    With a column class there is a layer for every class, VARIANT.CLASS, for --instructions class.

    Only the text encoder of the profile is loaded: give the --models and --set that build-cache was given.

    \b
    zeus-instruct import-texts cache/brats.h5 reports.csv --variant radiologist
    zeus-segment train --cache cache/brats.h5 --variant radiologist
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.texts.import_export import import_texts

    with Cache(existing(cache, "the cache")) as opened:
        encoder = load_text_encoder(context, opened, profile, overrides, device)
    names = import_texts(cache, existing(file, "the table of texts"), variant, encoder, fill)
    step = f"zeus-segment train --cache {cache} --variant {','.join(names)}"
    click.echo(f"{', '.join(names)} of {cache} from {file}. Next: {step}{_class_option(names, variant)}")


def _class_option(names: tuple[str, ...], variant: str) -> str:
    return "" if names == (variant,) else " --instructions class"


@click.command("export-texts", short_help="Write a layer's texts as a table")
@click.argument("cache", type=FILE)
@click.argument("file", type=FILE)
@click.option("--variant", required=True, help="Which instructions; of VARIANT.CLASS layers, VARIANT.")
@click.option("--allow-partial", is_flag=True, help="Open an unfinished cache.")
def export_texts_command(cache: Path, file: Path, variant: str, allow_partial: bool) -> None:
    """Write a layer's texts as a table, for people to read, correct or replace; import-texts reads it back.

    FILE ends in .csv, .tsv, .parquet or .jsonl. A row for every slice and modality: subject, slice, modality, text.
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.texts.import_export import export_texts

    with Cache(existing(cache, "the cache"), allow_partial=allow_partial) as opened:
        count = export_texts(opened, variant, file)
    click.echo(
        f"{counted(count, 'text')} of {variant} in {file}. Next, when they are edited: "
        f"zeus-instruct import-texts {cache} {file} --variant NAME"
    )


@click.command("make-oracle", short_help="Captions from the true labels: upper bound")
@click.argument("cache", type=FILE)
@click.option("--per-class", is_flag=True, help="A layer for every class, oracle.CLASS, for --instructions class.")
@with_models
@click.pass_context
def make_oracle_command(
    context: click.Context,
    cache: Path,
    per_class: bool,
    profile: str,
    overrides: tuple[str, ...],
    device: str | None,
) -> None:
    """Captions from the true labels as a layer of instructions: the upper bound of what text can do.

    A leak on purpose: the layer, and every run and table that reads it, is marked as one, and zeus-segment train refuses it
    without --allow-leak. zeus ablate --controls all trains it as a control.

    Only the text encoder of the profile is loaded: give the --models and --set that build-cache was given.

    \b
    zeus-instruct make-oracle cache/brats.h5
    zeus-segment train --cache cache/brats.h5 --text oracle --allow-leak
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.texts.oracle import make_oracle

    with Cache(existing(cache, "the cache")) as opened:
        encoder = load_text_encoder(context, opened, profile, overrides, device)
    names = make_oracle(cache, encoder, per_class)
    more = " --instructions class" if per_class else ""
    click.echo(
        f"{', '.join(names)} of {cache}: captions from the true labels, an upper bound, not a result. "
        f"Next: zeus-segment train --cache {cache} --text oracle --allow-leak{more}"
    )
