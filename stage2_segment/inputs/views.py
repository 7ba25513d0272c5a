"""Which augmented copies of the training slices a run reads, of those that its cache has."""

from __future__ import annotations

from collections.abc import Iterator

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.view_layers import view_layer

_OF_EACH = ("view", "slices")  # what differs between the recipes of two views, and nothing else


def views_read(cache: Cache, encoder: str, wanted: int | None, reads_text: bool) -> int:
    """How many views a run reads.

    Args:
        encoder: whose embeddings.
        wanted: None: all there are.
        reads_text: whether the run reads texts about the slices.

    Raises:
        UserError: the cache has fewer; they are not of one kind; they are mirrored, and texts name sides.
    """
    available = cache.views(encoder)
    count = available if wanted is None else wanted
    if count > available:
        has = f"{available} views" if available else "no views"
        raise UserError(
            f"{cache.path} has {has} of its labelled slices by {encoder} and --views asks for {count}; its build-cache "
            f"command with --views {count} adds them"
        )
    _check_alike(cache, encoder, count)
    if count and reads_text and cache.recipe(view_layer("slices", 1)).get("mirrored"):
        raise UserError(
            f"the views of {cache.path} are mirrored (--mirror-views) and the instructions name left and right; --text none "
            "trains without them, --views 0 on the slices alone"
        )
    return count


def layers_of_views(encoder: str, count: int) -> Iterator[str]:
    """The layers that hold the first `count` views of an encoder."""
    for view in range(1, count + 1):
        yield view_layer("slices", view)
        yield view_layer(f"embeddings/{encoder}", view)


def _check_alike(cache: Cache, encoder: str, count: int) -> None:
    """Raises UserError: views that were drawn otherwise than the first, or encoded otherwise than the slices."""
    for view in range(1, count + 1):
        for layer, like in (
            (view_layer("slices", view), view_layer("slices", 1)),
            (view_layer(f"embeddings/{encoder}", view), f"embeddings/{encoder}"),
        ):
            recipe, expected = cache.recipe(layer), cache.recipe(like)
            changed = differences(*({k: v for k, v in of.items() if k not in _OF_EACH} for of in (expected, recipe)))
            if changed:
                raise UserError(
                    f"{layer} of {cache.path} was made otherwise than {like} ({describe(changed)}); --views {view - 1} leaves "
                    "it out, or build the cache again under another --out"
                )
