"""What a training step costs, against the code at another commit, in one run.

    python tests/benchmarks/bench_step.py --against COMMIT [--slices 1,2,4] [--threads 1,2] [--fusions hybrid,late]
                                          [--runs 1] [--modalities 2] [--classes 4] [--rounds 7] [--bf16]

A step is what `Learner` does with a batch as the cache stores it: decode, forward, losses, backward, clip, AdamW. One
process has this checkout's code, one the other commit's; they take turns, so that work beside them meets both. Printed
are the best seconds of each, on the wall and of the processor, their ratios, and how far the weights are apart after 20
steps from one start. `--runs 4` trains 4 runs stacked; with `--bf16` this checkout's steps are those of `--precision
bf16`. Last, how near LiteMedSAM's image encoder is to the rate of this machine's matrix products (`--encoder`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
ROOMS = ("cache", "stage1_instruct", "stage2_segment", "pipelines")
STEPS = 20  # that the weights are compared after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", default="HEAD", help="commit of the code to compare with")
    parser.add_argument("--slices", default="1,2,4")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--fusions", default="hybrid,late")
    parser.add_argument("--runs", type=int, default=1, help="stacked, where there are several")
    parser.add_argument("--modalities", type=int, default=2)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="this checkout's code in bf16, the other's in fp32")
    parser.add_argument("--no-weights", action="store_true", help="do not compare the weights")
    parser.add_argument("--encoder", action="store_true", help="LiteMedSAM's encoder alone")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        _serve(json.loads(given.serve))
    elif given.encoder:
        _encoder()
    else:
        _compare(given)


def _compare(given: argparse.Namespace) -> None:
    print(f"{given.modalities} modalities, {given.classes} classes, {given.runs} run(s), against {given.against}")
    print("| fusion | slices | threads | s before | s now | ratio | CPU s before | now | ratio | weights apart |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old"), Path(folder, "new")
        _check_out(given.against, old)
        _link(ROOT, new)
        for fusion in given.fusions.split(","):
            for slices in map(int, given.slices.split(",")):
                for threads in map(int, given.threads.split(",")):
                    case = {"fusion": fusion, "slices": slices, "threads": threads, "runs": given.runs}
                    case |= {"modalities": given.modalities, "classes": given.classes}
                    _row(case, old, new, given.rounds, not given.no_weights, given.bf16)


def _row(case: dict[str, Any], old: Path, new: Path, rounds: int, weights: bool, bf16: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("old.pt", "new.pt")]
        servers = [
            _start({**case, "weights": str(file), "bf16": low}, site)
            for file, site, low in zip(files, (old, new), (False, bf16))
        ]
        best = [[9e9, 9e9], [9e9, 9e9]]
        for _ in range(rounds):
            for server, least in zip(servers, best):
                least[:] = map(min, least, _ask(server, "step"))
        apart = "-"
        if weights:
            for server in servers:
                _ask(server, "weights")
            before, now = (torch.load(file) for file in files)
            apart = f"{max(float((before[name] - now[name]).abs().max()) for name in before):.1e}"
        for server in servers:
            _ask(server, "end")
            server.wait()
    (wall, cpu), (wall_now, cpu_now) = best
    print(
        f"| {case['fusion']} | {case['slices']} | {case['threads']} | {wall:.3f} | {wall_now:.3f} | {wall / wall_now:.2f} "
        f"| {cpu:.3f} | {cpu_now:.3f} | {cpu / cpu_now:.2f} | {apart} |",
        flush=True,
    )


def _check_out(commit: str, site: Path) -> None:
    tree = site.with_suffix(".tree")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True)
    with tempfile.TemporaryFile() as file:
        file.write(archive.stdout)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            tar.extractall(tree, filter="data")
    _link(tree, site)


def _link(tree: Path, site: Path) -> None:
    package = site / "zeus_union"
    package.mkdir(parents=True)
    for file in (tree / "src/zeus_union").iterdir():
        (package / file.name).symlink_to(file)
    for room in ROOMS:
        (package / room).symlink_to(tree / room)


def _start(case: dict[str, Any], site: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": str(case["threads"])}
    command = [sys.executable, __file__, "--serve", json.dumps(case)]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _ask(server, "step")
    _ask(server, "step")
    return server


def _ask(server: subprocess.Popen[str], what: str) -> list[float]:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(what + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve(case: dict[str, Any]) -> None:
    torch.set_num_threads(case["threads"])
    step, weights = _training(case)
    for line in sys.stdin:
        what = line.strip()
        if what == "step":
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            answer = [time.perf_counter() - wall, time.process_time() - cpu]
        elif what == "weights":
            step, weights = _training(case)
            for _ in range(STEPS):
                step()
            torch.save(weights(), case["weights"])
            answer = []
        else:
            answer = []
        print(json.dumps(answer), flush=True)
        if what == "end":
            return


def _training(case: dict[str, Any]) -> tuple[Callable[[], None], Callable[[], dict[str, torch.Tensor]]]:
    """A step as `Alone` or `Stacked` do it, on one batch of noise; and the weights it has come to."""
    from zeus_union.stage2_segment.inputs.slices import SliceData
    from zeus_union.stage2_segment.inputs.staging import Stored
    from zeus_union.stage2_segment.model import Zeus
    from zeus_union.stage2_segment.recipe import RECIPES
    from zeus_union.stage2_segment.training.losses import known_pixels, one_hot, segmentation_losses
    from zeus_union.stage2_segment.training.schedule import build_optimizer
    from zeus_union.stage2_segment.training.stack import Stack

    try:
        from zeus_union.stage2_segment.training.memory import keep_freed_memory
    except ImportError:  # of a commit that had none
        pass
    else:
        keep_freed_memory()
    torch.manual_seed(0)
    batch, modalities, classes, runs = (case[name] for name in ("slices", "modalities", "classes", "runs"))
    present, text = list(range(modalities)), torch.randn(runs, batch, modalities, 384)
    values = torch.randint(0, 256, (batch, modalities, 256, 64, 64), dtype=torch.uint8)
    scale, offset = 0.01 * torch.rand(batch, modalities, 256), 0.3 * torch.randn(batch, modalities, 256) - 1
    masks = torch.randint(0, classes + 1, (batch, 8, 8), dtype=torch.uint8)
    masks = masks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    data = SliceData.__new__(SliceData)
    data.encoder, data.device = "noise", torch.device("cpu")
    models = [Zeus(modalities, classes, 384, fusion=case["fusion"]) for _ in range(runs)]
    noise = torch.randn(4096, 256), 0.1 * torch.randn(256)
    for model in models:
        for buffer, values_of in zip((model.image_pe, model.no_mask), noise):
            buffer.copy_(values_of)
    optimizers = [build_optimizer(model, RECIPES["stable"]) for model in models]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e-5
    stack = Stack(models) if runs > 1 else None

    def step() -> None:
        images, truth = data._on_device(Stored(values, scale, offset, masks))
        assert truth is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=case["bf16"]):
            if stack is None:
                logits = [models[0](images, text[0], present)]
            else:
                logits = list(stack.logits(images, text, present))
        losses = [
            segmentation_losses(part.float(), one_hot(truth, classes), known=known_pixels(truth)).total
            for part in logits
        ]
        torch.stack(losses).sum().backward()
        if stack is not None:
            stack.hand_out_gradients()
        for model, optimizer in zip(models, optimizers):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def weights() -> dict[str, torch.Tensor]:
        return {
            f"{i} {name}": p.detach().clone() for i, model in enumerate(models) for name, p in model.named_parameters()
        }

    return step, weights


def _encoder() -> None:
    """LiteMedSAM's arithmetic a second against that of one large matrix product, in turns."""
    from torch.utils.flop_counter import FlopCounterMode

    from zeus_union.stage1_instruct.models.image.litemedsam import TinyViT

    side = 2048
    square = torch.randn(side, side)
    encoder, picture = TinyViT().eval(), torch.randn(1, 3, 256, 256)
    encoder.fuse()
    encoder.to(memory_format=torch.channels_last)
    picture = picture.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            encoder(picture)
        product, encoding = [], []
        for _ in range(7):
            for seconds, work in ((product, lambda: square @ square), (encoding, lambda: encoder(picture))):
                started = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - started)
    rate, flops = 2 * side**3 / min(product), counter.get_total_flops()
    print(
        f"{torch.get_num_threads()} threads: {rate / 1e9:.0f} GFLOP/s in a product; the encoder's {flops / 1e9:.1f} GFLOP "
        f"in {min(encoding):.3f} s, {flops / min(encoding) / 1e9:.0f} GFLOP/s, {flops / min(encoding) / rate:.2f} of it"
    )


if __name__ == "__main__":
    main()
