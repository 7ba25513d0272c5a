"""Pictures through the image encoder: one at a time on a CPU, on a GPU in batches of one size that cross subjects.

An embedding's bytes depend neither on what else is in its batch nor on its place there, but they may depend on the
batch's size (another size is another way to add up). So a batch is never a short one: the last is filled with black, and a
build that was killed, whose batches begin elsewhere, ends with the same bytes on the same device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.devices import release_memory
from zeus_union.cache.errors import UserError, first_line
from zeus_union.cache.grid import square_indices, to_square
from zeus_union.cache.quantize import check_finite, quantise
from zeus_union.cache.terminal import warn
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.threads import Channel, Worker, ends_the_job_only
from zeus_union.stage1_instruct.models.batching import is_out_of_memory
from zeus_union.stage1_instruct.models.image.encoder import ImageEncoder

# Embeddings between encoder and disk: what a GPU makes in the second or two in which a subject's file is finished.
WAITING_BYTES = 256 << 20
FLOAT_BYTES = 4 << 20  # of an embedding as float32

# An embedding as `CacheWriter.write_embeddings` takes it: float32 (256, 64, 64), or its arrays as they are stored.
Row = NDArray[np.float32] | Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture on its way to the encoder.

    Attributes:
        pixels: uint8 (rows, columns).
        spacing: mm of (rows, columns), where it is to be made square; None: it is of the encoder's size.
    """

    pixels: NDArray[np.uint8]
    spacing: tuple[float, float] | None = None


class Computing(Protocol):
    """How pictures become embeddings."""

    @property
    def at_once(self) -> int:
        """Pictures in a batch."""

    @property
    def row_bytes(self) -> int:
        """Of an embedding on its way to the thread that writes it."""

    def run(self, pictures: Sequence[Picture]) -> list[Callable[[], Row]]:
        """What gives each picture's embedding, in the thread that writes it.

        Args:
            pictures: at most `at_once`.
        """


class OnCPU:
    """One picture at a time, quantised by whoever writes it: more together gain nothing at 75 GFLOP each."""

    at_once = 1
    row_bytes = FLOAT_BYTES

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder

    def run(self, pictures: Sequence[Picture]) -> list[Callable[[], Row]]:
        size = self._encoder.input_size
        squares = [to_square(part.pixels, part.spacing, size) if part.spacing else part.pixels for part in pictures]
        embeddings = [self._encoder.encode(square[None])[0].numpy() for square in squares]
        return [lambda embedding=embedding: embedding for embedding in embeddings]  # type: ignore[misc]


class OnDevice:
    """A GPU: native pictures go up as uint8, are made square, encoded and quantised there, and bytes come back.

    Copies are asynchronous from and to pinned memory, and one batch is computed while the one before is waited for.
    """

    def __init__(self, encoder: ImageEncoder, store: str, at_once: int, device: torch.device) -> None:
        """Args: at_once: pictures in a batch; halved, for good, where memory runs out."""
        self.at_once = at_once
        self.row_bytes = FLOAT_BYTES // (2 if store == "fp16" else 4)
        self._encoder = encoder
        self._store = store
        self._device = device
        self._pinned = device.type == "cuda"
        self._before: torch.cuda.Event | None = None
        self._indices = lru_cache(maxsize=8)(self._indices_of)

    def run(self, pictures: Sequence[Picture]) -> list[Callable[[], Row]]:
        """Raises UserError: not even one picture fits the device's memory."""
        rows: list[Callable[[], Row]] = []
        while len(rows) < len(pictures):
            try:
                rows += self._compute(pictures[len(rows) : len(rows) + self.at_once])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.at_once == 1:
                    raise UserError(
                        f"{self._encoder.name} ran out of memory with a single picture ({first_line(error)}); free memory "
                        "on the device, choose a smaller model or a lower precision (bf16), or run on the CPU"
                    ) from error
            else:
                continue
            # Only here, after the except block, is the traceback gone that kept the failed batch's tensors alive.
            self.at_once = max(1, self.at_once // 2)
            warn(
                f"{self._encoder.name}: out of memory; continuing with {self.at_once} pictures at a time. To have the bytes of "
                f"one build in another, give both --batch-size {self.at_once}"
            )
            release_memory()
        return rows

    @torch.inference_mode()
    def _compute(self, pictures: Sequence[Picture]) -> list[Callable[[], Row]]:
        size = self._encoder.input_size
        batch = torch.zeros(self.at_once, size, size, dtype=torch.uint8, device=self._device)
        for place, picture in zip(batch, pictures):
            self._put(place, picture)
        stored = self._quantised(self._encoder.embed(batch))
        on_host = {name: self._down(tensor) for name, tensor in stored.items()}
        copied = None
        if self._pinned:
            copied = torch.cuda.Event()
            copied.record()
            if self._before is not None:
                self._before.synchronize()
            self._before = copied

        def row(at: int) -> Row:
            if copied is not None:
                copied.synchronize()
            return self._checked({name: tensor[at].numpy() for name, tensor in on_host.items()})

        return [lambda at=at: row(at) for at in range(len(pictures))]  # type: ignore[misc]

    def _put(self, place: Tensor, picture: Picture) -> None:
        """Uploads a picture and makes it square, as `to_square` does, into (size, size)."""
        pixels = torch.from_numpy(np.ascontiguousarray(picture.pixels))
        if self._pinned:
            pixels = pixels.pin_memory()
        pixels = pixels.to(self._device, non_blocking=self._pinned)
        if picture.spacing is None:
            place.copy_(pixels)
            return
        rows, columns, inside = self._indices(picture.pixels.shape, picture.spacing)
        place.copy_(pixels[rows][:, columns] * inside)

    def _indices_of(self, shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
        row, column = square_indices(shape, spacing, self._encoder.input_size)
        inside = torch.from_numpy(((row >= 0)[:, None] & (column >= 0)[None]).astype(np.uint8))
        rows, columns = (torch.from_numpy(index.clip(0)) for index in (row, column))
        return rows.to(self._device), columns.to(self._device), inside.to(self._device)

    def _quantised(self, embeddings: Tensor) -> dict[str, Tensor]:
        """What is stored of float32 (B, 256, 64, 64), and what tells whether it may be."""
        if self._store == "fp16":
            return {
                "values": embeddings.half(),
                "low": embeddings.amin((-3, -2, -1)),
                "high": embeddings.amax((-3, -2, -1)),
            }
        values, scale, offset = quantise(embeddings)
        return {"values": values, "scale": scale, "offset": offset}

    def _checked(self, arrays: dict[str, NDArray[Any]]) -> Row:
        """Raises UserError: values that cannot be stored."""
        if self._store != "fp16":
            check_finite(arrays["offset"], arrays["scale"])
            return arrays
        check_finite(arrays["low"], arrays["high"])
        if max(-arrays["low"], arrays["high"]) > np.finfo(np.float16).max:
            raise UserError("the image encoder gave values beyond 65504, the range of fp16; use --store uint8")
        return {"values": arrays["values"]}

    def _down(self, tensor: Tensor) -> Tensor:
        if not self._pinned:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


def computing(encoder: ImageEncoder, store: str) -> Computing:
    """On the device that the encoder is on."""
    at_once = encoder.at_once
    return OnCPU(encoder) if at_once is None else OnDevice(encoder, store, at_once, encoder.device)


class EmbeddingsOfSubject:
    """The embeddings of one subject and layer on their way from the encoder to the thread that writes them.

    Attributes:
        complete: whether the encoder has all of its pictures behind it.
    """

    def __init__(
        self, writing: Worker, slices: int, modalities: int, failed: Callable[[UserError], None], row_bytes: int
    ) -> None:
        """Args: failed: told of what the encoder refuses."""
        self.complete = False
        self._left = slices * modalities
        self._modalities = modalities
        self._failed = failed
        self._row: list[Callable[[], Row]] = []
        self._channel: Channel[list[Callable[[], Row]]] = Channel(
            writing, max(2, WAITING_BYTES // (modalities * row_bytes))
        )

    def take(self, row: Callable[[], Row]) -> None:
        """The next embedding: modality by modality within a slice."""
        self._left -= 1
        self._row.append(row)
        if len(self._row) == self._modalities:
            self._channel.put(self._row)
            self._row = []
        if not self._left:
            self._channel.end()
            self.complete = True

    def fail(self, error: UserError) -> None:
        if not self.complete:
            self.complete = True
            self._failed(error)
            self._channel.fail(error)

    def pieces(self) -> Iterator[NDArray[np.float32] | Mapping[str, NDArray[Any]]]:
        """Slice by slice, each (1, M, ...); of the thread that writes."""
        for rows in self._channel:
            made = [row() for row in rows]
            floats = [row for row in made if isinstance(row, np.ndarray)]
            stored = [row for row in made if not isinstance(row, np.ndarray)]
            if floats:
                yield np.stack(floats)[None]
            else:
                yield {name: np.stack([row[name] for row in stored])[None] for name in stored[0]}

    def close(self) -> None:
        """Of the thread that writes: nothing more is taken."""
        self._channel.close()


class PictureLine:
    """Pictures of any subjects in order, computed as soon as a batch is full."""

    def __init__(self, computing: Computing, report: BuildReport) -> None:
        self._computing = computing
        self._report = report
        self._waiting: list[tuple[Picture, EmbeddingsOfSubject]] = []

    @property
    def row_bytes(self) -> int:
        """Of an embedding on its way to the thread that writes it."""
        return self._computing.row_bytes

    def add(self, picture: Picture, embeddings: EmbeddingsOfSubject) -> None:
        if embeddings.complete:  # the encoder refused an earlier one
            return
        self._waiting.append((picture, embeddings))
        if len(self._waiting) >= self._computing.at_once:
            self.flush()

    def flush(self) -> None:
        """Computes what waits, be the batch full or not."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            with self._report.timing("image encoder", len(waiting)):
                rows = self._computing.run([picture for picture, _ in waiting])
        except UserError as error:
            if not ends_the_job_only(error):
                raise
            for _, embeddings in waiting:
                embeddings.fail(error)
            return
        for row, (_, embeddings) in zip(rows, waiting):
            if not embeddings.complete:
                embeddings.take(row)
