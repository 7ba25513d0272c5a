"""CHAOS's MR folder layout: T1-DUAL (two echoes) and T2-SPIR as DICOM, each with its own labels as PNG.

    [Train_Sets/]MR/1/T1DUAL/DICOM_anon/InPhase/*.dcm   OutPhase/*.dcm   T1DUAL/Ground/*.png
                      T2SPIR/DICOM_anon/*.dcm           T2SPIR/Ground/*.png

The two echoes share a frame; T2-SPIR is another acquisition and is resampled onto their grid by its DICOM geometry. The
T1-DUAL labels are the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.errors import UserError
from cache.terminal import choose
from stage1_instruct.datasets.dicom import Series, dicom_files, group_series, read_series, resample_to
from stage1_instruct.datasets.labels import LabelMapping, in_prose
from stage1_instruct.datasets.nifti import check_finite
from stage1_instruct.datasets.study import Dataset, Study

IN_PHASE, OUT_PHASE, T2 = "T1-DUAL-in", "T1-DUAL-out", "T2-SPIR"
TERMS = {IN_PHASE: "MRI-T1 in-phase", OUT_PHASE: "MRI-T1 out-of-phase", T2: "MRI-T2-SPIR"}
NAMES = {0: "background", 1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
# Grey value of the label and the range that the organisers' own readers accept.
GREY = {1: (63, 55, 70), 2: (126, 110, 135), 3: (189, 175, 200), 4: (252, 240, 255)}

# Fat and water differ by 3.4 ppm of 42.577 MHz/T: at 1.5 T the signals meet every 4.6 ms.
FAT_WATER_HZ_PER_TESLA = 3.4 * 42.577


def open_chaos(root: Path, labels: str, modalities: Sequence[str] | None) -> Dataset:
    """CHAOS MR; its four organs unless `labels` is 'binary'.

    Args:
        root: the folder that holds Train_Sets, MR, or the subjects' folders.
    Raises:
        UserError: wrong or empty root, or an unknown modality.
    """
    folders = _subject_folders(root)
    mapping = LabelMapping.binary(NAMES, "abdominal organs") if labels == "binary" else LabelMapping.native(NAMES)
    wanted = choose(modalities, tuple(TERMS), "modality")

    def load(subject: str) -> Study:
        return _load(subject, folders[subject], root, wanted, mapping)

    return Dataset(
        name="chaos",
        modalities=wanted,
        terms={name: TERMS[name] for name in wanted},
        classes=mapping.classes,
        instance=in_prose(mapping.classes),
        subjects=tuple(sorted(folders)),
        load=load,
        facts={**mapping.facts(), "reference": IN_PHASE, "resampling": "linear by position, labels nearest"},
    )


def _subject_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"the data root {root} does not exist; give the folder that holds CHAOS's MR with --data-root")
    for base in (root / "Train_Sets" / "MR", root / "MR", root):
        found = {path.name: path for path in base.glob("*") if (path / "T1DUAL").is_dir()}
        if found:
            # Numbers alone sort as text (1, 10, 2): two digits at least keep the subjects in order.
            return {f"chaos{int(name):02d}" if name.isdecimal() else name: path for name, path in found.items()}
    raise UserError(f"{root} holds no MR/SUBJECT/T1DUAL folder; give the folder that holds CHAOS's MR with --data-root")


def _load(subject: str, folder: Path, root: Path, wanted: tuple[str, ...], mapping: LabelMapping) -> Study:
    in_phase, out_phase = _dual_echo(folder / "T1DUAL" / "DICOM_anon")
    grid = in_phase.grid
    if not out_phase.grid.same_as(grid, tolerance_mm=0.1):
        raise UserError(
            f"{folder / 'T1DUAL'}: in-phase {grid.shape} and out-of-phase {out_phase.grid.shape} images do not share one "
            "grid; both echoes of one acquisition are needed"
        )
    images = {IN_PHASE: in_phase.volume, OUT_PHASE: out_phase.volume}
    read = [*in_phase.files, *out_phase.files]
    labels, pictures = read_ground(folder / "T1DUAL" / "Ground", in_phase)
    modality_labels = {} if labels is None else {IN_PHASE: labels, OUT_PHASE: labels}
    read += pictures
    if T2 in wanted:
        series = _only_series(folder / "T2SPIR" / "DICOM_anon")
        images[T2] = resample_to(series.volume, series.grid, grid, order=1)
        own, pictures = read_ground(folder / "T2SPIR" / "Ground", series)
        read += [*series.files, *pictures]
        if own is not None:
            modality_labels[T2] = resample_to(own, series.grid, grid, order=0)
    for name in wanted:
        check_finite(images[name], f"{folder}, modality {name}")
    complete = set(wanted) <= set(modality_labels)
    return Study(
        subject=subject,
        grid=grid,
        images={name: images[name] for name in wanted},
        labels=None if labels is None else mapping.apply(labels),
        modality_labels={name: mapping.apply(modality_labels[name]) for name in wanted} if complete else {},
        sources={path.relative_to(root).as_posix(): path for path in read},
    )


def _dual_echo(folder: Path) -> tuple[Series, Series]:
    """In-phase and out-of-phase series, told apart by echo time and field strength, wherever the files lie.

    Raises:
        UserError: not exactly two echoes.
    """
    groups = group_series(dicom_files(folder))
    echoes = sorted({echo for _, echo in groups})
    if len(echoes) != 2:
        found = ", ".join(f"{echo:g} ms" for echo in echoes) or "none"
        raise UserError(
            f"{folder} holds echoes {found}; expected the two of a dual-echo acquisition (in and out of phase)"
        )
    series = {
        echo: read_series([path for (_, own), files in groups.items() if own == echo for path in files])
        for echo in echoes
    }
    tesla = float(series[echoes[0]].header.get("MagneticFieldStrength") or 1.5)
    # cos is 1 where fat and water point the same way, -1 where they point against one another.
    together = {echo: np.cos(2 * np.pi * FAT_WATER_HZ_PER_TESLA * tesla * echo * 1e-3) for echo in echoes}
    first, second = sorted(echoes, key=lambda echo: -together[echo])
    return series[first], series[second]


def _only_series(folder: Path) -> Series:
    files = dicom_files(folder)
    if not files:
        raise UserError(f"{folder} holds no DICOM files; is the download complete?")
    return read_series(files)


def read_ground(folder: Path, series: Series) -> tuple[NDArray[np.uint8] | None, list[Path]]:
    """The label map of a series and its PNG files; None where the subject has none (the test set).

    The n-th picture by name belongs to the n-th DICOM file by name, as the organisers pair them.

    Raises:
        UserError: another number of pictures than slices, another size, or a grey value of no organ.
    """
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        return None, []
    if len(pictures) != len(series.files):
        raise UserError(
            f"{folder} holds {len(pictures)} label pictures for {len(series.files)} slices; one each is needed"
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
