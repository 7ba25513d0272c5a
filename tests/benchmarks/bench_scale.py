"""What a cache costs by its number of subjects, a row: `python tests/benchmarks/bench_scale.py --plot docs/scale.png`.

The real writer, index, reader and checks over pictures of 2 x 2 and embeddings of one number, three rows a subject, so that
nothing but the book-keeping is measured: 100,000 subjects are 300,000 rows. `--rows 620 --subjects 484` has the shape of
MSD-Brain. Files are not synchronised with the disk, since that would measure the disk.

The index of one file lists every subject with the rows of the first one, so that no 900,000 arrays need be written to open
it. Shards are cloned likewise, with another name in them and a new seal, and the last `WRITTEN` come from the real writer. Claims
and `finished` are timed on `ASKED` subjects. What opens every shard is left out beyond `--whole` subjects: it would take hours.
Opening runs in a process of its own, so that its memory is the index's. Seconds are the processor's, so that other work on
the machine does not count; waiting for a disk does not either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard, shard_folder
from zeus_union.cache.manifest import find_shards, read_shard
from zeus_union.cache.pack import pack
from zeus_union.cache.seal import seal_of
from zeus_union.cache.shard import FileBuilder, Files
from zeus_union.cache.status import read_status
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter, SubjectSlices

EMBEDDINGS = "embeddings/bench"
WRITTEN, ASKED, WHOLE = 100, 1000, 10_000
FIRST = "P000000"

OPEN = """
import json, sys, time
import psutil
from zeus_union.cache.reader import Cache
import numpy as np
memory = psutil.Process().memory_info().rss
start = time.process_time()
cache = Cache(sys.argv[1])
opened = time.process_time() - start
memory = psutil.Process().memory_info().rss - memory
start = time.process_time()
rows = cache.rows_of(cache.subjects)
training = rows[cache.rows.fold[rows] != 0]
order = np.random.default_rng(0).permutation(training)
shuffled = time.process_time() - start
start = time.process_time()
for at in range(0, 3000, 10):
    cache.read_embeddings("bench", order[at : at + 10], [0])
read = (time.process_time() - start) / min(3000, len(order)) * len(cache.rows)
print(json.dumps({"opening": opened, "memory": memory, "shuffling": shuffled, "reading": read}))
"""


def subject_slices(rows: int) -> SubjectSlices:
    images, masks = np.full((rows, 1, 2, 2), 7, np.uint8), np.ones((rows, 2, 2), np.uint8)
    grid, numbers = Grid((2, 2, rows), np.eye(4)), np.arange(rows, dtype=np.int32)
    return SubjectSlices(grid, numbers, images, masks, None, None, {"a.nii.gz": "0" * 64})


def begin(path: Path, card: DatasetCard) -> CacheWriter:
    writer = CacheWriter(path, card)
    writer.begin_layer("slices", {"step": 1})
    writer.begin_layer(EMBEDDINGS, {"encoder": "bench"})
    return writer


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def clone(writer: CacheWriter, subjects: Sequence[str]) -> None:
    """Shards of `subjects` as the writer would write them: those of `FIRST` with their name in them, sealed anew."""
    folder = shard_folder(writer.path)
    for name in find_shards(folder, subject=FIRST):
        shard = (folder / name).read_bytes()
        for subject in subjects:
            copy = folder / name.replace(FIRST, subject)
            copy.write_bytes(shard.replace(FIRST.encode(), subject.encode()))
            seal = seal_of(copy)
            with open(copy, "r+b") as file:
                file.write(seal)


def index_of_clones(path: Path, card: DatasetCard) -> None:
    """One file of `card.subjects`, all of which have the rows of `FIRST`, as `pack` lays them out."""
    source = Files(path)
    recipes, parts = {}, {}
    with FileBuilder(path.with_name(f"one-{path.name}")) as builder:
        for name in find_shards(source.folder, subject=FIRST):
            shard = read_shard(source.folder, name)
            recipes |= shard.recipes
            for layer, by_subject in shard.parts.items():
                part = by_subject[FIRST]
                arrays = {one: builder.copy(f"{layer}/{FIRST}/{one}", source, part, one) for one in part.arrays}
                parts[layer] = dict.fromkeys(card.subjects, replace(part, file="", file_bytes=0, arrays=arrays))
        # What was written is read back of every subject: here they are all one.
        with patch("zeus_union.cache.shard.damaged_rows", lambda *_: ()):
            builder.commit(replace(source.manifest(), state="packed", recipes=recipes, parts=parts))


def measure(folder: Path, subjects: int, rows: int, whole: int) -> dict[str, float]:
    """Seconds (memory: bytes) of each part, for the whole cache."""
    card = DatasetCard("bench", ("T1",), {}, ("organ",), "organ", tuple(f"P{n:06}" for n in range(subjects)))
    path = folder / f"{subjects}.h5"
    writer = begin(path, card)
    embeddings = np.linspace(0, 1, rows, dtype=np.float32).reshape(rows, 1, 1, 1, 1)

    def write(names: Sequence[str]) -> None:
        for subject in names:
            with writer.claim(subject):
                writer.write_slices(subject, subject_slices(rows))
                writer.write_embeddings(EMBEDDINGS, subject, embeddings)

    def claim(names: Sequence[str]) -> None:
        for subject in names:
            with writer.claim(subject):
                pass

    def finished(resumed: CacheWriter, names: Sequence[str]) -> None:
        assert all(resumed.finished(layer, name) for name in names for layer in ("slices", EMBEDDINGS))

    write([FIRST])
    asked = card.subjects[:: max(1, subjects // ASKED)]
    costs = {"claims": seconds(lambda: claim(asked)) * subjects / len(asked)}
    index_of_clones(path, card)
    one_file = path.with_name(f"one-{path.name}")
    costs |= {f"{name}, one file": value for name, value in opened(one_file).items()}
    costs["resuming: beginning, one file"] = seconds(lambda: begin(one_file, card))
    resumed = begin(one_file, card)
    costs["resuming: finished, one file"] = seconds(lambda: finished(resumed, asked)) * subjects / len(asked)
    if subjects > whole:
        return costs
    clone(writer, card.subjects[1:-WRITTEN])
    costs["writing"] = seconds(lambda: write(card.subjects[-WRITTEN:])) * subjects / WRITTEN
    costs["resuming: beginning, shards"] = seconds(lambda: begin(path, card))
    resumed = begin(path, card)
    costs["resuming: finished, shards"] = seconds(lambda: finished(resumed, asked)) * subjects / len(asked)
    costs["status, shards"] = seconds(lambda: read_status(path))
    costs["finishing, shards"] = seconds(lambda: writer.finalize(pack=False))
    costs |= {f"{name}, shards": value for name, value in opened(path).items()}
    costs["verify, shards"] = seconds(lambda: verify(path))
    packed = folder / f"{subjects}-packed.h5"
    costs["packing"] = seconds(lambda: pack(path, packed))
    costs["verify, one file"] = seconds(lambda: verify(packed))
    return costs


def opened(path: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def draw(found: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Microseconds (bytes) a row over the number of subjects: flat lines are constant costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted((entry for entry in found.values() if entry["rows"] == 3), key=lambda entry: entry["subjects"])
    pyplot.rcParams["axes.prop_cycle"] = pyplot.cycler(color=pyplot.get_cmap("tab20").colors)
    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 4.2), dpi=80)
    for part in dict.fromkeys(name for entry in sizes for name in entry if name not in ("subjects", "rows")):
        points = [(entry["subjects"], entry[part] / entry["subjects"] / 3) for entry in sizes if part in entry]
        is_memory = part.startswith("memory")
        axes = memory if is_memory else times
        axes.plot(*zip(*((x, y if is_memory else y * 1e6) for x, y in points)), marker=".", label=part)
    for axes, unit in ((times, "microseconds a row"), (memory, "bytes a row of the open index")):
        axes.set(xscale="log", xlabel="subjects (three rows each)", ylabel=unit)
        axes.legend(fontsize=6, ncols=2)
    times.set_yscale("log")
    memory.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", default="1000,10000,100000")
    parser.add_argument("--whole", type=int, default=WHOLE, help="open every shard of up to so many subjects")
    parser.add_argument("--rows", type=int, default=3, help="rows a subject")
    parser.add_argument(
        "--table", type=Path, help="where the numbers go, as JSON; what is there of other sizes is kept"
    )
    parser.add_argument("--plot", type=Path, help="draw the numbers of --table")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    if arguments.table and arguments.table.exists():
        found = json.loads(arguments.table.read_text())
    for subjects in map(int, filter(None, arguments.subjects.split(","))):
        with tempfile.TemporaryDirectory() as folder, patch("os.fsync", lambda _: None):
            costs = measure(Path(folder), subjects, arguments.rows, arguments.whole)
        rows = subjects * arguments.rows
        found[f"{subjects} x {arguments.rows}"] = {"subjects": subjects, "rows": arguments.rows, **costs}
        print(f"\n{subjects:,} subjects, {rows:,} rows")
        for part, cost in costs.items():
            if part.startswith("memory"):
                print(f"  {part:28} {cost / 2**20:9.1f} MiB {cost / rows:10.0f} bytes a row")
            else:
                print(f"  {part:28} {cost:9.2f} s   {cost / rows * 1e6:10.1f} us a row", flush=True)
        if arguments.table:
            arguments.table.write_text(json.dumps(found, indent=1))
    if arguments.plot:
        draw(found, arguments.plot)


if __name__ == "__main__":
    main()
