"""What one pass over the cache buys: K runs side by side, against K runs one after the other.

    python tests/benchmarks/bench_ablate.py [--cache cache/brats.h5] [--runs 4,8,16] [--epochs 2] [--subjects 1]

Prints, from one run on one cache (a phantom without real embeddings if none is given): an epoch's slices a second and the
share of it spent waiting for data, from disk, main memory and (where there is one) a GPU; seconds of K separate runs, each
a process of its own as a user would start it and the same within one process, against one pass, in turn and stacked; peak
memory against batch, modalities and K.

Expected: training itself is the same work, so one pass saves what K separate runs repeat: starting Python and loading the
libraries (seconds), reading and decoding the embeddings (a few per cent of a step on a CPU, more of it on a fast GPU).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.model.decoder import MaskDecoder
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.train import train_together

ROOT = Path(__file__).parents[2]
MODALITIES = ("A", "B", "C", "D")


def make_cache(path: Path, slices: int, subjects: int = 2) -> Path:
    """Noise of the right shapes: what is in the embeddings does not change how long they take."""
    names = tuple(f"s{index}" for index in range(subjects))
    card = DatasetCard("noise", MODALITIES, {name: name for name in MODALITIES}, ("blob",), "blob", names)
    writer = CacheWriter(path, card)
    random = np.random.default_rng(0)
    constants = {f"decoder.{name}": t.numpy() for name, t in MaskDecoder(4, keep_iou_token=True).state_dict().items()}
    constants |= {"dense_pe": np.zeros((256, 64, 64), np.float32), "no_mask": np.zeros(256, np.float32)}
    writer.begin_layer("slices", {"noise": 1})
    writer.begin_layer("embeddings/noise", {"noise": 1}, lambda: constants)
    writer.begin_layer("instructions/noise", {"noise": 1})
    grid, numbers = Grid((256, 256, slices), np.eye(4)), np.arange(slices, dtype=np.int32)
    for name in names:
        masks = np.zeros((slices, 256, 256), np.uint8)
        masks[:, 100:150, 100:150] = 1
        images = np.zeros((slices, len(MODALITIES), 256, 256), np.uint8)
        writer.write_slices(name, SubjectSlices(grid, numbers, images, masks, None, masks, {}))
        writer.write_embeddings(
            "embeddings/noise",
            name,
            random.standard_normal((slices, len(MODALITIES), 256, 64, 64), dtype=np.float32),
        )
        text = random.standard_normal((slices, len(MODALITIES), 384)).astype(np.float32)
        rows = [Instruction(int(n), m, "?", "!", 1, 1, "stop", 0) for n in numbers for m in MODALITIES]
        writer.write_instructions("instructions/noise", name, text, rows)
    writer.finalize()
    return path


def rates(count: int) -> list[float]:
    """A learning rate for each of K runs."""
    return [1e-4 * (1 + index / 10) for index in range(count)]


def options(cache: Cache, epochs: int, modalities: int = 2, batch: int = 4) -> dict[str, Any]:
    folds = {cache.subjects[int(row.subject)]: None for row in cache.rows if row.labelled}
    names = list(folds)
    return {
        "fusion": "hybrid",
        "modalities": cache.modalities[:modalities],
        "train_subjects": names[:1],
        "test_subjects": names[1:2],
        "epochs": epochs,
        "batch_size": batch,
        "variant": cache.variants[:1],
    }


def one_pass(path: Path, folder: Path, count: int, epochs: int, stacked: bool, resident: str = "auto") -> float:
    """Seconds of K runs side by side."""
    start = time.perf_counter()
    with Cache(path) as cache:
        accelerator = make_accelerator(None)
        learners = []
        for index, lr in enumerate(rates(count)):
            run = folder / f"run{index}"
            config = plan_run(cache, run=run, lr=lr, **options(cache, epochs))
            learners.append(Learner(cache, config, run, accelerator))
        train_together(cache, learners, accelerator, stacked=stacked, validate_every=0, resident=resident)
    return time.perf_counter() - start


def separate(path: Path, folder: Path, count: int, epochs: int, processes: bool) -> float:
    """Seconds of K runs one after the other."""
    start = time.perf_counter()
    for index, lr in enumerate(rates(count)):
        run = folder / f"run{index}"
        with Cache(path) as cache:
            chosen = options(cache, epochs)
            if processes:
                given = {n: v if isinstance(v, (str, int)) else ",".join(v) for n, v in chosen.items()}
                words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
                command = [
                    sys.executable,
                    "-m",
                    "zeus_union.stage2_segment.cli",
                    "train",
                    f"--cache={path}",
                    f"--out={run}",
                ]
                subprocess.run(
                    [*command, *words, f"--lr={lr}", "--validate-every=0"], cwd=ROOT, check=True, capture_output=True
                )
            else:
                accelerator = make_accelerator(None)
                learner = Learner(cache, plan_run(cache, run=run, lr=lr, **chosen), run, accelerator)
                train_together(cache, [learner], accelerator, validate_every=0)
    return time.perf_counter() - start


def waiting(path: Path, folder: Path) -> None:
    """Slices a second and the share of the time spent waiting for data, by where the embeddings are kept."""
    import torch

    places = ["disk", "ram", *(["device"] if torch.cuda.is_available() else [])]
    print("an epoch from the cache, 2 modalities, hybrid, batch 4 (the second of two)")
    for place in places:
        one_pass(path, folder / place, 1, 2, False, place)
        record = pq.read_table(folder / place / "run0" / "metrics.parquet").to_pylist()[-1]
        print(f"  {place:8} {record['slices_per_s']:8.2f} slices/s   waiting {100 * record['waiting']:.2f} %")


PEAK = """
import sys
from pathlib import Path
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.train import train_together
from zeus_union.stage2_segment.device import make_accelerator
sys.path.insert(0, str(Path.cwd()))
from tests.benchmarks.bench_ablate import options, rates
import torch
path, folder, batch, modalities, count, stacked = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
def peak():
    # Not getrusage: its peak is never below that of the process that started this one.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
with Cache(path) as cache:
    accelerator = make_accelerator(None)
    learners = []
    for index, lr in enumerate(rates(count)):
        run = folder / f"run{index}"
        config = plan_run(cache, run=run, lr=lr, **options(cache, 1, modalities, batch))
        learners.append(Learner(cache, config, run, accelerator))
    train_together(cache, learners, accelerator, stacked=bool(stacked), validate_every=0, resident="disk")
if torch.cuda.is_available():
    print(torch.cuda.max_memory_allocated() / 2**20)
else:
    print((peak() - before) / 1024)
"""


def memory(path: Path, folder: Path) -> None:
    """Peak MiB above the libraries (of the GPU's memory where there is one), each in a process of its own."""
    print("peak memory, embeddings from disk, hybrid (MiB)")
    cases = [
        (1, 2, 1, 0),
        (4, 2, 1, 0),
        (8, 2, 1, 0),
        (4, 1, 1, 0),
        (4, 4, 1, 0),
        (4, 2, 4, 0),
        (4, 2, 8, 0),
        (4, 2, 4, 1),
    ]
    for number, (batch, modalities, count, stacked) in enumerate(cases):
        arguments = [str(path), str(folder / f"peak{number}"), str(batch), str(modalities), str(count), str(stacked)]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
        )
        how = "stacked" if stacked else "in turn"
        print(f"  batch {batch}, {modalities} modalities, K = {count} {how}: {float(done.stdout.split()[-1]):8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--runs", default="4,8,16")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--slices", type=int, default=8, help="of each of two subjects, where no cache is given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.cache or make_cache(folder / "noise.h5", arguments.slices)
        one_pass(path, folder / "warm", 1, 1, False)
        waiting(path, folder / "waiting")
        for count in map(int, arguments.runs.split(",")):
            place = folder / f"k{count}"
            seconds = {
                "separate processes": separate(path, place / "a", count, arguments.epochs, True),
                "one after the other": separate(path, place / "b", count, arguments.epochs, False),
                "one pass, in turn": one_pass(path, place / "c", count, arguments.epochs, False),
                "one pass, stacked": one_pass(path, place / "d", count, arguments.epochs, True),
            }
            print(f"K = {count}, {arguments.epochs} epochs")
            for what, spent in seconds.items():
                print(f"  {what:20} {spent:8.1f} s  {seconds['separate processes'] / spent:5.2f} x")
        memory(path, folder)


if __name__ == "__main__":
    main()
