"""Which text of a table belongs to which slice, modality and class of a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, nearest, some_of, warn
from zeus_union.stage1_instruct.texts.text_file import FEWEST_SHOWN, TextRow

Cell = tuple[str, int, str]  # subject, slice number, modality
_Key = tuple[str, "int | None", "str | None", "str | None"]  # subject, slice, modality, class


@dataclass(frozen=True)
class MatchedTexts:
    """The text of every cell of a cache.

    Attributes:
        by_class: class -> cell -> text, in the cache's order; the class is None where the table names none.
        filled: how many cells the table has no text for.
    """

    by_class: Mapping[str | None, Mapping[Cell, str]]
    filled: int


def cells(cache: Cache) -> list[Cell]:
    """Subject, slice and modality of every instruction of a layer, in the cache's order."""
    return [
        (cache.subjects[row["subject"]], int(row["number"]), modality)
        for row in cache.rows
        for modality in cache.modalities
    ]


def match_texts(rows: Sequence[TextRow], cache: Cache, name: str, fill: str | None = None) -> MatchedTexts:
    """The text of every cell: the row that names its class, slice and modality, else one that names fewer of them.

    Of two rows that name equally few, the one that names the class goes before the one that names the slice, that before
    the one that names the modality. Slices of the volume that the cache does not keep are passed over, which is said.

    Args:
        name: of the table, for messages.
        fill: the text of cells that no row speaks of; None refuses them.

    Raises:
        UserError: an unknown subject, slice, modality or class; two rows about the same; a cell without a text, naming the
            first few.
    """
    _check_names(rows, cache, name)
    rows = _kept_slices(rows, cache, name)
    texts = _without_doubles(rows, name)
    classes: tuple[str | None, ...] = cache.classes if any(row.class_name for row in rows) else (None,)
    by_class: dict[str | None, dict[Cell, str]] = {}
    missing = []
    for class_name in classes:
        by_class[class_name] = {}
        for cell in cells(cache):
            text = next((texts[key] for key in _keys(cell, class_name) if key in texts), None)
            if text is None:
                missing.append(" ".join(map(str, (*cell, *([class_name] if class_name else [])))))
            by_class[class_name][cell] = (fill or "") if text is None else text
    if missing and fill is None:
        raise UserError(
            f"{name} has no text for {len(missing)} of {sum(map(len, by_class.values()))} slices and modalities of "
            f"{cache.path}: {some_of(missing, FEWEST_SHOWN)}; add rows, or give --fill TEXT for them"
        )
    return MatchedTexts(by_class, len(missing))


def _keys(cell: Cell, class_name: str | None) -> Iterator[_Key]:
    """What a row about a cell may name, the most particular first."""
    subject, number, modality = cell
    named: list[_Key] = [
        (subject, slice_number, modality_name, name)
        for name in dict.fromkeys((class_name, None))
        for slice_number in (number, None)
        for modality_name in (modality, None)
    ]
    yield from sorted(named, key=lambda key: sum(part is None for part in key))


def _check_names(rows: Sequence[TextRow], cache: Cache, name: str) -> None:
    known = {"subject": cache.subjects, "modality": cache.modalities, "class": cache.classes}
    for what, names in known.items():
        unknown: dict[str, int] = {}
        for row in rows:
            value = row.class_name if what == "class" else row.modality if what == "modality" else row.subject
            if value is not None and value not in names:
                unknown.setdefault(value, row.line)
        if unknown:
            lines = [f"{value} (line {line})" for value, line in unknown.items()]
            close = nearest(next(iter(unknown)), names)
            raise UserError(
                f"{name} has the unknown {what} {some_of(lines, FEWEST_SHOWN)}; {cache.path} has {some_of(names)}{close}"
            )


def _kept_slices(rows: Sequence[TextRow], cache: Cache, name: str) -> list[TextRow]:
    """Raises UserError: a slice that is outside its volume."""
    of_subject = {subject: set(cache.rows["number"][cache.rows_of([subject])].tolist()) for subject in cache.subjects}
    counts = {subject: cache.grid(subject).slice_shape[0] for subject in {row.subject for row in rows}}
    outside = [
        f"{row.subject} {row.slice_number} (line {row.line}; it has 0 to {counts[row.subject] - 1})"
        for row in rows
        if row.slice_number is not None and not 0 <= row.slice_number < counts[row.subject]
    ]
    if outside:
        raise UserError(f"{name} names slices that are not there: {some_of(outside, FEWEST_SHOWN)}")
    kept = [row for row in rows if row.slice_number is None or row.slice_number in of_subject[row.subject]]
    if len(kept) < len(rows):
        warn(
            f"left out: {len(rows) - len(kept)} of {counted(len(rows), 'text')}, of slices that the cache does not keep "
            f"(it keeps one in {cache.card.slice_step})"
        )
    return kept


def _without_doubles(rows: Sequence[TextRow], name: str) -> dict[_Key, str]:
    """Raises UserError: two rows about the same."""
    texts: dict[_Key, str] = {}
    lines: dict[_Key, int] = {}
    doubled = []
    for row in rows:
        key = (row.subject, row.slice_number, row.modality, row.class_name)
        if key in texts:
            named = " ".join(str(part) for part in key if part is not None)
            doubled.append(f"{named} (lines {lines[key]} and {row.line})")
        else:
            texts[key], lines[key] = row.text, row.line
    if doubled:
        raise UserError(f"{name} has two texts for {some_of(doubled, FEWEST_SHOWN)}; keep one of each")
    return texts
