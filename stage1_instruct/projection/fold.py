"""The projections of a fold layer: trained on captions of its training subjects, and crossed.

A text of a subject that its projection was trained on is better than one of a subject it has never seen, and a decoder
that is trained on the better ones trusts text too much where it is used. So the training subjects are halved, and the texts
of each half come from a projection that was trained on the other half; everybody else gets the projection of all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.devices import synchronise
from zeus_union.cache.errors import UserError
from zeus_union.cache.projections import EVERYONE, FACTS, HALF
from zeus_union.cache.terminal import counted, warn
from zeus_union.stage1_instruct.models.bridge.connectors import Connector
from zeus_union.stage1_instruct.projection.label_captions import CAPTIONS
from zeus_union.stage1_instruct.projection.loop import Alone, Progress, TrainingRecipe, fit, steps_in_all
from zeus_union.stage1_instruct.projection.train import captioning, precision_name

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.models.assembly import Models

# 60 steps of 4 captions: three seconds each on two cores with SmolLM2 in fp32, and a fold layer has three projections: nine
# minutes, which a build may take unasked.
RECIPE = TrainingRecipe(steps=60, held_out=0.0)
SHOWING = 2 / 3  # share of the captions that name something that is there, where there are so many


@dataclass(frozen=True)
class Split:
    """Whose captions a layer's projection learns from.

    Attributes:
        fold: of the cache; None where the training subjects were named.
        train: labelled subjects, in the cache's order.
    """

    fold: int | None
    train: tuple[str, ...]


class TooLongError(Exception):
    """The training would take longer than it may.

    Attributes:
        minutes: how long.
    """

    def __init__(self, minutes: float) -> None:
        super().__init__(f"{minutes:.0f} minutes")
        self.minutes = minutes


@dataclass(frozen=True)
class Captioned:
    """One slice of one modality with its question and caption.

    Attributes:
        slice: its place among the subject's slices.
        modality: its index.
        shows: whether any class is visible.
    """

    subject: str
    slice: int
    modality: int
    question: str
    caption: str
    shows: bool


@dataclass(frozen=True, eq=False)
class FoldProjection:
    """The projections of a fold layer.

    Attributes:
        everyone: trained on all training subjects.
        crossed: training subjects, with the projection that their texts come from: it was trained on all others of them.
        entry: what stands under 'projection' in the layer's recipe.
        facts: what else is known of the training: losses, seconds, the models on both sides.
    """

    everyone: Connector
    crossed: tuple[tuple[frozenset[str], Connector], ...]
    entry: Mapping[str, Any]
    facts: Mapping[str, Any]

    def of(self, subject: str) -> Connector:
        """The projection that the texts of a subject come from."""
        return next((connector for subjects, connector in self.crossed if subject in subjects), self.everyone)

    def constants(self) -> dict[str, NDArray[Any]]:
        """What the cache keeps of them beside the layer's rows; `from_constants` is the inverse."""
        connectors = {EVERYONE: self.everyone, **{f"{HALF}{i}": half for i, (_, half) in enumerate(self.crossed)}}
        return constants_of(connectors, self.facts)

    @classmethod
    def from_constants(
        cls, kind: str, entry: Mapping[str, Any], constants: Mapping[str, NDArray[Any]]
    ) -> FoldProjection:
        """From what a layer holds.

        Args:
            kind: of the connector.
            entry: what stands under 'projection' in the layer's recipe.
        """

        def connector(whose: str) -> Connector:
            made = Connector(kind, entry["inputs"], entry["hidden"], entry["outputs"])
            names = made.state_dict()
            made.load_state_dict({name: torch.from_numpy(constants[f"{whose}.{name}"].copy()) for name in names})
            return made

        crossed = tuple(
            (frozenset(half["subjects"]), connector(f"{HALF}{number}"))
            for number, half in enumerate(entry["trained_on"]["crossed"])
        )
        return cls(connector(EVERYONE), crossed, entry, json.loads(constants[FACTS].tobytes()))


def constants_of(connectors: Mapping[str, Connector], facts: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Projections under the names of `cache.projections`, as an instruction layer keeps them.

    Args:
        facts: JSON-able.
    """
    arrays: dict[str, NDArray[Any]] = {
        f"{whose}.{name}": tensor.detach().cpu().float().numpy()
        for whose, connector in connectors.items()
        for name, tensor in connector.state_dict().items()
    }
    return {**arrays, FACTS: np.frombuffer(json.dumps(dict(facts), sort_keys=True).encode(), np.uint8)}


def halves(subjects: Sequence[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The subjects in two halves, drawn; None where there are fewer than two."""
    if len(subjects) < 2:
        return None
    order = [subjects[i] for i in np.random.default_rng([seed, len(subjects)]).permutation(len(subjects))]
    middle = len(order) // 2
    return tuple(sorted(order[:middle])), tuple(sorted(order[middle:]))


def draw(captioned: Sequence[Captioned], subjects: Sequence[str], count: int, seed: int) -> list[int]:
    """Indices of the captions of these subjects that a training looks at: all, or `count`, most of which show a class."""
    of_these = [index for index, pair in enumerate(captioned) if pair.subject in set(subjects)]
    if len(of_these) <= count:
        return of_these
    random = np.random.default_rng([seed, count])
    mixed = [of_these[i] for i in random.permutation(len(of_these))]
    showing = [index for index in mixed if captioned[index].shows]
    others = [index for index in mixed if not captioned[index].shows]
    kept = min(len(showing), max(round(SHOWING * count), count - len(others)))
    return sorted(showing[:kept] + others[: count - kept])


def train_fold_projection(
    models: Models,
    split: Split,
    captioned: Sequence[Captioned],
    features_of: Callable[[Sequence[Captioned]], Tensor],
    folder: Path,
    say: Callable[[str], None],
    limit: float | None = None,
) -> FoldProjection:
    """Trains the projections of a layer, one after the other; stopped and called again it goes on.

    How long it will take is measured with one step and said first.

    Args:
        captioned: of the training subjects.
        features_of: gives the vision features float32 (N, T, C) of some of them.
        folder: where the states of unfinished trainings are kept.
        limit: minutes that it may take; None: as long as it takes.

    Raises:
        TooLongError: it would take longer than `limit`.
        UserError: nothing to learn from; the loss is not finite.
    """
    begun, recipe = time.monotonic(), RECIPE
    count = recipe.steps * recipe.batch_size
    two = halves(split.train, recipe.seed)
    # (name, trained on, whose texts come from it)
    trainings: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [(EVERYONE, split.train, ())]
    if two is not None:
        trainings += [(f"{HALF}0", two[1], two[0]), (f"{HALF}1", two[0], two[1])]
    else:
        warn(f"one training subject ({split.train[0]}): its own texts come from the projection that was trained on it")
    if len(split.train) in (2, 3):
        warn(
            f"{len(split.train)} training subjects: the projections behind their own texts learn from one or two patients"
        )
    chosen = {name: draw(captioned, subjects, count, recipe.seed) for name, subjects, _ in trainings}
    wanted = sorted({index for indices in chosen.values() for index in indices})
    features = features_of([captioned[index] for index in wanted])
    row_of = {index: row for row, index in enumerate(wanted)}
    questions, captions = zip(*((captioned[index].question, captioned[index].caption) for index in wanted))
    for name, subjects, _ in trainings:
        if not chosen[name]:
            raise UserError(
                f"no labelled slice of {', '.join(subjects)} can be captioned; label more, or give --projection untrained"
            )
    minutes = training_minutes(models, features, questions, captions, [len(indices) for indices in chosen.values()])
    if limit is not None and minutes > limit:
        raise TooLongError(minutes)
    say(
        f"training {counted(len(trainings), 'projection')} on captions of {', '.join(split.train)}: "
        f"about {max(minutes, 1):.0f} min"
    )
    connectors: dict[str, Connector] = {}
    losses = {}
    for number, (name, subjects, _) in enumerate(trainings, 1):
        rows = [row_of[index] for index in chosen[name]]
        connector = models.projected_llm.new_projection(recipe.seed).to(models.device)
        connector.standardise_by(features[rows].to(models.device))
        task = captioning(models, connector, features, questions, captions, recipe)
        plan = {
            **asdict(recipe),
            "vision": json.dumps(models.projected_llm.vision_recipe(), sort_keys=True),
            "llm": models.projected_llm.llm.digest,
            "captions": [captions[row] for row in rows],
        }
        progress = Progress(folder / f"{name}.state", plan, sample=None)
        title = f"projection {number} of {len(trainings)}"
        losses[name] = fit(task, rows, (), recipe, Alone(), progress, _nothing, title)
        say(
            f"{title}: {counted(steps_in_all(len(rows), recipe), 'step')} on "
            f"{counted(len(rows), 'caption')} of {', '.join(subjects)}; last loss {losses[name]:.3f}"
        )
        if name == EVERYONE:
            say(f"  it says: {task.say(rows[0])}")
            say(f"  caption: {captions[rows[0]]}")
        connectors[name] = connector.cpu().eval().requires_grad_(False)
    facts = {
        "vision": models.projected_llm.vision_recipe(),
        "llm_sha256": models.projected_llm.llm.digest,
        "template": models.projected_llm.llm.template.name,
        "subjects": sorted(split.train),
        "losses": losses,
        "computed_in": precision_name(task),
        "seconds": round(time.monotonic() - begun, 1),
    }
    entry = {
        "sha256": connectors[EVERYONE].digest(),
        **connectors[EVERYONE].sizes,
        "trained_on": {
            "fold": split.fold,
            "subjects": sorted(split.train),
            "captions": CAPTIONS,
            "training": asdict(recipe),
            "crossed": [
                {"subjects": list(subjects), "sha256": connectors[name].digest()} for name, _, subjects in trainings[1:]
            ],
        },
    }
    crossed = tuple((frozenset(subjects), connectors[name]) for name, _, subjects in trainings[1:])
    return FoldProjection(connectors[EVERYONE], crossed, entry, facts)


def training_minutes(
    models: Models, features: Tensor, questions: Sequence[str], captions: Sequence[str], counts: Sequence[int]
) -> float:
    """Of trainings on so many captions each: the second of two steps is measured, the first one loads and compiles."""
    connector = models.projected_llm.new_projection(RECIPE.seed).to(models.device)
    task = captioning(models, connector, features, questions, captions, RECIPE)
    rows = range(min(RECIPE.batch_size, len(captions)))
    for _ in range(2):
        begun = time.monotonic()
        task.loss(rows).backward()
        synchronise(models.device)
        seconds = time.monotonic() - begun
    return sum(steps_in_all(count, RECIPE) for count in counts) * seconds / 60


def _nothing(message: str) -> None:
    """What an epoch says would be a hundred lines."""
