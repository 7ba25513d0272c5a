"""The pipeline of stage 1 against the plain loop, in one run: `python -m tests.benchmarks.bench_pipeline [--real]`.

Stand-ins for a GPU: an image encoder for pictures of 1024 x 1024 and a language model that wait off the CPU, 8 ms a picture
and 4 ms an answer; all else (reading NIfTI, slicing, quantising where the plain loop does, writing, verifying) is the real
code. Busy is the share of the time in which the device (here: the waiting) has work. Expected: the pipeline at least 95 %,
as each of its threads has less than 12 ms of work a slice-modality; the plain loop 12 / (12 + its work on the host).

With --real: the embedded models on this CPU, where everything competes for the same cores: expected, no slower.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.stage1_instruct.building.plain_loop import build_plainly
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.stage1_instruct.building import pipeline
from zeus_union.stage1_instruct.building.encoding import Picture, Row
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.threads import Worker
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import best_device, load_models
from zeus_union.stage1_instruct.models.language.llm import Asked, Generation
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.projected_llm import ProjectedLLM
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.studies.study import Dataset, Study

ENCODER_S, ANSWER_S = 0.008, 0.004
AT_ONCE, SLOTS, WIDTH = 16, 32, 384
MODALITIES = ("FLAIR", "T1w", "t1gd", "T2w")


class Device:
    """Counts for how long it had work."""

    def __init__(self) -> None:
        self.busy = 0.0

    def work(self, seconds: float) -> None:
        time.sleep(seconds)
        self.busy += seconds


class WaitingEncoder:
    """As a GPU's: bytes come back (`run`), or float32 where the plain loop asks (`encode`)."""

    name, input_size, at_once, row_bytes = "standin", 1024, AT_ONCE, 1 << 20

    def __init__(self, device: Device) -> None:
        self._device = device
        random = np.random.default_rng(0)
        self._float = torch.from_numpy(random.normal(size=(256, 64, 64)).astype(np.float32))
        self._stored = {
            "values": random.integers(0, 256, (256, 64, 64), dtype=np.uint8),
            "scale": np.ones(256, np.float32),
            "offset": np.zeros(256, np.float32),
        }

    def run(self, pictures: Sequence[Picture]) -> list[Callable[[], Row]]:
        self._device.work(ENCODER_S * AT_ONCE)
        return [lambda: self._stored for _ in pictures]

    def encode(self, images: NDArray[np.uint8], device: Any = None) -> Tensor:
        self._device.work(ENCODER_S * len(images))
        return self._float.expand(len(images), -1, -1, -1).contiguous()

    def constants(self) -> dict[str, NDArray[np.float32]]:
        return {"no_mask": np.zeros(256, np.float32)}


class WaitingLLM(ProjectedLLM):
    """Answers in slots, all of the same length."""

    sees, samples, streams = "pictures", False, True  # type: ignore[assignment]

    def __init__(self, device: Device) -> None:
        self._waits_on = device

    def load(self) -> None:
        """Nothing to load."""

    def prompt(self, question: str) -> str:
        return question

    def image_tokens(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1, 1)

    def stream(self, asked: Iterator[Asked], questions: Collection[str]) -> Iterator[tuple[Hashable, Generation]]:
        while rows := list(islice(asked, SLOTS)):
            self._waits_on.work(ANSWER_S * len(rows))
            yield from ((row.key, Generation(row.question, 8, 8, "eos")) for row in rows)

    def answer(
        self, questions: Sequence[str], images: Tensor | None, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        self._waits_on.work(ANSWER_S * len(questions))
        return [Generation(text, 8, 8, "eos") for text in questions]


OF_THREADS: dict[str, float] = {}  # seconds of a core that each thread of a build has used


class TimedWorker(Worker):
    def _run(self) -> None:
        super()._run()
        OF_THREADS[self._thread.name] = time.thread_time()


def standins(device: Device) -> Any:
    text_encoder = SimpleNamespace(
        width=WIDTH,
        encode=lambda texts: np.zeros((len(texts), WIDTH), np.float32),
        dropped=lambda texts: [0] * len(texts),
    )
    return SimpleNamespace(
        encoder=WaitingEncoder(device),
        instructor=WaitingLLM(device),
        text_encoder=text_encoder,
        profile=SimpleNamespace(
            sees="pictures", encoder="standin", instructor="standin", keep_states=False, to_json=dict
        ),
        encoder_recipe=lambda: {"model": "standin", "input_size": 1024},
        instruction_recipe=lambda: {"model": "standin"},
    )


def brains(folder: Path, subjects: int, slices: int) -> Dataset:
    """As large as those of MSD-Brain in the plane: 240 x 240 voxels, four modalities, NIfTI, compressed."""
    names = tuple(f"BRATS_{number:03}" for number in range(1, subjects + 1))
    terms = {name: f"MRI-{name}" for name in MODALITIES}
    card = DatasetCard("brains", MODALITIES, terms, ("tumour",), "tumour", names)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (240, 240, slices)), indexing="ij")
    inside = x**2 / 0.5 + y**2 / 0.7 + z**2 / 1.2 < 1
    random = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    for name in (*MODALITIES, "labels"):
        grey = (random.integers(0, 60, inside.shape) + 400) * inside if name != "labels" else x**2 + y**2 + z**2 < 0.05
        nibabel.save(nibabel.Nifti1Image(grey.astype(np.int16), affine), folder / f"{name}.nii.gz")

    def load(subject: str) -> Study:
        read = {name: np.asarray(nibabel.load(folder / f"{name}.nii.gz").dataobj) for name in (*MODALITIES, "labels")}
        labels = read.pop("labels").astype(np.uint8)
        sources = {f"{name}.nii.gz": folder / f"{name}.nii.gz" for name in read}
        return Study(subject, Grid(labels.shape, affine), read, labels, sources=sources)

    return Dataset(card, load)


def say(what: str, seconds: float, report: BuildReport, busy: float | None = None) -> None:
    share = "" if busy is None else f", device busy {busy / seconds:6.1%}"
    print(f"{what:9} {seconds:7.1f} s{share}")
    for part, each in report.per_slice_modality().items():
        print(f"    {part:22} {each * 1000:8.2f} ms a slice-modality, of {report.done[part]}")


def with_standins(subjects: int, slices: int) -> None:
    count = subjects * slices * len(MODALITIES)
    print(
        f"stand-ins: {ENCODER_S * 1000:.0f} ms a picture, {ANSWER_S * 1000:.0f} ms an answer; at most {count} of each"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = brains(folder, subjects, slices)
        for what, build in (("plain", build_plainly), ("pipeline", build_cache)):
            device = Device()
            cpu = time.thread_time()
            models = standins(device)
            pipeline.computing, pipeline.Worker = lambda encoder, store: encoder, TimedWorker  # type: ignore
            start = time.perf_counter()
            report = build(dataset, models, BuildOptions(folder / f"{what}.h5", pack=False))
            say(what, time.perf_counter() - start, report, device.busy)
            seconds = {"this thread": time.thread_time() - cpu, **OF_THREADS}
            OF_THREADS.clear()
            for thread, used in seconds.items():
                print(f"    CPU of {thread:15} {used / count * 1000:8.2f} ms a slice-modality")


def with_real_models(subjects: int, slice_step: int, rounds: int) -> None:
    models = load_models(load_profile("lite", {"projection": "untrained", "max_new_tokens": "24"}), best_device())
    models.encoder.encode(np.zeros((1, 256, 256), np.uint8))
    models.instructor.answer([question("liver", "MRI-T2")], torch.zeros(1, 256, 64, 64))
    models.text_encoder.encode(["a liver"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo("nnunet", folder / "data", subjects=subjects)
        dataset = open_dataset("nnunet", folder / "data", modalities=("T2-SPIR",))
        for number in range(rounds):
            for what, build in (("plain", build_plainly), ("pipeline", build_cache)):
                options = BuildOptions(folder / f"{what}{number}.h5", slice_step=slice_step)
                start = time.perf_counter()
                report = build(dataset, models, options)
                say(what, time.perf_counter() - start, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--real", action="store_true", help="the embedded models on this machine")
    parser.add_argument("--slice-step", type=int, default=3, help="with --real")
    parser.add_argument("--rounds", type=int, default=2, help="with --real")
    arguments = parser.parse_args()
    if arguments.real:
        with_real_models(arguments.subjects, arguments.slice_step, arguments.rounds)
    else:
        with_standins(arguments.subjects, arguments.slices)


if __name__ == "__main__":
    main()
