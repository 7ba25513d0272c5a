"""Filling a cache, one subject at a time: what is finished stays finished, and the same command goes on.

A subject of a layer is finished when its shard has its final name, and only then. Nothing is shared while writing, so
several processes may each build some of the subjects (`CacheWriter.claim`); one of them calls `finalize` at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.atomic import find_temporaries, make_folder, require_space
from zeus_union.cache.claims import claim, has_locks, lock
from zeus_union.cache.errors import UserError
from zeus_union.cache.finishing import keep_complete, put_together
from zeus_union.cache.folds import (
    UNLABELLED,
    FoldSubjects,
    assign_folds,
    check_same_folds,
    draw_validation,
    folds_of_labelled,
    subjects_of_fold,
)
from zeus_union.cache.grid import Grid
from zeus_union.cache.growing import with_new_subjects
from zeus_union.cache.holders import holder_mark
from zeus_union.cache.instructions import Instruction, make_table, text_hashes, write_table
from zeus_union.cache.layout import (
    CONSTANTS,
    PROFILE,
    ROW_HASH,
    DatasetCard,
    check_arrays,
    kind_of,
    lock_path,
    locks_folder,
    row_axes,
    shard_name,
    split_shard_name,
)
from zeus_union.cache.manifest import (
    Manifest,
    Part,
    check_uniform,
    find_shards,
    read_shard,
    shard_manifest,
)
from zeus_union.cache.pack import (
    remove_left,
    remove_packed,
    restore_packed,
)
from zeus_union.cache.quantize import decode
from zeus_union.cache.recipe import canonical_json, describe, differences, fingerprint
from zeus_union.cache.rows import SubjectSlices, count_foreground, encode_rows, store_pieces
from zeus_union.cache.shard import FileBuilder, Files, row_hashes, rows_digest
from zeus_union.cache.terminal import say, some_of, warn
from zeus_union.cache.view_layers import made_from, view_layer, view_of

_OPTIONAL = ("masks", "modality_masks", "native_masks")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _in_work(
    method: Callable[Concatenate[CacheWriter, _Arguments], _Result],
) -> Callable[Concatenate[CacheWriter, _Arguments], _Result]:
    """Makes a method that writes share the cache's lock: whoever is alone takes temporary files for left ones."""

    @wraps(method)
    def working(self: CacheWriter, /, *args: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        with self.at_work():
            return method(self, *args, **options)

    return working


class CacheWriter:
    """Creates the cache at `path`, or goes on with it.

    Every subject's fold is decided when the cache is created, so that it never depends on what is finished. A card with more
    subjects than the cache makes it grow (`zeus_union.cache.growing`): it stays as it is until the new ones are in all of
    its layers.

    Args:
        folds: subject -> the fold it is tested in, -1 for none; drawn if not given.
        labelled: subjects to draw folds for; all of them if not given.
        share: where the file system has no locks, the subjects that no other process builds (None: all); left temporary
            files of others are not touched.

    Attributes:
        card: the dataset, its subjects in the cache's order.
        new_subjects: those that join a cache that was begun without them.
        locks: whether the file system has locks; without them, nothing keeps two processes apart.

    Raises:
        UserError: `path` holds another dataset or other folds than `folds`, has another schema version, or is damaged.
    """

    def __init__(
        self,
        path: Path | str,
        card: DatasetCard,
        folds: Mapping[str, int] | None = None,
        labelled: Iterable[str] | None = None,
        *,
        share: Iterable[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.card = card
        self._given = card, folds, frozenset(card.subjects if labelled is None else labelled)
        self._subjects = frozenset(card.subjects)
        self._share = None if share is None else frozenset(share)
        self._files = Files(self.path)
        self._recipes: dict[str, dict[str, Any]] = {}
        self._profiles: dict[str, str | None] = {}
        self._known: dict[tuple[str, str], Part] = {}
        self._left: dict[str, list[Path]] = {}  # subject -> temporary files that others hold or have left
        self._index: Manifest
        self._grown: Manifest  # the index with those who join
        self._version: tuple[int, int, int] | None = None  # of the index
        make_folder(self.path.parent)
        self.locks = has_locks(lock_path(self.path))
        with self.at_work():
            if not self.path.exists():
                restore_packed(self.path)
            if not self.path.exists():
                self._create()
            self._read_index()
            if folds is not None:
                check_same_folds(self.path, self._index.folds, folds)
            self.new_subjects = self.card.subjects[len(self._index.card.subjects) :]
        self._sweep()

    @property
    def packed(self) -> bool:
        """Whether the cache is one file that holds finished layers."""
        return self._index.state == "packed"

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that test somebody, whether or not it is known yet who has labels."""
        return tuple(sorted({*self._grown.folds.values()} - {UNLABELLED}))

    def subjects_of(self, fold: int, labelled: Iterable[str]) -> FoldSubjects:
        """Who of the labelled subjects is trained on, validated on and tested in a fold."""
        with_labels = {*labelled}
        folds = {name: self._grown.folds[name] for name in self.card.subjects if name in with_labels}
        return subjects_of_fold(fold, folds, self._grown.validation)

    def _create(self) -> None:
        card, folds, labelled = self._given
        for shard in find_shards(self._files.folder)[:1]:
            before = read_shard(self._files.folder, shard).card
            if changed := differences(replace(before, subjects=card.subjects).to_json(), card.to_json()):
                raise UserError(f"{self.path} holds another dataset ({describe(changed)}); give another --out")
        if folds is None:
            decided = assign_folds(card.subjects, labelled & {*card.subjects})
        else:
            decided = {name: folds.get(name, UNLABELLED) for name in card.subjects}
        with suppress(FileExistsError), FileBuilder(self.path) as builder:  # another process was quicker
            validation = draw_validation(decided)
            builder.commit(Manifest("building", card, folds=decided, validation=validation), replace=False)

    def _read_index(self) -> None:
        """Reads the index where it is another file than the one that was read last, and who joins it.

        Raises:
            UserError: it is of another data set; another process has made it grow otherwise.
        """
        status = self.path.stat()
        version = status.st_ino, status.st_size, status.st_mtime_ns
        if version == self._version:
            return
        index = self._files.manifest()
        grown = with_new_subjects(self.path, index, *self._given)
        if self._version is not None and any(
            fold not in (UNLABELLED, self._grown.folds.get(name, fold)) for name, fold in grown.folds.items()
        ):
            raise UserError(
                f"other subjects were added to {self.path} at the same time, and folds are drawn in turn; run the same "
                "command again"
            )
        self._index, self._grown, self.card = index, grown, grown.card
        self._version = version
        self._known.clear()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keeps others from finishing the cache, and so from removing shards, for the time of the block."""
        if not self.locks:
            yield
            return
        with lock(lock_path(self.path), shared=True) as free:
            if free:
                yield
                return
        say(f"waiting for another process that finishes {self.path}")
        with lock(lock_path(self.path), shared=True, wait=True):
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps others from working at the cache for the time of the block."""
        with lock(lock_path(self.path), real=self.locks) as free:
            if free:
                yield
                return
        say(f"waiting for other processes that build {self.path}, to finish it")
        with lock(lock_path(self.path), wait=True, real=self.locks):
            yield

    def _sweep(self) -> None:
        """Removes what killed processes left of their files, or remembers it where others are at work."""
        if not self.locks:
            self._remove_left(self._share)
            return
        with lock(lock_path(self.path)) as alone:
            if alone:
                self._remove_left(None)
                return
        for folder, _, _ in os.walk(self._files.folder):
            for final, file in find_temporaries(Path(folder)):
                self._left.setdefault(split_shard_name(final)[1], []).append(file)

    def _remove_left(self, subjects: Collection[str] | None) -> None:
        """Removes the temporary files of `subjects` (None: all, and the cache's) which nobody else may be writing."""
        if subjects is None:
            remove_left(self.path)
            return
        for folder, _, _ in os.walk(self._files.folder):
            for final, file in list(find_temporaries(Path(folder))):
                if split_shard_name(final)[1] in subjects:
                    file.unlink(missing_ok=True)

    def begin_layer(
        self,
        layer: str,
        recipe: Mapping[str, Any],
        constants: Callable[[], Mapping[str, NDArray[Any]]] | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Says what a layer is made from; before anything else about the layer.

        Args:
            recipe: JSON-able, without paths or times.
            constants: gives what stage 2 needs of the layer's model, e.g. the pretrained decoder; called only where
                that is not in the cache yet, so that a finished layer needs no model.
            profile: which frozen models make it, JSON-able; may name paths, as it decides nothing of the content. It is
                kept from the first subject on that is written.

        Raises:
            UserError: the layer exists and was made from something else, naming what differs.
        """
        kind_of(layer)  # refuses what is no layer's name
        with self.at_work():
            self._check_recipe(layer, recipe)
            self._recipes[layer] = dict(recipe)
            self._profiles[layer] = None if profile is None else canonical_json(profile)
            if constants is not None:
                self._keep_constants(layer, constants)

    def _keep_constants(self, layer: str, constants: Callable[[], Mapping[str, NDArray[Any]]]) -> None:
        """Writes what a layer has besides its rows, unless it is there."""
        if self._part(layer, CONSTANTS) is not None:
            return
        with self.claim(CONSTANTS, wait=True):
            if self._part(layer, CONSTANTS) is None:
                arrays = dict(constants())
                if (profile := self._profiles.get(layer)) is not None:
                    arrays[PROFILE] = np.frombuffer(profile.encode(), np.uint8)
                self._write(layer, CONSTANTS, iter([arrays]), None, {})

    def begun(self, layer: str) -> dict[str, Any] | None:
        """The recipe of a layer that is there, or of which a part is; None where nothing is."""
        self._read_index()
        if layer in self._index.recipes:
            return self._index.recipes[layer]
        shard = next(iter(find_shards(self._files.folder, layer)), None)
        return None if shard is None else read_shard(self._files.folder, shard).recipes[layer]

    def constants(self, layer: str) -> dict[str, NDArray[Any]]:
        """What was stored of a layer's model; empty where there is nothing."""
        part = self._part(layer, CONSTANTS)
        return {} if part is None else {name: self._files.array(part, name) for name in part.arrays if name != PROFILE}

    def labelled(self, subject: str) -> bool:
        """Whether a finished subject has labels."""
        return "masks" in self._require("slices", subject).arrays

    def _check_recipe(self, layer: str, recipe: Mapping[str, Any]) -> None:
        begun = self._index.recipes.get(layer)
        for shard in find_shards(self._files.folder, layer):
            if not shard.endswith(f".{fingerprint(recipe)[:12]}.h5"):
                begun = read_shard(self._files.folder, shard).recipes[layer]
        if begun is not None and fingerprint(begun) != fingerprint(recipe):
            remedy = "give another --out"
            if view_of(layer):
                remedy = "repeat the options that its views were made with, or give another --out"
            elif kind_of(layer) == "instructions":
                remedy = "give --variant NAME for a new one, or another --out"
            changed = describe(differences(begun, recipe))
            raise UserError(f"layer {layer} of {self.path} has another recipe ({changed}); {remedy}")

    @contextmanager
    def claim(self, subject: str, wait: bool = False) -> Iterator[bool]:
        """Whether a subject is this process's for the time of the block; see `zeus_union.cache.claims`.

        What other processes have finished until then is known inside the block, and what a process that was lost has
        left of the subject is removed.
        """
        mark = holder_mark(self._recipes)

        def take_over() -> None:  # lists all folders: done for the subjects of lost processes alone
            self._remove_left({subject})

        with self.at_work(), claim(locks_folder(self.path), subject, wait, self.locks, mark, take_over) as ours:
            if ours:
                self._read_index()
                for file in self._left.pop(subject, ()):
                    file.unlink(missing_ok=True)
            yield ours

    def finished(self, layer: str, subject: str) -> bool:
        """Whether the subject is in the layer for good, or, without labels, never will be: views are of labelled slices.

        Raises:
            UserError: it is damaged, or was made from other slices than those that are there now.
        """
        part = self._part(layer, subject)
        if part is None:
            slices = self._part("slices", subject) if view_of(layer) else None
            return slices is not None and "masks" not in slices.arrays
        if layer != "slices" and part.facts["slices"] != self._digest_of_source(layer, subject):
            raise UserError(
                f"{self._files.locate(part.file)} was made from other slices of {subject} than those in the cache; "
                "delete it and run the same command again"
            )
        return True

    def check_sources(self, subject: str, sources: Mapping[str, str]) -> None:
        """Refuses a finished subject whose source files have changed since.

        Raises:
            UserError: naming the files.
        """
        part = self._part("slices", subject)
        if part is not None and (changed := differences({"": part.facts["sources"]}, {"": dict(sources)})):
            names = ", ".join(name.lstrip(".") for name in changed)
            raise UserError(f"files of {subject} have changed since {self.path} was built: {names}; give another --out")

    @_in_work
    def write_slices(self, subject: str, slices: SubjectSlices) -> None:
        """Finishes a subject of the layer `slices`."""
        arrays: dict[str, NDArray[Any]] = {
            "numbers": np.asarray(slices.numbers, np.int32),
            "foreground": count_foreground(slices.masks, len(slices.numbers)),
            "images": slices.images,
        }
        arrays |= {name: array for name in _OPTIONAL if (array := getattr(slices, name)) is not None}
        self._write_rows("slices", subject, [arrays], {"grid": slices.grid.to_json(), "sources": dict(slices.sources)})

    def slices(self, subject: str) -> SubjectSlices:
        """What is stored of a finished subject."""
        part = self._require("slices", subject)
        arrays = {name: self._files.array(part, name) for name in part.arrays}
        optional = {name: arrays.get(name) for name in _OPTIONAL}
        grid = Grid.from_json(part.facts["grid"])
        return SubjectSlices(grid, arrays["numbers"], arrays["images"], sources=part.facts["sources"], **optional)

    @_in_work
    def write_view(self, subject: str, view: int, images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> None:
        """Finishes a subject of the layer `slices@viewK`.

        Args:
            view: from 1.
            images: uint8 (n, M, 256, 256), of the subject's slices in their order.
            masks: uint8 (n, 256, 256).
        """
        layer = view_layer("slices", view)
        arrays: dict[str, NDArray[Any]] = {
            "numbers": self._files.array(self._require("slices", subject), "numbers"),
            "foreground": count_foreground(masks, len(masks)),
            "images": images,
            "masks": masks,
        }
        self._write_rows(layer, subject, [arrays], {"slices": self._digest_of_source(layer, subject)})

    def view_images(self, subject: str, view: int) -> NDArray[np.uint8]:
        """uint8 (n, M, 256, 256) of a finished subject of `slices@viewK`."""
        return self._files.array(self._require(view_layer("slices", view), subject), "images")

    @_in_work
    def write_embeddings(
        self,
        layer: str,
        subject: str,
        embeddings: NDArray[np.float32] | Iterable[NDArray[np.float32] | Mapping[str, NDArray[Any]]],
        store: str = "uint8",
    ) -> None:
        """Finishes a subject of a layer `embeddings/...`.

        Args:
            embeddings: float32 (n, M, 256, 64, 64), or pieces of it, some slices each: one is held at a time. A piece that
                was quantised already, where it was computed, is its arrays as they are stored.
            store: 'uint8' or 'fp16'.

        Raises:
            UserError: NaN or infinite values, or values beyond fp16's range.
        """
        if store not in ("uint8", "fp16"):
            raise UserError(f"unknown way to store embeddings {store!r}; there are uint8 and fp16")
        pieces = [embeddings] if isinstance(embeddings, np.ndarray) else embeddings
        stored = (encode_rows(piece, store) if isinstance(piece, np.ndarray) else piece for piece in pieces)
        self._write_rows(layer, subject, stored, {"slices": self._digest_of_source(layer, subject)})

    def embeddings(self, layer: str, subject: str, slices: slice = slice(None)) -> NDArray[np.float32]:
        """float32 (n, M, 256, 64, 64) of a finished subject, exactly as stage 2 will see it.

        Args:
            slices: only these of the subject's.
        """
        part = self._require(layer, subject)
        arrays = {name: self._files.array(part, name, slices) for name in part.arrays if name != ROW_HASH}
        return decode(arrays["values"], arrays.get("scale"), arrays.get("offset")).numpy()

    @_in_work
    def write_instructions(
        self,
        layer: str,
        subject: str,
        embeddings: NDArray[np.float32],
        rows: Sequence[Instruction],
        states: NDArray[np.float16] | None = None,
    ) -> None:
        """Finishes a subject of a layer `instructions/...`.

        Args:
            embeddings: float32 (n, M, D), the encoded texts.
            rows: n * M of them, modality by modality within a slice.
            states: fp16 (n, M, L, H), the LLM's last layer at every generated token, zeros after the last.
        """
        numbers = self._files.array(self._require("slices", subject), "numbers")
        order = [(int(number), modality) for number in numbers for modality in self.card.modalities]
        if [(row.slice_number, row.modality) for row in rows] != order:
            raise ValueError(f"instructions of {subject} are not in the order of its slices and modalities")
        table = make_table(subject, layer.partition("/")[2], rows)
        hashes = text_hashes(table).reshape(len(numbers), len(self.card.modalities), 16)
        # The texts first: the HDF5 shard is what says that both are there.
        write_table(self._shard(layer, subject, ".parquet"), [table])
        arrays: dict[str, NDArray[Any]] = {"text_embedding": embeddings, "text_xxh3": hashes}
        if states is not None:
            arrays["states"] = states
        self._write_rows(layer, subject, [arrays], {"slices": self._digest_of_source(layer, subject)})

    def finalize(self, pack: bool | None = None) -> bool:
        """Makes the cache one that can be read, from all layers in which every subject is finished.

        Args:
            pack: one file (True), or an index over the shards (False); None packs what is smaller than 20 GB. A packed
                cache stays packed where nothing is new; else its file is copied where it is smaller than 200 MB or `pack`
                is True, and renamed into the shard folder otherwise.

        Returns:
            False where new subjects are not in all layers of a finished cache yet: it stays as it is, without them.

        Raises:
            UserError: a subject is missing in a layer that was begun here; no space for packing.
        """
        with self._alone():
            self._read_index()
            if self.locks or self._share is None:
                self._remove_left(None)
            return self._finish(pack)

    def _finish(self, pack: bool | None) -> bool:
        parts = self._all_parts()
        if lacking := keep_complete(self.path, self._index, self.card.subjects, self._recipes, parts):
            names = ", ".join(f"{layer} ({some_of(subjects)})" for layer, subjects in lacking.items())
            warn(
                f"{self.path} stays as it was: its new subjects are still missing in {names}. Build those layers for them too "
                "(build-cache with their --variant, --views), or take a layer out with zeus-instruct remove --layer"
            )
            return False
        for layer in parts:
            for subject in self.card.subjects:
                self.finished(layer, subject)  # refuses what was made from other slices
        check_uniform(parts)
        recipes = {layer: self._recipe(layer, by_subject) for layer, by_subject in parts.items()}
        labelled = [name for name, part in parts["slices"].items() if "masks" in part.arrays]
        folds = folds_of_labelled(self.card.subjects, labelled, self._grown.folds)
        manifest = Manifest("packed", self.card, recipes, parts, folds, self._grown.validation)
        packed = put_together(self.path, self._index, manifest, self._files, pack)
        self._read_index()
        shutil.rmtree(locks_folder(self.path), ignore_errors=True)
        if packed:
            remove_packed(self._index, self._files.folder)
        return True

    def _recipe(self, layer: str, by_subject: Mapping[str, Part]) -> dict[str, Any]:
        if layer in self._index.recipes:
            return self._index.recipes[layer]
        return read_shard(self._files.folder, next(iter(by_subject.values())).file).recipes[layer]

    def _all_parts(self) -> dict[str, dict[str, Part]]:
        """Everything that is finished, by whichever process: layer -> subject -> part."""
        parts = {layer: dict(by_subject) for layer, by_subject in self._index.parts.items()}
        for shard in find_shards(self._files.folder):
            layer, subject = split_shard_name(shard)
            part = self._part(layer, subject) if subject in (CONSTANTS, *self.card.subjects) else None
            if part is not None:
                parts.setdefault(layer, {})[subject] = part
        return parts

    def _part(self, layer: str, subject: str) -> Part | None:
        known = self._index.parts.get(layer, {}).get(subject) or self._known.get((layer, subject))
        if known is None:
            for shard in self._shards_of(layer, subject):
                known = read_shard(self._files.folder, shard).parts[layer][subject]
                self._known[layer, subject] = known
        return known

    def _shards_of(self, layer: str, subject: str) -> list[str]:
        """The shard of a subject, if there is one; a look at one name where the layer's recipe is known."""
        if layer not in self._recipes:
            return find_shards(self._files.folder, layer, subject)
        shard = shard_name(layer, subject, fingerprint(self._recipes[layer]))
        return [shard] if (self._files.folder / shard).is_file() else []

    def _require(self, layer: str, subject: str) -> Part:
        part = self._part(layer, subject)
        if part is None:
            raise UserError(f"{self.path} has no {layer} of {subject} yet; build that layer first")
        return part

    def _digest_of_source(self, layer: str, subject: str) -> str:
        """Digest of the rows of pictures that a layer of a subject is made from."""
        return rows_digest(self._files.array(self._require(made_from(layer), subject), ROW_HASH))

    def _shard(self, layer: str, subject: str, suffix: str = ".h5") -> Path:
        if layer not in self._recipes:
            raise ValueError(f"begin_layer({layer!r}, ...) comes first")
        return self._files.folder / shard_name(layer, subject, fingerprint(self._recipes[layer]), suffix)

    def _write_rows(
        self, layer: str, subject: str, pieces: Iterable[Mapping[str, NDArray[Any]]], facts: Mapping[str, Any]
    ) -> None:
        """Writes rows, some slices at a time."""
        if subject not in self._subjects:
            raise ValueError(f"{subject!r} is not a subject of {self.path}")
        slices = None if layer == "slices" else self._require("slices", subject).arrays["numbers"].shape[0]
        if self._profiles.get(layer) is not None:
            self._keep_constants(layer, dict)
        sizes = {"modality": len(self.card.modalities)}

        def hashed() -> Iterator[Mapping[str, NDArray[Any]]]:
            for arrays in pieces:
                check_arrays(layer, arrays, sizes)
                yield {**arrays, ROW_HASH: row_hashes(arrays, row_axes(layer))}

        self._write(layer, subject, hashed(), slices, facts)

    def _write(
        self,
        layer: str,
        subject: str,
        pieces: Iterator[Mapping[str, NDArray[Any]]],
        rows: int | None,
        facts: Mapping[str, Any],
    ) -> None:
        """Writes a shard.

        Args:
            pieces: the arrays, or `rows` rows of each in several pieces along their leading axis.
            rows: None: one piece, of whatever rows.
        """
        first = next(pieces, None)
        if first is None:
            raise ValueError(f"{layer} of {subject}: no rows")
        share = 1 if rows is None else rows / max(len(first[ROW_HASH]), 1)
        final = self._shard(layer, subject)
        make_folder(final.parent)
        require_space(final.parent, int(sum(array.nbytes for array in first.values()) * share), f"{layer} of {subject}")
        with FileBuilder(final) as builder:
            inside = f"{layer}/{subject}"
            if rows is None:
                stored = {name: builder.add(f"{inside}/{name}", array) for name, array in first.items()}
            else:
                stored = store_pieces(builder, inside, first, pieces, rows)
            builder.commit(shard_manifest(self.card, layer, subject, self._recipes[layer], stored, facts))
        self._known.pop((layer, subject), None)
        self._files.close()
