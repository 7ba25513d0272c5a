"""A cache as a page, before anything is trained from it: what it covers, how different its texts are, samples to leaf through."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.fold_layers import only_variant
from zeus_union.cache.leaks import leaking
from zeus_union.cache.page.pictures import class_legend
from zeus_union.cache.page.render import LINES, Chart, KeyFigure, PageTable, render_page
from zeus_union.cache.page.slices import Said, Sentence, SliceView, SubjectView, subjects_json
from zeus_union.cache.page.telling import telling_rows, voxels_of
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, in_words
from zeus_union.cache.text_statistics import CUT, TextStatistics, text_statistics
from zeus_union.stage1_instruct.inspect import subjects_of

TEMPLATE = Path(__file__).with_name("templates") / "cache.html.j2"
SAMPLES, SLICES = 3, 12  # subjects, and slices of each, to leaf through
SAMPLED = 1000  # slices that grey values and labels are counted in: 65 MB a modality
FREQUENT = 5  # texts of a layer that are quoted
BINS = 64


def cache_page(cache: Cache, variant: str | None = None, subject: str | None = None) -> str:
    """The HTML of a cache's page.

    Args:
        variant: whose texts stand beside the samples; None: the first.
        subject: whose slices are shown; None: some that lie far apart in the order of the cache.
    """
    rows = _sampled(cache)
    tables = {name: cache.instructions(name) for name in cache.variants}
    texts = {name: table.to_pylist() for name, table in tables.items()}
    statistics = {name: text_statistics(table) for name, table in tables.items()}
    quoted = only_variant(cache.variants, variant) if variant else next(iter(cache.variants), None)
    chosen = [subject] if subject else _spread(cache.subjects)
    views = [_view(cache, name, texts.get(quoted, []) if quoted else []) for name in chosen]
    return render_page(
        TEMPLATE,
        kind="Cache",
        title=cache.card.name,
        lead=_lead(cache),
        reservations=_reservations(cache, statistics),
        figures=_figures(cache),
        layers=_layer_table(cache),
        texts=_text_table(statistics) if statistics else None,
        lengths=_length_chart(texts) if statistics else None,
        frequent=[(name, _frequent_table(lines)) for name, lines in texts.items()],
        greys=_grey_chart(cache, rows),
        labels=_label_table(cache, rows),
        sampled=len(rows),
        total=len(cache.rows),
        subject_table=_subject_table(cache),
        subjects=subjects_json(views),
        quoted=quoted,
        class_legend=class_legend(cache.classes),
        recipes={layer: json.dumps(cache.recipe(layer), indent=2, ensure_ascii=False) for layer in cache.layers},
        commands=_commands(cache, quoted),
    )


def _lead(cache: Cache) -> str:
    card = cache.card
    modalities = ", ".join(
        f"{name} ({card.terms[name]})" if card.terms[name] != name else name for name in card.modalities
    )
    return f"{modalities}; classes: {', '.join(card.classes)}. One slice in {card.slice_step}."


def _reservations(cache: Cache, statistics: Mapping[str, TextStatistics]) -> list[str]:
    lines = [f"{name}: {of.warning}." for name, of in statistics.items() if of.warning]
    missing = len(cache.card.subjects) - len(cache.subjects)
    if missing:
        lines.append(f"Unfinished: {missing} of {counted(len(cache.card.subjects), 'subject')} not built yet.")
    leaks = leaking(cache, cache.variants)
    if leaks:
        lines.append(f"Made from the true labels, and so upper bounds alone: {', '.join(leaks)}.")
    return lines


def _figures(cache: Cache) -> list[KeyFigure]:
    labelled = int(cache.rows["labelled"].sum())
    size = sum(cache.layer_bytes(layer) for layer in cache.layers)
    return [
        KeyFigure("Subjects", str(len(cache.subjects)), f"of {len(cache.card.subjects)} in the data set"),
        KeyFigure("Slices", f"{len(cache.rows):,}", f"{labelled:,} with labels"),
        KeyFigure("Modalities", str(len(cache.modalities)), ", ".join(cache.modalities)),
        KeyFigure("Instruction layers", str(len(cache.variants)), ", ".join(cache.variants) or "none yet"),
        KeyFigure("Size", in_words(size), f"in {counted(len(cache.layers), 'layer')}"),
    ]


def _layer_table(cache: Cache) -> PageTable:
    rows = tuple(
        (
            layer,
            f"{len(cache.subjects)} of {len(cache.card.subjects)}",
            in_words(cache.layer_bytes(layer)),
            cache.fingerprint(layer)[:12],
        )
        for layer in cache.layers
    )
    notes = (
        "Recipe: the first digits of the sha256 of all that decides a layer's content; the whole recipe is below.",
    )
    return PageTable(("layer", "subjects", "size", "recipe"), rows, notes=notes)


def _text_table(statistics: Mapping[str, TextStatistics]) -> PageTable:
    rows = tuple(
        (
            name,
            *(f"{number:,}" for number in (of.count, of.distinct, of.repeated, of.empty, of.cut, of.looping)),
            "{} / {} / {}".format(*of.words),
            f"{of.vocabulary:,}",
        )
        for name, of in statistics.items()
    )
    notes = (
        "Equal to another's: texts that another slice has word for word in the same modality.",
        "Cut: ended at max_new_tokens. Looping: with a phrase three times in a row, or a word four times.",
        "Words: fewest, median and most of a text. Vocabulary: different words in all of them.",
    )
    columns = ("layer", "texts", "distinct", "equal to another's", "empty", "cut", "looping", "words", "vocabulary")
    return PageTable(columns, rows, notes=notes)


def _frequent_table(lines: Sequence[Mapping[str, Any]]) -> PageTable:
    """The most frequent texts of a layer."""
    counts = Counter((line["modality"], line["text"]) for line in lines).most_common(FREQUENT)
    rows = tuple((text or "(empty)", modality, str(count)) for (modality, text), count in counts)
    return PageTable(("text", "modality", "slices"), rows)


def _length_chart(texts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart:
    data = []
    for index, (name, lines) in enumerate(texts.items()):
        words = np.array([len(line["text"].split()) for line in lines] or [0])
        counts, edges = np.histogram(words, bins=min(30, int(words.max()) + 1), range=(0, int(words.max()) + 1))
        data.append(_line(name, ((edges[:-1] + edges[1:]) / 2).tolist(), counts.tolist(), index, "hvh"))
    layout = {
        "xaxis": {"title": {"text": "words of a text"}},
        "yaxis": {"title": {"text": "texts"}, "rangemode": "tozero"},
    }
    return Chart("lengths", "Length of the texts", "How many texts of each layer have how many words.", data, layout)


def _grey_chart(cache: Cache, rows: NDArray[np.intp]) -> Chart:
    counts = np.zeros((len(cache.modalities), BINS), np.int64)
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        images = cache.images(part)
        for index in range(len(cache.modalities)):
            counts[index] += np.bincount(images[:, index].ravel() // (256 // BINS), minlength=BINS)
    inside = counts[:, 1:]  # the air around the patient would dwarf all else
    shares = inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)
    greys = ((np.arange(1, BINS) + 0.5) * (256 // BINS)).tolist()
    data = [_line(name, greys, shares[index].tolist(), index, "linear") for index, name in enumerate(cache.modalities)]
    layout = {
        "xaxis": {"title": {"text": "grey value (0 to 255)"}, "range": [0, 255]},
        "yaxis": {"title": {"text": "share of pixels"}, "type": "log", "tickformat": ".2~%", "dtick": 1},
    }
    definition = (
        f"Share of the pixels with each grey value, as the encoder sees them, the darkest {256 // BINS} values left out; the "
        "axis is logarithmic."
    )
    return Chart("greys", "Intensities", definition, data, layout)


def _line(name: str, x: list[float], y: list[float], index: int, shape: str) -> dict[str, Any]:
    colour, dash = LINES[index % len(LINES)]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": name.replace("&", "&amp;").replace("<", "&lt;"),
        "line": {"color": colour, "dash": dash, "width": 2, "shape": shape},
    }


def _label_table(cache: Cache, rows: NDArray[np.intp]) -> PageTable | None:
    """How often and how large each class is; None without labels."""
    rows = rows[cache.rows["labelled"][rows]]
    if not len(rows):
        return None
    classes = len(cache.classes)
    voxels = np.stack([voxels_of(mask, 255)[:classes] for mask in cache.masks(rows)])
    subjects = cache.rows["subject"][rows]
    lines = []
    for index, name in enumerate(cache.classes):
        seen = voxels[:, index] > 0
        pixels = f"{voxels[seen, index].mean():,.0f}" if seen.any() else "-"
        lines.append(
            (
                name,
                f"{len(np.unique(subjects[seen]))} of {len(np.unique(subjects))}",
                f"{seen.sum()} of {len(rows)}",
                pixels,
            )
        )
    notes = ("Pixels: mean of the 256 x 256 picture that the class covers, of the slices that show it.",)
    return PageTable(("class", "subjects that show it", "slices that show it", "pixels"), tuple(lines), notes=notes)


def _subject_table(cache: Cache) -> PageTable:
    lines = tuple(
        (
            name,
            str(of["slices"]),
            str(of["with_foreground"]),
            str(of["fold"]) if of["fold"] >= 0 else "no labels",
            of["view"],
            " x ".join(map(str, of["shape"])),
            " x ".join(f"{mm:.3g}" for mm in of["spacing_mm"]),
            of["orientation"],
        )
        for name, of in subjects_of(cache).items()
    )
    columns = ("subject", "slices", "with a class", "fold", "view", "voxels", "spacing mm", "orientation")
    return PageTable(columns, lines)


def _sampled(cache: Cache) -> NDArray[np.intp]:
    """Slices that lie evenly through the cache, all of a small one."""
    count = len(cache.rows)
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.intp))


def _spread(subjects: Sequence[str]) -> list[str]:
    positions = np.unique(np.linspace(0, len(subjects) - 1, min(len(subjects), SAMPLES)).astype(int))
    return [subjects[position] for position in positions]


def _view(cache: Cache, subject: str, texts: Sequence[Mapping[str, Any]]) -> SubjectView:
    every = cache.rows_of([subject])
    labelled = bool(cache.rows["labelled"][every].all())
    if labelled:
        rows = telling_rows(cache, every, SLICES)
    else:
        rows = every[np.unique(np.linspace(0, len(every) - 1, min(len(every), SLICES)).astype(int))]
    images = cache.images(rows)
    masks = cache.masks(rows) if labelled else None
    said: dict[int, dict[str, Said]] = {}
    for line in texts:
        if line["subject"] == subject:
            sentences = (Sentence(line["text"]),) if line["text"].strip() else ()
            text = Said(line["modality"], sentences, line["stop_reason"] == CUT)
            said.setdefault(line["slice"], {})[line["modality"]] = text
    return SubjectView(
        name=subject,
        role="",
        note="" if labelled else "No labels.",
        modalities=cache.modalities,
        classes=cache.classes,
        slices=tuple(
            SliceView(
                number=(number := int(cache.rows["number"][row])),
                images=images[index],
                truth=None if masks is None else masks[index],
                prediction=None,
                said=tuple(said.get(number, {}).get(name, Said(name, ())) for name in cache.modalities)
                if texts
                else (),
            )
            for index, row in enumerate(rows)
        ),
        grid=cache.grid(subject),
        left_out=len(every) - len(rows),
    )


def _commands(cache: Cache, variant: str | None) -> list[str]:
    name = cache.path.name
    probe = [f"zeus-instruct probe-texts {name} --variant {variant}"] if variant else []
    return [f"zeus-instruct verify {name}", *probe, f"zeus-segment train --cache {name}"]
