"""Errors reach the terminal as one line."""

import errno

import click
import pytest
from click.testing import CliRunner

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import ZeusGroup, choose, split_names


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
    assert "no space left" in result.stderr and "chaos.h5" in result.stderr and "goes on" in result.stderr


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
