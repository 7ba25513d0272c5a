"""zeus-instruct make-pairs, train-projection, sentences: what the instructions learn from, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import (
    DATA,
    FILE,
    MODEL,
    OPTIMISATION,
    OUTPUT,
    SPEED,
    PanelCommand,
    choose,
    counted,
    existing,
    split_names,
)
from zeus_union.stage1_instruct.commands.shared import (
    load_models,
    with_models,
)


@click.command("make-pairs", short_help="Write captions of labelled slices")
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
    click.echo(
        f"{counted(count, 'caption')} in {out}. Next: zeus-instruct train-projection --pairs {out} --cache {cache}"
    )


@click.command(
    "train-projection",
    cls=PanelCommand,
    panels={
        DATA: "pairs cache variant per_class fold train_subjects held_out",
        MODEL: "profile overrides start lora_rank",
        OPTIMISATION: "epochs lr warm_up weight_decay batch_size seed",
        SPEED: "at_once precision device",
        OUTPUT: "out",
    },
    short_help="Teach the LLM to see: vision to text",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
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
@click.option(
    "--fold", type=click.IntRange(0), help="Without --pairs: for the layer of this fold of --cache.  [default: 0]"
)
@click.option("--train-subjects", help="Without --pairs: for the layer of runs that are trained on these subjects.")
@click.option("--variant", help="Without --pairs: name of the instruction layer.  [default: the profile's name]")
@click.option("--per-class", is_flag=True, help="Without --pairs: for a layer of each class.")
def train_projection_command(
    pairs: Path | None,
    cache: Path | None,
    profile: str,
    overrides: tuple[str, ...],
    device: str | None,
    out: Path | None,
    start: Path | None,
    fold: int | None,
    train_subjects: str | None,
    variant: str | None,
    per_class: bool,
    **options: Any,
) -> None:
    """Train the projection from vision features to the LLM, both frozen, on image-caption pairs.

    Without --pairs, the projection of a layer of --cache that build-cache goes on with: what build-cache does itself, as a
    command of its own for a build in parts (--part) or on a machine with a GPU. Captions are made of the labels of the
    training subjects; half of these get their texts from a projection that was trained on the other half.

    Which kind: --set connector=mlp|linear|qformer. A training that was stopped goes on with the same command; accelerate
    launch -m zeus_union.stage1_instruct.cli train-projection ... splits it over GPUs.
    """
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.building.job import Splits
    from zeus_union.stage1_instruct.building.trained import train_in_cache
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides
    from zeus_union.stage1_instruct.projection.train import read_pairs, train_projection

    models = load_models(profile, parse_overrides(overrides), device)
    if pairs is None:
        if cache is None:
            raise UserError("give --pairs FILE, or --cache CACHE to train on the captions of its training subjects")
        _refuse_of_pairs(click.get_current_context())
        if fold is not None and train_subjects is not None:
            raise UserError("--fold and --train-subjects exclude one another; give one of them")
        splits = Splits((fold or 0,), asked=True)
        if train_subjects is not None:
            splits = Splits(None, tuple(split_names(train_subjects) or ()), asked=True)
        layers = train_in_cache(cache, models, splits, variant or models.profile.name, per_class, int(options["seed"]))
        click.echo(
            f"trained for {', '.join(layers)} of {cache}. Next: the cache's build-cache command writes the texts"
        )
        return
    opened = Cache(existing(cache, "the cache")) if cache else None
    written = train_projection(
        read_pairs(existing(pairs, "the pairs file")),
        models,
        cache=opened,
        out=out,
        start=start,
        **options,
    )
    click.echo(
        f"{written} is trained. Next: zeus-instruct build-cache --models {models.profile.name}"
        f"{'' if out is None else f' --set projection={out}'}"
    )


def _refuse_of_pairs(context: click.Context) -> None:
    """Raises UserError: an option is given that only a training on --pairs has; a layer's recipe is the build's own."""
    allowed = ("cache", "profile", "overrides", "device", "fold", "train_subjects", "variant", "per_class", "seed")
    foreign = [
        option.opts[0]
        for option in context.command.params
        if option.name
        and option.name not in allowed
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if foreign:
        raise UserError(
            f"{', '.join(foreign)} goes with --pairs; the projection of a layer is trained as build-cache does"
        )


@click.command("sentences", short_help="Texts with one sentence left out each")
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
    from zeus_union.cache.fold_layers import only_variant
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides
    from zeus_union.stage1_instruct.sentences import write_sentences

    with Cache(existing(cache, "the cache"), allow_partial=allow_partial) as opened:
        variant = only_variant(opened.variants, variant)
        choose([variant], opened.variants, "variant")
        chosen = choose(split_names(subjects), opened.subjects, "subject")
        models = load_models(profile, parse_overrides(overrides), device, only="text")
        out = out or cache.with_name(f"{cache.stem}.{variant}.sentences.parquet")
        count = write_sentences(opened, variant, models.text_encoder, out, chosen)
    click.echo(f"{counted(count, 'sentence')} in {out}. Next: zeus-segment probe --run RUN --sentences {out}")
