"""What every command shares: errors in one line, progress with the time left, `--quiet`, `--verbose`, `--debug`."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from enum import IntEnum
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
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from zeus_union.cache import log
from zeus_union.cache.errors import UserError
from zeus_union.cache.system_errors import one_line

console = Console(stderr=True, highlight=False, soft_wrap=True)
T = TypeVar("T")
UNLIMITED = 10_000  # columns
MOST_OF_A_SUMMARY = 45  # characters
LINE_EVERY_S = 30  # where progress is no bar
SPEED_OVER_S = 1800  # the time left follows from the speed of so many seconds


class Verbosity(IntEnum):
    """How much a command says beside its results."""

    QUIET, NORMAL, VERBOSE = range(3)


_verbosity = Verbosity.NORMAL


def _set_verbosity(verbosity: Verbosity) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given:
            global _verbosity
            _verbosity = verbosity

    return callback


def _debug(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        ctx.find_root().meta[_DEBUG] = True


_DEBUG = "zeus_union.debug"
# Of the groups and of each of their commands, so that they can stand before and behind a command's name.
_SHARED_OPTIONS: tuple[tuple[list[str], str, Callable[..., None]], ...] = (
    (["-q", "--quiet"], "Say nothing but results, warnings and errors.", _set_verbosity(Verbosity.QUIET)),
    (["-v", "--verbose"], "Say also what is loaded, and in how long.", _set_verbosity(Verbosity.VERBOSE)),
    (["--debug"], "Show the traceback of an error.", _debug),
)


class ZeusGroup(click.Group):
    """A command group that prints a `UserError` and what the system refuses as one line and exits with 2.

    It and each of its commands have --quiet, --verbose and --debug (the traceback of an error).

    Attributes:
        headings: command -> the heading that it stands under in --help, by default 'Commands'.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options()
        self.headings: dict[str, str] = {}

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params += _shared_options()
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands of each heading together."""
        listed: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            heading = self.headings.get(name, "Commands")
            listed.setdefault(heading, []).append((name, command.get_short_help_str(MOST_OF_A_SUMMARY)))
        widest = max(map(len, self.commands), default=0)
        for heading, summaries in listed.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(widest), summary) for name, summary in summaries])

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added: that of a user's way."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        _prepare_output()
        log.begin()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (UserError, OSError, UnicodeError) as error:
            message = one_line(error)
            if ctx.meta.get(_DEBUG) or message is None:
                raise
            if isinstance(error, BrokenPipeError):
                _silence_output()
            with suppress(BrokenPipeError):
                click.echo(f"error: {message}", err=True)
            sys.exit(2)
        finally:
            global _verbosity
            _verbosity = Verbosity.NORMAL


def _shared_options() -> list[click.Parameter]:
    return [
        click.Option(names, is_flag=True, expose_value=False, callback=callback, help=text)
        for names, text, callback in _SHARED_OPTIONS
    ]


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")


# Headings of --help, in the order in which they stand there.
DATA, MODEL, ZEUS_ONLY, BASELINES_ONLY, OPTIMISATION, SPEED, OUTPUT, REST = (
    "Data and split",
    "Model",
    "Zeus only",
    "Baselines only",
    "Optimisation",
    "Speed and memory",
    "Output",
    "Messages and help",
)


class PanelCommand(click.Command):
    """A command whose --help shows its options under headings; those under none come last, as `REST`.

    Args:
        panels: heading -> names of parameters, separated by spaces, in the order in which they are shown.
    """

    def __init__(self, *args: Any, panels: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.panels = {heading: tuple(names.split()) for heading, names in panels.items()}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        records = {option: option.get_help_record(ctx) for option in options}
        by_name = {parameter.name: parameter for parameter in records}
        panels = {heading: [by_name[name] for name in names] for heading, names in self.panels.items()}
        placed = {parameter for parameters in panels.values() for parameter in parameters}
        panels[REST] = [parameter for parameter in records if parameter not in placed]
        for heading, parameters in panels.items():
            with formatter.section(heading):
                formatter.write_dl([record for parameter in parameters if (record := records[parameter])])


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
    """One plain line to the terminal (standard error, so that standard output stays for results), unless --quiet."""
    log.record(message)
    if _verbosity > Verbosity.QUIET:
        console.print(message, markup=False)


def warn(message: str) -> None:
    """As `say`, of what may make results worthless: --quiet does not hide it."""
    log.record(message)
    console.print(message, markup=False, style="yellow")


def detail(message: str) -> None:
    """As `say`, for whoever asks with --verbose, and for log files."""
    log.record(message)
    if _verbosity >= Verbosity.VERBOSE:
        console.print(message, markup=False, style="dim")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Says after the block, as a `detail`, how long it took."""
    started = time.perf_counter()
    yield
    detail(f"{what} in {time.perf_counter() - started:.1f} s")


def say_table(table: Table) -> None:
    """A table to standard error, as `print_tables` prints results, unless --quiet."""
    if _verbosity > Verbosity.QUIET:
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


def print_json(value: Any) -> None:
    """Results to standard output as JSON; what is not defined (NaN) is null."""
    click.echo(json.dumps(_without_nan(value), indent=2, ensure_ascii=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Progress(Progress):
    """A bar in a terminal; where there is none, a line now and then, so that a log file shows that it goes on."""

    def __init__(self, *columns: ProgressColumn) -> None:
        quiet = _verbosity == Verbosity.QUIET
        self._in_lines = not console.is_terminal and not quiet
        self._line_at = time.monotonic() + LINE_EVERY_S
        # A step may take longer than the 30 s for which rich remembers a speed.
        super().__init__(
            *columns, console=console, disable=quiet or not console.is_terminal, speed_estimate_period=SPEED_OVER_S
        )

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._say_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say_line(task_id)

    def _say_line(self, task_id: TaskID) -> None:
        if not self._in_lines or time.monotonic() < self._line_at:
            return
        self._line_at = time.monotonic() + LINE_EVERY_S
        task = self._tasks[task_id]
        if task.finished or task.total is None:
            return
        left = "" if task.time_remaining is None else f", {timedelta(seconds=round(task.time_remaining))} left"
        say(f"{task.description}: {task.completed:.0f} of {task.total:.0f}{left}")


def progress_bar() -> Progress:
    """A progress bar with count, elapsed time and time left; a line every half minute where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return _Progress(*columns)


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
    return _Progress(*columns)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` under a `progress_bar`."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with progress_bar() as bar:
        # rich's own `track` advances from a thread, which comes too late for the lines of a pipe.
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)


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


def counted(count: int, noun: str) -> str:
    """'1 subject', '3 subjects': a number with a noun whose plural ends in s ('ies' for 'y', 'es' for 's').

    >>> counted(1, "subject"), counted(0, "study"), counted(1200, "class")
    ('1 subject', '0 studies', '1,200 classes')
    """
    if count == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {plural}"


def time_in_words(seconds: float) -> str:
    """For a reader: '12 s', '5 min', '3.4 h', '2.1 days'."""
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def some_of(names: Sequence[str], most: int = 8) -> str:
    """'A, B, C' for a message; beyond `most` of them how many more there are.

    >>> some_of(["anna", "ben", "carl", "dora"], most=2)
    'anna, ben and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for a message about an unknown name, '' where nothing is like it.

    >>> nearest("fussion", ["fusion", "fold"])
    '; did you mean fusion?'
    """
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]}?" if close else ""


def choose(wanted: Sequence[str] | None, available: Sequence[str], what: str) -> tuple[str, ...]:
    """`wanted` in the order of `available` (all of them for None); upper and lower case are one where that is clear.

    Raises:
        UserError: a name that is not available, naming those that are.
    """
    if wanted is None:
        return tuple(available)
    folded = Counter(name.casefold() for name in available)
    by_case = {name.casefold(): name for name in available if folded[name.casefold()] == 1}
    wanted = [name if name in available else by_case.get(name.casefold(), name) for name in wanted]
    unknown = [name for name in wanted if name not in available]
    if unknown:
        close = nearest(unknown[0], available) if len(unknown) == 1 else ""
        raise UserError(f"unknown {what} {', '.join(unknown)}; there are: {', '.join(available)}{close}")
    return tuple(name for name in available if name in wanted)


def existing(path: Path, what: str) -> Path:
    """`path` if it exists; a UserError that names it otherwise."""
    if not path.exists():
        raise UserError(f"{what} {path} does not exist")
    return path
