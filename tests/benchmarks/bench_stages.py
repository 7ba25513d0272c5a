"""What the cache buys: one epoch of stage 2 from it, against one that runs the frozen models every time.

    python tests/benchmarks/bench_stages.py [--subjects 2] [--slice-step 3]

Prints stage 1's seconds a slice-modality by part, peak memory, the cache's bytes, stage 2's slices a second, and the
ratios, all from one run on the embedded models and the phantom.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import Models, best_device, load_models
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.losses import one_hot, segmentation_losses
from zeus_union.stage2_segment.training.schedule import build_optimizer


def epoch(cache: Cache, run: Path, device: str, batch_size: int, embed: Callable, instruct: Callable) -> float:
    """Seconds of one training epoch over all slices; `embed` and `instruct` give each batch its inputs."""
    config = plan_run(cache, run=run, fold=0, epochs=1, batch_size=batch_size)
    model = build_model(config.architecture).to(device)
    model.load_pretrained(cache.constants(config.inputs.embedding_layer))
    optimizer = build_optimizer(model, config.recipe)
    rows = cache.rows_of(cache.subjects)
    data = SliceData(cache, config.inputs.encoder, config.inputs.modalities, rows, torch.device(device))
    inputs = RunInputs(config, data)
    data.batch(np.arange(1))  # the first read of a file is slower
    start = time.perf_counter()
    for at in range(0, len(rows), batch_size):
        positions = np.arange(at, min(at + batch_size, len(rows)))
        batch = data.batch(positions)
        embeddings = embed(rows[positions], batch.images)
        text = instruct(rows[positions], embeddings, inputs.of(positions, batch)[1])
        logits = model(embeddings, text)
        loss = segmentation_losses(logits, one_hot(batch.masks, logits.shape[1]), config.recipe.dice_over).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--slice-step", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    arguments = parser.parse_args()
    device = best_device()
    models = load_models(load_profile("lite", {"projection": "untrained"}), device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo("chaos", folder / "data", subjects=arguments.subjects)
        dataset = open_dataset("demo", folder / "data")
        # Loading and first calls belong to no slice.
        models.encoder.encode(np.zeros((1, 256, 256), np.uint8))
        models.instructor.answer([question("liver", "MRI-T2")], torch.zeros(1, 256, 64, 64))
        models.text_encoder.encode(["a liver"])
        report = build_cache(dataset, models, BuildOptions(folder / "demo.h5", slice_step=arguments.slice_step))
        print("stage 1, seconds a slice-modality")
        for part, seconds in report.per_slice_modality().items():
            print(f"  {part:22} {seconds:8.4f}")
        print(f"  peak memory            {report.peak_memory_bytes() / 2**30:8.2f} GiB")
        with Cache(folder / "demo.h5") as cache:
            count = len(cache.rows) * len(cache.modalities)
            print(f"cache: {(folder / 'demo.h5').stat().st_size / count / 2**20:.3f} MiB a slice-modality")
            compare(cache, models, folder / "run", device, arguments.batch_size)


def compare(cache: Cache, models: Models, run: Path, device: str, batch_size: int) -> None:
    """One epoch each: from the cache; with the encoder; with encoder, LLM and text encoder."""

    def encode(rows: np.ndarray, _: Tensor) -> Tensor:
        images = cache.images(rows)
        encoded = models.encoder.encode(images.reshape(-1, *images.shape[2:]))
        return encoded.reshape(*images.shape[:2], *encoded.shape[1:]).to(device)

    def speak(rows: np.ndarray, embeddings: Tensor, _: Tensor) -> Tensor:
        flat = embeddings.flatten(0, 1)
        questions = [question(cache.card.instance, cache.card.terms[m]) for _ in rows for m in cache.modalities]
        texts = models.text_encoder.encode([answer.text for answer in models.instructor.answer(questions, flat)])
        return torch.as_tensor(texts).reshape(*embeddings.shape[:2], -1).to(device)

    def as_cached(rows: np.ndarray, embeddings: Tensor) -> Tensor:
        return embeddings

    def as_cached_text(rows: np.ndarray, embeddings: Tensor, text: Tensor) -> Tensor:
        return text

    slices = len(cache.rows)
    epoch(cache, run, device, batch_size, as_cached, as_cached_text)  # warm-up
    from_cache = epoch(cache, run, device, batch_size, as_cached, as_cached_text)
    with_encoder = epoch(cache, run, device, batch_size, encode, as_cached_text)
    with_all = epoch(cache, run, device, batch_size, encode, speak)
    print(
        f"stage 2, one epoch of {slices} slices x {len(cache.modalities)} modalities, late fusion, batch {batch_size}"
    )
    for what, seconds in (
        ("from the cache", from_cache),
        ("with the image encoder in the loop", with_encoder),
        ("with encoder, LLM and text encoder", with_all),
    ):
        print(f"  {what:36} {seconds:8.1f} s  {slices / seconds:7.2f} slices/s  {seconds / from_cache:6.2f} x")


if __name__ == "__main__":
    main()
