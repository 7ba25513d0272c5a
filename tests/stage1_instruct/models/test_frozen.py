"""A frozen model is loaded once, when it is used, and who asks is told what that took."""

from __future__ import annotations

import pytest

from zeus_union.cache import terminal
from zeus_union.stage1_instruct.models.frozen import Frozen


class Encoder:
    pass


def test_loading_is_said_with_verbose_alone_and_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verbosity, lines in ((terminal.Verbosity.NORMAL, 0), (terminal.Verbosity.VERBOSE, 1)):
        monkeypatch.setattr(terminal, "_verbosity", verbosity)
        frozen = Frozen(lambda: {"name": "encoder"}, Encoder)
        assert frozen.recipe == {"name": "encoder"} and frozen.model is frozen.model
        assert capsys.readouterr().err.count("Encoder loaded in ") == lines
