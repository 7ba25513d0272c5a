"""What building a cache cost and brought."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from zeus_union.cache.terminal import time_in_words


@dataclass
class BuildReport:
    """What a build cost and brought, in this process.

    Attributes:
        seconds: by part, for which it was busy; parts of different threads are busy at once, so that the sum may exceed
            `elapsed`.
        elapsed: seconds from the first subject to the last.
        done: slice-modalities by part.
        subjects: finished.
        expected: subject -> slice-modalities, at most, as the headers say; empty: not known.
        later: slice-modalities that wait behind the subjects and layers it is at: others' pictures, other folds' texts.
        failures: subject -> why it could not be built.
        complete: whether the cache is finished; not so where other parts of it are still being built.
        without_texts: whether the instructions were left out, since training the projection behind them takes long.
        cut_by_encoder: texts of which the text encoder read the beginning only.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    elapsed: float = 0.0
    subjects: int = 0
    expected: dict[str, int] = field(default_factory=dict)
    later: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    without_texts: bool = False
    cut_by_encoder: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, part: str, seconds: float, slice_modalities: int) -> None:
        """Counts work of a part, from any thread."""
        with self._lock:
            self.seconds[part] += seconds
            self.done[part] += slice_modalities

    @contextmanager
    def timing(self, part: str, slice_modalities: int) -> Iterator[None]:
        """Counts the block as work of a part."""
        start = time.perf_counter()
        yield
        self.add(part, time.perf_counter() - start, slice_modalities)

    def per_slice_modality(self) -> dict[str, float]:
        """part -> seconds a slice-modality for which it was busy."""
        return {part: self.seconds[part] / self.done[part] for part in self.seconds if self.done[part]}

    def time_left(self, seconds: float, done: int, waiting: Collection[str], what: str) -> str:
        """What to say behind a subject that is finished: how long the others take this process at the rate so far.

        Args:
            seconds: since the first subject of these layers was begun.
            done: slice-modalities in that time.
            waiting: subjects that these layers still miss.
            what: the layers, "of the pictures"; '': all there are.
        """
        left = sum(self.expected.get(subject, 0) for subject in waiting) + self.later
        if not (left and done):
            return ""
        time_left = " ".join(filter(None, (time_in_words(left * seconds / done), what)))
        return f"; about {time_left} left for one process"

    def share(self, part: str) -> float:
        """Of the time from the first subject to the last, for how much a part was busy; of all parts more than 1."""
        return self.seconds[part] / self.elapsed if self.elapsed else 0.0

    @staticmethod
    def peak_memory_bytes() -> int:
        if sys.platform == "win32":
            return psutil.Process().memory_info().peak_wset
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
