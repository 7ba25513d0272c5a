"""CHAOS's MR folder layout: T1-DUAL (two echoes) and T2-SPIR as DICOM, each with its own labels as PNG.

    [Train_Sets/]MR/1/T1DUAL/DICOM_anon/InPhase/*.dcm   OutPhase/*.dcm   T1DUAL/Ground/*.png
                      T2SPIR/DICOM_anon/*.dcm           T2SPIR/Ground/*.png

The two echoes share a frame; T2-SPIR is another acquisition and is resampled onto their grid by its DICOM geometry. The
T1-DUAL labels are the target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.terminal import choose
from zeus_union.stage1_instruct.studies.dicom import (
    Series,
    dicom_files,
    header_number,
    header_value,
    read_header,
    read_series,
    resample_to,
)
from zeus_union.stage1_instruct.studies.labels import LabelMapping, in_prose
from zeus_union.stage1_instruct.studies.nifti import fill_non_finite
from zeus_union.stage1_instruct.studies.study import Dataset, Study

IN_PHASE, OUT_PHASE, T2 = "T1-DUAL-in", "T1-DUAL-out", "T2-SPIR"
TERMS = {IN_PHASE: "MRI-T1 in-phase", OUT_PHASE: "MRI-T1 out-of-phase", T2: "MRI-T2-SPIR"}
NAMES = {0: "background", 1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
# Grey value of the label and the range that the organisers' own readers accept.
GREY = {1: (63, 55, 70), 2: (126, 110, 135), 3: (189, 175, 200), 4: (252, 240, 255)}

# Fat and water differ by 3.4 ppm of 42.577 MHz/T: at 1.5 T the signals meet every 4.6 ms.
FAT_WATER_HZ_PER_TESLA = 3.4 * 42.577
# What scanners write into ImageType or ScanOptions, without underscores.
PHASE_WORDS = {
    **dict.fromkeys(("INPHASE", "IP"), IN_PHASE),
    **dict.fromkeys(("OUTPHASE", "OUTOFPHASE", "OPPPHASE", "OPPOSEDPHASE", "OP"), OUT_PHASE),
}


def open_chaos(root: Path, labels: str, modalities: Sequence[str] | None) -> Dataset:
    """CHAOS MR; its four organs unless `labels` is 'binary'.

    Args:
        root: the folder that holds Train_Sets (and Test_Sets), MR, or the subjects' folders.
    Raises:
        UserError: wrong or empty root, or an unknown modality.
    """
    folders = _subject_folders(root)
    mapping = LabelMapping.binary(NAMES, "abdominal organs") if labels == "binary" else LabelMapping.native(NAMES)
    wanted = choose(modalities, tuple(TERMS), "modality")

    def load(subject: str) -> Study:
        return _load(subject, folders[subject], root, wanted, mapping)

    card = DatasetCard(
        name="chaos",
        modalities=wanted,
        terms={name: TERMS[name] for name in wanted},
        classes=mapping.classes,
        instance=in_prose(mapping.classes),
        subjects=tuple(sorted(folders)),
    )
    return Dataset(
        card, load, facts={**mapping.facts(), "reference": IN_PHASE, "resampling": "linear by position, labels nearest"}
    )


def _subject_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"the data root {root} does not exist; give the folder that holds CHAOS's MR with --data-root")
    for bases in ((root / "Test_Sets" / "MR", root / "Train_Sets" / "MR"), (root / "MR",), (root,)):
        subjects = {path.name: path for base in bases for path in base.glob("*") if (path / "T1DUAL").is_dir()}
        if subjects:
            # Numbers alone sort as text (1, 10, 2): two digits at least keep the subjects in order.
            return {f"chaos{int(name):02d}" if name.isdecimal() else name: path for name, path in subjects.items()}
    raise UserError(f"{root} holds no MR/SUBJECT/T1DUAL folder; give the folder that holds CHAOS's MR with --data-root")


def _load(subject: str, folder: Path, root: Path, wanted: tuple[str, ...], mapping: LabelMapping) -> Study:
    phases = _dual_echo(folder / "T1DUAL" / "DICOM_anon")
    in_phase = read_series(phases[IN_PHASE])
    grid = in_phase.grid
    images = {IN_PHASE: in_phase.volume}
    labels, pictures = read_ground(folder / "T1DUAL" / "Ground", in_phase)
    modality_labels = {} if labels is None else {IN_PHASE: labels, OUT_PHASE: labels}
    read = [*in_phase.files, *pictures]
    if OUT_PHASE in wanted:
        out_phase = read_series(phases[OUT_PHASE])
        if not out_phase.grid.same_as(grid, tolerance_mm=0.1):
            raise UserError(
                f"{folder / 'T1DUAL'}: in-phase {grid.shape} and out-of-phase {out_phase.grid.shape} images do not share "
                "one grid; both echoes of one acquisition are needed"
            )
        images[OUT_PHASE] = out_phase.volume
        read += out_phase.files
    if T2 in wanted:
        series = _only_series(folder / "T2SPIR" / "DICOM_anon")
        images[T2] = resample_to(series.volume, series.grid, grid, order=1)
        t2_labels, pictures = read_ground(folder / "T2SPIR" / "Ground", series)
        read += [*series.files, *pictures]
        if t2_labels is not None:
            modality_labels[T2] = resample_to(t2_labels, series.grid, grid, order=0)
    for name in wanted:
        images[name] = fill_non_finite(images[name], f"{folder}, modality {name}")
    complete = set(wanted) <= set(modality_labels)
    return Study(
        subject=subject,
        grid=grid,
        images={name: images[name] for name in wanted},
        labels=None if labels is None else mapping.apply(labels),
        modality_labels={name: mapping.apply(modality_labels[name]) for name in wanted} if complete else {},
        sources={path.relative_to(root).as_posix(): path for path in read},
    )


def _dual_echo(folder: Path) -> dict[str, list[Path]]:
    """The files of the in-phase and the out-of-phase image, wherever they lie and however they are called.

    They are told apart by what the scanner says (ImageType, ScanOptions), else by echo time and field strength. Series
    numbers are of no use: every file of CHAOS's download has one of its own.

    Raises:
        UserError: not exactly two images, or not one of each phase.
    """
    groups: dict[tuple[str, float], list[Path]] = defaultdict(list)
    tesla = 0.0
    for path in dicom_files(folder):
        header = read_header(path)
        groups[_phase_word(path, header), header_number(path, header, "EchoTime", 0.0)].append(path)
        tesla = header_number(path, header, "MagneticFieldStrength", 1.5)
    if len(groups) != 2:
        echoes = ", ".join(f"{echo:g} ms" for _, echo in sorted(groups)) or "none"
        raise UserError(
            f"{folder} holds echoes {echoes}; expected the two of a dual-echo acquisition (in and out of phase)"
        )
    if {word for word, _ in groups} == {IN_PHASE, OUT_PHASE}:
        return {word: files for (word, _), files in groups.items()}
    # cos is 1 where fat and water point the same way, -1 where they point against one another.
    together = {key: np.cos(2 * np.pi * FAT_WATER_HZ_PER_TESLA * tesla * key[1] * 1e-3) for key in groups}
    out_of_phase, in_phase = sorted(groups, key=lambda key: together[key])
    if not together[out_of_phase] < 0 < together[in_phase]:
        raise UserError(
            f"{folder}: echo times {out_of_phase[1]:g} and {in_phase[1]:g} ms at {tesla:g} T are not one in phase and one "
            "out of phase; correct EchoTime and MagneticFieldStrength, or set ImageType to IN_PHASE and OUT_PHASE"
        )
    return {IN_PHASE: groups[in_phase], OUT_PHASE: groups[out_of_phase]}


def _phase_word(path: Path, header: Any) -> str:
    """IN_PHASE or OUT_PHASE where the header says so in words, else ''."""
    said: set[str] = set()
    for tag in ("ImageType", "ScanOptions"):
        value = header_value(path, header, tag) or []
        for word in [value] if isinstance(value, str) else value:
            said.add(PHASE_WORDS.get(str(word).upper().replace("_", "").replace(" ", ""), ""))
    said.discard("")
    return said.pop() if len(said) == 1 else ""


def _only_series(folder: Path) -> Series:
    files = dicom_files(folder)
    if not files:
        raise UserError(f"{folder} holds no DICOM files; is the download complete?")
    return read_series(files)


def read_ground(folder: Path, series: Series) -> tuple[NDArray[np.uint8] | None, list[Path]]:
    """The label map of a series and its PNG files; None where the subject has none (the test set).

    The n-th picture by name belongs to the n-th DICOM file by name, as the organisers pair them.

    Raises:
        UserError: another number of pictures than slices, another size, a grey value of no organ, or DICOM files whose
            names do not run along the body: then their order says nothing about the pictures.
    """
    pictures = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    if not pictures:
        return None, []
    if len(pictures) != len(series.files):
        raise UserError(
            f"{folder} holds {len(pictures)} label pictures for {len(series.files)} slices; one each is needed"
        )
    names = [path.name for path in series.files]
    if names not in (sorted(names), sorted(names, reverse=True)):
        raise UserError(
            f"{folder}: its pictures belong to the slices in {series.files[0].parent} by order of file name, but those names "
            "do not run along the body; give the DICOM files their original names"
        )
    by_name = dict(zip(sorted(series.files, key=lambda path: path.name), pictures))
    labels = np.zeros(series.grid.shape, dtype=np.uint8)
    for index, path in enumerate(series.files):
        labels[..., index] = _read_picture(by_name[path], labels.shape[:2])
    return labels, pictures


def _read_picture(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """One label picture as (columns, rows), 0 to 4."""
    try:
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L")).T
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); copy it again") from error
    if grey.shape != shape:
        raise UserError(f"{path} is {grey.shape[0]} x {grey.shape[1]} pixels, its slice is {shape[0]} x {shape[1]}")
    labels = np.zeros(shape, dtype=np.uint8)
    for label, (_, low, high) in GREY.items():
        labels[(grey >= low) & (grey <= high)] = label
    unknown = np.unique(grey[(labels == 0) & (grey != 0)])
    if len(unknown):
        values = ", ".join(str(value) for value, _, _ in GREY.values())
        raise UserError(f"{path} holds grey value {unknown[0]}, which is no organ; expected 0 and about {values}")
    return labels
