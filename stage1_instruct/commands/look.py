"""zeus-instruct inspect, verify, pack: a cache that is there."""

from __future__ import annotations

from pathlib import Path

import click

from zeus_union.cache.terminal import FILE, existing, json_option, print_json


@click.command("inspect", short_help="What is in a cache")
@click.argument("cache", type=FILE)
@click.option("--subject", help="Show one of its slices.")
@click.option("--slice", "number", type=int, help="Slice number in the view of the subject, e.g. axial: from below.")
@click.option("--variant", help="Which instructions.  [default: the first]")
@click.option("--png", type=FILE, help="Write images, labels and instructions of that slice as a picture.")
@json_option
@click.option(
    "--html", type=FILE, help="Write all of it as a page for a browser: coverage, texts, intensities, samples."
)
@click.option("--allow-partial", is_flag=True, help="Open an unfinished cache.")
def inspect(
    cache: Path,
    subject: str | None,
    number: int | None,
    variant: str | None,
    png: Path | None,
    as_json: bool,
    html: Path | None,
    allow_partial: bool,
) -> None:
    """What is in a cache: layers, sizes, recipes; and an instruction beside its image."""
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.inspect import contents_of, describe, draw_slice, pick_slice

    with Cache(existing(cache, "the cache"), allow_partial=allow_partial) as opened:
        if html is not None:
            from zeus_union.cache.page.render import write_page
            from zeus_union.cache.terminal import choose
            from zeus_union.stage1_instruct.inspect_page import cache_page

            if subject is not None:
                choose([subject], opened.subjects, "subject")
            click.echo(f"open {write_page(html, cache_page(opened, variant, subject))} in a browser")
            return
        if subject is None and number is None and png is None:
            contents = contents_of(opened)
            print_json(contents) if as_json else describe(contents)
            return
        row = pick_slice(opened, subject, number)
        draw_slice(opened, row, variant, png)


@click.command("verify", short_help="Check every byte of a cache")
@click.argument("cache", type=FILE)
@json_option
def verify(cache: Path, as_json: bool) -> None:
    """Check every byte and every row of a cache; exit code 1 and a list where something is wrong."""
    from zeus_union.cache.verify import verify as verify_cache

    findings = verify_cache(existing(cache, "the cache"))
    if as_json:
        print_json({"cache": str(cache), "sound": not findings, "findings": findings})
    else:
        for finding in findings or [f"{cache} is sound"]:
            click.echo(finding)
    if findings:
        raise click.exceptions.Exit(1)


@click.command("pack", short_help="Put a sharded cache into one file")
@click.argument("cache", type=FILE)
@click.argument("out", type=FILE)
def pack(cache: Path, out: Path) -> None:
    """Copy a sharded cache (chaos.h5 beside chaos.h5.d) into one file that can be taken anywhere.

    Also a cache that was built in parts, when all of them are there.

    Needs the space twice for a while; every row is verified before OUT appears.
    """
    from zeus_union.cache.pack import pack as pack_cache

    pack_cache(existing(cache, "the cache"), out)
    click.echo(f"{out} holds all of {cache}. Next: zeus-segment train --cache {out}")
