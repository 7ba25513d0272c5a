"""`zeus-instruct status`: what it prints of caches in every state."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.cache.tiny_cache import CARD, SLICES_RECIPE, build, make_slices
from zeus_union.cache.layout import locks_folder
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.cli import main


def status(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, arguments)])


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A is finished, and B was in work when its process was lost."""
    path = tmp_path / "a.h5"
    writer = CacheWriter(path, CARD)
    writer.begin_layer("slices", SLICES_RECIPE)
    with writer.claim("A"):
        writer.write_slices("A", make_slices("A"))
    mark = {"host": "n12", "pid": 4711, "job": "88_3", "since": 0, "layers": ["slices"]}
    (locks_folder(path) / "B.lock").write_text(json.dumps(mark))
    return path


def test_an_unfinished_cache_says_how_far_it_is_who_was_lost_and_what_to_do(unfinished: Path) -> None:
    done = status(unfinished)
    assert done.exit_code == 0, done.output
    assert f"{unfinished} is unfinished: 1 of 3 subjects finished in all layers" in done.output
    assert "1 of 3" in done.output and "4 of 12" in done.output
    assert (
        "lost: B, n12 pid 4711 job 88_3" in done.output and "the next process that is free takes it over" in done.output
    )
    assert "no process is at work: the same build-cache command resumes" in done.output


def test_whoever_is_at_work_is_named(unfinished: Path) -> None:
    with CacheWriter(unfinished, CARD).claim("C"):
        done = status(unfinished)
    assert "at work: C, " in done.output and "1 at work" in done.output


def test_a_finished_cache_says_so(tmp_path: Path) -> None:
    build(tmp_path / "a.h5")
    done = status(tmp_path / "a.h5")
    assert "a.h5 is finished (packed): 3 subjects" in done.output and "nothing is missing" in done.output


def test_json_holds_the_same(unfinished: Path) -> None:
    read = json.loads(status(unfinished, "--json").stdout)
    assert (read["finished"], read["subjects"], read["complete"], read["state"]) == (1, 3, False, "building")
    assert read["layers"][0]["slice_modalities"] == 4 and read["holders"][0]["alive"] is False


def test_no_cache_is_one_line(tmp_path: Path) -> None:
    done = status(tmp_path / "none.h5")
    assert done.exit_code == 2
    assert (
        done.stderr.strip()
        == f"error: cache {tmp_path / 'none.h5'} does not exist; zeus-instruct build-cache makes one"
    )


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ESTALE, errno.EIO])
def test_a_lost_mount_is_one_line(unfinished: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def lost(path: Path) -> None:
        raise OSError(number, "lost", str(path))

    monkeypatch.setattr("zeus_union.cache.status.read_manifest", lost)
    done = status(unfinished)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and str(unfinished) in done.stderr
    assert "run the same command again" in done.stderr
