"""Looking into a cache: its layers as a table, and one slice with what was said about it as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import only_variant
from zeus_union.cache.layout import kind_of
from zeus_union.cache.page.drawing import class_patches, draw_slice_on
from zeus_union.cache.page.telling import telling_rows
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, nearest, some_of
from zeus_union.cache.text_statistics import text_statistics


def contents_of(cache: Cache) -> dict[str, Any]:
    """What the cache holds, JSON-able: data set, layers with bytes and recipes, what the texts are, subjects."""
    card = cache.card
    layers: dict[str, dict[str, Any]] = {}
    for layer in cache.layers:
        layers[layer] = {
            "bytes": cache.layer_bytes(layer),
            "fingerprint": cache.fingerprint(layer),
            "recipe": cache.recipe(layer),
        }
        if kind_of(layer) == "instructions":
            statistics = text_statistics(cache.instructions(layer.partition("/")[2]))
            layers[layer] |= {"texts": list(statistics.lines()), "warning": statistics.warning}
    return {
        "dataset": card.name,
        "instance": card.instance,
        "modalities": {name: card.terms[name] for name in card.modalities},
        "classes": list(card.classes),
        "slice_step": card.slice_step,
        "layers": layers,
        "subjects": subjects_of(cache),
    }


def subjects_of(cache: Cache) -> dict[str, dict[str, Any]]:
    """Subject -> its slices, fold and native grid, JSON-able."""
    subjects: dict[str, dict[str, Any]] = {}
    for index, subject in enumerate(cache.subjects):
        slices, grid = cache.rows[cache.rows["subject"] == index], cache.grid(subject)
        subjects[subject] = {
            "slices": len(slices),
            "labelled": int(slices["labelled"].sum()),
            "with_foreground": int((slices["foreground"] > 0).sum()),
            "fold": int(slices["fold"][0]) if len(slices) else -1,
            "view": grid.view,
            "shape": list(grid.shape),
            "spacing_mm": [float(spacing) for spacing in grid.spacing],
            "orientation": grid.orientation,
        }
    return subjects


def describe(contents: Mapping[str, Any]) -> None:
    """Prints what `contents_of` a cache says."""
    subjects = contents["subjects"].values()
    click.echo(f"data set   {contents['dataset']}: {contents['instance']}")
    click.echo(f"modalities {', '.join(f'{name} ({term})' for name, term in contents['modalities'].items())}")
    click.echo(f"classes    {', '.join(contents['classes'])}")
    click.echo(
        f"slices     {sum(subject['slices'] for subject in subjects)} of {counted(len(subjects), 'subject')}, one in "
        f"{contents['slice_step']}; {sum(subject['labelled'] for subject in subjects)} with labels"
    )
    for name, layer in contents["layers"].items():
        click.echo(f"layer      {name}  {layer['bytes'] / 2**20:,.1f} MiB  recipe {layer['fingerprint'][:12]}")
        for line in layer.get("texts", ()):
            click.echo(f"             {line}")
        if layer.get("warning"):
            click.echo(f"             warning: {layer['warning']}")
    click.echo("subject            slices  with foreground  fold  view      native grid (mm, orientation)")
    for name, subject in contents["subjects"].items():
        spacing = " x ".join(f"{length:.3g}" for length in subject["spacing_mm"])
        shape = " x ".join(map(str, subject["shape"]))
        click.echo(
            f"{name:18} {subject['slices']:6}  {subject['with_foreground']:15}  {subject['fold']:4}  "
            f"{subject['view']:8}  {shape} ({spacing}, {subject['orientation']})"
        )


def pick_slice(cache: Cache, subject: str | None, number: int | None) -> int:
    """The row of a slice; by default the one that shows most of every class, of the subject with the most foreground.

    Raises:
        UserError: no such subject or slice, naming those there are.
    """
    rows = cache.rows
    wanted = np.ones(len(rows), dtype=bool)
    if subject is not None:
        if subject not in cache.subjects:
            close = nearest(subject, cache.subjects)
            raise UserError(f"no subject {subject} in the cache; there are: {some_of(cache.subjects, 20)}{close}")
        wanted &= rows["subject"] == cache.subjects.index(subject)
    if number is not None:
        numbers = rows["number"][wanted]
        wanted &= rows["number"] == number
        if not wanted.any():
            raise UserError(f"no slice {number} in the cache; there are: {', '.join(map(str, sorted(set(numbers))))}")
    candidates = np.flatnonzero(wanted)
    fullest = int(candidates[np.argmax(rows["foreground"][candidates])])
    if number is not None:
        return fullest
    return int(telling_rows(cache, cache.rows_of([cache.subjects[rows["subject"][fullest]]]), 1)[0])


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
    grid = cache.grid(subject)
    figure = Figure(figsize=(4.2 * len(images), 6), layout="constrained")
    for axes, modality, image in zip(np.atleast_1d(figure.subplots(1, len(images))), cache.modalities, images):
        draw_slice_on(axes, image, mask, cache.classes, grid, is_square=True)
        empty = "" if mask is None or mask.any() else ": no class here"
        axes.set_title(f"{subject}, slice {number}, {modality}{empty}", fontsize=9, parse_math=False)
        axes.set_xlabel(textwrap.fill(texts.get(modality, "(no instruction)"), 58), fontsize=8, loc="left")
    if mask is not None:
        figure.legend(
            handles=class_patches(cache.classes), loc="outside lower center", ncols=6, fontsize=8, frameon=False
        )
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
