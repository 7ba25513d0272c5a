"""zeus-instruct fetch: weights and public data sets."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import FOLDER
from zeus_union.stage1_instruct.commands.shared import with_profile
from zeus_union.stage1_instruct.public_data.sources import PUBLIC_DATA


@click.command("fetch", short_help="Download weights, or a public data set")
@with_profile
@click.option(
    "--dataset",
    "dataset_name",
    type=click.Choice(list(PUBLIC_DATA)),
    help="Get this public data set instead of weights.",
)
@click.option("--data-root", type=FOLDER, help="With --dataset: the folder it goes into.  [default: data/DATASET]")
@click.option(
    "--unlabelled",
    is_flag=True,
    help="With --dataset chaos: also its test set (about 1.1 GB), of which no labels are published.",
)
@click.option(
    "--keep-archive", is_flag=True, help="With --dataset: leave the downloaded archive beside the data set's folder."
)
@click.pass_context
def fetch(
    context: click.Context,
    profile: str,
    overrides: tuple[str, ...],
    dataset_name: str | None,
    data_root: Path | None,
    unlabelled: bool,
    keep_archive: bool,
) -> None:
    """Download a profile's weights into ZEUS_HOME, or one of the paper's data sets into data/DATASET.

    Sizes and licences are said first; what was stopped goes on; what is there already is not fetched again. Of weights the
    sha256 is checked, and they are converted once. ZEUS_HOME is a folder of your choice (environment variable), or a
    per-user cache folder. Of a data set the published digests are checked and all of them recorded in its source.json, and
    an archive that you have already is used where it lies beside the data set's folder under its own name.

    \b
    zeus-instruct fetch --models lite
    zeus-instruct fetch --dataset chaos
    """
    if dataset_name is not None:
        if overrides or context.get_parameter_source("profile") is not ParameterSource.DEFAULT:
            raise UserError("--dataset gets data and --models and --set weights; give one of the two at a time")
        _fetch_data(dataset_name, data_root, unlabelled, keep_archive)
        return
    if data_root is not None or unlabelled or keep_archive:
        raise UserError(
            f"--data-root, --unlabelled and --keep-archive are about a data set; name it with --dataset ({', '.join(PUBLIC_DATA)})"
        )
    _fetch_weights(profile, overrides)


def _fetch_weights(profile: str, overrides: tuple[str, ...]) -> None:
    from zeus_union.stage1_instruct.profiles.profile import load_profile, parse_overrides
    from zeus_union.stage1_instruct.weights.fetch import fetch
    from zeus_union.stage1_instruct.weights.store import zeus_home

    fetch(load_profile(profile, parse_overrides(overrides)))
    click.echo(f"the weights of {profile} are in {zeus_home()}. Next: zeus-instruct doctor --models {profile}")


def _fetch_data(name: str, data_root: Path | None, unlabelled: bool, keep_archive: bool) -> None:
    from zeus_union.stage1_instruct.public_data.fetch import fetch_dataset

    root = fetch_dataset(name, data_root, unlabelled=unlabelled, keep_archive=keep_archive)
    where = f" --data-root {data_root}" if data_root is not None else ""
    click.echo(f"{name} is in {root}. Next: zeus-instruct check --dataset {name}{where}")
