"""zeus-instruct merge, remove: caches that become one, and subjects or layers that leave one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import FILE, counted, existing, some_of, warn

if TYPE_CHECKING:
    from zeus_union.cache.removing import Removal


@click.command("merge", short_help="One cache of two")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--out", type=FILE, required=True, help="The cache to write; nothing may have that name.")
@click.option(
    "--pack/--no-pack", "pack", default=None, help="One file, or a folder of shards.  [default: one file below 20 GB]"
)
def merge_command(first: Path, second: Path, out: Path, pack: bool | None) -> None:
    """One cache of two that were built alike, of different subjects: those of FIRST, then those of SECOND.

    Both stay as they are, and every byte of them is checked first. They must agree in modalities, classes, terms, layers and
    what these were made from; a layer that one of them lacks is built there, or taken out of the other (remove --layer).
    Each subject stays in its fold.

    \b
    zeus-instruct merge cache/hospital-a.h5 cache/hospital-b.h5 --out cache/both.h5
    """
    from zeus_union.cache.merging import merge

    merged = merge(existing(first, "the cache"), existing(second, "the cache"), out, pack)
    click.echo(f"{out} holds {counted(len(merged), 'subject')}. Next: zeus-segment train --cache {out}")


@click.command("remove", short_help="Take subjects or layers out of a cache")
@click.argument("cache", type=FILE)
@click.argument("subjects", metavar="[SUBJECT]...", nargs=-1)
@click.option("--layer", "layers", multiple=True, help="A layer to take out, e.g. instructions/lite; repeatable.")
@click.option("--yes", is_flag=True, help="Do it; without, it is only said what would be removed.")
def remove_command(cache: Path, subjects: tuple[str, ...], layers: tuple[str, ...], yes: bool) -> None:
    """Take subjects out of a cache, with all of their rows, texts and shards; or layers. It cannot be undone.

    The other subjects stay in their folds. A packed file is written anew without them, which needs its space twice for a
    while; of a sharded cache only their shards go. Runs that were trained on them stay as they are.

    \b
    zeus-instruct remove cache/chaos.h5 case_007            what would be removed
    zeus-instruct remove cache/chaos.h5 case_007 --yes
    zeus-instruct remove cache/chaos.h5 --layer instructions/draft --yes
    """
    from zeus_union.cache.removing import plan_removal, remove

    existing(cache, "the cache")
    if not subjects and not layers:
        raise click.UsageError("Missing argument 'SUBJECT' (or --layer).")
    if not yes:
        plan = plan_removal(cache, subjects, layers)
        _say_consequences(plan)
        copied = f", and {_size(plan.copied)} are written anew" if plan.copied else ""
        raise UserError(f"would remove {_names(plan)} of {cache}: {_size(plan.freed)}{copied}; add --yes to do it")
    done = remove(cache, subjects, layers)
    _say_consequences(done)
    click.echo(f"{cache}: {_names(done)} removed, {_size(done.freed)} freed")


def _names(removal: Removal) -> str:
    return some_of([*removal.subjects, *removal.layers])


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _say_consequences(removal: Removal) -> None:
    for fold in removal.untested:
        warn(f"fold {fold} has no test subject left without them")
    if removal.learned:
        warn(f"the projection behind {some_of(removal.learned)} has learned from them, and stays")
