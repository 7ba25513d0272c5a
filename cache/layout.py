"""The format in one place: what a cache holds, under which names, in which shapes.

Beside `chaos.h5`, the one path the user passes, there may be

    chaos.h5.d/<layer>/<subject>.<12 digits of the fingerprint>.h5     shards: one subject of one layer
    chaos.h5.d/<layer>/_constants.<12 digits>.h5                       what a layer needs besides its rows
    chaos.h5.d/<layer>@view<k>/...                                     the k-th augmented copy of the layer's labelled slices
    chaos.h5.d/packed.<12 digits of its digest>.h5                     the packed file that the cache was before a layer was added
    chaos.instructions.parquet                                         the instruction texts
    chaos.h5.d/locks/<subject>.lock                                    while it is built: who is at work on it; empty: nobody
    .chaos.h5.lock                                                     shared while it is built, held alone to finish it

Every HDF5 file begins with a seal (`zeus_union.cache.seal`), names its content in the scalar JSON string `/manifest`, and keeps a
subject's arrays in `/<layer>/<subject>/`: the same path in a shard and in a packed cache. All datasets are contiguous
and unfiltered, so that row i lies at offset + i * (bytes of a row).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import OF_SPLIT
from zeus_union.cache.view_layers import OF_VIEW, view_of

SCHEMA_VERSION = 2
CONSTANTS = "_constants"
PROFILE = "profile"  # uint8, JSON, among a layer's constants: the frozen models that made it; no part of its recipe
ROW_HASH = "row_xxh3"
IGNORE = 255  # in masks: nobody labelled the pixel, it takes no part in loss and metrics

_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
_LAYER = re.compile(rf"slices{OF_VIEW}|embeddings/{_NAME}{OF_VIEW}|instructions/{_NAME}{OF_SPLIT}")
_SUBJECT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a subject.

    Attributes:
        name: its name under `/<layer>/<subject>/`.
        dtypes: the dtypes it may have.
        axes: names of its axes; axes of one name have one length in a layer ('slice' and 'native ...': in a subject).
        content: what it holds, with the unit.
        required: whether every subject has it.
    """

    name: str
    dtypes: tuple[str, ...]
    axes: tuple[str, ...]
    content: str
    required: bool = True


_BY_MODALITY = ("slice", "modality")

LAYOUT: Mapping[str, tuple[ArrayLayout, ...]] = {
    "slices": (
        ArrayLayout("numbers", ("int32",), ("slice",), "slice number in the view of the native grid"),
        ArrayLayout("foreground", ("int32",), ("slice",), "labelled pixels of the 256 x 256 mask; -1 without labels"),
        ArrayLayout("images", ("uint8",), (*_BY_MODALITY, "row", "column"), "intensity 0 to 255, 256 x 256"),
        ArrayLayout(
            "masks", ("uint8",), ("slice", "row", "column"), "0 background, k = classes[k - 1], 255 ignored", False
        ),
        ArrayLayout("modality_masks", ("uint8",), (*_BY_MODALITY, "row", "column"), "masks of each modality", False),
        ArrayLayout(
            "native_masks",
            ("uint8",),
            ("slice", "native row", "native column"),
            "masks as the grid's view shows them",
            False,
        ),
    ),
    "embeddings": (
        ArrayLayout(
            "values", ("uint8", "float16"), (*_BY_MODALITY, "channel", "grid row", "grid column"), "256 x 64 x 64"
        ),
        ArrayLayout("scale", ("float32",), (*_BY_MODALITY, "channel"), "embedding = values * scale + offset", False),
        ArrayLayout("offset", ("float32",), (*_BY_MODALITY, "channel"), "embedding = values * scale + offset", False),
    ),
    "instructions": (
        ArrayLayout("text_embedding", ("float32",), (*_BY_MODALITY, "width"), "the instruction, as encoded"),
        ArrayLayout(
            "states",
            ("float16",),
            (*_BY_MODALITY, "token", "state width"),
            "the LLM's last layer at every generated token; zeros after `output_tokens`",
            False,
        ),
        ArrayLayout("text_xxh3", ("uint8",), (*_BY_MODALITY, "digest"), "xxh3_128 of its row in the Parquet table"),
    ),
}


@dataclass(frozen=True)
class DatasetCard:
    """What every layer of a cache is about.

    Attributes:
        name: the dataset, e.g. 'chaos'.
        modalities: in channel order.
        terms: modality -> what the instruction calls it.
        classes: label k is classes[k - 1]; background is not named.
        instance: what the instruction asks to segment.
        subjects: every subject a finished cache holds, in order.
        slice_step: every how many-th slice is kept.
        channels: modality -> its number in the original data set, where files or channels are numbered there; with only some of
            the modalities these are not 0, 1, 2.
    """

    name: str
    modalities: tuple[str, ...]
    terms: Mapping[str, str]
    classes: tuple[str, ...]
    instance: str
    subjects: tuple[str, ...]
    slice_step: int = 1
    channels: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", dict(self.terms))
        object.__setattr__(self, "channels", dict(self.channels))
        for name in ("modalities", "classes", "subjects"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(set(values)) != len(values):
                raise UserError(f"dataset {self.name} names one of its {name} twice: {', '.join(values)}")
        for subject in self.subjects:
            if not is_subject_name(subject):
                raise UserError(f"subject {subject!r} of {self.name}: only letters, digits, '.', '_', '-' are possible")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DatasetCard:
        return cls(**values)


def is_subject_name(name: str) -> bool:
    """Whether a cache can hold a subject of that name."""
    return bool(_SUBJECT.fullmatch(name)) and name not in (".", "..", CONSTANTS)


def kind_of(layer: str) -> str:
    """'slices', 'embeddings' or 'instructions'.

    Raises:
        UserError: not a layer's name.
    """
    if not _LAYER.fullmatch(layer):
        raise UserError(
            f"{layer!r} is not a layer name; layers are slices, embeddings/ENCODER and instructions/VARIANT "
            "with names of letters, digits, '.', '_', '-'"
        )
    return layer.partition("/")[0].partition("@")[0]


def row_axes(layer: str) -> int:
    """How many leading axes number the rows: 1 (slice) for `slices` and its views, 2 (slice, modality) for the others."""
    return 1 if kind_of(layer) == "slices" else 2


def short_names(layers: Iterable[str], kind: str) -> tuple[str, ...]:
    """The part after the slash of the layers of one kind; the views of a layer are no layers of their own here."""
    return tuple(layer.partition("/")[2] for layer in layers if layer.startswith(f"{kind}/") and not view_of(layer))


def shard_folder(path: Path) -> Path:
    return path.with_name(path.name + ".d")


def locks_folder(path: Path) -> Path:
    return shard_folder(path) / "locks"


def lock_path(path: Path) -> Path:
    """The lock of the whole cache; it stays for good, as deleting it would let two processes hold it."""
    return path.with_name(f".{path.name}.lock")


def shard_name(layer: str, subject: str, fingerprint: str, suffix: str = ".h5") -> str:
    """Name of a shard relative to the shard folder."""
    return f"{layer}/{subject}.{fingerprint[:12]}{suffix}"


def split_shard_name(name: str) -> tuple[str, str]:
    """(layer, subject) of a shard's name."""
    layer, _, file = name.rpartition("/")
    return layer, file.rsplit(".", 2)[0]


def packed_name(seal: bytes) -> str:
    """Name, relative to the shard folder, of a packed cache file of that seal to which layers or subjects were added."""
    return f"packed.{seal.decode('ascii', 'replace').split()[-1][:12]}.h5"


def is_packed_name(file: str) -> bool:
    """Whether a part's file, relative to the shard folder, is such a packed one; its texts are in the table beside the cache."""
    return bool(file) and "/" not in file


def find_packed(folder: Path) -> list[str]:
    """Names of the packed files in a shard folder."""
    return sorted(path.name for path in folder.glob(f"packed.{'?' * 12}.h5"))


def parquet_path(path: Path) -> Path:
    return path.with_name(path.stem + ".instructions.parquet")


def check_arrays(layer: str, arrays: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> None:
    """Refuses arrays that are not as `LAYOUT` says.

    Args:
        sizes: lengths that are known beforehand, e.g. {'modality': 2}.

    Raises:
        ValueError: an array that is missing, unknown, or of another dtype or shape.
    """
    specs = {spec.name: spec for spec in LAYOUT[kind_of(layer)]}
    wrong = set(arrays) ^ {name for name, spec in specs.items() if spec.required or name in arrays}
    if wrong:
        raise ValueError(f"{layer}: missing or unknown arrays {sorted(wrong)}")
    known = dict(sizes)
    if not all(array.size for array in arrays.values()):
        raise ValueError(f"{layer}: an empty array; a subject without slices cannot be cached")
    for name, array in arrays.items():
        spec = specs[name]
        if array.dtype.name not in spec.dtypes or array.ndim != len(spec.axes):
            raise ValueError(f"{layer}/{name}: {array.dtype} {array.shape}, expected {spec.dtypes} over {spec.axes}")
        for axis, size in zip(spec.axes, array.shape):
            if known.setdefault(axis, size) != size:
                raise ValueError(f"{layer}/{name}: axis '{axis}' has length {size}, expected {known[axis]}")


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """`array`, C-contiguous and little-endian, as it is stored."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
