"""Training from a mount: how long an epoch waits for a cache that is read at a mount's rate and latency.

    python tests/benchmarks/bench_remote.py [--slices 24] [--mib 40,100,400] [--latency 0,30] [--step 0.4]

A cache of noise at the real size, two modalities, read from disk (`--resident disk`) through a stand-in for the mount: every
read takes the latency (ms) and then its share of the rate (MiB/s), which all reads have together. A step is a pause of `--step`
seconds, as of a GPU or of other cores, so that the numbers are the loader's alone. Read ahead (`AHEAD` batches, all at once)
against one batch ahead by one thread. Printed is the share of the epoch that is spent waiting for data, after the first batch,
which nothing can be ahead of, and the rate that the steps ask for.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zeus_union.cache import shard
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, SubjectSlices
from zeus_union.stage2_segment.inputs import slices as module
from zeus_union.stage2_segment.inputs.slices import SliceData, epoch_batches

MODALITIES, BATCH = ("T1", "T2"), 4


class Mount:
    """Reads take their latency each, and their share of a rate that all have together."""

    def __init__(self, mib_per_s: float, latency_ms: float) -> None:
        self._rate, self._latency = mib_per_s * 2**20, latency_ms / 1e3
        self._free, self._lock, self._read = 0.0, threading.Lock(), shard.read_at

    def read_at(self, fd: int, buffer: Any, offset: int) -> int:
        count = self._read(fd, buffer, offset)
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self._rate
            due = self._free
        time.sleep(max(0.0, due - time.monotonic()) + self._latency)
        return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--mib", default="40,100,400", help="MiB/s of the mount")
    parser.add_argument("--latency", default="0,30", help="ms of every read")
    parser.add_argument("--step", type=float, default=0.4, help="seconds of a step")
    given = parser.parse_args()
    asked = BATCH * len(MODALITIES) * (256 * 64 * 64 + 2 * 4 * 256) / 2**20 / given.step
    print(f"batches of {BATCH} slices, {len(MODALITIES)} modalities; steps of {given.step} s ask for {asked:.0f} MiB/s")
    print("| mount MiB/s | latency (ms) | waiting, one batch ahead | waiting, read ahead |")
    print("|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder) / "remote.h5", given.slices)
        ahead = module.AHEAD
        for rate in map(float, given.mib.split(",")):
            for latency in map(float, given.latency.split(",")):
                shares = []
                for module.AHEAD in (1, ahead):
                    shares.append(waiting(path, Mount(rate, latency), given.step))
                print(f"| {rate:.0f} | {latency:.0f} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)


def build(path: Path, slices: int) -> Path:
    writer = CacheWriter(path, DatasetCard("noise", MODALITIES, {}, ("organ",), "organ", ("P",)))
    random, numbers = np.random.default_rng(0), np.arange(slices, dtype=np.int32)
    for layer in ("slices", "embeddings/noise"):
        writer.begin_layer(layer, {})
    masks = random.integers(0, 2, (slices, 256, 256), np.uint8)
    images = np.repeat(masks[:, None], len(MODALITIES), 1)
    writer.write_slices(
        "P", SubjectSlices(Grid((256, 256, slices), np.eye(4)), numbers, images, masks, None, masks, {})
    )
    embeddings = random.standard_normal((slices, len(MODALITIES), 256, 64, 64), np.float32)
    writer.write_embeddings("embeddings/noise", "P", embeddings)
    writer.finalize()
    return path


def waiting(path: Path, mount: Mount, step: float) -> float:
    """The share of an epoch, without its first batch, that is not the steps'; moving bytes to the device is not waiting."""
    read, shard.read_at = shard.read_at, mount.read_at
    move, moving = SliceData._on_device, 0.0

    def timed(self: SliceData, *stored: Any) -> Any:
        nonlocal moving
        started = time.monotonic()
        batch = move(self, *stored)
        moving += time.monotonic() - started
        return batch

    SliceData._on_device = timed  # type: ignore[method-assign]
    try:
        with Cache(path) as cache:
            rows = cache.rows_of(["P"])
            data = SliceData(cache, "noise", MODALITIES, rows, torch.device("cpu"), resident="disk")
            batches = epoch_batches(np.ones(len(rows), bool), BATCH, 0.0, 0, 1)
            stream = data.batches(batches)
            next(stream)
            waited, moving, started = 0.0, 0.0, time.monotonic()
            for _ in batches[1:]:
                time.sleep(step)
                asked = time.monotonic()
                next(stream)
                waited += time.monotonic() - asked
            return (waited - moving) / (time.monotonic() - started)
    finally:
        shard.read_at, SliceData._on_device = read, move  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
