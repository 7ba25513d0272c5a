"""What the rows of a subject hold, and how they get into its shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import IGNORE, ROW_HASH
from zeus_union.cache.manifest import StoredArray
from zeus_union.cache.quantize import encode_fp16, encode_uint8
from zeus_union.cache.shard import FileBuilder


@dataclass(frozen=True, eq=False)
class SlicePictures:
    """Slices of one subject, wherever they come from or go to.

    Attributes:
        grid: the native grid, with the view of the slices.
        numbers: int32 (n,), slice numbers in the view of `grid`.
        images: uint8 (n, M, 256, 256).
        masks: uint8 (n, 256, 256), 0 background, k = classes[k - 1], `IGNORE` unlabelled; None without labels.
        modality_masks: uint8 (n, M, 256, 256), where modalities were labelled on their own.
        native_masks: uint8 (n, rows, columns), the masks in that view at the native resolution.
    """

    grid: Grid
    numbers: NDArray[np.int32]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    modality_masks: NDArray[np.uint8] | None
    native_masks: NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class SubjectSlices(SlicePictures):
    """As a cache keeps them.

    Attributes:
        sources: name of each file that was read -> its sha256.
    """

    sources: Mapping[str, str]


Kind = TypeVar("Kind", bound=SlicePictures)


def pictures_as(kind: type[Kind], pictures: SlicePictures, **more: Any) -> Kind:
    """The same slices as another kind of `SlicePictures`; `more` is what that has beside them."""
    return kind(**{field.name: getattr(pictures, field.name) for field in fields(SlicePictures)}, **more)


def store_pieces(
    builder: FileBuilder,
    inside: str,
    first: Mapping[str, NDArray[Any]],
    pieces: Iterator[Mapping[str, NDArray[Any]]],
    rows: int,
) -> dict[str, StoredArray]:
    """Writes `first` and then `pieces` one below the other, one of them in memory at a time.

    Raises:
        ValueError: they do not fit together, or are not `rows` rows.
    """
    kinds = {name: (array.dtype, array.shape[1:]) for name, array in first.items()}
    stored = {
        name: builder.allocate(f"{inside}/{name}", dtype.newbyteorder("<").str, (rows, *shape))
        for name, (dtype, shape) in kinds.items()
    }
    piece: Mapping[str, NDArray[Any]] | None = first
    del first
    at = 0
    while piece is not None:
        count = len(piece[ROW_HASH])
        if at + count > rows or {name: (array.dtype, array.shape[1:]) for name, array in piece.items()} != kinds:
            raise ValueError(f"{inside}: a piece of {count} rows from row {at} does not fit {rows} rows of {kinds}")
        for name, array in piece.items():
            builder.write_rows(stored[name], at, array)
        at += count
        piece = next(pieces, None)
    if at != rows:
        raise ValueError(f"{inside}: {at} rows, expected {rows}")
    return stored


def count_foreground(masks: NDArray[np.uint8] | None, count: int) -> NDArray[np.int32]:
    """Labelled pixels of each of `count` slices, -1 without labels."""
    if masks is None:
        return np.full(count, -1, np.int32)
    return np.count_nonzero((masks != 0) & (masks != IGNORE), axis=(1, 2)).astype(np.int32)


def encode_rows(embeddings: NDArray[np.float32], store: str) -> dict[str, NDArray[Any]]:
    if store == "fp16":
        return {"values": encode_fp16(embeddings)}
    values, scale, offset = encode_uint8(embeddings)
    return {"values": values, "scale": scale, "offset": offset}
