"""May a cached embedding be mirrored for augmentation? How far the encoder is from equivariant under flips.

    python tests/benchmarks/bench_flip.py cache/brats.h5 [--slices 8]

Embeds each picture and its mirror image with the lite profile's image encoder and compares the mirror image's embedding
with the mirrored embedding: relative distance, beside the distance between neighbouring slices. Expected: SAM's encoders add
absolute positions, or have learned from upright pictures, so a mirrored embedding should be off by a large part of its size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.models.assembly import best_device, load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--slices", type=int, default=8)
    arguments = parser.parse_args()
    encoder = load_models(load_profile("lite", {"projection": "untrained"}), best_device()).encoder
    with Cache(arguments.cache) as cache:
        shown = np.flatnonzero(cache.rows["foreground"] > 0)
        rows = shown[np.linspace(0, len(shown) - 1, arguments.slices).astype(int)]
        pictures = cache.images(rows)[:, 0]
        neighbours = cache.images(np.minimum(rows + 1, len(cache.rows) - 1))[:, 0]
    plain, beside = encoder.encode(pictures), encoder.encode(neighbours)

    print(f"neighbouring slices: relative distance {distance(beside, plain):.3f}")
    for name, axis in (("left-right", 2), ("up-down", 1)):
        mirrored = encoder.encode(np.ascontiguousarray(np.flip(pictures, axis)))
        flipped = plain.flip(axis + 1)
        print(f"mirrored {name}: relative distance {distance(flipped, mirrored):.3f}")


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


if __name__ == "__main__":
    main()
