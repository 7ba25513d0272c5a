"""A seed of its own for every slice and modality: batches, order and resuming never change what is drawn."""

from __future__ import annotations

import hashlib


def slice_seed(seed: int, subject: str, number: int, modality: str) -> int:
    """63 bits from a seed and what a text is about, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{subject}:{number}:{modality}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
