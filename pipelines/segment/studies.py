"""Many studies: which there are, which are finished, and one after the other through one `Segmenter`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom

from zeus_union.cache.atomic import make_folder, write_atomically
from zeus_union.cache.errors import JobError, UserError, first_line
from zeus_union.cache.locks import NoLocksError, acquire
from zeus_union.cache.terminal import counted, progress_bar, say, some_of, warn
from zeus_union.pipelines.intake.file_names import ENDINGS
from zeus_union.pipelines.intake.study import given_name
from zeus_union.pipelines.segment.segmentation import MADE_BY, Segmentation
from zeus_union.stage1_instruct.building.parts import Share
from zeus_union.stage1_instruct.studies.dicom_files import dicom_files, is_dicom
from zeus_union.stage1_instruct.studies.file_formats import ending_of, stem_of
from zeus_union.stage1_instruct.studies.names import subject_names

if TYPE_CHECKING:
    from zeus_union.pipelines.segment.segmenter import Segmenter

FAILURES = "failures.csv"
ZIP = ".zip"
_CASE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class StudySource:
    """A study as the user has it.

    Attributes:
        name: what its results are called.
        path: a folder or a file.
        modalities: modality -> file, where the folder holds several cases in nnU-Net's numbering.
    """

    name: str
    path: Path
    modalities: Mapping[str, str] = field(default_factory=dict)


def find_studies(paths: Sequence[Path], channels: Mapping[str, int]) -> list[StudySource]:
    """The studies that the user names: each path is one, or a folder of several.

    A folder is one study where volumes or DICOM lie in it; but where its volumes are numbered as nnU-Net's imagesTs are and
    there are several cases, each case is one. Without files of its own it is one where all DICOM below it is of one study (a
    folder a series); else every folder, zip and volume in it is.

    Args:
        channels: modality -> its number in the run's data set.

    Raises:
        UserError: a path that is not there; a folder without any; two studies of one name.
    """
    found = [source for path in paths for source in _studies_at(path, channels)]
    names = subject_names(dict.fromkeys(source.name for source in found))
    twice = [name for name, count in Counter(source.name for source in found).items() if count > 1]
    if twice:
        where = ", ".join(str(source.path) for source in found if source.name == twice[0])
        raise UserError(
            f"two studies are called {twice[0]} ({where}) and their results would lie in one folder; rename one of them"
        )
    return [StudySource(names[source.name], source.path, source.modalities) for source in found]


def _studies_at(path: Path, channels: Mapping[str, int]) -> list[StudySource]:
    if not path.exists():
        raise UserError(f"{path} is not there; give a folder, a zip or a volume of each study")
    if path.is_file():
        return [StudySource(given_name(path), path)]
    inside = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    volumes = [entry for entry in inside if entry.is_file() and ending_of(entry) in ENDINGS]
    cases = _cases(volumes, channels)
    if len(cases) > 1:
        return [StudySource(case, path, files) for case, files in cases.items()]
    if volumes or any(entry.is_file() and is_dicom(entry) for entry in inside):
        return [StudySource(given_name(path), path)]
    parts = [entry for entry in inside if entry.is_dir() or entry.suffix.lower() == ZIP]
    if not parts or _is_one_dicom_study(parts):
        return [StudySource(given_name(path), path)]  # reading it says what is wrong where there is nothing
    return [StudySource(given_name(entry), entry) for entry in parts]


def _cases(volumes: Sequence[Path], channels: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Case -> modality -> file, of volumes that are all numbered by the run's channels; nothing if one is not."""
    modality_of = {number: name for name, number in channels.items()}
    cases: dict[str, dict[str, str]] = defaultdict(dict)
    for volume in volumes:
        match = _CASE.fullmatch(stem_of(volume))
        if match is None:
            return {}
        files = cases[match["case"]]
        if int(match["channel"]) in modality_of:
            files[modality_of[int(match["channel"])]] = volume.name
    return dict(cases)


def _is_one_dicom_study(parts: Sequence[Path]) -> bool:
    """Whether the first DICOM file below each of some folders is of one and the same study."""
    studies = set()
    for part in parts:
        files = dicom_files(part) if part.is_dir() else []
        if not files:
            return False
        header = pydicom.dcmread(files[0], stop_before_pixels=True, specific_tags=["StudyInstanceUID"], force=True)
        studies.add(str(header.get("StudyInstanceUID")))
    return len(studies) == 1


def segment_studies(
    segmenter: Segmenter,
    sources: Sequence[StudySource],
    out: Path,
    write: Callable[[Segmentation, Path, bool], object],
    *,
    part: Share | None = None,
    overwrite: bool = False,
    **how: Any,
) -> dict[str, str]:
    """Segments every study whose results are not there yet; study -> why it could not be, of those that failed.

    Args:
        out: OUT/STUDY gets the results of each; failures go to OUT/failures.csv.
        write: puts a segmentation into a folder, whole or not at all, in place of the one that is there if the third is so.
        part: only this share of the studies.
        overwrite: segment those again that have results.
        how: as for `Segmenter.segment`.

    Raises:
        UserError: the results that are there were made by another run or with other options.
        JobError: the next study would fail of the same; a single study's own failure.
    """
    by_name = {source.name: source for source in sources}
    mine = [by_name[name] for name in by_name if part is None or name in part.of(tuple(by_name))]
    made_by = segmenter.made_by(how.get("slice_step", 1))
    waiting = [source for source in mine if overwrite or not _finished(out / source.name, made_by)]
    if len(waiting) < len(mine):
        say(
            f"{len(mine) - len(waiting)} of {counted(len(mine), 'study')} with results in {out}; --overwrite segments them again"
        )
    failures: dict[str, str] = {}
    elsewhere: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("studies", total=len(waiting))
        for source in waiting:
            with _claimed(out / source.name) as ours:
                if not ours:
                    elsewhere.append(source.name)
                elif overwrite or not _finished(out / source.name, made_by):
                    error = _attempt(segmenter, source, out / source.name, write, overwrite, how)
                    if error is not None and len(sources) == 1:
                        raise error
                    if error is not None:
                        failures[source.name] = _reason(error)
                        warn(f"{source.name} is left out: {failures[source.name]}")
            bar.advance(task)
    if elsewhere:
        say(f"another process is segmenting {some_of(elsewhere)} into {out}: left to it")
    _write_failures(out / _failures_name(part), by_name, failures)
    return failures


def _attempt(
    segmenter: Segmenter,
    source: StudySource,
    folder: Path,
    write: Callable[[Segmentation, Path, bool], object],
    overwrite: bool,
    how: Mapping[str, Any],
) -> Exception | None:
    """Segments a study; what stopped it, unless that stops the others too: one damaged study must not end a night's work."""
    chosen = {**source.modalities, **how["modalities"]}
    try:
        write(segmenter.segment(source.path, name=source.name, **{**how, "modalities": chosen}), folder, overwrite)
    except JobError:
        raise
    except Exception as error:
        return error
    return None


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether the results of a study are this process's to write; several may run the same command at once.

    A file system without locks cannot tell: there each needs its --part.
    """
    created = not folder.parent.exists()
    make_folder(folder.parent)
    path = folder.with_name(f".{folder.name}.lock")
    try:
        lock = acquire(path, shared=False, wait=False)
    except NoLocksError:
        yield True
        return
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        lock.close()
        if created:
            with suppress(OSError):  # where something was written
                folder.parent.rmdir()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def _failures_name(part: Share | None) -> str:
    return FAILURES if part is None else f"failures-{part.number}-of-{part.count}.csv"


def _write_failures(path: Path, sources: Mapping[str, StudySource], failures: Mapping[str, str]) -> None:
    """A line a study that failed; no file where none did."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(("study", "path", "error"))
    lines.writerows((name, sources[name].path, reason) for name, reason in failures.items())
    write_atomically(path, text.getvalue().encode())


def _finished(folder: Path, made_by: Mapping[str, Any]) -> bool:
    """Whether a study has its results.

    Raises:
        UserError: the folder has others, of another run or other options, or nothing that zeus wrote.
    """
    if not folder.exists():
        return False
    path = folder / MADE_BY
    if not path.is_file():
        raise UserError(
            f"{folder} is there and has no {MADE_BY}: no results of a study; choose another --out or move it"
        )
    try:
        same = _what_counts(json.loads(path.read_text(encoding="utf-8"))) == _what_counts(made_by)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error!r}); --overwrite segments the study again") from error
    if not same:
        raise UserError(
            f"{folder} was made by another run or with other options ({path}); choose another --out, or segment again with "
            "--overwrite"
        )
    return True


def _what_counts(made_by: Mapping[str, Any]) -> Any:
    """Where a run lies does not."""
    weights = sorted(member["weights_sha256"] for member in made_by["members"])
    return weights, made_by["postprocessing"]["steps"], made_by["slice_step"]
