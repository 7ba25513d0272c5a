"""What a new study costs, part by part, and what loading the models once saves.

    python tests/benchmarks/bench_segment.py runs/NAME STUDY [--once]

Segments the study twice with one `Segmenter`, as the first and as a later one of many (--once: only the first), and writes
the results; prints the seconds of every part, what no part accounts for (in the first call the models' loading), and the
largest memory of the process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from zeus_union.pipelines.outputs.results import write_results
from zeus_union.pipelines.segment.segmenter import load_run
from zeus_union.stage1_instruct.building.report import BuildReport


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("study", type=Path)
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    start = time.perf_counter()
    segmenter = load_run(given.run)
    print(f"loading the decoder: {time.perf_counter() - start:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        for call in ("first", "later")[: 1 if given.once else 2]:
            start = time.perf_counter()
            segmentation = segmenter.segment(given.study)
            segmented = time.perf_counter()
            write_results(segmentation, Path(folder) / call)
            parts = {**segmentation.seconds, "writing the results": time.perf_counter() - segmented}
            total = time.perf_counter() - start
            print(
                f"{call} study: {total:.1f} s, {len(segmentation.segmented)} slices of {', '.join(segmentation.images)}"
            )
            for part, seconds in parts.items():
                print(f"  {part}: {seconds:.2f}")
            print(f"  all else: {total - sum(parts.values()):.2f}")
    print(f"peak memory: {BuildReport.peak_memory_bytes() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
