"""How far a cache is, who builds what, and how long it still takes, from what lies on the disk; changes nothing.

The time left comes from when the finished shards got their names. Between two of them lies the work on the later one, by
however many processes, so the seconds of a layer's shards over their slice-modalities are what it costs now; nights in which
nobody was at work are left out.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from zeus_union.cache.atomic import find_temporaries
from zeus_union.cache.errors import UserError
from zeus_union.cache.holders import Holder, find_holders
from zeus_union.cache.layout import CONSTANTS, lock_path, shard_folder, split_shard_name
from zeus_union.cache.locks import NoLocksError, is_locked
from zeus_union.cache.manifest import Manifest, Part, find_shards, read_manifest, read_shard, refuse_shard, subjects_due
from zeus_union.cache.terminal import progress

RECENT = 64  # finished shards of a layer that its rate comes from: processes may have joined or left since
PAUSE = 10  # a gap of so many times the layer's median is no work
PAUSE_SECONDS = 60.0  # and no gap below this is a pause


@dataclass(frozen=True)
class LayerProgress:
    """How far a layer is.

    Attributes:
        subjects: finished.
        subjects_due: as many as it will have.
        slice_modalities: of the finished subjects.
        slice_modalities_due: of all; those of subjects without slices so far are taken as the mean of the others.
        bytes: of its shards and rows.
        seconds_each: a slice-modality now, by all processes together; None where too little was finished to tell.
    """

    layer: str
    subjects: int
    subjects_due: int
    slice_modalities: int
    slice_modalities_due: int
    bytes: int
    seconds_each: float | None

    @property
    def seconds_left(self) -> float | None:
        missing = self.slice_modalities_due - self.slice_modalities
        if not missing:
            return 0.0
        return None if self.seconds_each is None else missing * self.seconds_each


@dataclass(frozen=True)
class Status:
    """How far a cache is, and who is at work.

    Attributes:
        state: 'building', 'sharded' or 'packed'.
        subjects: of the data set.
        finished: subjects that are finished in all layers.
        layers: those that were begun.
        holders: who has a subject in work, or was lost with it.
        locks: whether the file system has locks; None where nobody has ever asked it (a cache that was copied).
        writing: subject -> seconds since something was last written of it, of unfinished files.
        last_finished: when the last shard was finished, seconds since 1970; None where there are no shards.
        damaged: shards that cannot be read, and why.
    """

    path: Path
    state: str
    subjects: int
    finished: int
    layers: tuple[LayerProgress, ...]
    holders: tuple[Holder, ...]
    locks: bool | None
    writing: Mapping[str, float] = field(default_factory=dict)
    last_finished: float | None = None
    damaged: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.state != "building" and all(layer.subjects == layer.subjects_due for layer in self.layers)

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None where a layer's is not known."""
        left = [layer.seconds_left for layer in self.layers]
        return None if any(seconds is None for seconds in left) else sum(seconds or 0.0 for seconds in left)


def read_status(path: Path | str) -> Status:
    """Looks at the cache at `path`, finished or not, on a read-only disk or not, while others build it or not.

    Raises:
        UserError: there is no cache, or its index cannot be read.
    """
    path = Path(path)
    folder = shard_folder(path)
    if not path.is_file():
        if folder.is_dir():
            raise UserError(
                f"{path} is missing and its shard folder {folder} exists; copy the index next to it, or run the same "
                "build-cache command again, which resumes"
            )
        raise UserError(f"cache {path} does not exist; zeus-instruct build-cache makes one")
    index = read_manifest(path)
    refuse_shard(index, path)
    shards = _Shards(index, folder)
    holders = tuple(find_holders(path))
    layers = _layers(index, shards, {layer for holder in holders for layer in holder.layers})
    due = {layer: subjects_due(layer, index.card.subjects, shards.slices) for layer in layers}
    finished = [
        name
        for name in index.card.subjects
        if layers and all(name in shards.subjects[layer] or name not in due_of for layer, due_of in _sets(due).items())
    ]
    return Status(
        path,
        index.state,
        len(index.card.subjects),
        len(finished),
        tuple(_progress(index, shards, layer, due[layer]) for layer in layers),
        holders,
        _locks(path),
        _writing(folder),
        max(shards.times.values(), default=None),
        tuple(shards.damaged),
    )


class _Shards:
    """What is finished of a cache: the rows that its index lists and the shards that lie beside it.

    Only the shards of `slices` are opened, one a subject: the others have as many rows as these.
    """

    def __init__(self, index: Manifest, folder: Path) -> None:
        self.subjects: dict[str, set[str]] = defaultdict(set)
        self.bytes: dict[str, int] = defaultdict(int)
        self.times: dict[tuple[str, str], float] = {}
        self.slices: dict[str, Part] = {}
        self.damaged: list[str] = []
        for layer, by_subject in index.parts.items():
            for subject, part in by_subject.items():
                if subject != CONSTANTS:
                    self.subjects[layer].add(subject)
                if not part.file:
                    self.bytes[layer] += part.nbytes
        self.slices |= index.parts.get("slices", {})
        for name in progress(find_shards(folder), "reading shards"):
            layer, subject = split_shard_name(name)
            try:
                status = (folder / name).stat()
                if layer == "slices" and subject not in self.slices:
                    self.slices[subject] = read_shard(folder, name).parts[layer][subject]
            except FileNotFoundError:  # packed in the meantime
                continue
            except UserError as error:
                self.damaged.append(str(error))
                continue
            self.bytes[layer] += status.st_size
            if subject == CONSTANTS:
                self.subjects[layer] |= set()  # begun
            else:
                self.subjects[layer].add(subject)
                self.times[layer, subject] = status.st_mtime

    def rows(self, subject: str) -> int | None:
        """Its slices; None where they are not finished."""
        part = self.slices.get(subject)
        return None if part is None else part.arrays["numbers"].shape[0]


def _layers(index: Manifest, shards: _Shards, in_work: set[str]) -> list[str]:
    """All that were begun, and those that somebody is about to."""
    return sorted({*index.parts, *shards.subjects, *in_work}, key=lambda layer: (layer != "slices", layer))


def _sets(due: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    return {layer: set(names) for layer, names in due.items()}


def _progress(index: Manifest, shards: _Shards, layer: str, due: Sequence[str]) -> LayerProgress:
    modalities = len(index.card.modalities)
    known = [rows for name in due if (rows := shards.rows(name)) is not None]
    mean = statistics.fmean(known) if known else 0.0
    done = [name for name in due if name in shards.subjects[layer]]
    return LayerProgress(
        layer,
        len(done),
        len(due),
        sum(shards.rows(name) or 0 for name in done) * modalities,
        round((sum(known) + mean * (len(due) - len(known))) * modalities),
        shards.bytes[layer],
        _seconds_each(shards, modalities).get(layer),
    )


def _seconds_each(shards: _Shards, modalities: int) -> dict[str, float]:
    """Layer -> seconds a slice-modality, all processes together, of its last `RECENT` shards."""
    finished = sorted((when, key) for key, when in shards.times.items())
    gaps: dict[str, list[tuple[float, int]]] = defaultdict(list)  # seconds before a shard, its slice-modalities
    for (before, _), (when, (layer, subject)) in pairwise(finished):
        gaps[layer].append((when - before, (shards.rows(subject) or 0) * modalities))
    rates = {}
    for layer, all_gaps in gaps.items():
        recent = all_gaps[-RECENT:]
        longest = max(PAUSE_SECONDS, PAUSE * statistics.median(seconds for seconds, _ in recent))
        work = [(seconds, count) for seconds, count in recent if seconds <= longest]
        if counted := sum(count for _, count in work):
            rates[layer] = sum(seconds for seconds, _ in work) / counted
    return rates


def _locks(path: Path) -> bool | None:
    """Whether the file system has locks."""
    try:
        is_locked(lock_path(path))
        return True
    except NoLocksError:
        return False
    except (FileNotFoundError, PermissionError):
        return None


def _writing(folder: Path) -> dict[str, float]:
    """Subject -> seconds since its unfinished file was last written to."""
    now, ages = time.time(), {}
    for inner, _, _ in os.walk(folder):
        for final, file in find_temporaries(Path(inner)):
            try:
                ages[split_shard_name(final)[1]] = max(0.0, now - file.stat().st_mtime)
            except FileNotFoundError:  # finished in the meantime
                continue
    return ages
