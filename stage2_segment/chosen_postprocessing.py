"""What post-processing a run has: postprocessing.json in its folder, chosen on its validation subjects for its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import sha256_file
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.marks import spoken
from zeus_union.stage2_segment.postprocessing import STEPS, Candidates, apply_steps, kept_steps, steps_by_label
from zeus_union.stage2_segment.trained import TrainedRun

FILE, SCHEMA = "postprocessing.json", 1
WEIGHTS = ("last", "best")


@dataclass(frozen=True)
class PostProcessing:
    """What is done to a label map.

    Attributes:
        summary: that in words, and why nothing where it is nothing.
        steps: class -> some of `STEPS`.
        classes: of the run, in their order.
        chosen_on: the validation subjects.
    """

    summary: str
    steps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    chosen_on: tuple[str, ...] = ()

    def __call__(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Of a label map (slices, rows, columns), see `apply_steps`."""
        return apply_steps(labels, steps_by_label(self.steps, self.classes))

    def to_json(self) -> dict[str, Any]:
        return {
            "summary": self.summary,
            "steps": {name: list(steps) for name, steps in self.steps.items()},
            "chosen_on": list(self.chosen_on),
        }


def none_because(why: str) -> PostProcessing:
    return PostProcessing(f"post-processing: none, {why}")


def load_postprocessing(run: Path, config: RunConfig, which: str, wanted: bool = True) -> PostProcessing:
    """What was chosen for the 'last' or 'best' weights of a run; nothing where it is not `wanted`.

    Nothing either, and its summary says why, where none was chosen or the weights are others than it was chosen for.

    Raises:
        UserError: a file that is damaged, of another version, or names classes or steps that there are not.
    """
    if not wanted:
        return none_because("as --no-postprocessing says")
    again = f"zeus-segment postprocess --run {run}"
    record = read_record(run, config.inputs.classes)
    if record is None and not config.split.validation:
        return none_because("as the run has no validation subjects to choose it on")
    if record is None:
        return none_because(f"as none was chosen; {again} does it on the validation subjects")
    if record["off"]:
        return none_because(f"as the run's was turned off; {again} turns it on")
    choice = record["choices"].get(which)
    if choice is None:
        return none_because(f"as it was chosen for the {' and '.join(record['choices'])} weights only; {again}")
    if choice["weights"]["sha256"] != sha256_file(checkpoint.weights_path(run, which)):
        return none_because(f"as it was chosen for other {which} weights than these; {again} chooses again")
    steps = {name: tuple(names) for name, names in choice["steps"].items() if names}
    subjects = tuple(choice["chosen_on"])
    return PostProcessing(_summary(steps, subjects), steps, config.inputs.classes, subjects)


def common_postprocessing(members: Sequence[PostProcessing]) -> PostProcessing:
    """Of the masks of several runs together: the steps that every one of them chose; of one run its own.

    Nobody chose for the ensemble, whose members may have been validated on each other's training subjects.
    """
    first, *others = members
    if not others:
        return first
    steps = {
        name: tuple(step for step in chosen if all(step in other.steps.get(name, ()) for other in others))
        for name, chosen in first.steps.items()
    }
    steps = {name: chosen for name, chosen in steps.items() if chosen}
    if not steps:
        return none_because("as no step was chosen by all members")
    summary = f"post-processing: {_named(steps)} (chosen by all {len(members)} members)"
    subjects = tuple(dict.fromkeys(subject for member in members for subject in member.chosen_on))
    return PostProcessing(summary, steps, first.classes, subjects)


def postprocessing_of(members: Sequence[TrainedRun], which: str, wanted: bool = True) -> PostProcessing:
    """`load_postprocessing` of a run, or `common_postprocessing` of several together."""
    return common_postprocessing([load_postprocessing(run.folder, run.config, which, wanted) for run in members])


def _named(steps: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} {' and '.join(STEPS[step] for step in names)}" for name, names in steps.items())


def _summary(steps: Mapping[str, Sequence[str]], subjects: Sequence[str]) -> str:
    chosen_on = f"chosen on {spoken(subjects)}" + (", one subject alone" if len(subjects) == 1 else "")
    if not steps:
        return f"post-processing: none, as nothing is better with it ({chosen_on})"
    return f"post-processing: {_named(steps)} ({chosen_on})"


def write_choices(run: Path, candidates: Mapping[str, Candidates]) -> None:
    """Tries the steps for each of the run's weights and writes what is kept, with the DSC before and after.

    Args:
        candidates: 'last' or 'best' -> what those weights make of the validation subjects.
    """
    choices = {}
    for which, maps in candidates.items():
        tried = maps.try_steps()
        choices[which] = {
            "weights": {"name": which, "sha256": sha256_file(checkpoint.weights_path(run, which))},
            "chosen_on": list(maps.subjects),
            "steps": {name: list(steps) for name, steps in kept_steps(tried, maps.classes).items()},
            "unseen": list(dict.fromkeys(candidate.class_name for candidate in tried if not candidate.before)),
            "candidates": [candidate.to_json() for candidate in tried],
        }
    checkpoint.write_json(run / FILE, {"schema": SCHEMA, "off": False, "choices": choices})


def turn_off(run: Path) -> None:
    checkpoint.write_json(run / FILE, {"schema": SCHEMA, "off": True, "choices": {}})


def read_record(run: Path, classes: Sequence[str]) -> dict[str, Any] | None:
    """The file's content, checked; None where there is none.

    Raises:
        UserError: see `load_postprocessing`.
    """
    path = run / FILE
    if not path.is_file():
        return None
    again = f"zeus-segment postprocess --run {run} chooses again"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
        steps = _steps_in(record) if schema == SCHEMA else {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from error
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; {again}")
    lacking = [name for name in steps if name not in classes]
    if lacking:
        raise UserError(
            f"{path} names the class {', '.join(lacking)}, which the run lacks (it has {', '.join(classes)}); {again}"
        )
    unknown = dict.fromkeys(step for names in steps.values() for step in names if step not in STEPS)
    if unknown:
        raise UserError(f"{path} has the step {', '.join(unknown)}; there are {', '.join(STEPS)}; {again}")
    return record


def _steps_in(record: dict[str, Any]) -> dict[str, list[str]]:
    """Class -> steps that any of the choices has.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the record is not made as `write_choices` makes it.
    """
    steps: dict[str, list[str]] = {}
    parts: list[tuple[Any, type]] = [(record["off"], bool)]
    for which, choice in record["choices"].items():
        parts += [(choice["weights"]["sha256"], str), (choice["chosen_on"], list), (choice["candidates"], list)]
        parts += [(subject, str) for subject in choice["chosen_on"]]
        if which not in WEIGHTS:
            raise ValueError(f"there are no {which} weights")
        for name, names in choice["steps"].items():
            parts += [(names, list), *((step, str) for step in names)]
            steps.setdefault(name, []).extend(names)
    for value, kind in parts:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} is no {kind.__name__}")
    return steps
