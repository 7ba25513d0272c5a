"""What a folder of DICOM holds: its series, each taken apart into stacks, the sets of frames that can be one volume.

A series may hold several: two echoes, in and out of phase, a localiser's three planes, several b-values or times. And
some anonymisers give every file of one acquisition a series of its own (CHAOS's download): those are put together again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted, some_of
from zeus_union.pipelines.intake.stack import Stack
from zeus_union.pipelines.intake.tags import component, description, image_words, numbers_of, text_of, traits_of_tags
from zeus_union.pipelines.intake.traits import Traits, read_words
from zeus_union.stage1_instruct.studies.chaos import fat_with_water
from zeus_union.stage1_instruct.studies.dicom_files import dicom_files, is_dicom
from zeus_union.stage1_instruct.studies.dicom_frames import Frame, read_frames, tag_value

# Slices of one volume differ by 1e-4, a localiser's planes by 1, a radial acquisition's by 0.05.
SAME_DIRECTION = 0.02
# By which a series that shows every place several times is taken apart, the first that does it.
REPEATS = ("TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber", "InversionTime", "TriggerTime")
# In ms: echoes of a dual-echo acquisition come before; later ones are of other sequences.
LATE_ECHO = 15.0


def find_stacks(folder: Path) -> tuple[Stack, ...]:
    """All stacks of a folder of DICOM, or of one file, in the order of series numbers; none where it holds no DICOM.

    Raises:
        UserError: a file that is damaged; several patients or studies.
    """
    files = dicom_files(folder) if folder.is_dir() else [folder] if is_dicom(folder) else []
    frames = [frame for path in files for frame in read_frames(path)]
    _check_one_patient(folder, frames)
    _check_one_study(folder, frames)
    directions: list[tuple[float, ...]] = []
    alike: dict[tuple[object, ...], dict[str, list[Frame]]] = defaultdict(lambda: defaultdict(list))
    for frame in frames:
        key = (_direction(frame, directions), *_image_key(frame))
        alike[key][text_of(frame, "SeriesInstanceUID")].append(frame)
    sets = [part for series in alike.values() for group in _joined(series.values()) for part in _without_repeats(group)]
    sets.sort(key=_order)
    stacks = [_stack(frames) for frames in sets]
    return tuple(_labelled(_with_phases(stacks)))


def _image_key(frame: Frame) -> tuple[object, ...]:
    """What the frames of one volume have in common."""
    traits = traits_of_tags(frame)
    return (
        text_of(frame, "SOPClassUID"),
        text_of(frame, "Rows"),
        text_of(frame, "Columns"),
        round((numbers_of(frame, "EchoTime", 1) or (0.0,))[0], 2),
        traits.weighting if traits.weighting in ("ADC", "DWI", "diffusion map") else "",
        traits.phase,
        traits.b_value,
        component(frame),
        bool({"LOCALIZER", "LOCALISER"} & {*image_words(frame)}),
    )


def _direction(frame: Frame, known: list[tuple[float, ...]]) -> int:
    """The number of a frame's ImageOrientationPatient among those that are `known`, to which a new one is added."""
    directions = numbers_of(frame, "ImageOrientationPatient", 6)
    for number, other in enumerate(known):
        if len(other) == len(directions) and all(abs(a - b) < SAME_DIRECTION for a, b in zip(directions, other)):
            return number
    known.append(directions)
    return len(known) - 1


def _joined(groups: Iterable[list[Frame]]) -> Iterator[list[Frame]]:
    """The groups of frames that are alike, one a series; those of one frame each are put together."""
    singles: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for group in groups:
        if len(group) > 1:
            yield group
            continue
        frame = group[0]
        alike = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesDescription", "RepetitionTime", "PixelSpacing")
        singles[tuple(text_of(frame, tag) for tag in alike)].append(frame)
    yield from singles.values()


def _without_repeats(frames: list[Frame]) -> list[list[Frame]]:
    """The frames taken apart by time where every place is shown equally often; as they are otherwise."""
    positions = [numbers_of(frame, "ImagePositionPatient", 3) for frame in frames]
    places = {tuple(round(value, 2) for value in position) for position in positions}
    if len(places) in (0, len(frames)) or () in places or len(frames) % len(places):
        return [frames]
    for tag in REPEATS:
        parts: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            parts[text_of(frame, tag)].append(frame)
        if len(parts) == len(frames) // len(places) and all(len(part) == len(places) for part in parts.values()):
            return list(parts.values())
    return [frames]


def _stack(frames: Sequence[Frame]) -> Stack:
    tags = traits_of_tags(frames[0])
    return Stack(tuple(frames), "", _merge(tags, description(frames[0])), tags)


# Tags say T2 of a FLAIR whose inversion time is missing: what a description may make more particular.
_REFINED_BY_WORDS: dict[str, frozenset[str]] = {
    "T1": frozenset(("angiography", "perfusion", "SWI", "magnetisation transfer", "PD", "T2*")),
    "T2": frozenset(("FLAIR", "STIR", "DWI", "T2*", "PD")),
    "PD": frozenset(("T1", "magnetisation transfer", "STIR")),
    "T2*": frozenset(("SWI", "fMRI", "perfusion", "magnetisation transfer")),
    "DWI": frozenset(("ADC", "diffusion map", "perfusion")),
    "STIR": frozenset(("T2",)),
}


def _merge(tags: Traits, text: str) -> Traits:
    """Tags first, the description where they leave something open or where it is more particular."""
    described, _ = read_words(text)
    reasons = {
        name: f"description {text!r}" for name in ("weighting", "contrast", "fat_suppressed", "phase", "b_value")
    }
    described = replace(described, device="", plane="", reasons=reasons)  # where it lies, the positions say
    if tags.device != "MR":
        described = replace(described, weighting="", phase="", fat_suppressed=None, b_value=None)
    merged = tags.completed_by(described)
    if described.weighting in _REFINED_BY_WORDS.get(tags.weighting, ()):
        why = f"description {text!r}" + (f" ({tags.reasons['weighting']})" if "weighting" in tags.reasons else "")
        merged = replace(merged, weighting=described.weighting, reasons={**merged.reasons, "weighting": why})
    return merged


def _with_phases(stacks: Sequence[Stack]) -> list[Stack]:
    """The phase of the two echoes of one acquisition, by their echo times, where neither tags nor description say it.

    The two are of one series, or of two series that differ in the echo time alone.
    """
    result = list(stacks)
    alike = ("StudyInstanceUID", "FrameOfReferenceUID", "ProtocolName", "RepetitionTime", "Rows", "Columns")
    for name in ("SeriesInstanceUID", "SeriesDescription"):
        pairs: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, stack in enumerate(result):
            if stack.tags.device == "MR" and not stack.traits.phase and not stack.unsuitable:
                pairs[tuple(text_of(stack.first, tag) for tag in (name, *alike))].append(index)
        for indices in pairs.values():
            for index, phased in zip(indices, _phases_of([result[index] for index in indices])):
                result[index] = phased
    return result


def _phases_of(stacks: Sequence[Stack]) -> list[Stack]:
    """Two echoes with their phases; anything else as it is."""
    echoes = [(numbers_of(stack.first, "EchoTime", 1) or (0.0,))[0] for stack in stacks]
    if len(stacks) != 2 or not all(0 < echo < LATE_ECHO for echo in echoes):
        return list(stacks)
    tesla = (numbers_of(stacks[0].first, "MagneticFieldStrength", 1) or (0.0,))[0] or 1.5
    together = [fat_with_water(echo, tesla) for echo in echoes]
    if not min(together) < 0 < max(together):
        return list(stacks)
    phased = []
    for stack, echo, cosine in zip(stacks, echoes, together):
        phase = "in phase" if cosine > 0 else "out of phase"
        why = f"TE {echo:g} ms at {tesla:g} T, {phase}"
        traits = replace(stack.traits, phase=phase, weighting=stack.traits.weighting or "T1")
        phased.append(
            replace(stack, traits=replace(traits, reasons={"weighting": why, **traits.reasons, "phase": why}))
        )
    return phased


def _labelled(stacks: Sequence[Stack]) -> list[Stack]:
    """With the names that the user calls them by."""
    numbers = [text_of(stack.first, "SeriesNumber") or "?" for stack in stacks]
    labelled = []
    for index, (stack, number) in enumerate(zip(stacks, numbers)):
        before = numbers[:index].count(number)
        labelled.append(replace(stack, label=f"{number}.{before + 1}" if numbers.count(number) > 1 else number))
    return labelled


def _check_one_patient(folder: Path, frames: Sequence[Frame]) -> None:
    """Raises a UserError where the files name several patients."""
    for tag in ("PatientID", "PatientName", "PatientBirthDate"):
        values = {" ".join(text_of(frame, tag).replace("^", " ").split()).casefold() for frame in frames} - {""}
        if len(values) > 1:
            spelled = sorted({text_of(frame, tag) for frame in frames} - {""})
            raise UserError(
                f"{folder} holds files of several patients ({tag} {some_of(spelled)}); give a folder for each patient"
            )


def _check_one_study(folder: Path, frames: Sequence[Frame]) -> None:
    """Raises a UserError where the files are of several studies of one patient."""
    studies: dict[str, Frame] = {}
    for frame in frames:
        if tag_value(frame, "Rows") is not None:  # reports may come with another study's number
            studies.setdefault(text_of(frame, "StudyInstanceUID"), frame)
    studies.pop("", None)
    if len(studies) > 1:
        named = [
            " ".join(
                filter(
                    None, (text_of(frame, "StudyDate"), text_of(frame, "StudyDescription"), f"({frame.path.parent})")
                )
            )
            for frame in studies.values()
        ]
        raise UserError(
            f"{folder} holds {counted(len(studies), 'study')}: {some_of(sorted(named))}; give a folder for each study"
        )


def _order(frames: Sequence[Frame]) -> tuple[object, ...]:
    """Sorts stacks by series, then echo, b-value and time, so that their labels do not depend on files' names."""
    first = frames[0]

    def number(frame: Frame, tag: str) -> float:
        return (numbers_of(frame, tag, 1) or (np.inf,))[0]

    return (
        number(first, "SeriesNumber"),
        text_of(first, "SeriesInstanceUID"),
        number(first, "EchoTime"),
        traits_of_tags(first).b_value or 0.0,
        *(number(first, tag) for tag in REPEATS),
        min(number(frame, "InstanceNumber") for frame in frames),
        numbers_of(first, "ImageOrientationPatient", 6),
    )
