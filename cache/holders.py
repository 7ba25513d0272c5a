"""Who has which subject of a cache in work: what the lock files say, and whether their holders still live."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeus_union.cache.claims import held_here
from zeus_union.cache.layout import locks_folder
from zeus_union.cache.locks import MARK_BYTES, NoLocksError, is_locked


@dataclass(frozen=True)
class Holder:
    """A process that has taken a subject.

    Attributes:
        subject: or what else is claimed, e.g. the training of a projection.
        host, pid: where it runs; '' and 0 where the lock file does not say.
        job: as SLURM calls it, e.g. '4711_3'; '' outside of it.
        since: seconds since 1970, by the clock of its machine.
        layers: that it builds.
        alive: whether it holds the lock; one that does not was lost. None: the file system has no locks.
    """

    subject: str
    host: str
    pid: int
    job: str
    since: float
    layers: tuple[str, ...]
    alive: bool | None


def holder_mark(layers: Collection[str]) -> bytes:
    """What this process writes into the lock file of a subject; as many of the layers as it has room for."""
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "job": _job(os.environ), "since": round(time.time(), 1)}
    mark = json.dumps({**facts, "layers": list(layers)}).encode()
    return mark if len(mark) <= MARK_BYTES else json.dumps({**facts, "layers": []}).encode()


def _job(environment: Mapping[str, str]) -> str:
    """Name of the SLURM job, its array task and its task, as far as there are any."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")
    many = int(environment.get("SLURM_NTASKS") or 1) > 1
    return f"{job}.{environment['SLURM_PROCID']}" if job and many and "SLURM_PROCID" in environment else job


def find_holders(path: Path) -> list[Holder]:
    """Who has, or had when it was lost, a subject of the cache at `path`, the longest first; takes no lock."""
    try:
        with os.scandir(locks_folder(path)) as entries:
            marked = [Path(entry.path) for entry in entries if entry.name.endswith(".lock") and entry.stat().st_size]
    except FileNotFoundError:
        return []
    holders = [_holder(file) for file in marked]
    return sorted((holder for holder in holders if holder is not None), key=lambda holder: holder.since)


def _holder(file: Path) -> Holder | None:
    """None where the lock was given back in the meantime."""
    if held_here(file):
        return _from_mark(file.name, holder_mark(()), True)
    try:
        alive: bool | None = is_locked(file)
    except NoLocksError:
        alive = None
    except FileNotFoundError:
        return None
    try:
        mark = file.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError:  # Windows lets nobody read what is locked
        mark = b"{}"
    return _from_mark(file.name, mark, alive) if mark else None


def _from_mark(name: str, mark: bytes, alive: bool | None) -> Holder:
    try:
        facts: dict[str, Any] = dict(json.loads(mark))
        host, pid, job = str(facts.get("host", "")), int(facts.get("pid", 0)), str(facts.get("job", ""))
        since, layers = float(facts.get("since", time.time())), tuple(map(str, facts.get("layers", ())))
    except (ValueError, TypeError):  # cut short by a power cut
        host, pid, job, since, layers = "", 0, "", time.time(), ()
    return Holder(name.removesuffix(".lock"), host, pid, job, since, layers, alive)
