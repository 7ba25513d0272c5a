"""DSC against the minutes there are, from nothing: `python tests/benchmarks/bench_minutes.py CACHE --train A,B --test C --table T`.

A run of its own for every budget, whose schedule ends there. What a step takes is measured on this CPU. Zeus pays besides
for the image encoder, over the training slices and their views (`--encode` seconds each), and with text for the projection
and the language model (`--projection` seconds, `--text` seconds a slice): the cache has both, this counts them. A network
sees the cache's pictures, augmented. With `--device cuda` a GPU trains as many epochs as fit into the CPU's minutes; with
`--train-in bf16` they are trained in that.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zeus_union.cache.reader import Cache
from zeus_union.pipelines.ablation.timing import StepTimes, batches_an_epoch
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.train import train_run

METHODS: dict[str, dict[str, Any]] = {
    "Zeus, no text": {"text": "none"},
    "Zeus, instruction": {},
    "UNeXt": {"model": "unext"},
    "U-Net, a quarter as wide": {"model": "unet", "preset": "quarter"},
    "U-Net": {"model": "unet"},
}
BUDGETS = (5, 10, 20, 40)  # minutes
VIEWS_SHARE = 0.5  # of what a run has beside its texts, at most, for the image encoder
COLUMNS = ("method", "minutes", "views", "epochs", "steps", "subject", "class", "dsc")


@dataclass(frozen=True)
class Planned:
    """A run that fits: what it is trained with, and how many optimiser steps that makes."""

    method: str
    minutes: int
    steps: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Stage1:
    """Seconds of what comes before training.

    Attributes:
        encode: of the image encoder for a slice-modality.
        projection: of training it.
        text: of an instruction and its embedding.
    """

    encode: float
    projection: float
    text: float


def plan(
    cache: Cache,
    split: dict[str, Any],
    methods: list[str],
    stage1: Stage1,
    given: dict[str, float],
    budgets: list[int],
) -> Iterator[Planned]:
    """The runs that fit, each for as many whole epochs as its minutes have.

    Args:
        given: method -> seconds a step, in place of what is measured here.
    """
    times = StepTimes(torch.device("cpu"))
    for method in methods:
        asked = {**split, **METHODS[method], "fusion": "hybrid"}
        config = plan_run(cache, run=Path("run"), **asked)
        step = given.get(method) or times.of(config)
        batches = batches_an_epoch(cache, config)
        slices = len(cache.rows_of(config.split.train)) * len(config.inputs.modalities)
        for minutes in budgets:
            options = dict(asked)
            left = 60.0 * minutes
            if config.is_zeus:
                if config.architecture.text_width:
                    left -= stage1.projection + slices * stage1.text
                passes = math.floor(VIEWS_SHARE * left / (slices * stage1.encode))
                options["views"] = max(0, min(passes - 1, cache.views(config.inputs.encoder)))
                left -= slices * (1 + options["views"]) * stage1.encode
            epochs = math.floor(left / (step * batches))
            print(
                f"{method}, {minutes} minutes: {step:.2f} s a step, {options.get('views', 0)} views, {max(epochs, 0)} epochs "
                f"of {batches}",
                flush=True,
            )
            if epochs > 0:
                yield Planned(method, minutes, epochs * batches, {**options, "epochs": epochs})


def measure(path: Path, planned: Planned, folder: Path, device: str | None, precision: str) -> list[dict[str, Any]]:
    """Trains and evaluates: a row for each subject and class."""
    run = folder / f"{planned.method}-{planned.minutes}"
    train_run(path, run, device=device, precision=precision, validate_every=0, **planned.options)
    about = {
        "method": planned.method,
        "minutes": planned.minutes,
        "views": planned.options.get("views", 0),
        "epochs": planned.options["epochs"],
        "steps": planned.steps,
    }
    return [
        {**about, "subject": row["subject"], "class": row["class"], "dsc": f"{row['dsc_raw']:.4f}"}
        for row in evaluate_run(run, device=device).rows
    ]


def draw(table: list[dict[str, str]], path: Path) -> None:
    """A curve for each method: mean DSC over the subjects and classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), dpi=80)
    for method in dict.fromkeys(row["method"] for row in table):
        of: dict[int, list[float]] = {}
        for row in table:
            if row["method"] == method:
                of.setdefault(int(row["minutes"]), []).append(float(row["dsc"]))
        minutes = sorted(of)
        axes.plot(minutes, [sum(of[m]) / len(of[m]) for m in minutes], marker="o", label=method)
    axes.set(xlabel="minutes on two CPU cores, stage 1 included", ylabel="DSC", ylim=(0, 1), xlim=(0, None))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--train", help="subjects, separated by commas")
    parser.add_argument("--test", help="likewise")
    parser.add_argument("--method", action="append", choices=METHODS, help="again for more; all")
    parser.add_argument("--minutes", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--encode", type=float, default=0.95, help="seconds of the image encoder a slice-modality")
    parser.add_argument("--projection", type=float, default=540, help="seconds of its training")
    parser.add_argument("--text", type=float, default=0.4, help="seconds of an instruction a slice-modality")
    parser.add_argument("--step", action="append", default=[], metavar="METHOD=SECONDS", help="in place of measuring")
    parser.add_argument("--device", help="to train on")
    parser.add_argument("--train-in", default="fp32", help="bf16: the same steps, in less time")
    parser.add_argument("--table", type=Path, required=True, help="where the rows go, as CSV; to draw without CACHE")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.cache:
        split = {"train_subjects": arguments.train.split(","), "test_subjects": arguments.test.split(",")}
        given = {name: float(seconds) for name, seconds in (each.split("=") for each in arguments.step)}
        budgets = [int(minutes) for minutes in arguments.minutes.split(",")]
        stage1 = Stage1(arguments.encode, arguments.projection, arguments.text)
        with Cache(arguments.cache) as cache:
            planned = list(plan(cache, split, arguments.method or list(METHODS), stage1, given, budgets))
        with tempfile.TemporaryDirectory() as folder, arguments.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for each in planned:
                writer.writerows(measure(arguments.cache, each, Path(folder), arguments.device, arguments.train_in))
                file.flush()
    if arguments.plot:
        with arguments.table.open() as file:
            draw(list(csv.DictReader(file)), arguments.plot)


if __name__ == "__main__":
    main()
