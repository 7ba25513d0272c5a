"""Archives from somebody: nothing leaves the folder, nothing but plain files is made, and all or nothing is unpacked."""

from __future__ import annotations

import contextlib
import io
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stage1_instruct.public_data_archives import files_in, tar_of, zip_of
from zeus_union.cache import atomic
from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.stage1_instruct import archives
from zeus_union.stage1_instruct.archives import Limits, Unpacked
from zeus_union.stage1_instruct.public_data.fetch import REMEDIES

PACK = {"a.zip": zip_of, "a.tar": tar_of}
LEAST = 1 << 20


@pytest.fixture(params=list(PACK))
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def unpack(archive: Path, folder: Path, take: str, total: int) -> Unpacked:
    return archives.unpack(archive, folder, Limits(total), REMEDIES, take=take)


def pack(archive: Path, files: dict[str, bytes]) -> None:
    archive.write_bytes(PACK[archive.name](files))


def test_only_the_wanted_folder_is_taken_and_its_content_is_the_same(archive: Path, tmp_path: Path) -> None:
    pack(archive, {"top/a/1.txt": b"one", "./top/a/deep/2.txt": b"two", "top/b/3.txt": b"three", "top/ab": b"four"})
    assert unpack(archive, tmp_path / "out", "top/a", LEAST) == Unpacked(2, 6)
    assert files_in(tmp_path / "out") == {"1.txt": b"one", "deep/2.txt": b"two"}


def test_what_macos_adds_is_left(archive: Path, tmp_path: Path) -> None:
    junk = {"__MACOSX/a/._1.nii": b"x", "a/._1.nii": b"x", "a/.DS_Store": b"x", "._a": b"x"}
    pack(archive, {"a/1.nii": b"one", **junk})
    unpack(archive, tmp_path / "out", "", LEAST)
    assert files_in(tmp_path / "out") == {"a/1.nii": b"one"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "..\\evil", "a/b/../../../evil"])
def test_name_that_leads_out_of_the_folder_refuses_the_whole_archive(name: str, archive: Path, tmp_path: Path) -> None:
    pack(archive, {"a/good": b"good", name: b"evil"})
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(archive, tmp_path / "out", "a", LEAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_link_or_device_in_a_tar_is_refused(kind: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="link or a device"):
        unpack(archive, tmp_path / "out", "a", LEAST)


def test_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        link = zipfile.ZipInfo("a/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="link or a device"):
        unpack(archive, tmp_path / "out", "a", LEAST)


def test_bomb_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    pack(archive, {"a/zeros": bytes(50 << 20)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"would unpack to 1 files of 52 MB"):
        unpack(archive, tmp_path / "out", "a", 10 << 20)
    assert not (tmp_path / "out").exists()


def test_length_that_lies_writes_no_more_than_it_says(tmp_path: Path) -> None:
    """A zip whose directory promises ten bytes of a file that unpacks to millions."""
    archive = tmp_path / "a.zip"
    content = bytearray(zip_of({"a/zeros": bytes(5 << 20)}))
    at = content.rindex(b"PK\1\2") + 24
    content[at : at + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged or no archive"):
        unpack(archive, tmp_path / "out", "a", LEAST)
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) <= 10


def test_flipped_bytes_truncation_and_no_archive_at_all_are_one_line(archive: Path, tmp_path: Path) -> None:
    pack(archive, {"a/1": bytes(range(256)) * 40, "a/2": bytes(20_000)})
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 3], b"<html>", b""):
        archive.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged or no archive|holds no file"):
            unpack(archive, tmp_path / "out", "a", LEAST)


def test_encrypted_zip_is_one_line(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    content = bytearray(zip_of({"a/1": b"secret"}))
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + offset] |= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"is encrypted .*nothing was unpacked"):
        unpack(archive, tmp_path / "out", "a", LEAST)
    assert not (tmp_path / "out").exists()


def test_compressed_tar_is_not_opened(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_of({"a/1": b"one"})))
    with pytest.raises(UserError, match="damaged or no archive"):
        unpack(tmp_path / "a.tar", tmp_path / "out", "a", LEAST)


def test_archive_without_the_wanted_folder_is_refused(archive: Path, tmp_path: Path) -> None:
    pack(archive, {"b/1": b"one"})
    with pytest.raises(UserError, match="holds no file in a/"):
        unpack(archive, tmp_path / "out", "a", LEAST)


def test_one_name_twice_or_as_file_and_folder_is_refused(tmp_path: Path) -> None:
    archive, buffer = tmp_path / "a.tar", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a/1"))
    archive.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="twice"):
        unpack(archive, tmp_path / "out", "a", LEAST)
    pack(archive, {"a/1": b"", "a/1/2": b""})
    with pytest.raises(UserError, match="as a file and as a folder"):
        unpack(archive, tmp_path / "out", "a", LEAST)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/Liver.nii", "a/liver.nii"), "twice"),
        (("a/\N{LATIN SMALL LETTER A WITH DIAERESIS}", "a/a\N{COMBINING DIAERESIS}"), "twice"),
        (("a/Liver", "a/liver/1"), "as a file and as a folder"),
    ],
)
def test_names_that_are_one_on_another_system_are_refused_on_every_system(
    names: tuple[str, ...], message: str, archive: Path, tmp_path: Path
) -> None:
    pack(archive, dict.fromkeys(names, b""))
    with pytest.raises(UserError, match=f"{message}; nothing was unpacked"):
        unpack(archive, tmp_path / "out", "a", LEAST)
    assert not (tmp_path / "out").exists()


def test_a_name_that_the_disk_takes_for_another_is_one_line(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where names that end in a dot lose it."""
    pack(archive, {"a/1": b"one", "a/1.": b"two"})
    write = archives._write
    monkeypatch.setattr(archives, "_write", lambda opened, member, path: write(opened, member, path.parent / "1"))
    with pytest.raises(
        UserError, match=r"'a/1\.' beside a name that this disk takes for the same; it is not the archive"
    ):
        unpack(archive, tmp_path / "out", "a", LEAST)


def test_a_zip_under_another_name_is_read_as_a_zip(tmp_path: Path) -> None:
    (tmp_path / "download").write_bytes(zip_of({"a/1": b"one"}))
    unpack(tmp_path / "download", tmp_path / "out", "a", LEAST)
    assert files_in(tmp_path / "out") == {"1": b"one"}


def test_disk_without_room_is_said_before_a_byte_is_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(archive, {"a/1": bytes(1 << 19)})
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1000}))
    with pytest.raises(NoSpaceError):
        unpack(archive, tmp_path / "out", "a", LEAST)
    assert files_in(tmp_path / "out") == {}


PART = st.sampled_from(["a", "b", "..", ".", "", "._a", "nul\0", "C:", "\\", "é"])


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.lists(PART, min_size=1, max_size=4).map("/".join), max_size=6, unique=True),
    absolute=st.booleans(),
)
def test_whatever_names_it_has_an_archive_writes_inside_the_folder_or_not_at_all(
    names: list[str], absolute: bool
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(f"/{name}" if absolute else name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.tar").write_bytes(buffer.getvalue())
        out = Path(folder) / "deep" / "out"
        try:
            unpacked = unpack(Path(folder) / "a.tar", out, "", LEAST)
        except UserError:
            assert not out.exists() or files_in(out) == {}
        else:
            assert len(files_in(out)) == unpacked.files
        outside = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_relative_to(out)]
        assert [path.name for path in outside] == ["a.tar"]
        assert all(".." not in PurePosixPath(name).parts for name in files_in(out))


def zip_by(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as zipped:
        zipped.writestr("a/1", bytes(range(256)) * 4)
        zipped.writestr("a/2", b"two")
    return buffer.getvalue()


SOUND: dict[str, bytes] = {
    "stored.zip": zip_by(zipfile.ZIP_STORED),
    "deflated.zip": zip_by(zipfile.ZIP_DEFLATED),
    "bzip2.zip": zip_by(zipfile.ZIP_BZIP2),
    "lzma.zip": zip_by(zipfile.ZIP_LZMA),
    "a.tar": tar_of({"a/1": bytes(range(256)) * 4, "a/2": b"two"}),
}


@pytest.mark.parametrize("name", SOUND)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_bytes_are_damaged_an_archive_is_one_line_or_inside_the_folder(name: str, data: st.DataObject) -> None:
    content = bytearray(SOUND[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        with contextlib.suppress(UserError):
            unpack(Path(folder) / name, Path(folder) / "out", "", LEAST)
        assert {path.name for path in Path(folder).iterdir()} <= {name, "out"}
