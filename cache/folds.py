"""Which subject is tested in which fold: by subject, never by slice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

FOLDS = 5
UNLABELLED = -1


def assign_folds(subjects: Sequence[str], labelled: Sequence[str], seed: int = 0) -> dict[str, int]:
    """Five folds of the labelled subjects (fewer where there are fewer subjects), equal in size to one subject.

    The order is that of a hash of seed and name, which is the same on every machine and with every library version.

    Returns:
        subject -> fold, `UNLABELLED` (-1) for those without labels.
    """
    drawn = sorted(labelled, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    folds = {name: index % FOLDS for index, name in enumerate(drawn)}
    return {name: folds.get(name, UNLABELLED) for name in subjects}
