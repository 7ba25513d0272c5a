"""What building a cache cost and brought."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from zeus_union.cache.terminal import time_in_words


@dataclass
class BuildReport:
    """What a build cost and brought, in this process.

    Attributes:
        seconds: by part.
        done: slice-modalities by part.
        subjects: finished.
        ahead: slice-modalities that were missing at the start, at most, as the headers say; 0: not known.
        built, built_seconds: slice-modalities of finished subjects, and what they took from study to cache.
        failures: subject -> why it could not be built.
        complete: whether the cache is finished; not so where other parts of it are still being built.
        without_texts: whether the instructions were left out, since training the projection behind them takes long.
        cut_by_encoder: texts of which the text encoder read the beginning only.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    subjects: int = 0
    ahead: int = 0
    built: int = 0
    built_seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    without_texts: bool = False
    cut_by_encoder: int = 0

    @contextmanager
    def timing(self, part: str, slice_modalities: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start
        self.done[part] += slice_modalities

    def per_slice_modality(self) -> dict[str, float]:
        """part -> seconds a slice-modality."""
        return {part: self.seconds[part] / self.done[part] for part in self.seconds if self.done[part]}

    def time_left(self, count: int, seconds: float) -> str:
        """What to say behind a subject that is finished: how long the others take this process at the rate so far.

        Args:
            count: slice-modalities of the subject, which took so many `seconds`.
        """
        self.built, self.built_seconds = self.built + count, self.built_seconds + seconds
        left = self.ahead - self.built
        if left <= 0 or not self.built:
            return ""
        return f"; about {time_in_words(left * self.built_seconds / self.built)} left for one process"

    @staticmethod
    def peak_memory_bytes() -> int:
        if sys.platform == "win32":
            return psutil.Process().memory_info().peak_wset
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
