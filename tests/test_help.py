"""What --help prints to a person, for every command of the three groups."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from zeus_union.cache.terminal import REST, PanelCommand
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage2_segment.cli import main as zeus_segment

GROUPS = {"zeus": zeus, "zeus-instruct": zeus_instruct, "zeus-segment": zeus_segment}
COMMANDS = [(group, name) for group in GROUPS for name in GROUPS[group].commands]
ROOT = Path(__file__).parents[1]
SAID_BY_THEIR_NAME = {"--seed", "--weight-decay"}  # with their default they need no sentence


def shown(group: str, *arguments: str) -> str:
    result = CliRunner().invoke(GROUPS[group], [*arguments, "--help"], prog_name=group)
    assert result.exit_code == 0, result.output
    return result.output


def entries(text: str, heading: str) -> dict[str, str]:
    """What a section of a help text lists: first word -> all that is said of it, in one line."""
    section = text.split(f"\n{heading}:\n")[1].split("\n\n")[0]
    found: dict[str, str] = {}
    for line in section.splitlines():
        if re.match(r"  \S", line):
            word = line.split()[0].rstrip(",")
            found[word] = line
        else:
            found[word] += f" {line}"
    return {word: " ".join(said.split()) for word, said in found.items()}


def option_entries(group: str, command: str) -> dict[str, str]:
    """What --help lists of a command's options, under whichever headings."""
    text = shown(group, command)
    of = GROUPS[group].commands[command]
    headings = [*of.panels, REST] if isinstance(of, PanelCommand) else ["Options"]
    return {name: entry for heading in headings for name, entry in entries(text, heading).items()}


def sentence_of(entry: str) -> str:
    """An option's text without its names, the values it takes and its default."""
    bare = re.sub(r"\[[^\]]*\]|^(-[-\w]+(, | / |/)?)+", "", entry).strip()
    return re.sub(r"^[A-Z_]+( [A-Z_]+)*(?= |$)", "", bare).strip()


@pytest.mark.parametrize(("group", "command"), COMMANDS)
def test_every_option_is_listed_and_explained(group: str, command: str) -> None:
    listed = option_entries(group, command)
    options = [p for p in GROUPS[group].commands[command].params if isinstance(p, click.Option) and not p.hidden]
    assert {option.opts[0] for option in options} == set(listed) - {"-h"}
    for option in options:
        name, said = option.opts[0], listed[option.opts[0]]
        if name in SAID_BY_THEIR_NAME:
            assert "[default: " in said, said
        else:
            assert len(sentence_of(said).split()) >= 2, said


def test_a_default_is_shown() -> None:
    assert "[default: lite]" in option_entries("zeus-instruct", "build-cache")["--models"]
    assert "[default: stable]" in option_entries("zeus-segment", "train")["--recipe"]


@pytest.mark.parametrize("group", GROUPS)
def test_the_group_says_of_every_command_what_it_does_and_nothing_is_cut(group: str) -> None:
    headings = dict.fromkeys(GROUPS[group].headings.get(name, "Commands") for name in GROUPS[group].commands)
    listed = {name: entry for heading in headings for name, entry in entries(shown(group), heading).items()}
    assert list(listed) == list(GROUPS[group].commands)
    for command, entry in listed.items():
        summary = entry.removeprefix(command).strip()
        assert len(summary.split()) >= 3 and not summary.endswith("..."), entry


@pytest.mark.parametrize(("group", "command"), COMMANDS)
def test_usage_names_the_command_and_what_it_cannot_do_without(group: str, command: str) -> None:
    text = shown(group, command)
    assert text.startswith(f"Usage: {group} {command} ")
    listed = option_entries(group, command)
    for param in GROUPS[group].commands[command].params:
        if isinstance(param, click.Option) and not param.multiple:
            assert ("[required]" in listed[param.opts[0]]) == param.required, param.name


MANY = 10  # options beyond which a list without headings is not read


@pytest.mark.parametrize(("group", "command"), COMMANDS)
def test_many_options_stand_under_headings_and_only_what_every_command_has_under_the_last(
    group: str, command: str
) -> None:
    of = GROUPS[group].commands[command]
    options = [parameter for parameter in of.params if isinstance(parameter, click.Option)]
    if isinstance(of, PanelCommand):
        placed = [name for names in of.panels.values() for name in names]
        assert sorted(placed) == sorted(
            option.name or "" for option in options if option.expose_value or option.is_eager
        )
        assert list(entries(shown(group, command), REST)) == ["-q", "-v", "--debug", "-h"]
    else:
        assert len(options) <= MANY + 3


@pytest.mark.parametrize("group", GROUPS)
def test_the_shell_completes_commands_and_the_docs_name_the_variable_that_asks_for_it(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = f"_{group.replace('-', '_').upper()}_COMPLETE"
    assert f'eval "$({variable}=bash_source {group})"' in (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    monkeypatch.setenv("COMP_WORDS", f"{group} ")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv(variable, "bash_complete")
    with pytest.raises(SystemExit):
        GROUPS[group](prog_name=group)
    assert capsys.readouterr().out.split() == [f"plain,{name}" for name in GROUPS[group].commands]


WRITES_NOTHING = {"check", "doctor", "inspect", "verify", "status", "probe-texts", "params"}
ENDS_A_WAY = {"remove", "report", "segment"}  # what they wrote is what was wanted


@pytest.mark.parametrize(("group", "command"), COMMANDS)
def test_a_command_that_writes_ends_with_the_next_one(group: str, command: str) -> None:
    if command in WRITES_NOTHING | ENDS_A_WAY:
        return
    callback = inspect.unwrap(GROUPS[group].commands[command].callback)  # type: ignore[arg-type]
    called = [callback, *(value for name, value in callback.__globals__.items() if name in callback.__code__.co_names)]
    sources = [inspect.getsource(function) for function in called if inspect.isfunction(function)]
    assert any("Next: " in source or "Next, " in source for source in sources)
