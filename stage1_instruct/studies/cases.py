"""The cases of a data set: which files belong to a subject, and what it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted, warn
from zeus_union.stage1_instruct.studies.names import subject_names

TEST = "-test"


class Case(NamedTuple):
    """One case as a data set lists it.

    Attributes:
        name: as its files have it.
        images: its image files, in the order of the channels.
        label: its label map; None without.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None


def subjects_of(training: Sequence[Case], test: Sequence[Case], where: Path) -> dict[str, Case]:
    """Subject -> case, in the order given; a test case of a training case's name gets another, and it is said.

    Args:
        where: the file or folder that lists them, for messages.
    Raises:
        UserError: two training cases of one name, or two test cases.
    """
    for kind, cases in (("training", training), ("test", test)):
        name, count = next(iter(Counter(case.name for case in cases).most_common(1)), ("", 0))
        if count > 1:
            raise UserError(f"{where} names two {kind} cases {name}; remove one")
    training_names = {case.name for case in training}
    taken = training_names | {case.name for case in test}
    renamed = {case.name: case.name for case in test}
    for name in sorted(training_names & renamed.keys()):
        while renamed[name] in taken:
            renamed[name] += TEST
        taken.add(renamed[name])
    if both := [name for name, new in renamed.items() if name != new]:
        listed = ", ".join(f"{name} is {renamed[name]}" for name in both[:5])
        warn(f"{counted(len(both), 'test case')} with the name of a training case, renamed: {listed}")
    listed_as = [(case.name, case) for case in training] + [(renamed[case.name], case) for case in test]
    subjects = subject_names(name for name, _ in listed_as)
    return {subjects[name]: case for name, case in listed_as}


def source_names(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Name in the cache -> file: below `root` the way to it, elsewhere (dataset.json may say so) its number and name."""
    return {
        path.relative_to(root).as_posix() if path.is_relative_to(root) else f"{number}/{path.name}": path
        for number, path in enumerate(files)
    }
