"""Which series is which modality of a run: by tags, by description, or because the user says so; never a guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import choose, some_of
from zeus_union.pipelines.intake.stack import Stack
from zeus_union.pipelines.intake.traits import Traits, read_words, words_of

# Weightings that fit a name of another: a STIR is T2 with dark fat.
_COUNTS_AS: Mapping[str, frozenset[str]] = {"T2": frozenset(("STIR",))}
# b-values below this show little diffusion: no image of a modality called DWI.
_DIFFUSION = 200.0
# Of these fat is suppressed in any case.
_ALWAYS_SUPPRESSED = frozenset(("ADC", "DWI", "STIR"))
_PHASED = frozenset(("out of phase", "fat"))


@dataclass(frozen=True)
class Wanted:
    """A modality of the run.

    Attributes:
        name: the run's name for it.
        traits: what the name, and where that leaves something open the term, says.
        words: those of the name that say nothing known; they have to stand in the description.
    """

    name: str
    traits: Traits
    words: tuple[str, ...]

    @classmethod
    def of(cls, name: str, term: str = "") -> Wanted:
        traits, words = read_words(name)
        meant, _ = read_words(term)
        return cls(name, traits.completed_by(meant), words if traits.says_something or not meant.says_something else ())


@dataclass(frozen=True)
class Verdict:
    """Whether a stack fits a modality, and why (not)."""

    fits: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Taken:
    """A stack that was taken for a modality."""

    stack: Stack
    reason: str


def judge(wanted: Wanted, stack: Stack) -> Verdict:
    """Whether a stack can be the modality."""
    if stack.unsuitable:
        return Verdict(False, stack.unsuitable)
    described = words_of(stack.description)
    if not wanted.traits.says_something:
        if words_of(wanted.name) and set(words_of(wanted.name)) <= set(described):
            return Verdict(True, f"description {stack.description!r}")
        return Verdict(False, f"description {stack.description!r} does not say {wanted.name}")
    required, traits = wanted.traits, stack.traits
    if required.device and traits.device != required.device:
        return Verdict(False, f"Modality {traits.device or 'unknown'}, not {required.device}")
    if required.weighting and traits.weighting != required.weighting:
        counts = traits.weighting in _COUNTS_AS.get(required.weighting, ()) and required.fat_suppressed
        if not counts:
            why = traits.reasons.get("weighting", "")
            what = (
                f"{traits.weighting}{f' ({why})' if why else ''}" if traits.weighting else "nothing says its weighting"
            )
            return Verdict(False, f"{what}, not {required.weighting}")
    contradiction = _contradiction(stack)
    if required.weighting and contradiction:
        return Verdict(False, contradiction)
    missing = _misses_contrast(required, traits) or _misses_phase(required, traits) or _misses_b_value(required, traits)
    if missing:
        return Verdict(False, missing)
    if required.fat_suppressed and not traits.fat_suppressed:
        return Verdict(False, f"{traits.weighting}, but nothing says that fat is suppressed")
    if required.plane and stack.plane != required.plane:
        return Verdict(False, f"acquired {stack.plane or 'in no plane'}, not {required.plane}")
    if not {*wanted.words} <= {*described}:
        return Verdict(False, f"description {stack.description!r} does not say {' '.join(wanted.words)}")
    return Verdict(True, _reason(required, traits))


def take(
    folder: Path,
    stacks: Sequence[Stack],
    modalities: Sequence[str],
    *,
    terms: Mapping[str, str] | None = None,
    chosen: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    view: str | None = None,
) -> dict[str, Taken]:
    """Modality -> stack, of the modalities that the study has, in the run's order.

    Args:
        terms: modality -> what instructions call it.
        chosen: modality -> series, as the user says: number, SeriesInstanceUID or its beginning, description.
        without: modalities that nothing is sought for.
        view: plane of the run's slices; of series that differ in nothing else those acquired in it are taken.

    Raises:
        UserError: several stacks fit a modality equally, or one fits several.
    """
    choose((*(chosen or ()), *without), tuple(modalities), "modality of the run")
    wanted = {name: Wanted.of(name, (terms or {}).get(name, "")) for name in modalities}
    taken = {name: _chosen(folder, stacks, wanted[name], text) for name, text in (chosen or {}).items()}
    free = [stack for stack in stacks if stack not in [entry.stack for entry in taken.values()]]
    for name in modalities:
        if name not in taken and name not in without and (best := _best(folder, free, wanted[name], view)):
            taken[name] = best
    _check_each_once(folder, taken)
    return {name: taken[name] for name in modalities if name in taken}


def _best(folder: Path, stacks: Sequence[Stack], wanted: Wanted, view: str | None) -> Taken | None:
    fitting = [(stack, verdict.reason) for stack in stacks if (verdict := judge(wanted, stack)).fits]
    if not fitting:
        return None
    steps = _preferences(wanted, view)
    reasons: list[str] = []
    for preference, badness in steps:
        scores = [badness(stack) for stack, _ in fitting]
        kept = [entry for entry, score in zip(fitting, scores) if score == min(scores)]
        if len(kept) < len(fitting):
            reasons.append(preference)
        fitting = kept
    if len(fitting) > 1:
        raise UserError(
            f"{folder}: several series match {wanted.name}: {some_of([stack.named for stack, _ in fitting])}; choose one "
            f"with --modality {wanted.name}={fitting[0][0].label}"
        )
    stack, reason = fitting[0]
    return Taken(stack, "; ".join((reason, *reasons)))


def _preferences(wanted: Wanted, view: str | None) -> list[tuple[str, Callable[[Stack], float]]]:
    """(what is said, how little a stack is wanted), the weightiest first."""
    required = wanted.traits
    exact = words_of(wanted.name)
    steps: list[tuple[str, Callable[[Stack], float]]] = [
        ("called so", lambda stack: words_of(stack.description) != exact),
        ("several slices", lambda stack: len(stack.frames) == 1),
        ("without fat suppression", lambda stack: bool(stack.traits.fat_suppressed) and not required.fat_suppressed),
        ("the whole signal, not one phase", lambda stack: bool(stack.traits.phase) and not required.phase),
        ("without contrast agent", lambda stack: bool(stack.traits.contrast) and not required.contrast),
    ]
    if required.device == "PT":
        steps.append(("corrected for attenuation", lambda stack: not stack.is_attenuation_corrected))
    if required.weighting not in ("ADC", "DWI"):
        steps.append(("original, not derived", lambda stack: not stack.is_original))
    steps.append(("acquired, not reformatted", lambda stack: stack.is_reformat))
    if required.high_b:
        steps.append(("the highest b-value", lambda stack: -(stack.traits.b_value or 0.0)))
    if view:
        steps.append((f"acquired {view}, as the run's slices", lambda stack: stack.plane != view))
    return steps


def _chosen(folder: Path, stacks: Sequence[Stack], wanted: Wanted, text: str) -> Taken:
    """The stack that the user names.

    Raises:
        UserError: none or several of that name, or one that is no volume.
    """
    name = text.strip()
    for matching in (
        [stack for stack in stacks if stack.label == name],
        [stack for stack in stacks if stack.label.partition(".")[0] == name],
        [stack for stack in stacks if stack.description.casefold() == name.casefold()],
        [stack for stack in stacks if stack.uid == name],
        [stack for stack in stacks if "." in name and stack.uid.startswith(name)],
    ):
        if not matching:
            continue
        if len(matching) > 1:
            fitting = [stack for stack in matching if judge(wanted, stack).fits]
            matching = fitting if len(fitting) == 1 else matching
        if len(matching) > 1:
            raise UserError(
                f"--modality {wanted.name}={text} matches several series of {folder}: "
                f"{some_of([stack.named for stack in matching])}; give one of the numbers, e.g. "
                f"{wanted.name}={matching[0].label}"
            )
        if matching[0].unsuitable:
            raise UserError(f"--modality {wanted.name}={text}: the series is {matching[0].unsuitable}; choose another")
        return Taken(matching[0], f"--modality {wanted.name}={text}")
    raise UserError(
        f"--modality {wanted.name}={text}: {folder} has no series of that number, SeriesInstanceUID or description; "
        f"it has {some_of([stack.named for stack in stacks], 20)}"
    )


def _check_each_once(folder: Path, taken: Mapping[str, Taken]) -> None:
    names: dict[int, str] = {}
    for name, entry in taken.items():
        other = names.setdefault(id(entry.stack), name)
        if other != name:
            raise UserError(
                f"{folder}: series {entry.stack.named} can be {other} and {name}; a series holds one modality, choose one "
                f"with --modality {name}=SERIES"
            )


def _contradiction(stack: Stack) -> str:
    """What tags and description say against one another, where that matters; '' where they agree."""
    described, _ = read_words(stack.description)
    dark, bright = ("T1",), ("T2", "FLAIR", "STIR")
    if (stack.tags.weighting in dark and described.weighting in bright) or (
        stack.tags.weighting in bright and described.weighting in dark
    ):
        return (
            f"{stack.tags.reasons.get('weighting', 'tags')} look like {stack.tags.weighting}, "
            f"the description {stack.description!r} says {described.weighting}"
        )
    return ""


def _misses_contrast(required: Traits, traits: Traits) -> str:
    if required.device == "CT" and required.contrast is None:
        return ""
    if required.contrast and not traits.contrast:
        return "neither tags nor description say contrast agent"
    if required.weighting == "T1" and not required.contrast and traits.contrast:
        return f"with contrast ({traits.reasons.get('contrast', '')})"
    return ""


def _misses_phase(required: Traits, traits: Traits) -> str:
    if required.phase and traits.phase != required.phase:
        return f"{traits.phase or 'nothing says its phase'}, not {required.phase}"
    if not required.phase and traits.phase in _PHASED:
        return f"{traits.phase} ({traits.reasons.get('phase', '')})"
    return ""


def _misses_b_value(required: Traits, traits: Traits) -> str:
    if required.weighting != "DWI":
        return ""
    if required.b_value is not None and traits.b_value != required.b_value:
        value = "unknown" if traits.b_value is None else f"{traits.b_value:g}"
        return f"b {value}, not {required.b_value:g} s/mm2"
    if required.b_value is None and traits.b_value is not None and traits.b_value < _DIFFUSION:
        return f"b {traits.b_value:g} s/mm2 shows little diffusion"
    return ""


def _reason(required: Traits, traits: Traits) -> str:
    """In plain words what made a stack the modality."""
    names = ["weighting"] if required.weighting else ["device"]
    names += ["b_value"] if required.weighting == "DWI" else []
    names += [name for name in ("contrast", "fat_suppressed", "phase") if getattr(required, name)]
    reasons = dict.fromkeys(traits.reasons[name] for name in names if traits.reasons.get(name))
    surplus = [
        traits.reasons[name]
        for name in ("contrast", "fat_suppressed", "phase")
        if required.weighting not in _ALWAYS_SUPPRESSED
        and getattr(traits, name)
        and not getattr(required, name)
        and traits.reasons.get(name) not in (None, *reasons)
    ]
    return ", ".join(reasons) + (f" (though {', '.join(surplus)})" if surplus and required.device == "MR" else "")
