"""build-cache --dry-run: slice-modalities, bytes and hours before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zeus_union.cache.terminal import counted, in_words, time_in_words, warn
from zeus_union.cache.view_layers import view_of
from zeus_union.stage1_instruct.commands.shared import encoder_of, needed

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.building.forecast import Forecast, LayerForecast
    from zeus_union.stage1_instruct.building.job import BuildOptions
    from zeus_union.stage1_instruct.building.trial import Trial
    from zeus_union.stage1_instruct.building.variants import VariantRow
    from zeus_union.stage1_instruct.studies.study import Dataset


def dry_run(
    dataset: Dataset, rows: Sequence[VariantRow], options: BuildOptions, profile_name: str, device: str | None
) -> None:
    """Says what the build would write and how long it would take here; fetches nothing and leaves nothing behind.

    Args:
        rows: one for each variant of the instructions.

    Raises:
        BuildFailures: studies that the build would leave out.
        NoSpaceError: the disk is too small.
    """
    from zeus_union.stage1_instruct.building.failures import BuildFailures
    from zeus_union.stage1_instruct.building.forecast import forecast, require_room, text_layers
    from zeus_union.stage1_instruct.profiles.profile import load_profile

    profiles = [load_profile(profile_name, row.parts) for row in rows]
    names = [row.variant or profile.name for row, profile in zip(rows, profiles)]
    trains = options.trained_for is not None and profiles[0].instructor == "llm" and profiles[0].projection == "auto"
    instructions = [layer for name in names for layer in text_layers(dataset, options, name, trains)]
    missing = forecast(dataset, profiles[0].encoder, options, instructions)
    for layer in missing.layers:
        click.echo(
            f"{layer.layer}: {counted(layer.subjects, 'subject')} to build, "
            f"at most {counted(layer.slice_modalities, 'slice-modality')}, "
            f"{layer.bytes / 2**20:,.0f} MiB"
        )
    of_views = sum(layer.bytes for layer in missing.layers if view_of(layer.layer)) / 2**20
    click.echo(f"in total {missing.bytes / 2**20:,.0f} MiB, {of_views:,.0f} of them views")
    if missing.packs:
        click.echo(
            f"and {in_words(missing.packs)} more for a while, to pack them into one file (--no-pack does without)"
        )
    for subject, reason in missing.failures.items():
        warn(f"{subject} would be left out: {reason}")
    if room := require_room(dataset, options, missing):
        click.echo(room)
    if any(layer.subjects for layer in missing.layers):
        _say_times(dataset, options, missing, rows, profile_name, device, trains)
    if missing.failures:
        raise BuildFailures(options.out, missing.failures, len(dataset.card.subjects))


def _say_times(
    dataset: Dataset,
    options: BuildOptions,
    missing: Forecast,
    rows: Sequence[VariantRow],
    profile_name: str,
    device: str | None,
    trains: bool,
) -> None:
    """A line for each part, measured on slices of a real study, and the sum."""
    from zeus_union.stage1_instruct.building.forecast import folder_there
    from zeus_union.stage1_instruct.building.trial import measure_parts
    from zeus_union.stage1_instruct.models.assembly import Models, best_device
    from zeus_union.stage1_instruct.profiles.profile import load_profile
    from zeus_union.stage1_instruct.weights.store import is_present

    profile = load_profile(profile_name, rows[0].parts)
    if not is_present(needed(profile, encoder_of(options.layers))):
        click.echo("the models' weights are not here yet (zeus-instruct fetch), so the time is not measured")
        return
    models = Models(profile, device or best_device(), batch_size=options.batch_size)
    folder = folder_there(options.out)
    trains = trains and models.projected_llm.can_be_trained
    trial = measure_parts(dataset, models, options, trains, folder if os.access(folder, os.W_OK) else Path())
    hours = hours_of(missing.layers, trial)
    click.echo(f"time on {models.device}, measured on slices of {trial.subject}:")
    for part, seconds in trial.seconds.items():
        click.echo(f"  {part}: {seconds:.3g} s a slice-modality, {time_in_words(hours[part] * 3600)}")
    splits = len(
        {layer.layer.partition("@")[2] for layer in missing.layers if "@" in layer.layer and not view_of(layer.layer)}
    )
    training = trial.training_minutes * max(1, splits) / 60
    if training:
        click.echo(f"  projection training: {time_in_words(training * 3600)} for {counted(max(1, splits), 'split')}")
    for part, why in trial.not_measured.items():
        click.echo(f"  {part}: not measured: {why}")
    of_views = sum(hours_of([layer for layer in missing.layers if view_of(layer.layer)], trial).values())
    most, total = max([*hours.values(), training]), sum(hours.values()) + training
    # On a CPU whatever runs beside the models takes their cores.
    beside = (
        "" if models.device.type == "cpu" else f"; {time_in_words(most * 3600)} where all runs beside the longest part"
    )
    click.echo(
        f"about {time_in_words(total * 3600)} by one process, one part after the other "
        f"({time_in_words(of_views * 3600)} of it views){beside}"
    )


def hours_of(layers: Sequence[LayerForecast], trial: Trial) -> Mapping[str, float]:
    """Part -> hours over what is missing of these layers."""
    from zeus_union.stage1_instruct.building import trial as parts

    pictures = max((layer.slice_modalities for layer in layers if not view_of(layer.layer)), default=0)
    counts = {
        parts.READING: pictures,
        parts.ENCODER: sum(one.slice_modalities for one in layers if one.layer.startswith("embeddings/")),
        parts.LLM: (texts := sum(one.slice_modalities for one in layers if one.layer.startswith("instructions/"))),
        parts.TEXT: texts,
        parts.VIEWS: sum(one.slice_modalities for one in layers if one.layer.startswith("slices@")),
    }
    # Nearly all that is written is embeddings, which the trial wrote with everything else.
    counts[parts.WRITING] = counts[parts.ENCODER] or pictures
    return {part: counts[part] * seconds / 3600 for part, seconds in trial.seconds.items()}
