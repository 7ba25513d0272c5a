"""Errors reach the terminal as one line."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.markdown import Markdown
from rich.table import Table

from zeus_union.cache import terminal
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import ZeusGroup, choose, print_tables, split_names


def _command_that_raises(error: Exception) -> click.Group:
    @click.group(cls=ZeusGroup)
    def group() -> None:
        pass

    @group.command()
    def work() -> None:
        raise error

    return group


def test_a_user_error_is_one_line_and_exit_code_2():
    result = CliRunner().invoke(_command_that_raises(UserError("the file\nis cut short")), ["work"])
    assert result.exit_code == 2
    assert result.stderr == "error: the file is cut short\n"


def test_a_full_disk_says_so_and_that_the_work_can_go_on():
    result = CliRunner().invoke(_command_that_raises(OSError(errno.ENOSPC, "No space left", "chaos.h5")), ["work"])
    assert result.exit_code == 2
    assert "no space left" in result.stderr and "chaos.h5" in result.stderr and "it resumes" in result.stderr


def test_a_fault_of_ours_keeps_its_traceback():
    result = CliRunner().invoke(_command_that_raises(ValueError("a bug")), ["work"])
    assert isinstance(result.exception, ValueError)


def test_debug_shows_where_a_user_error_came_from():
    result = CliRunner().invoke(_command_that_raises(UserError("wrong")), ["--debug", "work"])
    assert isinstance(result.exception, UserError)


def test_names_are_chosen_in_the_order_of_the_data_set():
    assert choose(("b", "a"), ("a", "b", "c"), "modality") == ("a", "b")
    assert choose(None, ("a", "b"), "modality") == ("a", "b")
    with pytest.raises(UserError, match="unknown modality d; there are: a, b"):
        choose(("d",), ("a", "b"), "modality")
    assert split_names("a, b") == ("a", "b")
    with pytest.raises(UserError, match="empty"):
        split_names(" ,")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EROFS, "", "/ro/a.h5"), "read-only: /ro/a.h5"),
        (OSError(errno.ENOLCK, ""), "no locks"),
        (OSError(errno.ENOSYS, ""), "cannot do"),
        (OSError(errno.EOPNOTSUPP, ""), "cannot do"),
        (FileExistsError(errno.EEXIST, "", "a"), "exists already: a"),
        (FileNotFoundError(errno.ENOENT, "", "a"), "no such file or folder: a"),
        (NotADirectoryError(errno.ENOTDIR, "", "a/b"), "a file is where a folder is expected: a/b"),
        (IsADirectoryError(errno.EISDIR, "", "a"), "a folder is where a file is expected: a"),
        (OSError(errno.ENAMETOOLONG, "", "a" * 300), "too long"),
        (PermissionError(errno.EACCES, "", "a", None, "b"), "no permission: a -> b"),
        (BrokenPipeError(errno.EPIPE, ""), "broken pipe"),
        (UnicodeEncodeError("ascii", "Müller", 1, 2, "ordinal"), "PYTHONUTF8=1"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "start"), "save it as UTF-8"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_system_refuses_is_one_line_and_exit_code_2(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_silence_output", lambda: None)
    result = CliRunner().invoke(_command_that_raises(error), ["work"])
    assert result.exit_code == 2
    assert words in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


PRINTS = """
import click
from zeus_union.cache.terminal import ZeusGroup

group = ZeusGroup("zeus")

@group.command()
def work():
    for number in range(100000):
        click.echo(f"Müller {number}")

group(["work"])
"""
ROOT = Path(__file__).parents[1]


def test_an_output_that_is_not_utf_8_shows_escapes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS.replace("100000", "1").replace("Müller", "Łódź")],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},  # click itself makes UTF-8 of ascii
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u0141\xf3d\\u017a 0\n", b"")


def test_a_reader_that_ends_early_is_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    lines = process.stderr.read().splitlines()
    assert (process.wait(), len(lines)) == (2, 1) and "broken pipe" in lines[0]


def test_tables_in_a_pipe_keep_every_name_whole_and_take_none_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["BraTS-GLI-00001-000", "tumour [core]", "[bold]necrosis", ":smile:", "x" * 300]
    table = Table(title="[red] title", caption="[/red] caption")
    for name in names:
        table.add_column(name)
    table.add_row(*names)
    print_tables(table, "[note]", Markdown("| a |\n|---|\n| b |"))
    out = capsys.readouterr().out
    assert all(out.count(name) == 2 for name in names)
    assert "[red] title" in out and "[/red] caption" in out and "[note]" in out and "| a |" in out
    (row,) = [line for line in out.splitlines() if line.startswith("│")]
    assert all(name in row for name in names)


def test_tables_in_a_narrow_terminal_break_names_and_cut_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeus_union.cache.terminal.terminal_width", lambda _: 24)
    table = Table("subject", "DSC")
    table.add_row("BraTS-GLI-00001-000-and-more", "0.8123")
    print_tables(table)
    out = capsys.readouterr().out
    assert "…" not in out
    assert "BraTS-GLI-00001-000-and-more" in "".join(
        line.split("│")[1].strip() for line in out.splitlines() if "│" in line
    )
