"""An archive is unpacked whole and only into its folder, or nothing of it is."""

from __future__ import annotations

import contextlib
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeus_union.cache.errors import UserError
from zeus_union.pipelines.intake.archive import LIMITS, is_archive, unpack
from zeus_union.stage1_instruct.archives import Limits


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return path


def assert_refused(archive: Path, tmp_path: Path, said: str, limits: Limits = LIMITS) -> None:
    into = tmp_path / "into"
    into.mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said) as error:
        unpack(archive, into, limits)
    assert "\n" not in str(error.value) and str(archive) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/a", "\\a", "..\\a", "a\\..\\..\\b", "C:\\a", "C:a", "//server/a", "a/.."],
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str):
    archive = write_zip(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    assert_refused(archive, tmp_path, "leads out of the folder it is unpacked into; nothing was unpacked")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(name=st.lists(st.sampled_from(["..", "a", ".", "/", "\\", "C:", "b.dcm"]), min_size=1, max_size=6).map("".join))
def test_whatever_a_name_is_no_file_lands_outside(tmp_path_factory: pytest.TempPathFactory, name: str):
    base = tmp_path_factory.mktemp("zip")
    archive = write_zip(base / "a.zip", {name: b"2"})
    (base / "into").mkdir()
    with contextlib.suppress(UserError):
        unpack(archive, base / "into")
        assert [path.read_bytes() for path in (base / "into").rglob("*") if path.is_file()] == [b"2"][
            : not name.endswith("/")
        ]
    assert sorted(path.name for path in base.iterdir()) == ["a.zip", "into"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("link")
        member.create_system, member.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    assert_refused(tmp_path / "a.zip", tmp_path, "which is a link or a device")


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path):
    archive = write_zip(tmp_path / "a.zip", {"zeros": bytes(3_000_000)})
    to_what, remedy = "would unpack to 1 files of 3 MB, more than", "nothing was unpacked: if it is a study"
    assert_refused(archive, tmp_path, f"{to_what} 200 times its 3 KB; {remedy}", replace(LIMITS, harmless=1_000_000))
    assert_refused(archive, tmp_path, f"{to_what} 2 MB; {remedy}", replace(LIMITS, total=2_000_000))
    many = write_zip(tmp_path / "many.zip", {str(number): b"" for number in range(20)})
    assert_refused(many, tmp_path, "20 files of 0 KB, more than 10 files", replace(LIMITS, files=10))


def test_a_bomb_that_declares_little_is_damaged_and_stops_at_what_it_declared(tmp_path: Path):
    archive = write_zip(tmp_path / "a.zip", {"zeros": bytes(1_000_000)})
    content = archive.read_bytes().replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(content)
    (tmp_path / "into").mkdir()
    with pytest.raises(UserError, match="truncated, damaged or no archive"):
        unpack(archive, tmp_path / "into")
    assert sum(path.stat().st_size for path in (tmp_path / "into").rglob("*")) <= 10


def test_more_than_the_disk_has_free_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    free = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert_refused(
        write_zip(tmp_path / "a.zip", {"a": bytes(2_000_000)}), tmp_path, "needs 2 MB, 1 MB are free at .*TMPDIR"
    )


def test_encrypted_doubled_and_damaged_archives_are_one_line_each(tmp_path: Path):
    archive = write_zip(tmp_path / "a.zip", {"a": b"12345678" * 100})
    content = archive.read_bytes()
    flagged = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        flagged[content.index(mark) + offset] |= 1
    (tmp_path / "b.zip").write_bytes(flagged)
    assert_refused(tmp_path / "b.zip", tmp_path, "is encrypted")
    for name, damaged in (("cut", content[:-30]), ("half", content[:60]), ("text", b"no zip"), ("empty", b"")):
        (tmp_path / f"{name}.zip").write_bytes(damaged)
        assert is_archive(tmp_path / f"{name}.zip")
        assert_refused(tmp_path / f"{name}.zip", tmp_path, "truncated, damaged or no archive")
    assert_refused(write_zip(tmp_path / "c.zip", {"x/A": b"1", "x\\a": b"2"}), tmp_path, "twice")


def test_folders_with_backslashes_are_folders_and_no_files_of_that_name(tmp_path: Path):
    (tmp_path / "into").mkdir()
    unpack(write_zip(tmp_path / "a.zip", {"a\\": b"", "a\\b\\": b"", "a\\b\\1": b"one"}), tmp_path / "into")
    assert (tmp_path / "into" / "a" / "b" / "1").read_bytes() == b"one"


def test_an_archive_without_files_is_refused(tmp_path: Path):
    assert_refused(write_zip(tmp_path / "a.zip", {"a/": b""}), tmp_path, "holds no file; pack it again")


def test_a_sound_archive_is_unpacked_whole(tmp_path: Path):
    files = {"a/b/1": b"one", "a/2": b"", "Ä (3).dcm": bytes(100)}
    (tmp_path / "into").mkdir()
    unpack(write_zip(tmp_path / "a.zip", files), tmp_path / "into")
    assert {
        p.relative_to(tmp_path / "into").as_posix(): p.read_bytes()
        for p in (tmp_path / "into").rglob("*")
        if p.is_file()
    } == files
