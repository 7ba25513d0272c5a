"""`Cache`: what stage 2 reads, row by row, from one path.

A row is one slice of one subject with all its modalities. Everything comes as numpy in the stored dtype; embeddings
stay quantised until they are where they are used (`zeus_union.cache.quantize.decode`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.instructions import SCHEMA, read_table
from zeus_union.cache.layout import CONSTANTS, PROFILE, ROW_HASH, DatasetCard, parquet_path, row_axes, short_names
from zeus_union.cache.manifest import Part, StoredArray, check_uniform, finished_so_far, refuse_shard
from zeus_union.cache.pack import read_texts
from zeus_union.cache.recipe import canonical_json, fingerprint
from zeus_union.cache.shard import Files, rows_digest
from zeus_union.cache.terminal import nearest
from zeus_union.cache.view_layers import count_views, view_layer

Rows = Sequence[int] | NDArray[np.integer]
ROW = np.dtype([("subject", "i4"), ("number", "i4"), ("fold", "i4"), ("labelled", "?"), ("foreground", "i4")])


@dataclass(frozen=True, eq=False)
class StoredEmbeddings:
    """Embeddings as they are stored.

    Attributes:
        values: uint8 or float16 (B, m, 256, 64, 64).
        scale, offset: float32 (B, m, 256) for uint8, None for float16.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32] | None
    offset: NDArray[np.float32] | None


class Cache:
    """A finished cache. It may be used after a fork, by several threads, and be pickled.

    Args:
        path: the .h5 file.
        allow_partial: read the finished subjects of a build that has not ended.

    Attributes:
        card: the dataset.
        subjects: their names.
        layers: their names.
        rows: recarray, one per slice: subject (index into `subjects`), number (slice in the view of its grid), fold (-1
            unlabelled), labelled, foreground (labelled pixels at 256 x 256, -1 unlabelled).

    Raises:
        UserError: missing, not a cache, another schema version, truncated, unfinished, or without its shard folder.
    """

    def __init__(self, path: Path | str, allow_partial: bool = False) -> None:
        self.path, self.allow_partial = Path(path), allow_partial
        if not self.path.is_file():
            raise UserError(f"cache {self.path} does not exist; zeus-instruct build-cache makes one")
        self._files = Files(self.path)
        self._manifest = self._files.manifest()
        refuse_shard(self._manifest, self.path)
        if self._manifest.state == "building":
            self._manifest = finished_so_far(self._manifest, self.path, allow_partial)
        self._check_shards()
        check_uniform(self._manifest.parts)
        self.card: DatasetCard = self._manifest.card
        self.layers: tuple[str, ...] = tuple(sorted(self._manifest.parts))
        self.subjects: tuple[str, ...] = tuple(s for s in self.card.subjects if s in self._manifest.parts["slices"])
        counts = [self._part("slices", subject).arrays["numbers"].shape[0] for subject in self.subjects]
        self._first = dict(zip(self.subjects, np.cumsum([0, *counts]).tolist()))
        self.rows = self._read_rows(sum(counts))
        self._digests: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Cache], tuple[Path, bool]]:
        return Cache, (self.path, self.allow_partial)

    def close(self) -> None:
        """Closes the files; they are opened again where they are needed."""
        self._files.close()

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.card.modalities

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    @property
    def encoders(self) -> tuple[str, ...]:
        """X of the layers embeddings/X."""
        return short_names(self.layers, "embeddings")

    def views(self, encoder: str) -> int:
        """How many augmented copies of the labelled slices there are, with their embeddings."""
        return count_views(self.layers, encoder)

    @property
    def variants(self) -> tuple[str, ...]:
        """X of the layers instructions/X."""
        return short_names(self.layers, "instructions")

    def validation(self, fold: int) -> tuple[str, ...]:
        """The subjects that were spared for validation when the folds were drawn, labelled or not."""
        return self._manifest.validation.get(fold, ())

    @property
    def state(self) -> str:
        """'packed', 'sharded' or 'building'."""
        return self._manifest.state

    def recipe(self, layer: str) -> dict[str, Any]:
        self._layer(layer)
        return self._manifest.recipes[layer]

    def fingerprint(self, layer: str) -> str:
        return fingerprint(self.recipe(layer))

    def layer_bytes(self, layer: str) -> int:
        """Bytes of a layer's rows and constants."""
        return sum(part.nbytes for part in self._layer(layer).values())

    def grid(self, subject: str) -> Grid:
        """The subject's native grid."""
        return Grid.from_json(self._part("slices", subject).facts["grid"])

    def sources(self, subject: str) -> dict[str, str]:
        """Name of each file the subject was read from -> its sha256."""
        return dict(self._part("slices", subject).facts["sources"])

    def content_digest(self, layer: str, subjects: Iterable[str]) -> str:
        """One digest, 32 hexadecimal digits, of all that a layer holds of `subjects`, whatever their order.

        Two caches of one recipe may differ in it: other source files, corrected labels, another affine. It is made of
        the stored hashes of the rows, so no row is read.
        """
        lines = "\n".join(f"{subject} {self._subject_digest(layer, subject)}" for subject in sorted(set(subjects)))
        return rows_digest(np.frombuffer(lines.encode(), np.uint8))

    def _subject_digest(self, layer: str, subject: str) -> str:
        if (layer, subject) not in self._digests:  # a table of many runs asks for the same ones again and again
            part = self._part(layer, subject)
            grid = canonical_json(part.facts.get("grid"))  # of `slices`; None in other layers
            self._digests[layer, subject] = f"{rows_digest(self._files.array(part, ROW_HASH))} {grid}"
        return self._digests[layer, subject]

    def native_masks(self, subject: str) -> NDArray[np.uint8] | None:
        """uint8 (n, rows, columns) in the grid's view at the native resolution; None without labels."""
        part = self._part("slices", subject)
        return self._files.array(part, "native_masks") if "native_masks" in part.arrays else None

    def rows_of(self, subjects: Iterable[str]) -> NDArray[np.intp]:
        """Indices into `rows` of all slices of `subjects`, subject by subject."""
        names = list(subjects)
        counts = np.array([self._part("slices", name).arrays["numbers"].shape[0] for name in names], np.intp)
        first = np.array([self._first[name] for name in names], np.intp)
        # Of all subjects at once: an array for each would take seconds where there are 100,000.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(first, counts) + within

    def images(self, rows: Rows, views: Rows | None = None) -> NDArray[np.uint8]:
        """uint8 (B, M, 256, 256); `views` as in `masks`."""
        return self._gather("slices", "images", rows, views)

    def masks(self, rows: Rows, views: Rows | None = None) -> NDArray[np.uint8]:
        """uint8 (B, 256, 256), k = classes[k - 1].

        Args:
            views: (B,), which view of each row; 0, as without them: the slice itself.

        Raises:
            UserError: a row without labels.
        """
        subjects = dict.fromkeys(self._subjects_of(rows))
        unlabelled = [subject for subject in subjects if "masks" not in self._part("slices", subject).arrays]
        if unlabelled:
            raise UserError(f"{self.path} has no labels of {', '.join(unlabelled)}; choose labelled subjects")
        return self._gather("slices", "masks", rows, views)

    def modality_masks(self, rows: Rows) -> NDArray[np.uint8] | None:
        """uint8 (B, M, 256, 256), or None where one of the subjects has no labels of each modality."""
        subjects = dict.fromkeys(self._subjects_of(rows))
        if any("modality_masks" not in self._part("slices", subject).arrays for subject in subjects):
            return None
        return self._gather("slices", "modality_masks", rows)

    def text_embeddings(self, variant: str, rows: Rows) -> NDArray[np.float32]:
        """float32 (B, M, D)."""
        return self._gather(f"instructions/{variant}", "text_embedding", rows)

    def states(self, variant: str, rows: Rows) -> NDArray[np.float16]:
        """fp16 (B, M, L, H): the LLM's last layer at every generated token, zeros after the last.

        Raises:
            UserError: the variant was built without them.
        """
        layer = f"instructions/{variant}"
        if "states" not in self._part(layer, self.subjects[0]).arrays:
            raise UserError(
                f"{layer} of {self.path} holds no last-layer states; "
                "build another variant: zeus-instruct build-cache --variant NAME --set keep_states=yes"
            )
        return self._gather(layer, "states", rows)

    def text_width(self, variant: str) -> int:
        """D of `text_embeddings`."""
        return self._like(f"instructions/{variant}", "text_embedding").shape[-1]

    def store(self, encoder: str) -> str:
        """How embeddings are stored: 'uint8' or 'fp16'."""
        return "uint8" if self._like(f"embeddings/{encoder}", "values").dtype == "|u1" else "fp16"

    def read_embeddings(
        self,
        encoder: str,
        rows: Rows,
        modality_indices: Sequence[int],
        out: StoredEmbeddings | None = None,
        views: Rows | None = None,
    ) -> StoredEmbeddings:
        """Embeddings of `rows` and of the modalities at `modality_indices`, as stored.

        Args:
            out: buffers for at least len(rows) rows, e.g. of an earlier call (or pinned memory); they are filled and
                numpy views of them come back. Fresh memory costs more than the reading.
            views: (B,), which augmented view of each row; 0, as without them: the slice itself.
        """
        layer = f"embeddings/{encoder}"
        shapes = {
            name: (len(rows), len(modality_indices), *array.shape[2:])
            for name, array in self._part(layer, self.subjects[0]).arrays.items()
            if name in ("values", "scale", "offset")
        }
        filled: dict[str, NDArray[Any] | None] = {"scale": None, "offset": None}
        for name, shape in shapes.items():
            buffer = None if out is None else getattr(out, name)
            array = np.empty(shape, self._like(layer, name).dtype) if buffer is None else buffer[: len(rows)]
            if array.shape != shape:
                raise ValueError(f"a buffer of {array.shape} for {name} of {shape}")
            self._fill(layer, name, rows, modality_indices, array, views)
            filled[name] = array
        return StoredEmbeddings(**filled)  # type: ignore[arg-type]

    def constants(self, layer: str) -> dict[str, NDArray[Any]]:
        """What a layer's model needs in stage 2, e.g. 'decoder.<key>', 'dense_pe', 'no_mask'; empty if it has none."""
        part = self._layer(layer).get(CONSTANTS)
        return {name: self._files.array(part, name) for name in part.arrays if name != PROFILE} if part else {}

    def profile(self, layer: str) -> dict[str, Any]:
        """The frozen models that made a layer, as its builder named them; empty where it did not."""
        part = self._layer(layer).get(CONSTANTS)
        if part is None or PROFILE not in part.arrays:
            return {}
        return dict(json.loads(self._files.array(part, PROFILE).tobytes()))

    def instructions(self, variant: str | None = None) -> pa.Table:
        """The table of texts, of one variant or all: subject, slice, modality, variant, prompt, text, ..."""
        for name in () if variant is None else (variant,):
            self._layer(f"instructions/{name}")
        wanted = self.variants if variant is None else (variant,)
        if self.state == "building":
            tables = [
                read_texts(self._files, name, subject, self._part(f"instructions/{name}", subject))
                for name in wanted
                for subject in self.subjects
            ]
        else:
            # While subjects join or leave, the table knows of some that this cache does not.
            subjects = pa.array(self.subjects)
            every = (read_table(parquet_path(self.path), variant=name) for name in wanted)
            tables = [table.filter(pc.is_in(table["subject"], subjects)) for table in every]
        return pa.concat_tables([SCHEMA.empty_table(), *tables])

    def _layer(self, layer: str) -> Mapping[str, Part]:
        if layer not in self._manifest.parts:
            close = nearest(layer, self.layers)
            raise UserError(f"{self.path} has no layer {layer}; it has {', '.join(self.layers)}{close}")
        return self._manifest.parts[layer]

    def _part(self, layer: str, subject: str) -> Part:
        parts = self._layer(layer)
        if subject not in parts:
            raise UserError(f"{self.path} has no {layer} of subject {subject}; it has {', '.join(self.subjects)}")
        return parts[subject]

    def _like(self, layer: str, name: str) -> StoredArray:
        """The array of the first subject that has it; those of the others differ in the number of slices only."""
        parts = (self._part(layer, subject).arrays for subject in self.subjects)
        return next(arrays[name] for arrays in parts if name in arrays)

    def _subjects_of(self, rows: Rows) -> list[str]:
        indices = _whole_numbers(rows, "rows")
        if ((indices < 0) | (indices >= len(self.rows))).any():
            raise IndexError(f"row {indices.min()} or {indices.max()} of {len(self.rows)} rows")
        return [self.subjects[index] for index in self.rows["subject"][indices]]

    def _gather(self, layer: str, name: str, rows: Rows, views: Rows | None = None) -> NDArray[Any]:
        like = self._like(layer, name)
        out = np.empty((len(rows), *like.shape[1:]), like.dtype)
        every = range(len(self.modalities)) if row_axes(layer) == 2 else None
        self._fill(layer, name, rows, every, out, views)
        return out

    def _fill(
        self,
        layer: str,
        name: str,
        rows: Rows,
        modalities: Sequence[int] | None,
        out: NDArray[Any],
        views: Rows | None = None,
    ) -> None:
        """Reads rows of an array into `out`.

        Args:
            modalities: selects along the second axis, None takes all there is.
            views: of the layer, for each row.
        """
        axes = 1 if modalities is None else 2
        per_slice = 1 if modalities is None else len(self.modalities)
        runs = [(0, 0, 1)] if modalities is None else _runs(modalities, per_slice)
        layers = repeat(layer) if views is None else (view_layer(layer, int(view)) for view in views)
        for target, row, subject, read in zip(out, rows, self._subjects_of(rows), layers):
            part = self._part(read, subject)
            array = part.arrays[name]
            number = (int(row) - self._first[subject]) * per_slice
            for position, modality, count in runs:
                buffer = target if modalities is None else target[position : position + count]
                self._files.read_into(part.file, array.row_at(number + modality, axes), buffer)

    def _check_shards(self) -> None:
        """Every shard must be there and whole before anybody trains for an hour."""
        parts = (part for by_subject in self._manifest.parts.values() for part in by_subject.values())
        named = list({part.file: part for part in parts if part.file}.values())
        if named and not self._files.folder.is_dir():
            raise UserError(
                f"{self.path} is the index of a sharded cache and its shard folder {self._files.folder} is missing; "
                "copy both, or make one file with zeus-instruct pack where both are"
            )
        folder = os.fspath(self._files.folder)
        for part in named:
            size = None
            with suppress(FileNotFoundError, NotADirectoryError):
                size = os.stat(f"{folder}/{part.file}").st_size
            if size != part.file_bytes:
                fault = "is missing" if size is None else f"is truncated ({size} of {part.file_bytes} bytes)"
                raise UserError(
                    f"shard {folder}/{part.file} of {self.path} {fault}; copy it again, or delete the cache and rebuild it"
                )

    def _read_rows(self, count: int) -> np.recarray[Any, Any]:
        rows = np.zeros(count, ROW)
        for index, subject in enumerate(self.subjects):
            part = self._part("slices", subject)
            mine = rows[self._first[subject] :][: part.arrays["numbers"].shape[0]]
            mine["subject"] = index
            mine["number"] = self._files.array(part, "numbers")
            mine["foreground"] = self._files.array(part, "foreground")
            mine["labelled"] = "masks" in part.arrays
            mine["fold"] = self._manifest.folds[subject]
        return rows.view(np.recarray)


def _whole_numbers(indices: Rows, what: str) -> NDArray[np.intp]:
    """Indices (n,). A mask of booleans, read as numbers, would be rows 0 and 1 over and over; 1.7 would be row 1.

    Raises:
        TypeError: anything but whole numbers.
    """
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(
            f"{what} are chosen by their indices, whole numbers (n,), not by {array.dtype} {array.shape}; "
            "np.flatnonzero turns a mask into indices"
        )
    if not isinstance(indices, np.ndarray) and any(isinstance(index, (bool, np.bool_)) for index in indices):
        raise TypeError(f"{what} are chosen by their indices, whole numbers, not by booleans")
    return array.astype(np.intp)


def _runs(modalities: Sequence[int], count: int) -> list[tuple[int, int, int]]:
    """Neighbouring modalities lie side by side in the file and are read at once: (position, modality, how many)."""
    runs: list[tuple[int, int, int]] = []
    for position, modality in enumerate(_whole_numbers(modalities, "modalities").tolist()):
        if not 0 <= modality < count:
            raise IndexError(f"modality index {modality} of {count}")
        if runs and runs[-1][1] + runs[-1][2] == modality:
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((position, modality, 1))
    return runs
