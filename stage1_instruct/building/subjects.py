"""The subjects of a build: what goes into the cache under which recipes, and which of it is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.projections import EVERYONE
from zeus_union.cache.recipe import fingerprint
from zeus_union.cache.terminal import counted, say
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.cached import check_can_be_made
from zeus_union.stage1_instruct.building.job import Build, BuildOptions, Layers, Recipes
from zeus_union.stage1_instruct.building.pipeline import build_waiting
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.building.views import Views, begin_views
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.projection.fold import FoldProjection, constants_of
from zeus_union.stage1_instruct.studies import slices as slicing
from zeus_union.stage1_instruct.studies.intensity import windows_of, windows_recipe
from zeus_union.stage1_instruct.studies.study import Dataset


def begin_pictures(
    writer: CacheWriter, dataset: Dataset, models: Models, options: BuildOptions
) -> tuple[Layers, Recipes]:
    """Opens slices and embeddings, and their views, under their recipes; loads no model but an encoder without constants."""
    card = dataset.card
    embeddings, embeddings_recipe = "", {}
    slices_recipe = dataset.cached_recipe or {
        "preprocessing": slicing.recipe(),
        "view": options.view or "acquisition",
        "windows": windows_recipe(windows_of(card.terms, options.windows)),
        "slice_step": options.slice_step,
        "dataset": {"name": card.name, "modalities": list(card.modalities), **dataset.facts},
    }
    writer.begin_layer("slices", slices_recipe)
    if "embeddings" in options.layers:
        embeddings = f"embeddings/{models.profile.encoder}"
        embeddings_recipe = {
            "slices": fingerprint(slices_recipe),
            "encoder": models.encoder_recipe(),
            "store": options.store,
        }
        if dataset.cached_recipe and writer.begun(embeddings) is None:
            check_can_be_made(writer.path, models, dict.fromkeys(card.subjects, (embeddings,)))
        writer.begin_layer(
            embeddings,
            embeddings_recipe,
            constants=lambda: models.encoder.constants(),
            profile=models.profile.to_json(),
        )
    views = Views(options.views, options.mirror_views, embeddings)
    begin_views(writer, views, slices_recipe, embeddings_recipe)
    return Layers(embeddings, {}, views), Recipes(slices_recipe, embeddings_recipe)


def instances_of(build: Build, of_split: str = "") -> dict[str, str]:
    """Layer of instructions -> what its questions ask to segment.

    Args:
        of_split: how the names of the layers end.
    """
    card, options = build.dataset.card, build.options
    instances = class_variants(options.variant, card.classes) if options.per_class else {options.variant: card.instance}
    return {f"instructions/{variant}{of_split}": instance for variant, instance in instances.items()}


def begin_texts(build: Build, recipes: Recipes, of_split: str = "", projection: FoldProjection | None = None) -> Layers:
    """Opens the layers of instructions under their recipes, beside those of the build; loads no model but a projection.

    Args:
        of_split: how the names of the layers end.
        projection: in place of the profile's; kept with the layers.
    """
    instances = instances_of(build, of_split)
    recipe = text_recipe(build, recipes, None if projection is None else projection.entry)
    constants = projection.constants if projection is not None else _kept_of_profile(build.models)
    for layer, instance in instances.items():
        build.writer.begin_layer(
            layer, {**recipe, "instance": instance}, constants=constants, profile=build.models.profile.to_json()
        )
    return replace(build.layers, instructions=instances)


def _kept_of_profile(models: Models) -> Callable[[], Mapping[str, NDArray[Any]]] | None:
    """The profile's projection as a layer keeps it, so that a run carries it; None without one of ours."""
    if models.profile.instructor != "llm":
        return None
    trained = models.projected_llm.stored_projection
    if trained is None or not trained.facts:
        return None

    def constants() -> Mapping[str, NDArray[Any]]:
        # One that does not fit the models is refused here, before it begins a layer.
        _ = models.projected_llm.projection
        return constants_of({EVERYONE: trained.connector}, trained.facts)

    return constants


def text_recipe(build: Build, recipes: Recipes, projection: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the instructions are made from, but for what they ask for."""
    models = build.models
    sees_embeddings = models.instructor.sees == "embeddings"
    recipe = {
        "embeddings" if sees_embeddings else "slices": fingerprint(
            recipes.embeddings if sees_embeddings else recipes.slices
        ),
        "terms": dict(build.dataset.card.terms),
        **(models.instruction_recipe() if projection is None else models.instruction_recipe_with(projection)),
    }
    if models.instructor.samples:
        recipe["seed"] = build.options.seed
    return recipe


def build_subjects(build: Build, subjects: Sequence[str]) -> None:
    """Builds all that is missing of these subjects; those that fail are in the report."""
    report, dataset = build.report, build.dataset
    missing = find_missing(build, subjects)
    if dataset.cached_recipe:
        check_can_be_made(build.options.out, build.models, missing)
    waiting = [subject for subject in missing if subject not in report.failures]
    failed = len(report.failures.keys() & set(subjects) - missing.keys())
    if finished := len(subjects) - len(missing) - failed:
        say(f"{finished} of {counted(len(subjects), 'subject')} finished already")
    _load_models(build, {layer for subject in waiting for layer in missing[subject]})
    build_waiting(build, waiting)


def find_missing(build: Build, subjects: Sequence[str]) -> dict[str, list[str]]:
    """Subject -> the layers it is missing in, of those that are not finished; damaged ones become failures."""
    missing: dict[str, list[str]] = {}
    with build.writer.at_work():
        for subject in subjects:
            try:
                layers = [layer for layer in build.layers.names if not build.writer.finished(layer, subject)]
            except UserError as error:
                build.report.failures[subject] = str(error)
                continue
            if layers:
                missing[subject] = layers
    return missing


def _load_models(build: Build, missing: Collection[str]) -> None:
    """Loads the models that the `missing` layers need: what is wrong with them is known then."""
    if any(layer.startswith("embeddings/") for layer in missing):
        _ = build.models.encoder
    if any(layer in missing for layer in build.layers.instructions):
        if build.projection is not None:
            build.models.projected_llm.use_projection(build.projection.everyone)
        build.models.instructor.load()
        _ = build.models.text_encoder
