"""What a command says, kept with a time, and written into the log file of the folder that it works on."""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zeus_union.cache.system_errors import one_line

FILE = "log.txt"
_KEPT = 500  # lines from before a folder is known

_said: deque[str] = deque(maxlen=_KEPT)
_logs: list[_Log] = []


class _Log:
    """A log file, appended to from the moment its folder is there: a command that fails at its start leaves none."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._waiting = list(_said)

    def add(self, line: str) -> None:
        self._waiting.append(line)
        # A full disk is told by what the command is there for, not by its log.
        with suppress(OSError):
            if self._path.parent.is_dir():
                with self._path.open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in self._waiting)
                self._waiting.clear()


def begin() -> None:
    """A new command begins: what an earlier one of this process said is none of its log's business."""
    _said.clear()
    record(" ".join(["$", Path(sys.argv[0]).name, *sys.argv[1:]]))


def record(message: str) -> None:
    """Keeps a line for the logs there are and for those to come."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}"
    _said.append(line)
    for log in _logs:
        log.add(line)


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Appends what the command has said and says within the block to `folder`/log.txt, its end by an error included."""
    log = _Log(folder)
    _logs.append(log)
    try:
        yield
    except BaseException as error:
        record("interrupted" if isinstance(error, KeyboardInterrupt) else f"error: {one_line(error) or repr(error)}")
        if isinstance(error, Exception):
            record("".join(traceback.format_exception(error)).rstrip())
        raise
    finally:
        _logs.remove(log)
