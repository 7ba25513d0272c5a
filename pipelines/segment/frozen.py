"""Stage 1's models for a new study: those that made what the runs were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_of
from zeus_union.cache.leaks import leak_of
from zeus_union.cache.recipe import describe, differences, sha256_file
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.profiles.profile import AUTO, Profile, load_profile, profile_from
from zeus_union.stage1_instruct.texts.import_export import IMPORTED
from zeus_union.stage2_segment.carried import PROFILE, PROJECTION, carried_profile
from zeus_union.stage2_segment.compatibility import check_instructions
from zeus_union.stage2_segment.config import RunConfig


def frozen_parts(
    runs: Sequence[Path],
    configs: Sequence[RunConfig],
    profile: str | None,
    overrides: Mapping[str, str],
    device: str,
    send_images_to: str | None,
) -> list[tuple[Models, dict[str, Any]]]:
    """The models that make what the runs read of a study, once for every projection and way of asking; none is loaded.

    With them stands how `BuildOptions` names the layers of texts, nothing where the runs read none. Layers of one name that
    are made through different projections get a number; a run knows its own by the recipe.

    Raises:
        UserError: these models cannot write a run's instructions, or are another image encoder than a run's.
    """
    models_by: dict[tuple[Profile, str], Models] = {}  # profile, and the digest of the projection that a run carries
    texts_by: dict[tuple[str, bool, str], tuple[Models, dict[str, Any]]] = {}
    encoders: list[Models] = []
    for run, config in zip(runs, configs):
        chosen = _profile_of(run, profile, overrides)
        carried = chosen.projection == AUTO and (run / PROJECTION).is_file()
        digest = sha256_file(run / PROJECTION) if carried else ""
        if (chosen, digest) not in models_by:
            with_projection = replace(chosen, projection=str(run / PROJECTION)) if carried else chosen
            models_by[chosen, digest] = load_models(with_projection, device, send_images_to=send_images_to)
        models, texts = models_by[chosen, digest], _variant(config)
        if config.is_zeus:
            _check_encoder(run, config, models)
            encoders.append(models)
        _check_instructions(run, config, models)
        key = (texts.get("variant", ""), bool(texts.get("per_class")), digest)
        if not texts or key in texts_by:
            continue
        same_name = sum(variant == key[0] for variant, _, _ in texts_by)
        if same_name:
            texts["variant"] += f"-{same_name + 1}"
        texts_by[key] = models, texts
    return list(texts_by.values()) or [((encoders or list(models_by.values()))[0], {})]


def _profile_of(run: Path, profile: str | None, overrides: Mapping[str, str]) -> Profile:
    """The models that are named, else those that the run's cache was made with; lite where that does not say."""
    carried = carried_profile(run, overrides) if profile is None else None
    if carried is not None:
        return profile_from(carried, str(run / PROFILE), overrides)
    return load_profile(profile or "lite", overrides)


def _check_encoder(run: Path, config: RunConfig, models: Models) -> None:
    """Raises UserError: the run was trained on the embeddings of another image encoder."""
    of_run = config.inputs.embedding_recipe["encoder"]
    changed = differences(of_run, models.encoder_recipe())
    if changed:
        raise UserError(
            f"these --models and --set have another image encoder than {run} was trained on ({describe(changed)}); give those "
            "that build-cache was given for it"
        )


def _check_instructions(run: Path, config: RunConfig, models: Models) -> None:
    """Raises UserError: nobody can write the instructions that the run reads, or these models would write others."""
    for name in config.inputs.texts_read:
        recipe = config.inputs.instruction_recipes[name]
        _check_has_instructor(name, recipe)
        # The question is asked as the run's was: its terms and instance come from the card.
        question: dict[str, Any] = {part: recipe[part] for part in ("terms", "instance") if part in recipe}
        check_instructions(
            recipe,
            {**question, **models.instruction_recipe()},
            "these --models and --set",
            f"give the --models and --set that build-cache was given for {run}",
        )


def _check_has_instructor(variant: str, recipe: Mapping[str, Any]) -> None:
    """Raises UserError: nobody can write such instructions for a new study."""
    if leak_of(recipe) is not None:
        raise UserError(
            f"the run reads instructions made from the true labels ({variant}), which a new study does not have; it is an "
            "upper bound, train one on other instructions to segment with"
        )
    if recipe.get("instructor") == IMPORTED:
        raise UserError(
            f"the run reads instructions that were imported ({variant}), which no model here can write for a new study: "
            "build a cache of it (zeus-instruct build-cache), import its texts (import-texts), then zeus-segment predict"
        )


def _variant(config: RunConfig) -> dict[str, Any]:
    """How `BuildOptions` names the layers that the run reads."""
    if not config.inputs.texts_read:
        return {}
    variant = base_of(config.inputs.texts_read[0])
    if config.architecture.instructions == "class":
        return {"variant": variant.rpartition(".")[0], "per_class": True}
    return {"variant": variant}
