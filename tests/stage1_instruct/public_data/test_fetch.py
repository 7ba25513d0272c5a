"""Public data sets by one command: whole, checked, readable, or nothing of them; against a server on this machine.

No test downloads the real archives: the addresses in sources.yaml were not tried from here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.stage1_instruct.file_site import Site
from tests.stage1_instruct.public_data_archives import chaos_zip, msd_files, tar_of
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
    assert result.exit_code == 0 and "already; nothing was fetched" in result.stderr
    assert len(site.requested) == before
