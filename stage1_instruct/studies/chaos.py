"""CHAOS's MR folder layout: T1-DUAL (two echoes) and T2-SPIR as DICOM, each with its own labels as pictures.

    [Train_Sets/]MR/1/T1DUAL/DICOM_anon/InPhase/*.dcm   OutPhase/*.dcm   T1DUAL/Ground/*.png
                      T2SPIR/DICOM_anon/*.dcm           T2SPIR/Ground/*.png

The two echoes share a frame; T2-SPIR is another acquisition and is resampled onto their grid by its DICOM geometry. The
T1-DUAL labels are the target; a subject that is labelled on T2-SPIR alone has those, resampled. Folders are found in any
case, DICOM files and pictures by their content.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.terminal import choose, counted, say, warn
from zeus_union.stage1_instruct.studies.dicom import (
    Frame,
    Series,
    dicom_files,
    read_frames,
    read_series,
    resample_to,
)
from zeus_union.stage1_instruct.studies.dicom_files import natural_key
from zeus_union.stage1_instruct.studies.dicom_frames import tag_number, tag_value
from zeus_union.stage1_instruct.studies.ground import NAMES, ground_entries, ground_pictures, read_ground
from zeus_union.stage1_instruct.studies.labels import LabelMapping, in_prose
from zeus_union.stage1_instruct.studies.nifti import fill_non_finite
from zeus_union.stage1_instruct.studies.study import Dataset, Study

IN_PHASE, OUT_PHASE, T2 = "T1-DUAL-in", "T1-DUAL-out", "T2-SPIR"
TERMS = {IN_PHASE: "MRI-T1 in-phase", OUT_PHASE: "MRI-T1 out-of-phase", T2: "MRI-T2-SPIR"}

# Fat and water differ by 3.4 ppm of 42.577 MHz/T: at 1.5 T the signals meet every 4.6 ms.
FAT_WATER_HZ_PER_TESLA = 3.4 * 42.577
# What scanners write into ImageType or ScanOptions, without underscores.
PHASE_WORDS = {
    **dict.fromkeys(("INPHASE", "IP"), IN_PHASE),
    **dict.fromkeys(("OUTPHASE", "OUTOFPHASE", "OPPPHASE", "OPPOSEDPHASE", "OP"), OUT_PHASE),
}


def open_chaos(root: Path, labels: str, modalities: Sequence[str] | None) -> Dataset:
    """CHAOS MR; its four organs unless `labels` is 'binary'.

    Says which subjects have no labels, or have them on T2-SPIR alone.

    Args:
        root: the folder that holds Train_Sets (and Test_Sets), MR, or the subjects' folders.
    Raises:
        UserError: wrong or empty root, two folders of one subject, or an unknown modality.
    """
    folders = _subject_folders(root)
    mapping = LabelMapping.binary(NAMES, "abdominal organs") if labels == "binary" else LabelMapping.native(NAMES)
    wanted = choose(modalities, tuple(TERMS), "modality")
    labelled = _labelled(folders)

    def load(subject: str) -> Study:
        return _load(subject, folders[subject], root, wanted, mapping)

    card = DatasetCard(
        name="chaos",
        modalities=wanted,
        terms={name: TERMS[name] for name in wanted},
        classes=mapping.classes,
        instance=in_prose(mapping.classes),
        subjects=tuple(sorted(folders)),
        channels={name: number for number, name in enumerate(TERMS) if name in wanted},
    )
    facts = {
        **mapping.facts(),
        "reference": IN_PHASE,
        "resampling": "linear by position, labels nearest",
        "target": "labels of T1-DUAL, where it has none those of T2-SPIR",
    }
    return Dataset(card, load, facts, labelled={subject: subject for subject in labelled})


def _subject_folders(root: Path) -> dict[str, Path]:
    """Subject -> its folder, wherever below `root` CHAOS keeps them."""
    if not root.is_dir():
        raise UserError(f"the data root {root} does not exist; give the folder that holds CHAOS's MR with --data-root")
    subjects: dict[str, Path] = {}
    incomplete = []
    for folder in (path for base in _bases(root) for path in sorted(base.iterdir(), key=_natural)):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        if not _child(folder, "T1DUAL").is_dir():
            incomplete += [folder] if _child(folder, "T2SPIR").is_dir() else []
            continue
        name = _subject_name(folder.name)
        if name in subjects:
            if subjects[name].samefile(folder):  # a link to the other one
                continue
            raise UserError(f"{subjects[name]} and {folder} are both subject {name}; rename or remove one of them")
        subjects[name] = folder
    if not subjects:
        raise UserError(
            f"{root} holds no MR/SUBJECT/T1DUAL folder; give the folder that holds CHAOS's MR with --data-root"
        )
    if incomplete:
        warn(f"left out, because they have no T1DUAL folder: {', '.join(str(folder) for folder in incomplete)}")
    renamed = [
        f"{path.name!r} is {name}" for name, path in subjects.items() if not path.name.isascii() or " " in path.name
    ]
    if renamed:
        say(f"subjects renamed from their folders: {', '.join(renamed)}")
    return subjects


def _bases(root: Path) -> list[Path]:
    """The folders in `root`, and itself, that may hold subjects' folders."""
    bases = [_child(_child(root, split), "MR") for split in ("Test_Sets", "Train_Sets")] + [_child(root, "MR"), root]
    return [base for base in bases if base.is_dir()]


def holds_subjects(folder: Path) -> bool:
    """Whether a folder is CHAOS's, as far as it can be seen."""
    try:
        return any(_child(path, "T1DUAL").is_dir() for base in _bases(folder) for path in base.iterdir())
    except (OSError, UserError):
        return False


def _natural(path: Path) -> tuple[tuple[int, int, str], ...]:
    return natural_key(path.name)


def _subject_name(folder: str) -> str:
    """A folder's name as a subject: letters, digits, '.', '_' and '-'."""
    if re.fullmatch(r"[0-9]+", folder):
        # Numbers alone sort as text (1, 10, 2): two digits at least keep the subjects in order.
        return f"chaos{int(folder):02d}"
    plain = unicodedata.normalize("NFKD", folder.replace("ß", "ss")).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.") or "subject"


def _child(folder: Path, name: str) -> Path:
    """The folder called `name` in `folder`, in any case; the path in this very case where there is none.

    Raises:
        UserError: several that differ in case alone.
    """
    if not folder.is_dir():
        return folder / name
    matching = [path for path in folder.iterdir() if path.name.casefold() == name.casefold() and path.is_dir()]
    if len(matching) > 1:
        names = " and ".join(sorted(path.name for path in matching))
        raise UserError(f"{folder} holds {names}, which differ in case alone; keep one folder called {name}")
    return matching[0] if matching else folder / name


def _labelled(folders: Mapping[str, Path]) -> list[str]:
    """The subjects with labels.

    Says which are not labelled on T1-DUAL, and why; what is wrong with a subject's own files is said on loading.
    """
    unlabelled: list[str] = []
    on_t2: list[str] = []
    without_t2: list[str] = []
    for subject, folder in folders.items():
        t1, t2 = (ground_entries(_child(_child(folder, sequence), "Ground")) for sequence in ("T1DUAL", "T2SPIR"))
        if not t1:
            (on_t2 if t2 else unlabelled).append(subject)
        elif not t2 and _child(folder, "T2SPIR").is_dir():
            without_t2.append(subject)
    if unlabelled:
        warn(
            f"{len(unlabelled)} of {counted(len(folders), 'subject')} without labels: neither T1DUAL nor T2SPIR has pictures in a "
            f"folder Ground: {', '.join(sorted(unlabelled))}"
        )
    if on_t2:
        say(f"labelled on T2-SPIR alone, resampled onto T1-DUAL as the target: {', '.join(sorted(on_t2))}")
    if without_t2:
        say(f"labelled on T1-DUAL alone, which is the target: {', '.join(sorted(without_t2))}")
    return [subject for subject in folders if subject not in unlabelled]


def _load(subject: str, folder: Path, root: Path, wanted: tuple[str, ...], mapping: LabelMapping) -> Study:
    t1, t2 = _child(folder, "T1DUAL"), _child(folder, "T2SPIR")
    phases = _dual_echo(_child(t1, "DICOM_anon"))
    in_phase = read_series(phases[IN_PHASE])
    grid = in_phase.grid
    images = {IN_PHASE: in_phase.volume}
    target, pictures = read_ground(_child(t1, "Ground"), in_phase)
    modality_labels = {} if target is None else {IN_PHASE: target, OUT_PHASE: target}
    read = [*in_phase.files, *pictures]
    if OUT_PHASE in wanted:
        out_phase = read_series(phases[OUT_PHASE])
        if not out_phase.grid.same_as(grid):
            raise UserError(
                f"{t1}: in-phase {grid.shape} and out-of-phase {out_phase.grid.shape} images do not share "
                "one grid; both echoes of one acquisition are needed"
            )
        images[OUT_PHASE] = out_phase.volume
        read += out_phase.files
    if T2 in wanted or (target is None and ground_pictures(_child(t2, "Ground"))):
        images[T2], t2_labels, files = _load_t2(t2, grid)
        read += files
        if t2_labels is not None:
            modality_labels[T2] = t2_labels
            target = t2_labels if target is None else target
    for name in wanted:
        images[name] = fill_non_finite(images[name], f"{folder}, modality {name}")
    complete = set(wanted) <= set(modality_labels)
    return Study(
        subject=subject,
        grid=grid,
        images={name: images[name] for name in wanted},
        labels=None if target is None else mapping.apply(target),
        modality_labels={name: mapping.apply(modality_labels[name]) for name in wanted} if complete else {},
        sources=_sources(read, root),
    )


def _load_t2(folder: Path, grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, list[Path]]:
    """T2-SPIR and its labels, both on `grid`, and the files they came from."""
    series = _only_series(_child(folder, "DICOM_anon"))
    volume = resample_to(series.volume, series.grid, grid, order=1)
    labels, pictures = read_ground(_child(folder, "Ground"), series)
    if labels is not None:
        labels = resample_to(labels, series.grid, grid, order=0)
    return volume, labels, [*series.files, *pictures]


def _sources(files: Iterable[Path], root: Path) -> dict[str, Path]:
    return {path.relative_to(root).as_posix(): path for path in files}


def _dual_echo(folder: Path) -> dict[str, list[Frame]]:
    """The frames of the in-phase and the out-of-phase image, wherever they lie and however they are called.

    They are told apart by what the scanner says (ImageType, ScanOptions), else by echo time and field strength. Series
    numbers are of no use: every file of CHAOS's download has one of its own.

    Raises:
        UserError: not exactly two images, or not one of each phase.
    """
    groups: dict[tuple[str, float], list[Frame]] = defaultdict(list)
    tesla = 0.0
    for frame in (frame for path in dicom_files(folder) for frame in read_frames(path)):
        groups[phase_word(frame), tag_number(frame, "EchoTime", 0.0)].append(frame)
        tesla = tag_number(frame, "MagneticFieldStrength", 1.5)
    if len(groups) != 2:
        echoes = ", ".join(f"{echo:g} ms" for _, echo in sorted(groups)) or "none"
        raise UserError(
            f"{folder} holds echoes {echoes}; expected the two of a dual-echo acquisition (in and out of phase)"
        )
    if {word for word, _ in groups} == {IN_PHASE, OUT_PHASE}:
        return {word: frames for (word, _), frames in groups.items()}
    together = {key: fat_with_water(key[1], tesla) for key in groups}
    out_of_phase, in_phase = sorted(groups, key=lambda key: together[key])
    if not together[out_of_phase] < 0 < together[in_phase]:
        raise UserError(
            f"{folder}: echo times {out_of_phase[1]:g} and {in_phase[1]:g} ms at {tesla:g} T are not one in phase and one "
            "out of phase; correct EchoTime and MagneticFieldStrength, or set ImageType to IN_PHASE and OUT_PHASE"
        )
    return {IN_PHASE: groups[in_phase], OUT_PHASE: groups[out_of_phase]}


def fat_with_water(echo_ms: float, tesla: float) -> float:
    """1 where fat and water point the same way at an echo time, -1 where they point against one another."""
    return float(np.cos(2 * np.pi * FAT_WATER_HZ_PER_TESLA * tesla * echo_ms * 1e-3))


def phase_word(frame: Frame) -> str:
    """IN_PHASE or OUT_PHASE where the header says so in words, else ''."""
    phases: set[str] = set()
    for tag in ("ImageType", "ScanOptions"):
        value = tag_value(frame, tag) or []
        for word in [value] if isinstance(value, str) else value:
            phases.add(PHASE_WORDS.get(str(word).upper().replace("_", "").replace(" ", ""), ""))
    phases.discard("")
    return phases.pop() if len(phases) == 1 else ""


def _only_series(folder: Path) -> Series:
    files = dicom_files(folder)
    if not files:
        raise UserError(f"{folder} holds no DICOM files; is the download complete?")
    return read_series(files)
