"""zeus-instruct import-texts and export-texts: a layer of a user's own texts, and a layer as a table of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_of, only_variant
from zeus_union.cache.layout import kind_of, parquet_path
from zeus_union.cache.leaks import LEAK, leak_of
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import counted, warn
from zeus_union.stage1_instruct.building.variants import class_variants
from zeus_union.stage1_instruct.models.text.bert import InstructionEncoder
from zeus_union.stage1_instruct.texts.layers import TextLayer, add_text_layers
from zeus_union.stage1_instruct.texts.matching import Cell, cells, match_texts
from zeus_union.stage1_instruct.texts.text_file import TextRow, read_text_file, write_text_file

IMPORTED = "imported"


def import_texts(
    path: Path, file: Path, variant: str, encoder: InstructionEncoder, fill: str | None = None
) -> tuple[str, ...]:
    """Makes instructions/VARIANT of a finished cache from a table of texts; VARIANT.CLASS each where it names classes.

    Texts that are those of a layer made from the true labels stay marked as such, under whatever name they come back.

    Args:
        file: see `read_text_file`.
        fill: see `match_texts`.

    Returns:
        The names of the variants.

    Raises:
        UserError: as `read_text_file`, `match_texts` and `add_text_layers`.
    """
    kind_of(f"instructions/{variant}")
    with Cache(path) as cache:
        if taken := [name for name in cache.variants if base_of(name) == variant != name]:
            raise UserError(
                f"{variant} is what {', '.join(taken)} of {path} are called together; give another --variant"
            )
        matched = match_texts(read_text_file(file), cache, str(file), fill)
        recipe: dict[str, Any] = {
            "slices": cache.fingerprint("slices"),
            "instructor": IMPORTED,
            "imported_file": {"sha256": sha256_file(file), **({} if fill is None else {"fill": fill})},
        }
        if (copied := _copied_leak(cache, matched.by_class)) is not None:
            recipe[LEAK] = copied
        names: dict[str | None, str] = {None: variant}
        if None not in matched.by_class:
            names = {name: layer for layer, name in _class_layers(variant, cache).items()}
        layers = {
            f"instructions/{names[class_name]}": TextLayer(
                recipe if class_name is None else {**recipe, "instance": class_name}, texts, IMPORTED
            )
            for class_name, texts in matched.by_class.items()
        }
    if matched.filled:
        warn(f"{counted(matched.filled, 'slice-modality')} without a text in {file}: filled with {fill!r}")
    add_text_layers(path, layers, encoder)
    return tuple(names.values())


def _copied_leak(cache: Cache, by_class: Mapping[str | None, Mapping[Cell, str]]) -> str | None:
    """What leaks through these texts: half of them or more are those of a layer that does."""
    for variant in cache.variants:
        leak = leak_of(cache.recipe(f"instructions/{variant}"))
        if leak is None:
            continue
        stored = _stored_texts(cache, variant)
        for texts in by_class.values():
            same = [cell for cell, text in texts.items() if text and text == stored[cell]]
            if same and 2 * len(same) >= sum(map(bool, stored.values())):
                warn(f"these texts equal those of instructions/{variant}: the layer is marked as a leak of {leak} too")
                return leak
    return None


def _stored_texts(cache: Cache, variant: str) -> dict[Cell, str]:
    table = cache.instructions(variant).select(["subject", "slice", "modality", "text"]).to_pylist()
    return {(row["subject"], row["slice"], row["modality"]): row["text"] for row in table}


def export_texts(cache: Cache, variant: str, file: Path) -> int:
    """Writes the texts of instructions/VARIANT, or of VARIANT.CLASS for every class, as a table; returns its rows.

    `import_texts` of the table gives the same texts.

    Raises:
        UserError: no such layer; `file` is a file of the cache, or of no known kind.
    """
    if file.resolve() in (cache.path.resolve(), parquet_path(cache.path).resolve()):
        raise UserError(f"{file} is a file of the cache; choose another name")
    rows: list[TextRow] = []
    for name, class_name in _layers_of(cache, variant):
        stored = _stored_texts(cache, name)
        rows += [TextRow(cell[0], stored[cell], cell[1], cell[2], class_name) for cell in cells(cache)]
    write_text_file(file, rows)
    return len(rows)


def _class_layers(variant: str, cache: Cache) -> dict[str, str]:
    """Name of the layer of each class -> the class, also of a split's: 'lite.liver@fold0'."""
    base, mark, split = variant.partition("@")
    return {f"{name}{mark}{split}": class_name for name, class_name in class_variants(base, cache.classes).items()}


def _layers_of(cache: Cache, variant: str) -> Sequence[tuple[str, str | None]]:
    """Layers and the class each speaks of: VARIANT itself, or one for each class."""
    variant = only_variant(cache.variants, variant)
    if variant in cache.variants:
        return [(variant, None)]
    by_class = _class_layers(variant, cache)
    if all(name in cache.variants for name in by_class):
        return list(by_class.items())
    raise UserError(f"{cache.path} has no instructions/{variant}; it has {', '.join(cache.variants) or 'none'}")
