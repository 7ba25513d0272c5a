"""A fixed share of the subjects for each of several processes, where no locks let them take the next one that is free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zeus_union.cache.errors import UserError

SLURM = "slurm"


@dataclass(frozen=True)
class Share:
    """The `number`-th of `count` shares, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, subjects: Sequence[str]) -> tuple[str, ...]:
        """Every `count`-th of the subjects; the shares of all numbers are all subjects, each once."""
        return tuple(subjects[self.number - 1 :: self.count])


def parse_part(text: str, environment: Mapping[str, str]) -> Share:
    """'2/8', or 'slurm': the place of this task in its SLURM array, or among the tasks of its srun, or in both.

    Raises:
        UserError: neither; no array and no srun of several tasks, or an array whose task numbers are not evenly spaced.

    >>> parse_part("2/3", {}).of(["anna", "ben", "carl", "dora", "emil"])
    ('ben', 'emil')
    """
    if text == SLURM:
        return _part_of_slurm(environment)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {text}: expected I/N with I from 1 to N, e.g. 2/8, or slurm")
    return Share(int(match[1]), int(match[2]))


def tasks_of_srun(environment: Mapping[str, str]) -> int:
    """How many processes the srun that started this one has started; 1 without it."""
    return int(environment.get("SLURM_STEP_NUM_TASKS") or 1)


def _part_of_slurm(environment: Mapping[str, str]) -> Share:
    tasks = tasks_of_srun(environment)
    if tasks == 1:
        return _part_of_array(environment)
    array = _part_of_array(environment) if "SLURM_ARRAY_TASK_ID" in environment else Share(1, 1)
    return Share((array.number - 1) * tasks + int(environment["SLURM_PROCID"]) + 1, array.count * tasks)


def _part_of_array(environment: Mapping[str, str]) -> Share:
    values = {}
    for name in ("MIN", "MAX", "COUNT", "ID"):
        value = environment.get(f"SLURM_ARRAY_TASK_{name}", "")
        if not value.isdecimal():
            raise UserError(
                f"--part slurm: SLURM_ARRAY_TASK_{name} is {value or 'not set'}; start the command as a job array "
                "(sbatch --array=1-8), or give --part I/N"
            )
        values[name] = int(value)
    step, rest = divmod(values["MAX"] - values["MIN"], max(values["COUNT"] - 1, 1))
    number, odd = divmod(values["ID"] - values["MIN"], max(step, 1))
    if rest or odd or not 0 <= number < values["COUNT"]:
        raise UserError(
            f"--part slurm: the array's {values['COUNT']} tasks from {values['MIN']} to {values['MAX']} are not evenly "
            "spaced; start the whole array again (finished subjects are left as they are), or give --part I/N"
        )
    return Share(number + 1, values["COUNT"])
