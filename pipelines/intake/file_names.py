"""Which file of a study's folder holds which modality.

A file's name is read as words, separated by '_', '-', '.', spaces and brackets, in any case. It belongs to the modality that it
ends in (FLAIR.nii.gz, patient_ce_T1.nii.gz; the longest one: ce_T1, not T1), or to the one whose channel number it ends in
(patient_0001.nii.gz, as nnU-Net writes them). Where more than that can be read in a name, nobody guesses: a second modality in
it (FLAIR_to_T1Gd.nii.gz), a word for a label map (mask_T1.nii.gz), or a second file that fits is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import choose
from zeus_union.stage1_instruct.studies.depth import reading
from zeus_union.stage1_instruct.studies.file_formats import ITK, NIFTI, ending_of, load_array, stem_of

ENDINGS = (*NIFTI, *ITK)

Words = tuple[str, ...]

# Names of modalities that a run need not know to see that a file is about two of them.
_COMMON = frozenset(
    ("adc", "asl", "bold", "cbct", "ct", "dce", "dti", "dwi", "flair", "mra", "pet", "pd", "pdw", "spir", "swi", "tof")
    + ("t1", "t1c", "t1ce", "t1gd", "t1n", "t1w", "t2", "t2f", "t2s", "t2star", "t2w")
)
# What the user says of a modality that is not to be read.
LEFT_OUT = "none"
# FLAIR_to_T1Gd: what stands before was moved onto what stands behind.
_LINKS = frozenset(("to", "in", "on", "onto", "reg"))
# ce_T1: with contrast agent, not T1.
_QUALIFIERS = frozenset(("ce", "contrast", "enhanced", "gd", "post", "postcontrast"))
_LABELS = frozenset(("annotation", "gt", "label", "labels", "mask", "masks", "roi", "seg", "segmentation", "truth"))


@dataclass(frozen=True)
class Reading:
    """What a file's name says.

    Attributes:
        modality: the modality that it ends in or whose number it ends in.
        doubts: what else can be read in it: names of modalities, or words; empty where it is clear.
        case: of a file that is called by its channel number, the words before it, whom nnU-Net means by them.
    """

    modality: str
    doubts: tuple[str, ...]
    case: Words = ()


@dataclass(frozen=True)
class VolumeFile:
    """A file that was taken for a modality.

    Attributes:
        reason: why, in plain words.
        channel, channels: which of how many, of a file that holds several; None and 1 of another.
    """

    path: Path
    reason: str
    channel: int | None = None
    channels: int = 1

    @property
    def named(self) -> str:
        """The file's name, with the channel where it holds several."""
        return self.path.name if self.channel is None else f"{self.path.name}, channel {self.channel}"


def words(name: str) -> Words:
    """'BraTS-0001_ce.T1' -> ('brats', '0001', 'ce', 't1')."""
    return tuple(word for word in re.split(r"[\s_.,()\[\]{}-]+", name.casefold()) if word)


def read_name(
    stem: str, wanted: Sequence[str], channels: Mapping[str, int], known: Iterable[str] = ()
) -> Reading | None:
    """The modality of `wanted` that a file is called after; None where it is called after none.

    Args:
        stem: the file's name without .nii.gz.
        channels: modality -> channel number in the original data set, of the modalities that have one.
        known: further modalities of the data set.
    """
    parts = words(stem)
    names = {name: words(name) for name in (*wanted, *known)}
    ends = [name for name in names if names[name] and parts[-len(names[name]) :] == names[name]]
    longest = max((len(names[name]) for name in ends), default=0)
    ends = [name for name in ends if len(names[name]) == longest]
    before = parts[: len(parts) - longest]
    case: Words = ()
    number = re.fullmatch(r".*_(\d{4})", stem, re.DOTALL)
    if not ends and number:
        ends = [name for name, channel in channels.items() if channel == int(number[1])]
        before = parts[:-1]
        if ends and names.get(ends[0]) and before[-len(names[ends[0]]) :] == names[ends[0]]:
            before = before[: -len(names[ends[0]])]  # patient_T1_0001: name and number agree
        case = before
    if not any(name in wanted for name in ends):
        return None
    modality = next(name for name in ends if name in wanted)
    if before[-1:] == ("t2",) and names[modality] == ("flair",):
        before = before[:-1]  # T2-FLAIR is the sequence's full name
    doubts = [name for name in ends if name != modality]
    doubts += _modalities_in(before, modality, names)
    doubts += [word for word in before if word in _LABELS]
    doubts += [word for word in before[-1:] if word in _LINKS | _QUALIFIERS]
    return Reading(modality, tuple(dict.fromkeys(doubts)), case)


def find_modalities(
    study: Path,
    wanted: Sequence[str],
    channels: Mapping[str, int],
    *,
    known: Sequence[str] = (),
    chosen: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """Modality -> file, of the run's modalities that a folder has, in the run's order.

    Args:
        wanted: the run's modalities.
        channels: modality -> channel number in the original data set.
        known: all modalities of the run's cache.
        chosen: modality -> file, as the user says; a name without a folder is one in `study`.

    Raises:
        UserError: no folder; no modality in it; several files for one, or a name that can be read in several ways; a chosen
            file that is not there or chosen twice.
    """
    if not study.is_dir():
        raise UserError(f"{study} is not a folder; give one with a file for each of {', '.join(wanted)}")
    modalities = _chosen_files(study, wanted, chosen or {})
    taken = {path.resolve() for path in modalities.values()}
    candidates: dict[str, list[tuple[Path, Reading]]] = {name: [] for name in wanted if name not in modalities}
    files = volume_files(study)
    cases = {name: case for name, path in modalities.items() if (case := _case_of(path, wanted, channels, known))}
    for path in files:
        parsed = read_name(stem_of(path), wanted, channels, known)
        if parsed and parsed.case and cases and parsed.case not in cases.values():
            continue  # another patient's beside those that the user chose
        if parsed and parsed.modality in candidates and path.resolve() not in taken:
            candidates[parsed.modality].append((path, parsed))
    for name, fitting in candidates.items():
        paths = [path.name for path, _ in fitting]
        if len(fitting) > 1:
            raise UserError(
                f"{study} has several files of {name}: {', '.join(paths)}; choose one with --modality {name}=FILE"
            )
        if fitting and fitting[0][1].doubts:
            raise UserError(
                f"{study}: {paths[0]} could be {name}, but its name also contains {', '.join(fitting[0][1].doubts)}; name the "
                f"file with --modality {name}=FILE"
            )
        if fitting:
            modalities[name] = fitting[0][0]
            cases |= {name: fitting[0][1].case} if fitting[0][1].case else {}
    if len({*cases.values()}) > 1:
        numbered = ", ".join(modalities[name].name for name in cases)
        raise UserError(
            f"{study} has files of several cases ({numbered}: what stands before the number differs); give a folder for each, "
            "or say every file with --modality"
        )
    if not modalities:
        first = wanted[0]
        calls = [f"{first}.nii.gz", *([f"PATIENT_{channels[first]:04d}.nii.gz"] if first in channels else [])]
        raise UserError(
            f"{study} has no file of {', '.join(wanted)} (it has {_some(files)}); call it {' or '.join(calls)}, "
            f"or give --modality {first}=FILE"
        )
    return {name: modalities[name] for name in wanted if name in modalities}


def find_volumes(
    study: Path,
    wanted: Sequence[str],
    channels: Mapping[str, int],
    *,
    known: Sequence[str] = (),
    chosen: Mapping[str, str] | None = None,
) -> dict[str, VolumeFile]:
    """As `find_modalities`, with the reasons, and of a single file too: the only modality's, or the one it is called after.

    Raises:
        UserError: as `find_modalities`; a single file that is no volume or is called after no modality.
    """
    chosen = chosen or {}
    several = {} if chosen else _channels_of(study, wanted, channels)
    if several:
        return several
    if study.is_dir():
        files = find_modalities(study, wanted, channels, known=known, chosen={n: Path(c) for n, c in chosen.items()})
        return {name: VolumeFile(path, _reason(path, name, chosen)) for name, path in files.items()}
    if ending_of(study) not in ENDINGS:
        raise UserError(
            f"{study} is neither DICOM, a volume file ({', '.join(ENDINGS)}), a .zip nor a folder; give one of these"
        )
    if chosen:
        files = _chosen_files(study.parent, wanted, {name: Path(text) for name, text in chosen.items()})
        return {name: VolumeFile(files[name], _reason(files[name], name, chosen)) for name in wanted if name in files}
    if len(wanted) == 1:
        return {wanted[0]: VolumeFile(study, "the run's only modality")}
    named = read_name(stem_of(study), wanted, channels, known)
    if named is None or named.doubts:
        raise UserError(
            f"{study}: its name does not tell which of {', '.join(wanted)} it is; name it with --modality {wanted[0]}={study.name}"
        )
    return {named.modality: VolumeFile(study, _reason(study, named.modality, {}))}


def _channels_of(study: Path, wanted: Sequence[str], channels: Mapping[str, int]) -> dict[str, VolumeFile]:
    """The modalities in a file (X, Y, Z, channel), the study's only one, as the Decathlon has them; {} of another study."""
    files = volume_files(study) if study.is_dir() else [study]
    if len(files) != 1 or ending_of(files[0]) not in NIFTI or any(name not in channels for name in wanted):
        return {}
    with reading("headers"):
        shape = load_array(files[0])[0].shape
    if len(shape) != 4 or shape[3] == 1:
        return {}
    if max(channels[name] for name in wanted) >= shape[3]:
        raise UserError(
            f"{files[0]} holds {shape[3]} channels, the run's data set has {max(channels.values()) + 1} or more; give a file for "
            f"each of {', '.join(wanted)}"
        )
    why = "the channel's number, as in the run's data set"
    return {name: VolumeFile(files[0], why, channels[name], shape[3]) for name in wanted}


def volume_files(folder: Path) -> list[Path]:
    """The files of a folder that can hold a volume, in the order of their names."""
    return [path for path in sorted(folder.iterdir()) if ending_of(path) in ENDINGS and not path.name.startswith(".")]


def chosen_file(study: Path, text: str) -> Path | None:
    """The volume file that a user means, in `study` or by its path; None where there is none of that name."""
    folder = study if study.is_dir() else study.parent
    return next((file for file in (folder / text, Path(text)) if file.is_file() and ending_of(file) in ENDINGS), None)


def parse_choices(texts: Iterable[str]) -> dict[str, str]:
    """('FLAIR=5', 'T1Gd=scan.nii.gz') -> {'FLAIR': '5', 'T1Gd': 'scan.nii.gz'}: a series, a file or `none` for a modality.

    Raises:
        UserError: anything else, or a modality named twice.
    """
    choices: dict[str, str] = {}
    for text in texts:
        name, _, source = (part.strip() for part in text.partition("="))
        if not name or not source:
            raise UserError(
                f"--modality {text!r}: expected MODALITY=SERIES or MODALITY=FILE, e.g. T1Gd=5 or T1Gd=scan.nii.gz, or "
                f"MODALITY={LEFT_OUT}"
            )
        if name in choices:
            raise UserError(f"--modality names {name} twice, {choices[name]} and {source}; give one")
        choices[name] = source
    return choices


def without_left_out(wanted: Sequence[str], chosen: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The modalities to be sought and the choices for them: those that the user says are `none` are left out.

    Raises:
        UserError: a choice for a modality that the run does not have, or nothing left.
    """
    choose(tuple(chosen), tuple(wanted), "modality of the run")
    left_out = {name for name, text in chosen.items() if text.casefold() == LEFT_OUT}
    sought = tuple(name for name in wanted if name not in left_out)
    if not sought:
        raise UserError(f"--modality leaves out {', '.join(wanted)}, all that the run reads; keep one")
    return sought, {name: text for name, text in chosen.items() if name not in left_out}


def _reason(path: Path, modality: str, chosen: Mapping[str, str]) -> str:
    if modality in chosen:
        return f"--modality {modality}={chosen[modality]}"
    sought = words(modality)
    return f"its name ends in {modality}" if words(stem_of(path))[-len(sought) :] == sought else "its channel number"


def _chosen_files(study: Path, wanted: Sequence[str], chosen: Mapping[str, Path]) -> dict[str, Path]:
    if chosen:
        choose(tuple(chosen), tuple(wanted), "modality of the run")
    files: dict[str, Path] = {}
    for name, path in chosen.items():
        file = chosen_file(study, str(path))
        if file is None:
            raise UserError(
                f"--modality {name}={path}: no volume (NIfTI, .mha, .mhd, .nrrd) of that name in {study} or here"
            )
        for other, known in files.items():
            if known.resolve() == file.resolve():
                raise UserError(f"--modality names {path} for {other} and for {name}; a file holds one modality")
        files[name] = file
    return files


def _modalities_in(parts: Words, modality: str, names: Mapping[str, Words]) -> list[str]:
    """The modalities other than `modality` that `parts` names as whole words, those of the data set first."""
    others = {name: sought for name, sought in names.items() if sought and name != modality}
    spelled = {sought for sought in names.values() if len(sought) == 1}
    others |= {word: (word,) for word in sorted(_COMMON) if (word,) not in spelled}
    return [
        name
        for name, sought in others.items()
        if any(parts[at : at + len(sought)] == sought for at in range(len(parts)))
    ]


def _case_of(path: Path, wanted: Sequence[str], channels: Mapping[str, int], known: Sequence[str]) -> Words:
    parsed = read_name(stem_of(path), wanted, channels, known)
    return parsed.case if parsed else ()


def _some(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files[:8]) + (" ..." if len(files) > 8 else "") or "none"
