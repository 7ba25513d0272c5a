"""Whether a cache is one that a run can read: made by the same frozen models, asked the same question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.terminal import choose
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.inputs.layers import UNBOUND, layers_read, text_differences
from zeus_union.stage2_segment.inputs.pictures import check_pictures, say_other_views
from zeus_union.stage2_segment.plan import text_width

REMEDY = "build it with the --models and --set of the run's cache"


def check_cache(
    config: RunConfig, cache: Cache, modalities: Sequence[str] | None = None, *, say_views: bool = True
) -> tuple[str, ...]:
    """The modalities to predict from: `modalities`, or all the run was trained with.

    Args:
        say_views: say where slices are cut as none of the run's is.

    Raises:
        UserError: the cache lacks a layer or modality of the run; its pictures were prepared otherwise, its embeddings come
            from another encoder, or its instructions from other models or another question; a modality that the run was
            not trained with.
    """
    inputs = config.inputs
    choose([inputs.encoder] if inputs.encoder else [], cache.encoders, "encoder")
    wanted = choose(modalities, inputs.modalities, "modality of the run")
    missing = [name for name in wanted if name not in cache.modalities]
    if missing:
        raise UserError(
            f"{cache.path} has no {', '.join(missing)}; it has {', '.join(cache.modalities)}; --modalities predicts "
            "from those there are"
        )
    pictures = cache.recipe("slices").get("preprocessing") or {}
    _check_same(
        what_differs(inputs.preprocessing, pictures), f"the pictures of {cache.path} were prepared otherwise than"
    )
    check_pictures(inputs, cache, wanted)
    if say_views:
        say_other_views(inputs, cache)
    encoder = cache.recipe(inputs.embedding_layer) if inputs.encoder else {}
    _check_same(what_differs(inputs.embedding_recipe, encoder), f"{cache.path} was made by another image encoder than")
    for name, layer in zip(inputs.texts_read, layers_read(config, cache)):
        check_instructions(inputs.instruction_recipes[name], cache.recipe(f"instructions/{layer}"), str(cache.path))
        width = text_width(cache, [layer], config.architecture.form, config.architecture.aligner)
        if width != config.architecture.text_width:
            raise UserError(
                f"{cache.path} has text embeddings of {width} values, the run was trained on "
                f"{config.architecture.text_width}; build the cache with the run's text encoder"
            )
    return wanted


def check_instructions(of_run: Mapping[str, Any], now: Mapping[str, Any], where: str, remedy: str = REMEDY) -> None:
    """Whether instructions are of the kind that a run was trained on.

    Args:
        of_run, now: recipes of instruction layers; other patients, another seed and fewer modalities are no difference.
        where: what has the others, for the message.
        remedy: what to do.

    Raises:
        UserError: another LLM, projection, vision or text encoder, prompt, term or instance, naming it.
    """
    complaint = f"the instructions of {where} are by other models, or of another question, than"
    _check_same(text_differences(of_run, now), complaint, remedy)


def what_differs(of_run: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    before, after = ({key: recipe[key] for key in recipe if key not in UNBOUND} for recipe in (of_run, now))
    return differences(before, after)


def _check_same(changed: Mapping[str, tuple[Any, Any]], complaint: str, remedy: str = REMEDY) -> None:
    if changed:
        raise UserError(f"{complaint} the run's ({describe(changed)}); {remedy}")
