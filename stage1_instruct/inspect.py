"""Looking into a cache: its layers as a table, and one slice with what was said about it as a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.colours import class_hex
from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import only_variant
from zeus_union.cache.layout import kind_of
from zeus_union.cache.reader import Cache
from zeus_union.cache.text_statistics import text_statistics


def describe(cache: Cache) -> None:
    """Prints what the cache holds."""
    card = cache.card
    rows = cache.rows
    labelled = int(rows["labelled"].sum())
    click.echo(f"data set   {card.name}: {card.instance}")
    click.echo(f"modalities {', '.join(f'{name} ({card.terms[name]})' for name in card.modalities)}")
    click.echo(f"classes    {', '.join(card.classes)}")
    click.echo(
        f"slices     {len(rows)} of {len(cache.subjects)} subjects, one in {card.slice_step}; {labelled} with labels"
    )
    for layer in cache.layers:
        click.echo(
            f"layer      {layer}  {cache.layer_bytes(layer) / 2**20:,.1f} MiB  recipe {cache.fingerprint(layer)[:12]}"
        )
        if kind_of(layer) == "instructions":
            statistics = text_statistics(cache.instructions(layer.partition("/")[2]))
            for line in (*statistics.lines(), *([f"warning: {statistics.warning}"] if statistics.warning else ())):
                click.echo(f"             {line}")
    click.echo("subject            slices  with foreground  fold  view      native grid (mm, orientation)")
    for index, subject in enumerate(cache.subjects):
        slices = rows[rows["subject"] == index]
        grid = cache.grid(subject)
        spacing = " x ".join(f"{s:.3g}" for s in grid.spacing)
        shape = " x ".join(str(n) for n in grid.shape)
        fold = slices["fold"][0] if len(slices) else -1
        foreground = int((slices["foreground"] > 0).sum())
        click.echo(
            f"{subject:18} {len(slices):6}  {foreground:15}  {fold:4}  {grid.view:8}  {shape} ({spacing}, {grid.orientation})"
        )


def pick_slice(cache: Cache, subject: str | None, number: int | None) -> int:
    """The row of a slice; by default the one with the most foreground.

    Raises:
        UserError: no such subject or slice, naming those there are.
    """
    rows = cache.rows
    wanted = np.ones(len(rows), dtype=bool)
    if subject is not None:
        if subject not in cache.subjects:
            raise UserError(f"no subject {subject} in the cache; there are: {', '.join(cache.subjects)}")
        wanted &= rows["subject"] == cache.subjects.index(subject)
    if number is not None:
        numbers = rows["number"][wanted]
        wanted &= rows["number"] == number
        if not wanted.any():
            raise UserError(f"no slice {number} in the cache; there are: {', '.join(map(str, sorted(set(numbers))))}")
    candidates = np.flatnonzero(wanted)
    return int(candidates[np.argmax(rows["foreground"][candidates])])


def draw_slice(cache: Cache, row: int, variant: str | None, png: Path | None) -> None:
    """Prints the instructions of a slice and, if `png` is given, draws them under their images."""
    subject = cache.subjects[cache.rows["subject"][row]]
    number = int(cache.rows["number"][row])
    texts = instruction_texts(cache, row, variant)
    for modality, text in texts.items():
        click.echo(f"{subject}, slice {number}, {modality}:\n{textwrap.indent(textwrap.fill(text, 100), '  ')}")
    if png is None:
        return
    from matplotlib.figure import Figure

    images = cache.images(np.array([row]))[0]
    mask = cache.masks(np.array([row]))[0] if cache.rows["labelled"][row] else None
    figure = Figure(figsize=(4.2 * len(images), 6), layout="constrained")
    for axes, modality, image in zip(np.atleast_1d(figure.subplots(1, len(images))), cache.modalities, images):
        show(axes, image, mask, cache.classes)
        axes.set_title(f"{subject}, slice {number}, {modality}", fontsize=9)
        axes.set_xlabel(textwrap.fill(texts.get(modality, "(no instruction)"), 58), fontsize=8, loc="left")
    figure.savefig(png, dpi=110)
    click.echo(f"picture in {png}")


def instruction_texts(cache: Cache, row: int, variant: str | None = None) -> dict[str, str]:
    """modality -> the instruction of one slice; empty where the cache has none."""
    if not cache.variants:
        return {}
    table = cache.instructions(only_variant(cache.variants, variant) if variant else cache.variants[0])
    subject = cache.subjects[cache.rows["subject"][row]]
    number = int(cache.rows["number"][row])
    return {
        entry["modality"]: entry["text"]
        for entry in table.select(["subject", "slice", "modality", "text"]).to_pylist()
        if entry["subject"] == subject and entry["slice"] == number
    }


def show(
    axes, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None, classes: tuple[str, ...], aspect: float = 1.0
) -> None:
    """One picture in grey with the outline of each class, closed at the picture's edges too.

    Args:
        aspect: spacing of the rows by that of the columns.
    """
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect=aspect)
    axes.set_xticks([])
    axes.set_yticks([])
    if mask is None:
        return
    rows, columns = mask.shape
    for label in range(1, len(classes) + 1):
        if (mask == label).any():
            inside = np.pad(mask == label, 1)
            at = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
            axes.contour(*at, inside, levels=[0.5], colors=[class_hex(label)], linewidths=1.2)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
