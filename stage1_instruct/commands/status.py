"""zeus-instruct status: who builds what of a cache, how far it is, how long it still takes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zeus_union.cache.terminal import FILE, counted, in_words, print_tables, time_in_words

if TYPE_CHECKING:
    from rich.table import Table

    from zeus_union.cache.holders import Holder
    from zeus_union.cache.status import Status


@click.command("status", short_help="Who builds what, how far, how long still")
@click.argument("cache", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object; times in seconds.")
def status(cache: Path, as_json: bool) -> None:
    """Who builds what of a cache, how far it is, and how long it still takes.

    While any number of processes build it, from any machine that sees the disk; also of a finished cache, on a read-only
    disk, and where the file system has no locks (then it is not known who is at work). Nothing is changed or locked.

    The time left is that of the last finished subjects, by all processes that were at work.
    """
    from zeus_union.cache.status import read_status

    read = read_status(cache)
    if as_json:
        click.echo(json.dumps(_as_json(read)))
        return
    click.echo(_headline(read))
    if read.layers:
        print_tables(_layers_table(read))
    for line in (*_at_work(read), *read.damaged):
        click.echo(line)
    click.echo(_outlook(read))


def _as_json(read: Status) -> dict[str, Any]:
    layers = [{**asdict(layer), "seconds_left": layer.seconds_left} for layer in read.layers]
    more = {"path": str(read.path), "complete": read.complete, "seconds_left": read.seconds_left}
    return {**asdict(read), **more, "layers": layers}


def _headline(read: Status) -> str:
    if read.complete:
        return f"{read.path} is finished ({read.state}): {counted(read.subjects, 'subject')}"
    return f"{read.path} is unfinished: {read.finished} of {counted(read.subjects, 'subject')} finished in all layers"


def _layers_table(read: Status) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for heading in ("subjects", "slice-modalities", "size", "s each"):
        table.add_column(heading, justify="right")
    for layer in read.layers:
        table.add_row(
            layer.layer,
            f"{layer.subjects} of {layer.subjects_due}",
            f"{layer.slice_modalities:,} of {layer.slice_modalities_due:,}",
            in_words(layer.bytes),
            "" if layer.seconds_each is None else f"{layer.seconds_each:.3g}",
        )
    return table


def _at_work(read: Status) -> list[str]:
    """A line for each process that has a subject, or was lost with it."""
    lines = [_holder_line(holder) for holder in read.holders]
    if read.locks is False:
        lines.append("the file system has no locks: who is at work is not known")
        lines += [f"being written: {name}, {time_in_words(age)} ago" for name, age in read.writing.items()]
    return lines


def _holder_line(holder: Holder) -> str:
    who = f"{holder.host} pid {holder.pid}" + (f" job {holder.job}" if holder.job else "")
    since = time_in_words(time.time() - holder.since)
    if holder.alive is False:
        return f"lost: {holder.subject}, {who}, taken {since} ago; the next process that is free takes it over"
    return f"at work: {holder.subject}, {who if holder.host else 'not known who'}, for {since}"


def _outlook(read: Status) -> str:
    if read.complete:
        return "nothing is missing"
    at_work = sum(holder.alive is not False for holder in read.holders)
    last = (
        "" if read.last_finished is None else f"; last finished {time_in_words(time.time() - read.last_finished)} ago"
    )
    missing = [layer for layer in read.layers if layer.seconds_left != 0.0]
    if read.layers and not missing:
        left = "every row is there, and the end is missing: the same build-cache command puts it together"
    elif read.seconds_left is None or not read.layers:
        left = "how long is known when each layer has two finished subjects"
    else:
        each = read.seconds_left / max(1, sum(layer.slice_modalities_due - layer.slice_modalities for layer in missing))
        left = f"about {time_in_words(read.seconds_left)} left, at {each:.3g} s a slice-modality and layer"
    if not at_work and read.locks is not False:
        return f"no process is at work: the same build-cache command resumes{last}. {left}"
    return f"{at_work} at work{last}. {left}" if at_work else f"{left}{last}"
