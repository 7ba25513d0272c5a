"""What every command shares: errors in one line, progress with the time left, `--debug`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from zeus_union.cache.errors import UserError

console = Console(stderr=True, highlight=False, soft_wrap=True)
T = TypeVar("T")
UNLIMITED = 10_000  # columns


class ZeusGroup(click.Group):
    """A command group that prints a `UserError` and what the system refuses as one line and exits with 2.

    `--debug` shows the traceback.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."))

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug", False)
        _prepare_output()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (UserError, OSError, UnicodeError) as error:
            message = _one_line(error)
            if debug or message is None:
                raise
            if isinstance(error, BrokenPipeError):
                _silence_output()
            with suppress(BrokenPipeError):
                click.echo(f"error: {message}", err=True)
            sys.exit(2)


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


class PanelOption(click.Option):
    """An option that stands under a heading of its own in --help.

    Args:
        panel: the heading.
    """

    def __init__(self, *args: Any, panel: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.panel = panel


class PanelCommand(click.Command):
    """A command whose --help shows the options of each `PanelOption` heading together, those without one last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        rest: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                records = panels.setdefault(parameter.panel, []) if isinstance(parameter, PanelOption) else rest
                records.append(record)
        for heading, listed in {**panels, "Where and how it runs": rest}.items():
            with formatter.section(heading):
                formatter.write_dl(listed)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A disk that fails; a FUSE, NFS, SMB or object-store mount that was lost. Some are missing on Windows.
LOST = tuple(
    getattr(errno, name)
    for name in (
        "EIO",
        "ETIMEDOUT",
        "ENOTCONN",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "ENODEV",
        "ENXIO",
        "EREMOTEIO",
    )
    if hasattr(errno, name)
)
# What the system answered -> what it means and what to do. {file}: which file, where the system says so.
_SYSTEM_ERRORS: Mapping[int, str] = {
    **dict.fromkeys(
        FULL,
        "no space left on the device{file}; free some and run the same command again: it resumes",
    ),
    errno.EROFS: "the file system is read-only{file}; choose another folder",
    errno.ENOLCK: "the file system has no locks to give{file}; choose a folder on another one",
    **dict.fromkeys(
        (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP),
        "the file system cannot do what is needed{file}; choose a folder on another one, e.g. a local disk",
    ),
    errno.EEXIST: "something of that name exists already{file}; choose another name or remove it",
    errno.ENOENT: "no such file or folder{file}; check the name",
    errno.ENOTDIR: "a file is where a folder is expected{file}; choose another folder or remove the file",
    errno.EISDIR: "a folder is where a file is expected{file}; give the name of a file",
    errno.ENOTEMPTY: "the folder is not empty{file}; choose another or empty it",
    errno.ENAMETOOLONG: "the name is too long for the file system{file}; choose shorter names",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "no permission{file}; choose another folder or change its permissions"
    ),
    errno.EMFILE: "too many open files{file}; raise the limit (ulimit -n)",
    **dict.fromkeys(
        LOST, "the disk or network share does not answer properly{file}; check it, then run the same command again"
    ),
    errno.ESTALE: "the network share has changed under the command{file}; run the same command again",
    errno.EPIPE: "whatever read the output has ended before all was written (broken pipe)",
}


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota is."""
    return error.errno in FULL


def _one_line(error: BaseException) -> str | None:
    """The line to print for `error`, or None where it is a fault of ours and the traceback should be seen."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, UnicodeEncodeError):
        return (
            f"the system's encoding {error.encoding} cannot hold {error.object[error.start : error.end]!a}; "
            "set PYTHONUTF8=1 (or LANG=C.UTF-8) and run the same command again"
        )
    if isinstance(error, UnicodeDecodeError):
        return f"a text file is not in {error.encoding} (byte {error.start}); save it as UTF-8, or set PYTHONUTF8=1"
    if isinstance(error, OSError) and error.errno is not None and error.errno in _SYSTEM_ERRORS:
        names = [str(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, Path))]
        return _SYSTEM_ERRORS[error.errno].format(file=f": {' -> '.join(names)}" if names else "")
    return None


def _prepare_output() -> None:
    """Letters that standard output cannot hold are written as escapes, so that no result is lost to one name."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    if encoding != "utf8" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _silence_output() -> None:
    """Lets the interpreter flush at its end what nobody reads any more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
    """One plain line to the terminal (standard error, so that standard output stays for results)."""
    console.print(message, markup=False)


def say_table(table: Table) -> None:
    """A table to standard error, as `print_tables` prints results."""
    _print(sys.stderr, table)


def terminal_width(file: TextIO | None = None) -> int:
    """Columns of the terminal; as many as anything needs where the output (or `file`) goes into a file or a pipe."""
    return Console(file=file).width if (file or sys.stdout).isatty() else UNLIMITED


def print_tables(*parts: RenderableType) -> None:
    """Results to standard output: no name is cut off, and none is taken for markup or an emoji.

    In a terminal a long name goes on in the next line of its cell; in a file or a pipe every row is one line.
    """
    _print(sys.stdout, *parts)


def _print(file: TextIO, *parts: RenderableType) -> None:
    for table in (part for part in parts if isinstance(part, Table)):
        for column in table.columns:
            column.overflow = "fold"
    output = Console(file=file, width=terminal_width(file), markup=False, emoji=False, highlight=False)
    for part in parts:
        # Rendered Markdown fills the width; where there is none, its source reads as well.
        output.print(part.markup if isinstance(part, Markdown) and output.width == UNLIMITED else part)


def progress_bar() -> Progress:
    """A progress bar with count, elapsed time and time left; silent where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def bytes_bar() -> Progress:
    """As `progress_bar`, in bytes with their rate."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` under a `progress_bar`."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=description)


def split_names(value: str | None) -> tuple[str, ...] | None:
    """'A,B' -> ('A', 'B'); None stays None (all)."""
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    if not names:
        raise UserError(f"an empty list of names: {value!r}; give names separated by commas")
    return names


def in_words(count: int) -> str:
    """Bytes for a reader: '12 KB', '891 MB', '7.6 GB'."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"


def some_of(names: Sequence[str], most: int = 8) -> str:
    """'A, B, C' for a message; beyond `most` of them how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def choose(wanted: Sequence[str] | None, available: Sequence[str], what: str) -> tuple[str, ...]:
    """`wanted` in the order of `available` (all of them for None).

    Raises:
        UserError: a name that is not available, naming those that are.
    """
    if wanted is None:
        return tuple(available)
    unknown = [name for name in wanted if name not in available]
    if unknown:
        raise UserError(f"unknown {what} {', '.join(unknown)}; there are: {', '.join(available)}")
    return tuple(name for name in available if name in wanted)


def existing(path: Path, what: str) -> Path:
    """`path` if it exists; a UserError that names it otherwise."""
    if not path.exists():
        raise UserError(f"{what} {path} does not exist")
    return path
