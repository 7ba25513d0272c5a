"""Files that appear whole, never in another's place, with the permissions that the umask leaves."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeus_union.cache import atomic
from zeus_union.cache.atomic import AtomicFile, write_atomically
from zeus_union.cache.descriptors import read_at, write_at


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_permissions_are_those_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    file = AtomicFile(tmp_path / "shard.h5")
    file.write(b"pictures of a patient")
    assert stat.S_IMODE(file.temporary.stat().st_mode) & umask == 0
    file.commit()
    write_atomically(tmp_path / "config.json", b"{}")
    assert stat.S_IMODE((tmp_path / "shard.h5").stat().st_mode) == 0o444 & ~umask
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o644 & ~umask


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_name_that_is_taken_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for content, free in ((b"first", True), (b"second", False)):
        file = AtomicFile(tmp_path / "index.h5")
        file.write(content)
        if free:
            file.commit(replace=False)
        else:
            with pytest.raises(FileExistsError):
                file.commit(replace=False)
            file.discard()
    assert (tmp_path / "index.h5").read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["index.h5"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_without_permissions_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "fchmod", refuse)
    write_atomically(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_folder_that_cannot_be_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(number, "not for folders")

    monkeypatch.setattr(os, "fsync", refuse)
    atomic.sync_folder(tmp_path)


def test_reading_and_writing_at_an_offset_works_without_the_calls_of_posix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("preadv", "pread", "pwrite"):
        monkeypatch.delattr(os, name)
    file = AtomicFile(tmp_path / "a")
    file.write(b"0123456789")
    file.write_at(4, b"xy")
    file.seek(3)
    assert file.read(4) == b"3xy6"
    file.commit()
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    buffer = bytearray(20)
    assert (read_at(fd, buffer, 2), bytes(buffer[:8]), read_at(fd, buffer, 10)) == (8, b"23xy6789", 0)
    os.close(fd)
    fd = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    assert write_at(fd, b"abc", 2) == 3
    os.close(fd)
    assert (tmp_path / "b").read_bytes() == b"\0\0abc"
