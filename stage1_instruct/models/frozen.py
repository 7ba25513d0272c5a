"""A frozen model whose recipe needs no weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

from zeus_union.cache.terminal import detail

Model = TypeVar("Model")


class Frozen(Generic[Model]):
    """A frozen model that is loaded when it is first used, and what stands for it in a recipe before that.

    A build that has nothing left to do compares recipes alone; loading the models for that would take minutes.
    """

    def __init__(self, recipe: Callable[[], dict[str, Any]], load: Callable[[], Model]) -> None:
        """Args:
        recipe: equals the loaded model's `recipe()`, from digests and configuration files.
        load: the model, in memory.
        """
        self._recipe = recipe
        self._load = load

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """JSON-able, without paths; loads nothing."""
        return self._recipe()

    @cached_property
    def model(self) -> Model:
        started = time.perf_counter()
        model = self._load()
        detail(f"{type(model).__name__} loaded in {time.perf_counter() - started:.1f} s")
        return model
