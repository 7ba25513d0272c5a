"""Instructions that were made from the labels they are to predict: refused, unless that is wanted."""

from __future__ import annotations

from collections.abc import Sequence

from zeus_union.cache.errors import UserError
from zeus_union.cache.leaks import ORACLE, leaking
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose


def without_leaks(cache: Cache) -> tuple[str, ...]:
    """The variants that a run may read without being told to."""
    leaks = leaking(cache, cache.variants)
    return tuple(name for name in cache.variants if name not in leaks)


def oracle_variants(cache: Cache, instructions: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The layers that `--text oracle` reads: oracle, with an instruction a class those that speak of each class.

    Raises:
        UserError: they are not there; `wanted` names others.
    """
    per_class = instructions == "class"
    if wanted:
        choose(wanted, cache.variants, "variant")
        honest = [name for name in wanted if name not in leaking(cache, wanted)]
        if honest:
            raise UserError(
                f"{', '.join(honest)} comes from no labels: --text instruction reads it, --text oracle does not"
            )
        if len(wanted) != (len(cache.classes) if per_class else 1):
            raise UserError(
                "--text oracle reads one layer, with --instructions class one for each class, in their order"
            )
        return tuple(wanted)
    oracles = [name for name in leaking(cache, cache.variants) if name == ORACLE or name.startswith(f"{ORACLE}.")]
    by_class = {cache.recipe(f"instructions/{name}").get("instance"): name for name in oracles if name != ORACLE}
    layers = [by_class.get(name) for name in cache.classes] if per_class else [ORACLE if ORACLE in oracles else None]
    known = tuple(name for name in layers if name is not None)
    if len(known) < len(layers):
        more = " --per-class" if per_class else ""
        raise UserError(
            f"{cache.path} has no captions from the true labels; zeus-instruct make-oracle {cache.path}{more} makes them"
        )
    return known


def check_leaks(cache: Cache, variants: Sequence[str], allow_leak: bool) -> tuple[str, ...]:
    """Those of the variants that were made from the true labels.

    Raises:
        UserError: there are any, and they are not allowed.
    """
    leaks = leaking(cache, variants)
    if leaks and not allow_leak:
        raise UserError(
            f"instructions {', '.join(leaks)} were made from the true labels: a run that reads them is an upper bound and no "
            "result; confirm with --allow-leak, or use it as a control (zeus ablate --controls oracle)"
        )
    return leaks
