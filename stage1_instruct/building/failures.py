"""Subjects that could not be built: the others go on, and the end says all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted, some_of, warn


class BuildFailures(UserError):
    """Subjects of a cache could not be built; everything else was.

    Attributes:
        reasons: subject -> what was wrong with it.
    """

    def __init__(self, out: Path, reasons: Mapping[str, str], total: int) -> None:
        self.reasons = dict(reasons)
        first, reason = next(iter(self.reasons.items()))
        super().__init__(
            f"{len(reasons)} of {counted(total, 'subject')} could not be built and {out} stays unfinished: "
            f"{some_of(list(reasons))} ({first}: {reason}); repair them, or leave them out with --subjects under another "
            "--out, and run the same command again: it tries only those"
        )

    def say(self) -> None:
        """One line for each subject."""
        for subject, reason in self.reasons.items():
            warn(f"not built: {subject}: {reason}")
