"""Public data sets by one command: whole, checked, readable, or nothing of them; against a server on this machine.

No test downloads the real archives: the addresses in sources.yaml were not tried from here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.stage1_instruct.file_site import Site
from tests.stage1_instruct.public_data_archives import chaos_zip, msd_files, tar_of
from zeus_union.cache import atomic
from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct import archives, downloads
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.public_data import fetch as fetching
from zeus_union.stage1_instruct.public_data.fetch import RECORD, fetch_dataset
from zeus_union.stage1_instruct.public_data.sources import PUBLIC_DATA, Archive


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def serve(site: Site, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Archive:
    """The site has the data set's first archive, of these bytes and with their digests."""
    site.content = content
    data_set = PUBLIC_DATA[name]
    archive = data_set.archives[0]
    values = {
        "url": f"{site.url.rpartition('/')[0]}/{archive.name}",
        "size": len(content),
        "md5": hashlib.md5(content).hexdigest(),
        "sha256": None,
        "unpacked": 10 * len(content),
        **changes,
    }
    served = replace(archive, **values)  # type: ignore[arg-type]
    monkeypatch.setitem(PUBLIC_DATA, name, replace(data_set, archives=(served, *data_set.archives[1:])))
    return served


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fetch", *arguments])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["chaos", "msd-prostate", "msd-brain"])
def test_fetched_data_is_where_build_cache_looks_and_every_study_can_be_read(
    name: str, site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = chaos_zip(phantoms / "chaos") if name == "chaos" else tar_of(msd_files(name))
    archive = serve(site, name, content, monkeypatch)
    result = command("--dataset", name)
    assert result.exit_code == 0, result.output
    dataset = open_dataset(name)
    assert len(dataset.card.subjects) == (2 if name == "chaos" else 3)
    for subject in dataset.card.subjects:
        study = dataset.load(subject)
        assert (study.labels is not None) == (subject in (dataset.labelled or dataset.card.subjects))
    assert names_in(workplace / "data") == [f".{name}.lock", name]
    record = json.loads((workplace / "data" / name / archive.into / RECORD).read_text())
    assert record["url"] == archive.url and record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["licence"] == PUBLIC_DATA[name].licence
    junk = [path for path in (workplace / "data").rglob("*") if path.name.startswith("._") or path.name == "CT"]
    assert junk == []


def test_size_licence_and_folder_are_said_before_anything_is_asked_of_the_network(
    site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "msd-prostate", tar_of(msd_files("msd-prostate")), monkeypatch, size=0, about=240_000_000)
    said: list[str] = []
    monkeypatch.setattr(fetching, "download", lambda *_: pytest.fail("asked") if len(said) < 3 else stop())
    with pytest.raises(KeyboardInterrupt):
        fetch_dataset("msd-prostate", say=said.append)
    assert "CC BY-SA 4.0" in said[1] and "medicaldecathlon" in said[1]
    assert "about 240 MB" in said[2] and "data/msd-prostate" in said[2]


def stop() -> None:
    raise KeyboardInterrupt


def test_second_command_says_that_it_is_there_and_asks_nothing_of_the_network(
    site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "msd-brain", tar_of(msd_files("msd-brain")), monkeypatch)
    assert command("--dataset", "msd-brain").exit_code == 0
    before = len(site.requested)
    result = command("--dataset", "msd-brain")
    assert result.exit_code == 0 and "nothing was downloaded" in result.stderr
    assert len(site.requested) == before


def chaos_content(phantoms: Path) -> bytes:
    return chaos_zip(phantoms / "chaos")


def fails(result: Result, *said: str) -> None:
    """Exit code 2 and one line that says all of this."""
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for part in said:
        assert part in line


def test_broken_download_is_gone_on_with_by_the_same_command(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = chaos_content(phantoms)
    serve(site, "chaos", content, monkeypatch)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    site.cut_after = 50_000
    fails(command("--dataset", "chaos"), "ended after 50000", "resumes")
    assert not (workplace / "data" / "chaos").exists()
    assert command("--dataset", "chaos").exit_code == 0
    assert site.requested == [None, "bytes=50000-"]
    assert len(open_dataset("chaos").card.subjects) == 2


FETCHER = """
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.public_data.sources import PUBLIC_DATA

url, size, md5 = sys.argv[1:]
known = PUBLIC_DATA["msd-brain"]
archive = replace(known.archives[0], url=url, size=int(size), md5=md5, unpacked=int(size))
PUBLIC_DATA["msd-brain"] = replace(known, archives=(archive,))
main(["fetch", "--dataset", "msd-brain"])
"""


def test_killed_process_leaves_no_data_and_the_next_one_goes_on(
    site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tar_of(msd_files("msd-brain", subjects=40))
    archive = serve(site, "msd-brain", content, monkeypatch)
    site.stall_after = 100_000
    arguments = [sys.executable, "-c", FETCHER, archive.url, str(len(content)), str(archive.md5)]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    part = workplace / "data" / f"{archive.name}.part"
    try:
        for _ in range(600):
            if part.exists() and site.requested:
                break
            time.sleep(0.05)
        time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
        site.released.set()
    arrived = part.stat().st_size
    assert not (workplace / "data" / "msd-brain").exists()
    assert command("--dataset", "msd-brain").exit_code == 0
    assert site.requested[-1] == (f"bytes={arrived}-" if arrived else None)
    assert len(open_dataset("msd-brain").card.subjects) == 41


def test_two_commands_at_once_do_the_work_once(site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_of(msd_files("msd-brain"))
    archive = serve(site, "msd-brain", content, monkeypatch)
    site.delay = 0.7
    arguments = [sys.executable, "-c", FETCHER, archive.url, str(len(content)), str(archive.md5)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert site.requested == [None]
    assert names_in(workplace / "data") == [".msd-brain.lock", "msd-brain"]


def test_stop_while_unpacking_leaves_nothing_and_the_archive_is_not_downloaded_again(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    written: list[Path] = []

    def interrupted(opened: object, member: object, path: Path) -> None:
        written.append(path)
        if len(written) > 5:
            raise KeyboardInterrupt
        write(opened, member, path)  # type: ignore[arg-type]

    write = archives._write
    monkeypatch.setattr(archives, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_dataset("chaos", say=lambda _: None)
    monkeypatch.setattr(archives, "_write", write)
    assert names_in(workplace / "data") == [".chaos.lock", archive.name]
    # What a kill, after which nothing runs, would have left too.
    (workplace / "data" / ".chaos.unpacking" / "Train_Sets").mkdir(parents=True)
    assert command("--dataset", "chaos").exit_code == 0
    assert len(site.requested) == 1
    assert names_in(workplace / "data" / "chaos") == ["Train_Sets"]


def test_server_without_ranges_is_asked_for_all_of_it(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    site.ranges, site.cut_after = False, 50_000
    assert command("--dataset", "chaos").exit_code == 0
    assert len(open_dataset("chaos").card.subjects) == 2


def test_server_that_names_no_version_is_asked_for_the_rest_alone(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of the whole says whether the rest belongs to what was begun."""
    serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    site.tag, site.cut_after = None, 50_000
    assert command("--dataset", "chaos").exit_code == 0
    assert site.requested == [None, "bytes=50000-"]


@pytest.mark.parametrize("fault", ["digest", "truncated", "404", "503", "no zip"])
def test_what_a_server_gives_that_is_not_the_data_is_one_line_and_leaves_nothing(
    fault: str, site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = chaos_content(phantoms)
    said = "another file than the pinned one"
    if fault == "digest":
        serve(site, "chaos", content, monkeypatch, md5="0" * 32)
    elif fault == "truncated":
        serve(site, "chaos", content, monkeypatch)
        site.content = content[:-1000]
    elif fault == "no zip":
        serve(site, "chaos", b"<html>busy</html>", monkeypatch)
        said = "damaged or no archive"
    else:
        serve(site, "chaos", content, monkeypatch)
        site.status, said = int(fault), "answers 404" if fault == "404" else "503"
    fails(command("--dataset", "chaos"), said)
    left = {".chaos.lock", "CHAOS_Train_Sets.zip"} if fault == "no zip" else {".chaos.lock"}
    assert set(names_in(workplace / "data")) <= left


def test_archive_whose_studies_cannot_be_read_is_refused_and_nothing_is_kept_of_it(
    site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = msd_files("msd-brain") | {"Task01_BrainTumour/dataset.json": b"{"}
    serve(site, "msd-brain", tar_of(files), monkeypatch)
    fails(command("--dataset", "msd-brain"), "is not JSON")
    assert not (workplace / "data" / "msd-brain").exists()


def test_space_for_archive_and_data_together_is_asked_for_first(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = chaos_content(phantoms)
    serve(site, "chaos", content, monkeypatch, unpacked=10 * len(content))
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: Disk(2 * len(content)))
    fails(command("--dataset", "chaos"), "no space left", "archive and unpacked")
    assert site.requested == []


@dataclass(frozen=True)
class Disk:
    free: int


def test_disk_that_fills_up_on_the_way_is_said_at_once_and_what_arrived_is_kept(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    go_on = downloads._go_on

    def full(url: str, part: Path, name: str, pin: downloads.Pin) -> None:
        go_on(url, part, name, pin)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_go_on", full)
    fails(command("--dataset", "chaos"), "no space left", "resumes")
    assert len(site.requested) == 1
    monkeypatch.setattr(downloads, "_go_on", go_on)
    assert command("--dataset", "chaos").exit_code == 0


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_folder_without_permission_is_one_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        serve(site, "msd-brain", tar_of(msd_files("msd-brain")), monkeypatch)
        os.seteuid(65534)
        try:
            result = command("--dataset", "msd-brain", "--data-root", f"{folder}/msd-brain")
        finally:
            os.seteuid(0)
    fails(result, "no permission", folder)
    assert site.requested == []


def test_file_where_the_data_should_go_is_one_line_and_stays(
    site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "msd-brain", tar_of(msd_files("msd-brain")), monkeypatch)
    (workplace / "data").write_text("mine")
    fails(command("--dataset", "msd-brain"), "data")
    with pytest.raises(UserError, match="data is a file"):
        fetch_dataset("msd-brain", Path("data"))
    assert (workplace / "data").read_text() == "mine" and site.requested == []


def test_archive_that_is_there_already_is_used_and_stays(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    (workplace / "data").mkdir()
    (workplace / "data" / archive.name).write_bytes(site.content)
    result = command("--dataset", "chaos")
    assert result.exit_code == 0 and "existed before and is kept" in result.stderr
    assert site.requested == [] and (workplace / "data" / archive.name).exists()


def test_another_file_under_the_archives_name_is_refused_and_stays(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    (workplace / "data").mkdir()
    (workplace / "data" / archive.name).write_bytes(b"half of it")
    fails(command("--dataset", "chaos"), "is another file than", "move it away")
    assert (workplace / "data" / archive.name).read_bytes() == b"half of it"


def test_downloaded_archive_is_kept_where_that_is_asked_for(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    assert command("--dataset", "chaos", "--keep-archive").exit_code == 0
    assert (workplace / "data" / archive.name).read_bytes() == site.content


def test_data_that_the_user_put_there_is_left_as_it_is(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    shutil.copytree(phantoms / "chaos", workplace / "data" / "chaos")
    before = names_in(workplace / "data" / "chaos")
    result = command("--dataset", "chaos")
    assert result.exit_code == 0 and "2 subjects that this command did not download" in result.stderr
    assert names_in(workplace / "data" / "chaos") == before and site.requested == []


def test_folder_with_something_else_is_refused_before_anything_is_downloaded(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    (workplace / "data" / "chaos").mkdir(parents=True)
    (workplace / "data" / "chaos" / "notes.txt").write_text("mine")
    fails(command("--dataset", "chaos"), "is not empty and holds no chaos")
    assert names_in(workplace / "data" / "chaos") == ["notes.txt"] and site.requested == []


def test_empty_folder_is_used(site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(site, "msd-prostate", tar_of(msd_files("msd-prostate")), monkeypatch)
    (workplace / "here").mkdir()
    result = command("--dataset", "msd-prostate", "--data-root", "here")
    assert result.exit_code == 0 and "zeus-instruct check --dataset msd-prostate --data-root here" in result.stdout
    assert len(open_dataset("msd-prostate", Path("here")).card.subjects) == 3


def test_link_to_another_disk_is_followed(
    site: Site, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "msd-prostate", tar_of(msd_files("msd-prostate")), monkeypatch)
    (tmp_path / "disk" / "prostate").mkdir(parents=True)
    (workplace / "data").mkdir()
    (workplace / "data" / "msd-prostate").symlink_to(tmp_path / "disk" / "prostate")
    assert command("--dataset", "msd-prostate").exit_code == 0
    assert names_in(tmp_path / "disk") == [".prostate.lock", "prostate"]
    assert len(open_dataset("msd-prostate").card.subjects) == 3


def test_files_that_were_lost_are_said(site: Site, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(site, "msd-brain", tar_of(msd_files("msd-brain")), monkeypatch)
    assert command("--dataset", "msd-brain").exit_code == 0
    (workplace / "data" / "msd-brain" / "imagesTr" / "BRATS_001.nii.gz").unlink()
    fails(command("--dataset", "msd-brain"), "lacks some of the 6 files", "5 are there")


def test_test_set_of_chaos_comes_on_demand_beside_the_training_set(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    assert command("--dataset", "chaos").exit_code == 0
    content = chaos_zip(phantoms / "chaos", "Test_Sets")
    train, test = PUBLIC_DATA["chaos"].archives
    url, digest = f"{site.url.rpartition('/')[0]}/{test.name}", hashlib.sha256(content).hexdigest()
    served = replace(test, url=url, size=len(content), sha256=digest, unpacked=10 * len(content))
    monkeypatch.setitem(PUBLIC_DATA, "chaos", replace(PUBLIC_DATA["chaos"], archives=(train, served)))
    site.content = content
    assert command("--dataset", "chaos", "--unlabelled").exit_code == 0
    dataset = open_dataset("chaos")
    assert len(dataset.card.subjects) == 4 and dataset.labelled is not None and len(dataset.labelled) == 2
    assert len(site.requested) == 2


def test_folder_that_the_test_set_would_go_into_is_looked_at_before_the_download(
    site: Site, workplace: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(site, "chaos", chaos_content(phantoms), monkeypatch)
    assert command("--dataset", "chaos").exit_code == 0
    shutil.copytree(phantoms / "chaos" / "MR", workplace / "data" / "chaos" / "Test_Sets" / "MR")
    fails(command("--dataset", "chaos", "--unlabelled"), "Test_Sets/MR exists already", "move it away")
    assert len(site.requested) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "chaos", "--models", "lite"], "one of the two"),
        (["--dataset", "chaos", "--set", "llm=none"], "one of the two"),
        (["--data-root", "data"], "name it with --dataset"),
        (["--keep-archive"], "name it with --dataset"),
    ],
)
def test_options_of_weights_and_of_data_are_not_mixed(arguments: list[str], said: str, workplace: Path) -> None:
    fails(command(*arguments), said)


@pytest.mark.parametrize("name", list(PUBLIC_DATA))
@pytest.mark.parametrize("root", [None, "elsewhere"])
def test_build_without_data_names_the_command_that_gets_it(name: str, root: str | None, workplace: Path) -> None:
    where = ["--data-root", root] if root else []
    result = CliRunner().invoke(main, ["build-cache", "--dataset", name, *where])
    expected = f"zeus-instruct fetch --dataset {name}{' --data-root elsewhere' if root else ''} ("
    fails(result, f"{root or f'data/{name}'} does not exist", expected, PUBLIC_DATA[name].licence)
    (workplace / (root or f"data/{name}")).mkdir(parents=True)
    fails(CliRunner().invoke(main, ["check", "--dataset", name, *where]), "is empty", expected)


@pytest.mark.parametrize("name", list(PUBLIC_DATA))
def test_every_archive_has_a_secure_address_a_published_digest_and_a_size(name: str) -> None:
    data_set = PUBLIC_DATA[name]
    assert data_set.licence.startswith("CC BY") and data_set.page
    for archive in data_set.archives:
        assert archive.url.startswith("https://") and archive.pin.has_digest
        assert archive.bytes_to_download > 0 and archive.unpacked > 0
        assert len(archive.md5 or "0" * 32) == 32 and len(archive.sha256 or "0" * 64) == 64
