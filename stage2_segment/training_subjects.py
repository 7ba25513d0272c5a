"""Who was trained on: the run's own training subjects, and those of the projection behind its instructions.

A subject is recognised by its name and by the files it was read from, so under another name too; of a shared run by the
salted digests of both (`marks`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.projections import trained_on
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.marks import mark_name, mark_picture, salts_in

# Folders and files of labels, in the layouts that are read: two patients may well have the same empty one.
_OF_LABELS = re.compile(r"(^|/)(labels?|ground|seg)[^/]*(/|$)", re.IGNORECASE)


@dataclass(frozen=True)
class KnownSubjects:
    """Subjects by name, and the sha256 of the images they were read from; or marks of either."""

    names: frozenset[str]
    sources: frozenset[str]

    @cached_property
    def _salts(self) -> frozenset[str]:
        return salts_in(self.names | self.sources)

    def __or__(self, other: KnownSubjects) -> KnownSubjects:
        return KnownSubjects(self.names | other.names, self.sources | other.sources)

    def has(self, name: str, images: Iterable[str] = ()) -> bool:
        """Whether a subject of that name, or with one of these images, is among these.

        Args:
            images: sha256 of the files it was read from, without labels.
        """
        images = set(images)
        marked_images = {mark_picture(image, salt) for salt in self._salts for image in images}
        marked_names = {mark_name(name, salt) for salt in self._salts}
        return not self.names.isdisjoint({name} | marked_names) or not self.sources.isdisjoint(images | marked_images)

    def among(self, cache: Cache, subjects: Iterable[str]) -> tuple[str, ...]:
        """Those of `subjects` that are among these."""
        return tuple(name for name in subjects if self.has(name, _images_of(cache, name)))


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
    return _trained_on(cache.recipe(f"instructions/{variant}") for variant in variants)


def trained_by_run_or_projection(config: RunConfig) -> KnownSubjects:
    """Whom a run or the projection behind its instructions was trained on, as the run itself knows it."""
    recipes = config.inputs.instruction_recipes
    return trained_by_run(config) | _trained_on(recipes[variant] for variant in config.inputs.texts_read)


def _trained_on(recipes: Iterable[Mapping[str, Any]]) -> KnownSubjects:
    names: set[str] = set()
    sources: set[str] = set()
    for recipe in recipes:
        names.update(trained_on(recipe).get("subjects") or ())
        sources.update(trained_on(recipe).get("digests") or ())
    return KnownSubjects(frozenset(names), frozenset(sources))


def learned_their_texts(cache: Cache, variants: Sequence[str], train: Sequence[str]) -> tuple[str, ...]:
    """The training subjects whose texts come from a projection that was trained on them, not from that of the other half."""
    learned: list[str] = []
    for variant in variants:
        halves = trained_on(cache.recipe(f"instructions/{variant}")).get("crossed") or ()
        crossed = {name for half in halves for name in half["subjects"]}
        others = [name for name in train if name not in crossed]
        learned += trained_by_projection(cache, [variant]).among(cache, others)
    return tuple(dict.fromkeys(learned))


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
            "confirm with --allow-seen"
        )
    return seen
