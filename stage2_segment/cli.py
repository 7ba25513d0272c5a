"""zeus-segment: train the decoder and the aligner from a cache, measure them, write masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import ZeusGroup, say, split_names
from zeus_union.stage2_segment.choices import (
    COMBINES,
    FORMS,
    FUSIONS,
    INSTRUCTIONS,
    MERGES,
    MODELS,
    PRESETS,
    RESIDENT,
    TEXTS,
    ZEUS,
)

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

device_option = click.option("--device", help="cpu, cuda, cuda:1, ...; the best there is if not given.")
partial_option = click.option("--allow-partial", is_flag=True, help="Use the finished subjects of an unfinished cache.")
run_option = click.option("--run", type=FOLDER, required=True, help="Folder that zeus-segment train wrote.")
weights_option = click.option(
    "--weights",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="After the last epoch, or after the epoch with the best DSC on the held-out subjects.",
)


modalities_option = click.option(
    "--modalities", help="Predict from these of the run's, where a study lacks some.  [default: all of the run's]"
)


@click.group(cls=ZeusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zeus-union")
def main() -> None:
    """Stage 2: train a mask decoder of 4 million parameters from a cache alone, measure it, write masks.

    \b
    zeus-segment train --cache cache/demo.h5
    zeus-segment evaluate --run runs/demo-late-fold0-seed0
    zeus-segment predict --run runs/demo-late-fold0-seed0 --cache cache/demo.h5 --out masks
    """


@main.command("train")
@click.option("--cache", "cache_path", type=FILE, required=True, help="The cache to train from.")
@click.option(
    "--fusion",
    type=click.Choice(list(FUSIONS)),
    default="late",
    show_default=True,
    help="late: a decoder and an aligner per modality; hybrid: one of each for all, one by one. Baselines: late, a network "
    "per modality; hybrid, an encoder per modality and one decoder; early, modalities as channels.",
)
@click.option(
    "--model",
    type=click.Choice(list(MODELS)),
    default=ZEUS,
    show_default=True,
    help="zeus, or a baseline of the paper's Table 2, which sees the cache's pictures.",
)
@click.option(
    "--merge",
    type=click.Choice(list(MERGES)),
    default="concat",
    show_default=True,
    help="A baseline's hybrid fusion: feature maps side by side and a 1 x 1 convolution, or their mean.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="published",
    show_default=True,
    help="A baseline's widths: the published network's, those that give Table 2's parameter counts, or a quarter of the "
    "published for a computer without a GPU.",
)
@click.option(
    "--pretrained",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Weights for TransUNet's encoders: torchvision's ResNet-50, timm's or Google's R50 + ViT-B/16.",
)
@click.option("--modalities", help="Only these, separated by commas.  [default: all]")
@click.option("--fold", type=click.IntRange(0), help="The fold to hold out and validate on.  [default: 0]")
@click.option("--train-subjects", help="Names instead of a fold.  [default: all labelled but the test subjects]")
@click.option("--test-subjects", help="Names instead of a fold.  [default: all labelled but the train subjects]")
@click.option("--encoder", help="Which embeddings.  [default: the only ones]")
@click.option(
    "--variant",
    help="Which instructions; with --instructions class one layer a class, separated by commas.  [default: the only ones]",
)
@click.option(
    "--instructions",
    type=click.Choice(list(INSTRUCTIONS)),
    default="modality",
    show_default=True,
    help="modality: one instruction for all classes; class: one for each, which the decoder answers with a binary mask.",
)
@click.option(
    "--form",
    type=click.Choice(list(FORMS)),
    default="sentence",
    show_default=True,
    help="sentence: one embedding of the text; tokens: the LLM's states at its tokens (a variant with keep_states=yes).",
)
@click.option(
    "--text",
    type=click.Choice(list(TEXTS)),
    help="none: a learned token, the row that text has to beat. The others are controls: another slice's or modality's "
    "instruction, one for all slices, a random vector.  [default: instruction; none for a baseline]",
)
@click.option(
    "--recipe",
    type=click.Choice(["stable", "paper"]),
    default="stable",
    show_default=True,
    help="paper: Zeus, section 4.1; on few slices it ends in empty masks. stable: AdamW with warm-up and "
    "clipping, Dice over the batch, two thirds of each batch with foreground.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Passes over the slices.  [default: paper 300; stable 30, more for few slices]",
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Slices, each with all modalities.  [default: paper 10; stable 4]"
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    help="Highest learning rate of the pretrained decoder.  [default: paper 1e-3; stable 2e-4]",
)
@click.option(
    "--aligner-lr",
    type=click.FloatRange(0, min_open=True),
    help="Highest learning rate of what starts from nothing: the aligner, or all of a baseline.  "
    "[default: as many times --lr as in the recipe: paper 1, stable 5]",
)
@click.option(
    "--foreground-share",
    type=click.FloatRange(0, 1),
    help="Smallest share of slices with foreground in a batch; 1: no others.  [default: paper 0; stable 0.67]",
)
@click.option(
    "--class-weights",
    type=click.Choice(["equal", "inverse"]),
    help="inverse: classes weigh as 1 / sqrt(their pixels in the training slices).  [default: equal]",
)
@click.option("--accumulate", type=click.IntRange(1), help="Batches that make one optimiser step.  [default: 1]")
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, max_open=True),
    help="Keep the running mean of the weights with this decay, e.g. 0.99; 0: the weights themselves.  [default: 0]",
)
@click.option(
    "--modality-drop",
    type=click.FloatRange(0, 1, max_open=True),
    help="Chance of each modality to be left out of a step, for studies that lack one.  [default: 0]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    help="bf16: forward passes under autocast, weights and losses in fp32.  [default: fp32]",
)
@click.option(
    "--combine",
    type=click.Choice(list(COMBINES)),
    default="mean",
    show_default=True,
    help="How the modalities' logits become one mask.",
)
@click.option(
    "--iou-token/--no-iou-token", default=False, show_default=True, help="Keep SAM's IoU token among the tokens."
)
@click.option("--aligner-depth", type=click.IntRange(1, 2), default=2, show_default=True, help="Layers of f_tt.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the aligner's weights and the order of slices.",
)
@click.option(
    "--resident",
    type=click.Choice(list(RESIDENT)),
    default="auto",
    show_default=True,
    help="Where the cached embeddings are kept while training; auto: the GPU, else main memory, where they fit.",
)
@click.option(
    "--validate-every",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Epochs between validations; 0: none, and no best weights.",
)
@click.option("--out", type=FOLDER, help="Run folder.  [default: runs/CACHE-FUSION-foldK-seedS]")
@click.option("--resume", is_flag=True, help="Go on with an unfinished run; repeat its other options.")
@partial_option
@device_option
def train_command(
    cache_path: Path,
    out: Path | None,
    resume: bool,
    allow_partial: bool,
    device: str | None,
    **options: Any,
) -> None:
    """Train from a cache; held-out subjects are validated on after every epoch.

    The run folder gets config.json, metrics.parquet, tensorboard/, weights/last.safetensors and best.safetensors, and
    state.pt to go on from. Two runs with one seed are equal on a CPU, and so is a run that was stopped and resumed.

    Several GPUs share every batch, and the losses are those of one (--batch-size counts all of them):

    \b
    accelerate launch --multi_gpu --num_processes 4 -m zeus_union.stage2_segment.cli train --cache cache/chaos.h5
    """
    from zeus_union.stage2_segment.training.train import train_run

    options = _for_plan(options)
    named = options["train_subjects"] or options["test_subjects"]
    split = "subjects" if named else f"fold{options['fold'] or 0}"
    model = "" if options["model"] == ZEUS else f"{options['model']}-"
    run = out or Path("runs") / f"{cache_path.stem}-{model}{options['fusion']}-{split}-seed{options['seed']}"
    try:
        train_run(cache_path, run, resume=resume, device=device, allow_partial=allow_partial, **options)
    except KeyboardInterrupt:
        say(f"interrupted; the same command with --out {run} --resume goes on")
        raise
    if os.environ.get("RANK", "0") == "0":  # of the processes that accelerate launch started, one speaks
        click.echo(f"{run} is trained. Next: zeus-segment evaluate --run {run}")


# Those of `train` that say how a model is trained; the rest say where, or which of a grid's runs it is.
_NOT_OF_A_ROW = ("cache_path", "out", "resume", "device", "allow_partial", "resident", "validate_every", "seed", "fold")


def parse_train_options(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of `train` by name, as a YAML file has them -> options of `plan_run`, checked as the command line's are.

    Args:
        values: e.g. {'batch-size': 4, 'modalities': ['T1', 'T2']}; dashes and underscores are one.
        where: names the place in messages.

    Raises:
        UserError: an option that `train` does not have, or a value it would refuse.
    """
    known = {option.name: option for option in train_command.params if option.name not in _NOT_OF_A_ROW}
    context = click.Context(train_command)
    options = {}
    for name, value in values.items():
        option = known.get(str(name).replace("-", "_"))
        if option is None or option.name is None:
            names = ", ".join(sorted(str(one).replace("_", "-") for one in known))
            raise UserError(f"{where}: unknown option {name}; there are: {names}")
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        try:
            options[option.name] = option.type_cast_value(context, str(value) if option.type.name == "text" else value)
        except click.BadParameter as error:
            raise UserError(f"{where}: {name} = {value!r}: {error.message}") from error
    return _for_plan(options)


def _for_plan(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as click names and types them -> as `plan_run` does."""
    lists = ("modalities", "variant", "train_subjects", "test_subjects")
    plan = {name: split_names(value) if name in lists else value for name, value in options.items()}
    if "iou_token" in plan:
        plan["keep_iou_token"] = plan.pop("iou_token")
    return plan


@main.command("evaluate")
@run_option
@click.option("--cache", type=FILE, help="Another cache than the one trained on.  [default: the run's]")
@weights_option
@click.option(
    "--subjects", help="Names, separated by commas.  [default: the held-out ones; all labelled of another cache]"
)
@modalities_option
@click.option("--missing", is_flag=True, help="Also with every subset of the modalities, and what DSC that costs.")
@partial_option
@device_option
def evaluate_command(
    run: Path,
    cache: Path | None,
    weights: str,
    subjects: str | None,
    modalities: str | None,
    missing: bool,
    allow_partial: bool,
    device: str | None,
) -> None:
    """DSC and IoU per class and subject, at 256 x 256 and in the native grid; HD95 and NSD there.

    The weights are the last by default: the best were chosen on the held-out subjects themselves.

    \b
    DSC   2 |P and T| / (|P| + |T|) of a class in a subject's volume, all its cached slices together
    IoU   |P and T| / |P or T|, likewise
    mIoU  mean IoU over the classes and the background, then over the subjects (the paper's), at 256 x 256
    256   on the 256 x 256 pictures the decoder sees (the paper's); without it: in the study's own grid
    HD95  95th percentile of the symmetric surface distance, mm, over the cached slices
    NSD   share of both surfaces within 2 mm of the other
    A class that is in neither truth nor prediction is not counted; in one of them only, DSC, IoU and NSD are 0 and
    HD95 is not counted.

    Writes evaluation.parquet and evaluation.json into the run folder, and missing.parquet with --missing.
    """
    from rich.console import Console

    from zeus_union.stage2_segment.evaluation import missing as without
    from zeus_union.stage2_segment.evaluation.evaluate import as_table, evaluate_run
    from zeus_union.stage2_segment.predict import open_cache

    chosen: dict[str, Any] = {"subjects": split_names(subjects), "which": weights, "device": device}
    with open_cache(run, cache, allow_partial) as opened:
        found = evaluate_run(run, opened, modalities=split_names(modalities), **chosen)
        Console().print(as_table(found))
        if missing:
            Console().print(without.as_table(without.evaluate_missing(run, opened, **chosen)))
    summary = found.summary()
    mean = summary["mean_over_classes"]["dsc"]
    click.echo(f"mean DSC {_figure(mean)}, mIoU with background at 256 {_figure(summary['miou_256'])}")


@main.command("predict")
@run_option
@click.option("--cache", type=FILE, help="The cache with the studies to segment.  [default: the run's]")
@click.option("--out", type=FOLDER, required=True, help="Folder for SUBJECT.nii.gz.")
@weights_option
@click.option("--subjects", help="Names, separated by commas.  [default: all of the cache]")
@modalities_option
@partial_option
@device_option
def predict_command(
    run: Path,
    cache: Path | None,
    out: Path,
    weights: str,
    subjects: str | None,
    modalities: str | None,
    allow_partial: bool,
    device: str | None,
) -> None:
    """Write masks as NIfTI with the study's own shape and affine: uint8, 0 background, k the k-th class."""
    from zeus_union.stage2_segment.predict import open_cache, predict_run

    with open_cache(run, cache, allow_partial) as opened:
        written = predict_run(
            run,
            opened,
            out,
            subjects=split_names(subjects),
            modalities=split_names(modalities),
            which=weights,
            device=device,
        )
    click.echo(f"{len(written)} masks in {out}")


@main.command("probe")
@run_option
@click.option("--cache", type=FILE, help="Another cache than the one trained on.  [default: the run's]")
@weights_option
@click.option("--subjects", help="Names, separated by commas.  [default: the held-out ones]")
@click.option(
    "--sentences",
    type=FILE,
    help="What zeus-instruct sentences wrote: which sentences move the mask when they are left out.",
)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="How many sentences to show.")
@partial_option
@device_option
def probe_command(
    run: Path,
    cache: Path | None,
    weights: str,
    subjects: str | None,
    sentences: Path | None,
    top: int,
    allow_partial: bool,
    device: str | None,
) -> None:
    """Does a trained run listen to its instructions? DSC when each slice gets another text than its own.

    Without retraining: the same weights read another slice's instruction, another modality's, one for all slices, a random
    vector. With --sentences also each instruction without one of its sentences.

    \b
    zeus-instruct sentences cache/brats.h5 --variant lite --out brats.sentences.parquet
    zeus-segment probe --run runs/brats-late-fold0-seed0 --sentences brats.sentences.parquet

    Writes probe.parquet, and sentences.parquet with --sentences, into the run folder.
    """
    from rich.console import Console

    from zeus_union.stage2_segment.evaluation.probe import probe_sentences, probe_texts, sentence_table, text_table
    from zeus_union.stage2_segment.predict import open_cache

    chosen: dict[str, Any] = {"subjects": split_names(subjects), "which": weights, "device": device}
    with open_cache(run, cache, allow_partial) as opened:
        Console().print(text_table(probe_texts(run, opened, **chosen)))
        if sentences:
            Console().print(sentence_table(probe_sentences(run, opened, sentences, **chosen), top))


@main.command("params")
@click.option("--cache", "cache_path", type=FILE, required=True, help="Sets modalities, classes and text width.")
@click.option(
    "--model",
    type=click.Choice([ZEUS, "all"]),
    default=ZEUS,
    show_default=True,
    help="all: also the baselines, beside the paper's counts and the reference implementations'.",
)
@click.option("--modalities", help="Only these, separated by commas.  [default: all]")
@click.option("--variant", help="Which instructions.  [default: the first]")
@partial_option
def params_command(
    cache_path: Path, model: str, modalities: str | None, variant: str | None, allow_partial: bool
) -> None:
    """Trainable parameters, part by part, beside the paper's 8.06M (hybrid) and 12.44M (late)."""
    from rich.console import Console

    from zeus_union.cache.reader import Cache
    from zeus_union.cache.terminal import choose
    from zeus_union.stage2_segment.params import as_table, baselines_table, by_modalities

    with Cache(cache_path, allow_partial=allow_partial) as cache:
        if not cache.variants:
            raise UserError(
                f"{cache_path} has no instructions; zeus-instruct build-cache --layers instructions adds them"
            )
        name = choose(None if variant is None else [variant], cache.variants, "variant")[0]
        chosen = choose(split_names(modalities), cache.modalities, "modality")
        Console().print(as_table(len(chosen), len(cache.classes), cache.text_width(name)))
        Console().print(by_modalities(len(cache.classes), cache.text_width(name)))
        if model == "all":
            Console().print(baselines_table(len(chosen), len(cache.classes)))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
