"""What commands share: the options that say which studies are read and which models are used, and what they open."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource

from zeus_union.cache import devices
from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.terminal import FOLDER, choose, split_names, warn

if TYPE_CHECKING:
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.models.assembly import Models
    from zeus_union.stage1_instruct.models.language.loaded_once import LoadedOnce
    from zeus_union.stage1_instruct.models.text.bert import InstructionEncoder
    from zeus_union.stage1_instruct.profiles.profile import Profile
    from zeus_union.stage1_instruct.studies.study import Dataset
    from zeus_union.stage1_instruct.weights.store import HasNeeds

F = TypeVar("F", bound=Callable[..., Any])
DATASETS = ("demo", "chaos", "msd-prostate", "msd-brain", "msd", "nnunet")

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
device_option = click.option("--device", default=None, help=devices.HELP)

send_option = click.option(
    "--send-images-to",
    metavar="HOST",
    help="With instructor=server at an address that is not this machine: the host that images may be sent to.",
)


def with_profile(command: F) -> F:
    for option in reversed(profile_options):
        command = option(command)
    return command


def with_data(command: F, required: bool = True) -> F:
    """Args: required: whether there is no other way to know the data set than --dataset."""
    for option in reversed(data_options):
        command = option(command)
    more = "" if required else "  [default: as the finished cache at --out knows it, without the raw data]"
    return click.option(
        "--dataset",
        "dataset_name",
        type=click.Choice(DATASETS),
        required=required,
        help=f"Layout of the data set.{more}",
    )(command)


def with_models(command: F) -> F:
    return with_profile(device_option(command))


def open_studies(
    dataset_name: str, data_root: Path | None, modalities: str | None, subjects: str | None, **reading: Any
) -> Dataset:
    """The data set that the options of `with_data` name, with the chosen subjects alone.

    Args:
        reading: further arguments of `open_dataset`.
    """
    from zeus_union.stage1_instruct.datasets import open_dataset

    dataset = open_dataset(dataset_name, data_root, modalities=split_names(modalities), **reading)
    chosen = choose(split_names(subjects), dataset.card.subjects, "subject")
    return replace(dataset, card=replace(dataset.card, subjects=chosen))


def encoder_of(layers: Collection[str]) -> Literal["image"] | None:
    """The `only` of `load_models` for a build of these layers."""
    return None if "instructions" in layers else "image"


def needed(profile: Profile, only: Literal["text", "image"] | None) -> HasNeeds:
    """The weights that have to be there; `only` as for `load_models`."""
    if only is None:
        return profile
    return profile.text_needs if only == "text" else profile.image_needs


def load_models(
    profile_name: str,
    parts: Mapping[str, str],
    device: str | None,
    batch_size: int | None = None,
    only: Literal["text", "image"] | None = None,
    send_images_to: str | None = None,
    loaded: LoadedOnce | None = None,
) -> Models:
    """The frozen models of a profile; their weights are fetched when missing.

    Args:
        only: the encoder that will be used, where no other model is: the weights of the others need not be there.
        loaded: the language model that profiles before this one have loaded.
    """
    from zeus_union.stage1_instruct.models.assembly import Models, best_device
    from zeus_union.stage1_instruct.profiles.profile import load_profile
    from zeus_union.stage1_instruct.weights.fetch import fetch
    from zeus_union.stage1_instruct.weights.store import is_present

    profile = load_profile(profile_name, parts)
    wanted = needed(profile, only)
    if not is_present(wanted):
        fetch(wanted)
    return Models(profile, device or best_device(), batch_size=batch_size, send_images_to=send_images_to, loaded=loaded)


def load_text_encoder(
    context: click.Context, cache: Cache, profile: str, overrides: tuple[str, ...], device: str | None
) -> InstructionEncoder:
    """The text encoder of the options of `with_models`, loaded: the one that the cache's instructions were encoded by.

    Where --models or --set choose another one, it is taken and said: vectors of two encoders cannot be compared.

    Raises:
        UserError: nothing was chosen, and the default is another encoder than the cache's.
    """
    from zeus_union.stage1_instruct.profiles.profile import parse_overrides

    encoder = load_models(profile, parse_overrides(overrides), device, only="text").text_encoder
    recipes = {name: cache.recipe(f"instructions/{name}").get("text_encoder") for name in cache.variants}
    if not recipes or encoder.recipe() in recipes.values():
        return encoder
    name, recipe = next(iter(recipes.items()))
    changed = describe(differences(recipe or {}, encoder.recipe()))
    if context.get_parameter_source("profile") is ParameterSource.DEFAULT and not overrides:
        raise UserError(
            f"instructions/{name} of {cache.path} was made with another text encoder than that of {profile} ({changed}); "
            "give the --models and --set that build-cache was given for it"
        )
    warn(f"another text encoder than that of instructions/{name} ({changed}): a run on one says little of the other")
    return encoder
