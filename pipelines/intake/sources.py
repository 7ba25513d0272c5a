"""What each modality of a run is read from: a stack of a DICOM series or a volume file, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import some_of
from zeus_union.pipelines.intake.file_names import VolumeFile, chosen_file, find_volumes, volume_files
from zeus_union.pipelines.intake.recognise import Wanted, judge, take
from zeus_union.pipelines.intake.stack import Stack
from zeus_union.pipelines.intake.stacks import find_stacks


@dataclass(frozen=True, eq=False)
class Source:
    """What a modality is read from, a stack or a file, and why."""

    reason: str
    stack: Stack | None = None
    file: VolumeFile | None = None

    @property
    def named(self) -> str:
        return f"series {self.stack.named}" if self.stack else self.file.named if self.file else ""


def find_sources(
    folder: Path,
    wanted: Sequence[str],
    channels: Mapping[str, int],
    known: Sequence[str],
    terms: Mapping[str, str],
    chosen: Mapping[str, str],
    view: str | None,
) -> dict[str, Source]:
    """What each modality is read from, in the run's order, of those that there is something for.

    Raises:
        UserError: neither DICOM nor volume files, none of the modalities, several series or files that fit one.
    """
    stacks = find_stacks(folder)
    if stacks:
        return sources_in(folder, stacks, wanted, terms, chosen, view)
    if folder.is_dir() and not volume_files(folder) and not chosen:
        names = some_of(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise UserError(
            f"{folder} holds neither DICOM nor volume files (NIfTI, .mha, .mhd, .nrrd); it has {names}; give the folder of a study"
        )
    volumes = find_volumes(folder, wanted, channels, known=known, chosen=chosen)
    return {name: Source(volume.reason, file=volume) for name, volume in volumes.items()}


def sources_in(
    folder: Path,
    stacks: Sequence[Stack],
    wanted: Sequence[str],
    terms: Mapping[str, str],
    chosen: Mapping[str, str],
    view: str | None,
) -> dict[str, Source]:
    """As `find_sources`, of a folder of DICOM whose stacks are known; a modality may be a volume file beside it.

    Raises:
        UserError: none of the modalities; several series that fit one.
    """
    files = {name: file for name, text in chosen.items() if (file := chosen_file(folder, text))}
    series = {name: text for name, text in chosen.items() if name not in files}
    taken = take(folder, stacks, wanted, terms=terms, chosen=series, without=tuple(files), view=view)
    sources = {name: Source(entry.reason, stack=entry.stack) for name, entry in taken.items()}
    for name, file in files.items():
        volume = VolumeFile(file, f"--modality {name}={chosen[name]}")
        sources[name] = Source(volume.reason, file=volume)
    if not sources:
        first = Wanted.of(wanted[0], terms.get(wanted[0], ""))
        reasons = [f"{stack.named}: {judge(first, stack).reason}" for stack in stacks]
        raise UserError(
            f"{folder} has no series of {', '.join(wanted)} (for {wanted[0]}: {some_of(reasons, 4)}); choose one with "
            f"--modality {wanted[0]}=SERIES, or see all with --list"
        )
    return {name: sources[name] for name in wanted if name in sources}
