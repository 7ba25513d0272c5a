"""What each of Table 2's 23 rows costs: parameters, FLOPs, seconds a step, peak memory.

    python tests/benchmarks/bench_table2.py [--modalities 2] [--classes 1] [--batch-size 4] [--preset published] [--rows unet,zeus]

One training step (forward, backward, AdamW) on noise of the right shapes, the second of two; each row in a process of its own,
so that its peak memory is its own (of the GPU where there is one, of the process above the libraries otherwise). FLOPs are those
of a forward pass of one slice (torch's counter: multiplications and additions of matrix products and convolutions). Zeus counts
without its image encoder, which runs once, in stage 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from zeus_union.stage2_segment.choices import BASELINES

ROOT = Path(__file__).parents[2]
STEP = """
import json, resource, sys, time
import torch
from torch.utils.flop_counter import FlopCounterMode
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.training.losses import one_hot, segmentation_losses
from zeus_union.stage2_segment.model import Zeus, parameter_table
model, fusion, preset = sys.argv[1:4]
modalities, classes, batch = map(int, sys.argv[4:])
device = "cuda" if torch.cuda.is_available() else "cpu"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.manual_seed(0)
if model == "zeus":
    network = Zeus(modalities, classes, 384, fusion=fusion).to(device)
    inputs = (torch.randn(batch, modalities, 256, 64, 64, device=device), torch.randn(batch, modalities, 384, device=device))
else:
    network = FusedNetwork(model, modalities, classes, fusion, preset=preset).to(device)
    inputs = (torch.rand(batch, modalities, 256, 256, device=device),)
with FlopCounterMode(display=False) as counter, torch.no_grad():
    network.eval()(*(part[:1] for part in inputs))
network.train()
masks = one_hot(torch.zeros(batch, 256, 256, dtype=torch.uint8, device=device), classes)
optimizer = torch.optim.AdamW(network.parameters())
for _ in range(2):
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    segmentation_losses(network(*inputs), masks).total.backward()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
peak = torch.cuda.max_memory_allocated() if device == "cuda" else grown
print(json.dumps([sum(parameter_table(network).values()), counter.get_total_flops(), seconds, peak]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modalities", type=int, default=2)
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--preset", default="published")
    parser.add_argument("--rows", default=",".join([*BASELINES, "zeus"]), help="models, separated by commas")
    given = parser.parse_args()
    print(f"{given.modalities} modalities, {given.classes} classes, batch {given.batch_size}, preset {given.preset}")
    print("| row | parameters (M) | GFLOPs a slice | seconds a step | peak memory (MiB) |")
    print("|---|---:|---:|---:|---:|")
    for model in given.rows.split(","):
        for fusion in ("hybrid", "late") if model == "zeus" else ("early", "hybrid", "late"):
            sizes = [str(number) for number in (given.modalities, given.classes, given.batch_size)]
            command = [sys.executable, "-c", STEP, model, fusion, given.preset, *sizes]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            parameters, flops, seconds, peak = json.loads(done.stdout.splitlines()[-1])
            name = BASELINES.get(model, "Zeus")
            print(
                f"| {name} {fusion} | {parameters / 1e6:.2f} | {flops / 1e9:.1f} | {seconds:.2f} | {peak / 2**20:.0f} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
