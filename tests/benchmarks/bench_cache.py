"""Reading embeddings from a cache, against raw reads: `python tests/benchmarks/bench_cache.py`.

Synthetic embeddings at the real size (256 x 64 x 64), random batches, one thread, a warm page cache. Every way is timed
in turn with raw reads of the same bytes in each round; the table gives the median over the rounds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices

SUBJECTS, SLICES, MODALITIES, BATCH, ROUNDS = 3, 16, ("T1", "T2"), 10, 7
SHAPE = (256, 64, 64)


def build(path: Path, store: str) -> float:
    """A packed cache; seconds it took per slice and modality to quantise, write, check and pack."""
    card = DatasetCard("bench", MODALITIES, {}, ("organ",), "organ", tuple(f"P{n}" for n in range(SUBJECTS)))
    writer = CacheWriter(path, card)
    for layer in ("slices", "embeddings/bench", "instructions/bench"):
        writer.begin_layer(layer, {"store": store})
    rng, seconds = np.random.default_rng(0), 0.0
    for subject in card.subjects:
        embeddings = rng.normal(size=(SLICES, len(MODALITIES), *SHAPE)).astype(np.float32)
        images = rng.integers(0, 256, (SLICES, len(MODALITIES), 256, 256), np.uint8)
        numbers = np.arange(SLICES, dtype=np.int32)
        texts = [
            Instruction(n, m, "segment", f"{n} {m}" * 50, 30, 200, "length", None) for n in numbers for m in MODALITIES
        ]
        start = time.perf_counter()
        masks = (images[:, 0] > 200).astype(np.uint8)
        grid = Grid((256, 256, SLICES), np.eye(4))
        writer.write_slices(subject, SubjectSlices(grid, numbers, images, masks, None, masks, {}))
        writer.write_embeddings("embeddings/bench", subject, embeddings, store)
        writer.write_instructions(
            "instructions/bench", subject, np.zeros((SLICES, len(MODALITIES), 384), np.float32), texts
        )
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    writer.finalize(pack=True)
    return (seconds + time.perf_counter() - start) / (SUBJECTS * SLICES * len(MODALITIES))


def rate(read: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> float:
    """Slice-modalities per second."""
    start = time.perf_counter()
    for rows in batches:
        read(rows)
    return sum(map(len, batches)) * len(MODALITIES) / (time.perf_counter() - start)


def measure(folder: Path, store: str) -> None:
    path = folder / f"{store}.h5"
    writing = build(path, store)
    rows = SUBJECTS * SLICES
    itemsize = 1 if store == "uint8" else 2
    row_bytes = len(MODALITIES) * int(np.prod(SHAPE)) * itemsize
    raw = os.open(path, os.O_RDONLY)
    buffer = np.empty((BATCH, row_bytes), np.uint8)

    with Cache(path) as cache, h5py.File(path) as file:
        every = range(len(MODALITIES))
        out = cache.read_embeddings("bench", range(BATCH), every)
        starts = [file[f"embeddings/bench/P{n}/values"].id.get_offset() for n in range(SUBJECTS)]

        def read_raw(chosen: np.ndarray) -> None:
            for target, row in zip(buffer, chosen.tolist()):
                os.preadv(raw, [target], starts[row // SLICES] + row % SLICES * row_bytes)

        one = file["embeddings/bench/P0/values"]
        one_scale = file["embeddings/bench/P0/scale"] if store == "uint8" else None

        def read_fancy(chosen: np.ndarray) -> object:
            inside = np.unique(chosen % SLICES)
            return one[inside], one_scale[inside] if one_scale is not None else None

        rng = np.random.default_rng(1)
        batches = [rng.permutation(rows)[:BATCH] for _ in range(12)]
        few = [np.unique(batch % SLICES) for batch in batches[:4]]
        ways: dict[str, Callable[[], float]] = {
            "raw preadv": lambda: rate(read_raw, batches),
            "read_embeddings, reused buffer": lambda: rate(
                lambda chosen: cache.read_embeddings("bench", chosen, every, out=out), batches
            ),
            "read_embeddings, fresh memory": lambda: rate(
                lambda chosen: cache.read_embeddings("bench", chosen, every), batches
            ),
            "h5py, dataset[list of rows]": lambda: rate(read_fancy, few),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                way()  # once before, so that no way pays for what the one before left in the processor's caches
                found[name].append(way())
        ratios = {
            name: statistics.median(one / base for one, base in zip(rates, found["raw preadv"]))
            for name, rates in found.items()
        }
        print(f"\n{store}: {writing * 1e3:.1f} ms to write a slice-modality (quantise, three layers, checks, packing)")
        for name, rates in found.items():
            print(f"  {name:32} {statistics.median(rates):8.0f} slice-modalities/s   {ratios[name]:5.2f} of raw")
        for layer in cache.layers:
            print(f"  {layer:32} {cache.layer_bytes(layer) / (rows * len(MODALITIES)):8.0f} bytes a slice-modality")
        texts = path.with_name(f"{store}.instructions.parquet").stat().st_size
        total = (path.stat().st_size + texts) / (rows * len(MODALITIES))
        print(f"  {'everything, with texts':32} {total:8.0f} bytes a slice-modality")
    os.close(raw)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for store in ("uint8", "fp16"):
            measure(Path(folder), store)
