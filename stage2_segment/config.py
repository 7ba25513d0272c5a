"""What a run is: the frozen description that a run folder carries as config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from zeus_union.cache.layout import DatasetCard
from zeus_union.stage2_segment.choices import RESIDUAL, ZEUS
from zeus_union.stage2_segment.recipe import Recipe

T = TypeVar("T")
# Field -> type of a dataclass; kept, as every asking compiles all of them.
_hints_of: Callable[[type], dict[str, Any]] = cache(get_type_hints)


@dataclass(frozen=True)
class Architecture:
    """What decides the shape of a model; models that agree in it can be computed as one (`training.stack`).

    Attributes:
        model: 'zeus', or a baseline, which sees the pictures and no text.
        merge, preset: of a baseline, keys of `choices.MERGES` and `choices.PRESETS`.
        instructions: 'modality' (one for all classes) or 'class' (one for each, a binary mask from each).
        form: 'sentence' or 'tokens', a key of `choices.FORMS`.
        aligner: how text becomes a prompt token, a key of `choices.ALIGNERS`.
        constant_text: one text for all slices, kept with the weights.
        modalities, classes: how many.
        text_width: D of what the aligner reads; 0: none.
    """

    model: str
    fusion: str
    combine: str
    merge: str
    preset: str
    instructions: str
    form: str
    aligner: str
    aligner_depth: int
    iou_token: bool
    constant_text: bool
    modalities: int
    classes: int
    text_width: int

    @property
    def text_is_a_part(self) -> bool:
        """Whether the text is added to a token that does without it, so that it can be left out."""
        return self.model == ZEUS and self.aligner == RESIDUAL and self.text_width > 0


@dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
        card: of the cache's data set, without its subjects.
        encoder: whose embeddings; None: the pictures.
        text: what the aligner reads, a key of `choices.TEXTS`.
        variants: whose instructions: one, or one a class; none without text.
        modalities, classes: their names, in the cache's order.
        channels: modality -> its number in the original data set, where it has one.
        views: how the cache's subjects are cut into slices, keys of `cache.grid.VIEWS`, the most frequent first.
        windows: modality -> how its grey values were made: [level, width] or 'percentiles'.
        pretrained: sha256 of the weights that a baseline's encoders began from; None: none.
        cache: its path relative to the run folder; '' of a run that was exported.
        fingerprints: layer -> fingerprint of its recipe, of the layers that the run reads; none of a run that was exported.
        embedding_recipe: what the embeddings were made from, to recognise another cache of the same encoder.
        preprocessing: likewise, how the pictures were made from the studies.
        instruction_recipes: variant -> likewise, of the instructions.
        content: layer -> digest of what it held of the run's subjects; the same recipe gives other content from
            corrected labels.
        leaks: the variants among those that a prediction reads whose texts were made from the true labels; empty unless
            --allow-leak.
        training_sources: sha256 of every file that a training subject was read from, sorted: who was trained on is
            recognised under another name too.
        seen: test subjects that a projection behind the instructions was trained on; empty unless --allow-seen.
    """

    card: DatasetCard
    encoder: str | None
    text: str
    variants: tuple[str, ...]
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    channels: dict[str, int]
    views: tuple[str, ...]
    windows: dict[str, Any]
    pretrained: str | None
    cache: str
    fingerprints: dict[str, str]
    embedding_recipe: dict[str, Any]
    preprocessing: dict[str, Any]
    instruction_recipes: dict[str, dict[str, Any]]
    content: dict[str, str]
    training_sources: tuple[str, ...]
    seen: tuple[str, ...]
    leaks: tuple[str, ...]

    @property
    def embedding_layer(self) -> str:
        """Of a run that reads embeddings."""
        return f"embeddings/{self.encoder}"

    @property
    def texts_read(self) -> tuple[str, ...]:
        """The instruction layers that a prediction reads."""
        return () if self.text in ("none", "constant", "random") else self.variants


@dataclass(frozen=True)
class Split:
    """Subjects to train on, held-out ones, and those that the best weights are chosen on.

    Attributes:
        fold: the held-out fold; None where the subjects were named.
    """

    fold: int | None
    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's weights.

    Attributes:
        versions: of the packages that compute.
        extended: the finished epochs after which it was given more of them than it had been planned with.
    """

    architecture: Architecture
    inputs: Inputs
    split: Split
    recipe: Recipe
    seed: int
    versions: dict[str, str]
    extended: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunConfig:
        """Raises TypeError, naming the field, where one is missing, unknown or of another kind."""
        parts = {"architecture": Architecture, "inputs": Inputs, "split": Split, "recipe": Recipe}
        return _from_json(cls, {**values, **{name: _from_json(kind, values.get(name)) for name, kind in parts.items()}})

    @property
    def is_shared(self) -> bool:
        """Whether it was exported: without its cache, and with marks in place of its subjects (`marks`)."""
        return not self.inputs.cache

    @property
    def is_zeus(self) -> bool:
        return self.architecture.model == ZEUS


def _from_json(kind: type[T], values: Any) -> T:
    """JSON has lists where the dataclasses have tuples."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} in place of {kind.__name__}")
    hints = _hints_of(kind)
    if kind is Inputs:
        values = {**values, "card": _from_json(DatasetCard, values.get("card"))}
    for name, hint in hints.items():
        if name in values and not _fits(values[name], hint):
            raise TypeError(f"{name} is {values[name]!r}")
    return kind(**{name: _as_tuple(value, hints.get(name)) for name, value in values.items()})


def _as_tuple(value: Any, hint: Any) -> Any:
    return tuple(value) if get_origin(hint) is tuple else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value, or a dataclass made of one, is of the kind that a field is declared as."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(each, inner[0]) for each in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(key, inner[0]) and _fits(value[key], inner[1]) for key in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
