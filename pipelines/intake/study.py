"""A study as a user has it, opened for a run: its modalities on one grid, and what was taken for what.

A study is a folder of DICOM as it comes off a PACS, a .zip of one, a folder with a volume file (NIfTI, .mha, .mhd, .nrrd)
for each modality, or one such file. The reference is the run's first modality that the study has; the others are
brought onto its grid.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.pipelines.intake.archive import is_archive, unpack
from zeus_union.pipelines.intake.common_grid import Image, onto_reference, size_of
from zeus_union.pipelines.intake.file_names import find_volumes, volume_files, without_left_out
from zeus_union.pipelines.intake.recognise import Verdict, Wanted, judge
from zeus_union.pipelines.intake.sources import Source, find_sources, sources_in
from zeus_union.pipelines.intake.stack import Stack
from zeus_union.pipelines.intake.stacks import find_stacks
from zeus_union.stage1_instruct.studies.depth import reading
from zeus_union.stage1_instruct.studies.dicom import Series, read_series
from zeus_union.stage1_instruct.studies.file_formats import data_files, stem_of
from zeus_union.stage1_instruct.studies.names import subject_names
from zeus_union.stage1_instruct.studies.nifti import fill_non_finite, read_channels, read_volume


@dataclass(frozen=True)
class Choice:
    """What was taken for a modality.

    Attributes:
        modality: the run's name for it.
        taken: the series (number, description, slices) or the file.
        reason: why, in plain words.
        placing: how it comes onto the reference's grid; '' where it lies on it.
    """

    modality: str
    taken: str
    reason: str
    placing: str = ""


@dataclass(frozen=True, eq=False)
class OpenedStudy:
    """A study's modalities on one grid.

    Attributes:
        name: as a cache can hold it.
        images: modality -> float32 (grid.shape), of the run's modalities that the study has, in the run's order.
        grid: of the reference, the first of them.
        missing: the run's modalities that the study does not have.
        sources: name -> file of everything read; they are there while the study is open.
        series: the reference's DICOM series, its frames along the last axis; None of a volume file.
        choices: what was taken for each modality and why.
    """

    name: str
    images: Mapping[str, NDArray[np.float32]]
    grid: Grid
    missing: tuple[str, ...]
    sources: Mapping[str, Path]
    series: Series | None
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Listed:
    """A series or file of a study, and what it is for a run.

    Attributes:
        name: the series' number, or the file's name.
        description: of the series.
        size: slices, or voxels and spacing where they are a volume.
        taken_for: the modality; '' for none.
        reason: why, or why not.
    """

    name: str
    description: str
    size: str
    taken_for: str
    reason: str


@contextmanager
def open_study(
    path: Path,
    wanted: Sequence[str],
    *,
    channels: Mapping[str, int],
    known: Sequence[str] = (),
    terms: Mapping[str, str] | None = None,
    chosen: Mapping[str, str] | None = None,
    register: bool = False,
    view: str | None = None,
) -> Iterator[OpenedStudy]:
    """A study's modalities on one grid; the files of a .zip are there for the time of the block.

    Args:
        wanted: the run's modalities.
        channels: modality -> channel number in the run's data set, by which files may be called.
        known: all modalities of that data set.
        terms: modality -> what instructions call it, which says more of a name that says little.
        chosen: modality -> series or file, as the user says it, see `file_names.parse_choices`.
        register: as for `onto_reference`.
        view: plane of the run's slices, where all have one: of series that differ in nothing else that one is taken.

    Raises:
        UserError: no study, none of the modalities, several that fit one, several patients; slices that are missing,
            doubled or damaged; modalities that do not lie in one world.
    """
    sought, series_or_files = without_left_out(wanted, chosen or {})
    with _folder_of(path) as (folder, given):
        sources = find_sources(folder, sought, channels, (*known, *wanted), terms or {}, series_or_files, view)
        missing = tuple(name for name in wanted if name not in sources)
        yield _read(folder, given, sources, missing, register)


def plan_study(path: Path, wanted: Sequence[str], **how: object) -> tuple[tuple[Choice, ...], tuple[str, ...]]:
    """What `open_study` would take for what and the modalities that it would miss, without reading a voxel."""
    with reading("headers"), open_study(path, wanted, **how) as study:  # type: ignore[arg-type]
        return study.choices, study.missing


def list_study(
    path: Path,
    wanted: Sequence[str],
    *,
    channels: Mapping[str, int],
    known: Sequence[str] = (),
    terms: Mapping[str, str] | None = None,
    chosen: Mapping[str, str] | None = None,
    view: str | None = None,
) -> tuple[Listed, ...]:
    """All series or volume files of a study, with what each is for the run and why, or why not; reads no voxel.

    What `open_study` refuses for being ambiguous is listed as such.

    Raises:
        UserError: no study, a damaged file, or several patients.
    """
    sought, series_or_files = without_left_out(wanted, chosen or {})
    with _folder_of(path) as (folder, _):
        stacks = find_stacks(folder)
        if not stacks:
            return tuple(_listed_files(folder, sought, channels, (*known, *wanted), series_or_files))
        return tuple(_listed_stacks(folder, stacks, sought, terms or {}, series_or_files, view))


@contextmanager
def _folder_of(path: Path) -> Iterator[tuple[Path, Path]]:
    """The folder (or volume file) that holds the study's files, and what the user calls it.

    Messages name the archive where the files are in a temporary folder.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist; give a folder of DICOM or of volume files, a .zip of one, or a volume file"
        )
    if path.name.lower() == "dicomdir":
        path = path.absolute().parent
    if not is_archive(path):
        yield (_inner(path), path)
        return
    with tempfile.TemporaryDirectory(prefix="zeus-study-") as temporary:
        folder = Path(temporary)
        unpack(path, folder)
        try:
            yield (_inner(folder), path)
        except UserError as error:
            if str(folder) not in str(error):
                raise
            raise type(error)(str(error).replace(str(folder), str(path))) from error


def _inner(folder: Path) -> Path:
    """The folder, or the only one in it that everything lies in."""
    while folder.is_dir():
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
        if len(entries) != 1 or not entries[0].is_dir():
            break
        folder = entries[0]
    return folder


def _read(
    folder: Path, given: Path, sources: Mapping[str, Source], missing: tuple[str, ...], register: bool
) -> OpenedStudy:
    """Reads the sources, the reference first, and brings the others onto its grid."""
    images: dict[str, NDArray[np.float32]] = {}
    choices: list[Choice] = []
    files: dict[str, Path] = {}
    reference: Image | None = None
    for name, source in sources.items():
        image = _image(name, source)
        files |= _files_of(folder, source, image.series)
        reference = reference or image
        volume, placing = (image.volume, "") if image is reference else onto_reference(image, reference, register)
        images[name] = fill_non_finite(volume, f"{given}, modality {name}")
        choices.append(Choice(name, source.named, source.reason, placing))
    assert reference is not None
    return OpenedStudy(study_name(given), images, reference.grid, missing, files, reference.series, tuple(choices))


def _image(name: str, source: Source) -> Image:
    if source.stack is not None:
        series = read_series(source.stack.frames)
        return Image(name, source.named, series.volume, series.grid, series, source.stack.frame_of_reference)
    assert source.file is not None
    file = source.file
    if file.channel is None:
        volume, grid = read_volume(file.path)
    else:
        images, grid = read_channels([file.path], {name: file.channel}, file.channels)
        volume = images[name]
    return Image(name, str(file.path), volume, grid)


def _files_of(folder: Path, source: Source, series: Series | None) -> dict[str, Path]:
    """Name -> file, of what a modality was read from: below the study's folder, or by the file's name alone."""
    paths = series.files if series is not None else data_files(source.file.path) if source.file else ()
    names = (
        (path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name, path) for path in paths
    )
    return {("" if name == "." else name) or path.name: path for name, path in names}


def study_name(path: Path) -> str:
    """What the results of a study are called, as a cache can hold it: the folder's, archive's or file's name."""
    return next(iter(subject_names([given_name(path)]).values()))


def given_name(path: Path) -> str:
    """The folder's, archive's or file's name, as the user has it."""
    whole = path.resolve()
    return (whole.name if whole.is_dir() else whole.stem if is_archive(whole) else stem_of(whole)) or "study"


def _listed_stacks(
    folder: Path,
    stacks: Sequence[Stack],
    wanted: Sequence[str],
    terms: Mapping[str, str],
    chosen: Mapping[str, str],
    view: str | None,
) -> Iterator[Listed]:
    """Every stack; where the choice is refused, those that fit say so."""
    try:
        sources = sources_in(folder, stacks, wanted, terms, chosen, view)
    except UserError:  # the rows say it: which series could be what
        sources = {}
    taken = {id(source.stack): (name, source.reason) for name, source in sources.items() if source.stack}
    modalities = [Wanted.of(name, terms.get(name, "")) for name in wanted]
    for stack in stacks:
        size = size_of(stack.grid) if stack.grid and not stack.unsuitable else stack.size_in_words
        name, reason = taken.get(id(stack), ("", ""))
        if not name:
            verdicts = {modality.name: judge(modality, stack) for modality in modalities}
            fits = [modality for modality, verdict in verdicts.items() if verdict.fits]
            reason = stack.unsuitable or (
                f"could be {', '.join(fits)}, as other series could" if fits else _why_not(verdicts)
            )
        elif stack.fault:
            reason += f"; but {stack.fault}"
        yield Listed(stack.label, stack.description, size, name, reason)
    for name, source in sources.items():
        if source.file:
            yield Listed(source.file.named, "", "", name, source.reason)


def _why_not(verdicts: Mapping[str, Verdict]) -> str:
    """'FLAIR (TE 120 ms), not T1, not T2': what is the same for several modalities is said once."""
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts.values():
        what, comma, is_not = verdict.reason.rpartition(", not ")
        reasons.setdefault(what if comma else verdict.reason, []).extend([f"not {is_not}"] if comma else [])
    return "; ".join(", ".join((what, *dict.fromkeys(nots))) for what, nots in reasons.items())


def _listed_files(
    folder: Path, wanted: Sequence[str], channels: Mapping[str, int], known: Sequence[str], chosen: Mapping[str, str]
) -> Iterator[Listed]:
    try:
        volumes = find_volumes(folder, wanted, channels, known=known, chosen=chosen)
    except UserError as error:
        if not folder.is_dir() or not volume_files(folder):
            raise
        volumes, why = {}, str(error)
    else:
        why = f"called after none of {', '.join(wanted)}"
    several = [volume for volume in volumes.values() if volume.channel is not None]
    for name, volume in volumes.items() if several else ():
        yield Listed(volume.named, "", "", name, volume.reason)
    if several:
        return
    taken = {volume.path.resolve(): (name, volume.reason) for name, volume in volumes.items()}
    paths = volume_files(folder) if folder.is_dir() else [folder]
    for path in dict.fromkeys([*paths, *(volume.path for volume in volumes.values())]):
        name, reason = taken.get(path.resolve(), ("", why))
        with reading("headers"):
            try:
                size = size_of(read_volume(path)[1])
            except UserError as error:
                size, reason = "", str(error)
        yield Listed(path.name, "", size, name, reason)
