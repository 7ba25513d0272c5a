"""A seed of its own for every slice and modality: batches, order and resuming never change what is drawn."""

from __future__ import annotations

import hashlib

import numpy as np


def slice_seed(seed: int, subject: str, number: int, modality: str) -> int:
    """63 bits from a seed and what a text is about, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{subject}:{number}:{modality}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def view_random(subject: str, number: int, view: int, part: str) -> np.random.RandomState:
    """What an augmented copy of a slice is drawn from, the same on every machine and with every version of numpy.

    Args:
        part: of the copy: 'geometry', which all modalities share, or a modality's name.
    """
    digest = hashlib.sha256(f"view:{subject}:{number}:{view}:{part}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))
