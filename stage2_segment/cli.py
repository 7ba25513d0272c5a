"""zeus-segment: train the decoder and the aligner from a cache, measure them, write masks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zeus_union.cache import devices
from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import fingerprint
from zeus_union.cache.system_errors import is_full
from zeus_union.cache.terminal import (
    DATA,
    FILE,
    FOLDER,
    MODEL,
    OUTPUT,
    SPEED,
    PanelCommand,
    ZeusGroup,
    counted,
    json_option,
    print_json,
    print_tables,
    say,
    split_names,
)
from zeus_union.stage2_segment.ablation_folder import ensemble_of_row
from zeus_union.stage2_segment.choices import RESIDENT, ZEUS
from zeus_union.stage2_segment.options import BY_NAME, read_command_line, with_options
from zeus_union.stage2_segment.options import panels as option_panels
from zeus_union.stage2_segment.run_file import CACHE, read_run_file
from zeus_union.stage2_segment.run_options import (
    chosen_runs,
    probabilities_option,
    results_of_shared,
    runs_options,
)

device_option = click.option("--device", help=devices.HELP)
partial_option = click.option("--allow-partial", is_flag=True, help="Use the finished subjects of an unfinished cache.")
run_option = click.option("--run", type=FOLDER, required=True, help="Folder that zeus-segment train wrote.")
weights_option = click.option(
    "--weights",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="After the last epoch, or after the epoch with the best DSC on the validation subjects.",
)

postprocess_option = click.option(
    "--postprocessing/--no-postprocessing",
    "postprocess",
    default=True,
    show_default=True,
    help="Masks in the native grid with what was chosen for the run (zeus-segment postprocess), or as they come.",
)
modalities_option = click.option(
    "--modalities", help="Predict from these of the run's, where a study lacks some.  [default: all of the run's]"
)


def _options_of_file(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """What a file says becomes the default of the options that are not given."""
    if path is not None:
        options = read_run_file(path)
        ctx.default_map = {"cache_path" if name == CACHE else name: value for name, value in options.items()}


@click.group(cls=ZeusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zeus-union")
def main() -> None:
    """Stage 2: train a mask decoder of 4 million parameters from a cache alone, measure it, write masks.

    \b
    zeus-segment train --cache cache/demo.h5
    zeus-segment evaluate --run runs/demo-late-fold0-seed0
    zeus-segment predict --run runs/demo-late-fold0-seed0 --cache cache/demo.h5 --out masks
    """


_of_options = option_panels()


@main.command(
    "train",
    cls=PanelCommand,
    panels={
        DATA: f"cache_path {_of_options.pop(DATA)} allow_partial",
        **_of_options,
        SPEED: "resident validate_every device",
        OUTPUT: "out config resume overwrite",
    },
    short_help="Train from a cache",
)
@click.option("--cache", "cache_path", type=FILE, required=True, help="The cache to train from.")
@with_options
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
@click.option(
    "--config",
    type=FILE,
    is_eager=True,
    expose_value=False,
    callback=_options_of_file,
    help="Options from a YAML file (fusion: hybrid, ...) or from the config.json of a run; those given beside it win.",
)
@click.option(
    "--out",
    type=FOLDER,
    help="Run folder.  [default: runs/CACHE-FUSION-foldK-seedS, then what else is not the default]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="With more --epochs than before: train a complete run further. A stopped run resumes anyway.",
)
@click.option("--overwrite", is_flag=True, help="Start again where the run folder holds a run.")
@partial_option
@device_option
def train_command(
    cache_path: Path,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    resident: str,
    validate_every: int,
    allow_partial: bool,
    device: str | None,
    **given: Any,
) -> None:
    """Train from a cache; validation subjects, where there are any, are measured after every epoch.

    The run folder gets config.json, metrics.parquet, tensorboard/, weights/last.safetensors and best.safetensors, and
    state.pt to go on from; the same command resumes a run that was stopped. Two runs with one seed are equal on a CPU, and
    so is a run that was stopped and resumed. A run given more --epochs at its end is another one than a run planned with
    so many: its learning rate rises once more. What is said is kept in log.txt.

    Several GPUs share every batch, and the losses are those of one (--batch-size counts all of them):

    \b
    accelerate launch --multi_gpu --num_processes 4 -m zeus_union.stage2_segment.cli train --cache cache/chaos.h5
    """
    from zeus_union.stage2_segment.training.train import train_run

    options = read_command_line(given)
    run = out or Path("runs") / _run_name(cache_path, options)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "device": device}
    how |= {"resident": resident, "validate_every": validate_every}
    try:
        train_run(cache_path, run, allow_partial=allow_partial, **how, **options)
    except KeyboardInterrupt:
        say(f"interrupted; run the same command again to resume {run}")
        raise
    except OSError as error:
        if not is_full(error):
            raise
        where = error.filename or run
        raise UserError(
            f"no space left on the device while writing {where}; free some, a run keeps about 20 bytes a parameter; the same "
            f"command resumes {run} from the last save"
        ) from error
    if os.environ.get("RANK", "0") == "0":  # of the processes that accelerate launch started, one speaks
        click.echo(f"{run} is trained. Next: zeus-segment evaluate --run {run}")


def _run_name(cache_path: Path, options: Mapping[str, Any]) -> str:
    """What a run is called after: its cache and split, and whatever is not the default, so that no two runs share a name.

    The number of epochs is left out: more of them go on with a run.
    """
    named = {
        name: options[name] for name in ("train_subjects", "test_subjects", "validation_subjects") if options[name]
    }
    split = f"subjects-{_short_digest(named)}" if named else f"fold{options['fold'] or 0}"
    parts = [cache_path.stem, *([] if options["model"] == ZEUS else [options["model"]]), options["fusion"], split]
    said = {"model", "fusion", "fold", "seed", "epochs", *named}
    others = {
        name: options[name]
        for name in BY_NAME  # click gives them in the order of the command line
        if name not in said and options[name] not in (None, (), BY_NAME[name].default)
    }
    extra = [f"{name.replace('_', '-')}-{_in_a_name(value)}" for name, value in others.items()]
    name = "-".join([*parts, f"seed{options['seed']}", *extra])
    return name if len(name) <= 120 else "-".join([*parts, f"seed{options['seed']}", _short_digest(others)])


def _in_a_name(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return re.sub(r"[^\w.+@-]", "_", text)


def _short_digest(values: Mapping[str, Any]) -> str:
    return fingerprint({name: str(value) for name, value in values.items()})[:8]


@main.command(
    "evaluate",
    cls=PanelCommand,
    panels={
        MODEL: "runs ablation row of_fold weights",
        DATA: "cache subjects modalities missing allow_partial",
        SPEED: "workers device",
        OUTPUT: "postprocess out as_json",
    },
    short_help="DSC, IoU, HD95 and NSD of held-out subjects",
)
@runs_options
@click.option("--cache", type=FILE, help="Another cache than the one trained on.  [default: the first run's]")
@weights_option
@click.option(
    "--subjects",
    help="Names, separated by commas.  [default: the held-out ones; of another cache all labelled that nobody trained on]",
)
@modalities_option
@postprocess_option
@click.option("--missing", is_flag=True, help="Also with every subset of the modalities, and what DSC that costs.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads that measure distances beside the prediction.  [default: the cores]",
)
@click.option(
    "--out",
    type=FOLDER,
    help="Folder for the results.  [default: the run's; of several ensemble-DIGEST beside the first; of a row "
    "ABLATION/ensembles/ROW; of NAME.zeus.zip NAME beside it]",
)
@json_option
@partial_option
@device_option
def evaluate_command(
    runs: tuple[Path, ...],
    ablation: Path | None,
    row: str | None,
    of_fold: int | None,
    cache: Path | None,
    weights: str,
    subjects: str | None,
    modalities: str | None,
    postprocess: bool,
    missing: bool,
    workers: int | None,
    out: Path | None,
    as_json: bool,
    allow_partial: bool,
    device: str | None,
) -> None:
    """DSC and IoU per class and subject, at 256 x 256 and in the native grid; HD95 and NSD there.

    The weights are the last by default; the best were chosen on the validation subjects.

    \b
    DSC   2 |P and T| / (|P| + |T|) of a class in a subject's volume, all its cached slices together
    IoU   |P and T| / |P or T|, likewise
    mIoU  mean IoU over the classes and the background, then over the subjects (the paper's), at 256 x 256
    256 px: on the 256 x 256 pictures the decoder sees (the paper's), without post-processing
    native: in the study's own grid, with the run's post-processing (dsc_raw in the file: without)
    HD95  95th percentile of the distances between the surfaces, the larger of both directions (MONAI's), mm
    NSD   share of the surface voxels of both within 2 mm of the other's (MONAI's)
    A class that is in neither truth nor prediction is not counted; in one of them only, DSC, IoU and NSD are 0 and
    HD95 is not counted.

    Training subjects are measured only where --subjects names them; they are known by name and by their source files.
    Of an ensemble those of any member are.

    Writes evaluation.csv, .parquet and .json into the run folder, and missing.parquet with --missing; measured on
    another cache, or on the run's own after it was built again with other labels, evaluation-CACHE-DIGEST.json and so on.
    Of an ensemble also ensemble.json: the members, and the mean DSC between their masks.
    """
    from zeus_union.stage2_segment.evaluation import missing as without
    from zeus_union.stage2_segment.evaluation.evaluate import as_table, evaluate_run, results_folder
    from zeus_union.stage2_segment.predict import agreement_table
    from zeus_union.stage2_segment.trained import open_cache

    members = chosen_runs(runs, ablation, row, of_fold)
    if out is None and ablation is not None and row is not None:
        out = ensemble_of_row(ablation, row, of_fold)
    out = out or results_of_shared(runs)
    chosen: dict[str, Any] = {"subjects": split_names(subjects), "which": weights, "device": device, "out": out}
    chosen["postprocess"] = postprocess
    with open_cache(members[0], cache, allow_partial) as opened:
        evaluation = evaluate_run(members, opened, modalities=split_names(modalities), threads=workers, **chosen)
        subsets = without.evaluate_missing(members, opened, **chosen) if missing else {}
    if as_json:
        results = {**evaluation.summary(), "rows": evaluation.rows, "agreement": evaluation.agreement}
        print_json({**results, "missing": {",".join(names): each.summary() for names, each in subsets.items()}})
        return
    print_tables(as_table(evaluation))
    if evaluation.agreement:
        print_tables(agreement_table(evaluation.agreement, len(members)))
    if subsets:
        print_tables(without.as_table(subsets))
    summary = evaluation.summary()
    mean = summary["mean_over_classes"]["dsc"]
    figures = f"mean DSC {_figure(mean)}, mIoU with background at 256 {_figure(summary['miou_256'])}"
    click.echo(f"{figures}, of {counted(len(summary['subjects']), 'subject')} of {opened.path}")
    next_step = (
        f"zeus report {runs[0] if runs else members[0]}"
        if len(members) == 1
        else "zeus-segment predict, with the same runs"
    )
    click.echo(f"evaluation.csv, .parquet and .json in {results_folder(members, out)}. Next: {next_step}")


@main.command(
    "predict",
    cls=PanelCommand,
    panels={
        MODEL: "runs ablation row of_fold weights",
        DATA: "cache subjects modalities allow_partial",
        SPEED: "device",
        OUTPUT: "out postprocess probabilities",
    },
    short_help="Masks as NIfTI in each study's own grid",
)
@runs_options
@click.option("--cache", type=FILE, help="The cache with the studies to segment.  [default: the first run's]")
@click.option("--out", type=FOLDER, required=True, help="Folder for SUBJECT.nii.gz.")
@weights_option
@click.option("--subjects", help="Names, separated by commas.  [default: all of the cache]")
@modalities_option
@postprocess_option
@probabilities_option
@partial_option
@device_option
def predict_command(
    runs: tuple[Path, ...],
    ablation: Path | None,
    row: str | None,
    of_fold: int | None,
    cache: Path | None,
    out: Path,
    weights: str,
    subjects: str | None,
    modalities: str | None,
    postprocess: bool,
    probabilities: bool,
    allow_partial: bool,
    device: str | None,
) -> None:
    """Write masks as NIfTI with the study's own shape and affine: uint8, 0 background, k the k-th class.

    Several runs predict together: the mean of their probabilities, where they disagree (SUBJECT.disagreement.nii.gz, the
    fraction of the runs whose label is another), and ensemble.json with the mean DSC between their masks.

    
    zeus-segment predict --run runs/a --run runs/b --cache cache/new.h5 --out masks
    zeus-segment predict --ablation ablations/chaos-table2 --row Zeus --cache cache/new.h5 --out masks --probabilities
    """
    from zeus_union.stage2_segment.predict import ENSEMBLE, agreement_table, predict_run, read_agreement
    from zeus_union.stage2_segment.trained import open_cache

    members = chosen_runs(runs, ablation, row, of_fold)
    with open_cache(members[0], cache, allow_partial) as opened:
        written = predict_run(
            members,
            opened,
            out,
            subjects=split_names(subjects),
            modalities=split_names(modalities),
            which=weights,
            device=device,
            postprocess=postprocess,
            probabilities=probabilities,
        )
    if len(members) > 1:
        print_tables(agreement_table(read_agreement(out / ENSEMBLE), len(members)))
    click.echo(f"{counted(len(written), 'mask')} of {opened.path} in {out}. Next: {_evaluate(runs, ablation, row)}")


@main.command("postprocess", short_help="Choose a run's post-processing again")
@run_option
@click.option("--cache", type=FILE, help="The run's cache, where it has moved.  [default: where it was]")
@click.option(
    "--none", "off", is_flag=True, help="Turn the run's post-processing off, until this command chooses again."
)
@device_option
def postprocess_command(run: Path, cache: Path | None, off: bool, device: str | None) -> None:
    """Choose the post-processing of a run's masks again, or turn it off; training chooses it at its end.

    Of each class: only its largest component (3D, in the native grid over the cached slices), then its holes filled. A
    step is kept where the mean DSC over the run's validation subjects is higher with it (nnU-Net's rule); the subjects
    that the run is tested on have no part in it. evaluate, predict and zeus segment then apply it.

    Writes postprocessing.json into the run folder, for the last weights and for the best where there are any.
    """
    from zeus_union.stage2_segment import checkpoint
    from zeus_union.stage2_segment.choose_postprocessing import as_table, choose_postprocessing, say_choices
    from zeus_union.stage2_segment.chosen_postprocessing import FILE as POSTPROCESSING
    from zeus_union.stage2_segment.chosen_postprocessing import turn_off
    from zeus_union.stage2_segment.trained import open_cache

    config = checkpoint.load_config(run)
    if off:
        turn_off(run)
        click.echo(f"{run}: post-processing is off. Next: zeus-segment evaluate --run {run}")
        return
    with open_cache(run, cache) as opened:
        choose_postprocessing(run, opened, device)
    print_tables(*as_table(run, config))
    say_choices(run, config)
    click.echo(f"{run / POSTPROCESSING} written. Next: zeus-segment evaluate --run {run}")


@main.command("probe", short_help="Does a trained run listen to its texts?")
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
@json_option
@partial_option
@device_option
def probe_command(
    run: Path,
    cache: Path | None,
    weights: str,
    subjects: str | None,
    sentences: Path | None,
    top: int,
    as_json: bool,
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
    from zeus_union.stage2_segment.evaluation.probe import probe_sentences, probe_texts, sentence_table, text_table
    from zeus_union.stage2_segment.trained import open_cache

    chosen: dict[str, Any] = {"subjects": split_names(subjects), "which": weights, "device": device}
    with open_cache(run, cache, allow_partial) as opened:
        texts = probe_texts(run, opened, **chosen)
        of_sentences = probe_sentences(run, opened, sentences, **chosen) if sentences else []
    if as_json:
        print_json({"texts": texts, "sentences": of_sentences})
        return
    print_tables(text_table(texts))
    if sentences:
        print_tables(sentence_table(of_sentences, top))
    files = " and ".join(str(run / name) for name in ("probe.parquet", *(["sentences.parquet"] if sentences else [])))
    click.echo(f"{files} written. Next: zeus report {run} shows them beside its slices")


@main.command("params", short_help="Trainable parameters, part by part")
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
    from zeus_union.cache.fold_layers import only_variant
    from zeus_union.cache.reader import Cache
    from zeus_union.cache.terminal import choose
    from zeus_union.stage2_segment.params import as_table, baselines_table, by_modalities

    with Cache(cache_path, allow_partial=allow_partial) as cache:
        if not cache.variants:
            raise UserError(
                f"{cache_path} has no instructions; zeus-instruct build-cache --layers instructions adds them"
            )
        wanted = None if variant is None else [only_variant(cache.variants, variant)]
        name = choose(wanted, cache.variants, "variant")[0]
        chosen = choose(split_names(modalities), cache.modalities, "modality")
        print_tables(as_table(len(chosen), len(cache.classes), cache.text_width(name)))
        print_tables(by_modalities(len(cache.classes), cache.text_width(name)))
        if model == "all":
            print_tables(baselines_table(len(chosen), len(cache.classes)))


def _evaluate(runs: tuple[Path, ...], ablation: Path | None, row: str | None) -> str:
    """The command that measures the runs which predicted."""
    chosen = "".join(f" --run {run}" for run in runs) if ablation is None else f" --ablation {ablation} --row {row!r}"
    return f"zeus-segment evaluate{chosen}, where there are labels"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
