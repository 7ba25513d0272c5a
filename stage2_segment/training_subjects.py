"""Who was trained on: the run's own training subjects, and those of the projection behind its instructions.

A subject is recognised by its name and by the files it was read from, so under another name too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.config import RunConfig

# Folders and files of labels, in the layouts that are read: two patients may well have the same empty one.
_OF_LABELS = re.compile(r"(^|/)(labels?|ground|seg)[^/]*(/|$)", re.IGNORECASE)


@dataclass(frozen=True)
class KnownSubjects:
    """Subjects by name, and the sha256 of the images they were read from."""

    names: frozenset[str]
    sources: frozenset[str]

    def among(self, cache: Cache, subjects: Iterable[str]) -> tuple[str, ...]:
        """Those of `subjects` that are among these."""
        return tuple(
            name for name in subjects if name in self.names or not self.sources.isdisjoint(_images_of(cache, name))
        )


def sources_of(cache: Cache, subjects: Iterable[str]) -> tuple[str, ...]:
    """sha256 of every image that one of `subjects` was read from, sorted."""
    return tuple(sorted({digest for name in subjects for digest in _images_of(cache, name)}))


def _images_of(cache: Cache, subject: str) -> set[str]:
    """sha256 of a subject's source files that hold no labels."""
    return {digest for file, digest in cache.sources(subject).items() if not _OF_LABELS.search(file)}


def trained_by_run(config: RunConfig) -> KnownSubjects:
    return KnownSubjects(frozenset(config.split.train), frozenset(config.inputs.training_sources))


def trained_by_projection(cache: Cache, variants: Sequence[str]) -> KnownSubjects:
    """Subjects whose label captions the projection of an instruction layer was trained on, as the layer's recipe says."""
    names: set[str] = set()
    sources: set[str] = set()
    for variant in variants:
        projection = cache.recipe(f"instructions/{variant}").get("projection")
        trained_on = projection.get("trained_on") if isinstance(projection, dict) else None
        if isinstance(trained_on, dict):
            names.update(trained_on.get("subjects") or ())
            sources.update(trained_on.get("digests") or ())
    return KnownSubjects(frozenset(names), frozenset(sources))


def check_unseen(cache: Cache, variants: Sequence[str], test: Sequence[str], allow_seen: bool) -> tuple[str, ...]:
    """The test subjects that a projection behind these instructions was trained on.

    Raises:
        UserError: there are any, and they are not allowed.
    """
    seen = trained_by_projection(cache, variants).among(cache, test)
    if seen and not allow_seen:
        raise UserError(
            f"the projection of instructions {', '.join(variants)} was trained on {', '.join(seen)}, which this run would be "
            "tested on; train one without them (zeus-instruct train-projection) into another --variant, hold out others, or "
            "insist with --allow-seen"
        )
    return seen
