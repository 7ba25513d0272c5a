"""SAM's ViT-B with attention through fused kernels, against segment_anything's own, in one run on random weights.

    python tests/benchmarks/bench_sam.py [--size vit_b] [--precision fp32] [--slices 2]

Prints seconds a slice, the memory one slice adds to the process at its peak, and the ratios stock / ours.

ViT-B on one core of a shared AVX-512 CPU, torch 2.13:
    expected  fp32: time 1.4, from blocks timed alone: four global ones 3.0 -> 1.5 s, eight windowed 0.41 -> 0.31 s.
    measured  fp32: 23.1 s and 15.1 s a slice, time 1.53; 2520 and 334 MiB, memory 7.6; difference 4e-7.
    expected  bf16: time 1.1, from the global blocks alone: 1.5 -> 1.2 s.
    measured  bf16: 12.6 s and 11.5 s a slice, time 1.09; 1329 and 202 MiB, memory 6.6; difference 7e-3.
    why       Memory: stock holds three maps of 12 x 4096 x 4096 numbers at once (768 MiB each in fp32), ours strips of
              48 MiB. Time: those maps go through memory several times, half as many bytes in bf16. The MLPs and
              projections, most of what is left, are the same for both.
    untested  CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
from torch import nn

from zeus_union.stage1_instruct.models.image.sam import PRECISIONS, SIZES, build_sam
from zeus_union.stage1_instruct.models.image.sam_attention import use_sdpa


def random_encoder(size: str, device: str, precision: str) -> nn.Module:
    """Weights of a size at which attention is neither uniform nor one-hot, as far as random ones go."""
    torch.manual_seed(0)
    encoder = build_sam(SIZES[size]).image_encoder
    for name, tensor in encoder.state_dict().items():
        nn.init.normal_(tensor, mean=float("norm" in name and "weight" in name), std=0.03)
    return encoder.eval().requires_grad_(False).to(device, PRECISIONS[precision])


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: str) -> int:
    """The bytes in use; the peak starts from there again (except on macOS, where loading may hide some of it)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


@torch.inference_mode()
def measure(ours: bool, options: argparse.Namespace, device: str, turns: Connection) -> None:
    """One encoder in a process of its own, as a peak is never forgotten; one slice each time it is its turn."""
    torch.set_num_threads(options.threads)
    encoder = random_encoder(options.size, device, options.precision)
    if ours:
        use_sdpa(encoder)
    x = torch.randn(1, 3, 1024, 1024, device=device, dtype=PRECISIONS[options.precision])
    encoder.patch_embed(x)  # libraries load what they need once; that belongs to no slice
    before = forget_peak(device)
    turns.send(None)
    while turns.recv():
        start = time.perf_counter()
        embedding = encoder(x).float().cpu()
        turns.send((time.perf_counter() - start, peak_bytes(device) - before, embedding.numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="vit_b", choices=SIZES)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--slices", type=int, default=2, help="timed for each encoder, in turns, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    memory: dict[str, int] = {}
    embeddings = {}
    connections = {}
    for name in seconds:
        connections[name], theirs = context.Pipe()
        context.Process(target=measure, args=(name == "ours", options, device, theirs), daemon=True).start()
        connections[name].recv()
    for _ in range(options.slices + 1):
        for name, connection in connections.items():
            connection.send(True)
            taken, memory[name], embeddings[name] = connection.recv()
            seconds[name].append(taken)
    for connection in connections.values():
        connection.send(False)
    best = {name: min(values[1:]) for name, values in seconds.items()}
    print(f"{options.size}, {options.precision}, {device}, {options.threads} thread(s), best of {options.slices}")
    for name in seconds:
        print(f"  {name:6} {best[name]:8.2f} s a slice  {memory[name] / 2**20:8.0f} MiB at the peak")
    print(f"  stock / ours: time {best['stock'] / best['ours']:.2f}, memory {memory['stock'] / memory['ours']:.2f}")
    stock = torch.from_numpy(embeddings["stock"])
    print(f"  difference, relative: {float((torch.from_numpy(embeddings['ours']) - stock).norm() / stock.norm()):.1e}")


if __name__ == "__main__":
    main()
