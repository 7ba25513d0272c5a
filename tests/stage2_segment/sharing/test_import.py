"""Nothing of a shared file is believed: what is not as zeus export writes it is one line, and nothing is left behind."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stage2_segment.sharing.conftest import DAY, SALT, Cohort, run, said
from zeus_union.cache.errors import UserError
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.cli import main as zeus_segment
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.sharing import archive as sharing
from zeus_union.stage2_segment.sharing import importing
from zeus_union.stage2_segment.sharing.archive import opened_runs, unpack
from zeus_union.stage2_segment.sharing.export import export_runs
from zeus_union.stage2_segment.sharing.importing import import_runs


@pytest.fixture(scope="module")
def archive(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, with its last weights alone: every test here writes or reads all of it."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(cohort.runs[0], folder / "run", ignore=shutil.ignore_patterns("best.safetensors"))
    export_runs([folder / "run"], folder / "toy.zeus.zip", salt=SALT, day=DAY)
    return folder / "toy.zeus.zip"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as a letter, with all kinds of files in it."""
    out = tmp_path_factory.mktemp("small") / "small.zeus.zip"
    texts = {name: f'{{"{name}": "{"x" * 300}"}}'.encode() for name in ("card.json", "runs/0/config.json")}
    sharing.write_archive(out, {**texts, "runs/0/weights/last.safetensors": bytes(range(256)) * 2})
    return out


def rewritten(archive: Path, out: Path, change: Callable[[dict[str, bytes]], None], *, honest: bool = True) -> Path:
    """The file with other content.

    Args:
        honest: whether the manifest is written anew.
    """
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    manifest = files.pop("manifest.json")
    change(files)
    if honest and "manifest.json" not in files:
        sharing.write_archive(out, files)
        return out
    with zipfile.ZipFile(out, "w") as written:
        for name, content in {"manifest.json": manifest, **files}.items():
            written.writestr(name, content)
    return out


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/zeus-was-here",)


def config_of_another_version(files: dict[str, bytes]) -> None:
    values = json.loads(files["runs/0/config.json"])
    del values["inputs"]["card"]
    files["runs/0/config.json"] = json.dumps(values).encode()


def other_classes(files: dict[str, bytes]) -> None:
    values = json.loads(files["runs/0/config.json"])
    values["architecture"]["classes"] = 7
    files["runs/0/config.json"] = json.dumps(values).encode()


BAD: Mapping[str, tuple[Callable[[dict[str, bytes]], None], bool, str]] = {
    "a pickle": (lambda files: files.update({"runs/0/state.pt": pickle.dumps(Evil())}), True, "none of a run's files"),
    "a pickle as weights": (
        lambda files: files.update({"runs/0/weights/last.safetensors": pickle.dumps(Evil())}),
        True,
        "not a safetensors file, or is damaged",
    ),
    "a path upwards": (lambda files: files.update({"../config.json": b"{}"}), True, "'../config.json', which is none"),
    "a path upwards inside": (
        lambda files: files.update({"runs/0/../../config.json": b"{}"}), True, "which is none of a run's files",
    ),
    "an absolute path": (lambda files: files.update({"/etc/passwd": b"x"}), True, "'/etc/passwd', which is none"),
    "a path of Windows": (lambda files: files.update({"runs\\0\\config.json": b"x"}), True, "which is none"),
    "a folder": (lambda files: files.update({"runs/0/weights/": b""}), True, "which is none of a run's files"),
    "a config of another version": (config_of_another_version, True, "of another version of Zeus"),
    "a config that is none": (
        lambda files: files.update({"runs/0/config.json": b"{"}), True, "of another version of Zeus",
    ),
    "a config of another model": (other_classes, True, "does not fit the run's config.json"),
    "no config": (lambda files: files.pop("runs/0/config.json") and None, True, "has no run in it, or one without its"),
    "no weights": (lambda files: files.pop("runs/0/weights/last.safetensors") and None, True, "last.safetensors does not"),
    "a file that is not listed": (lambda files: files.update({"runs/1/config.json": b"{}"}), False, "other files than its"),
    "a listed file that is not there": (lambda files: files.pop("card.json") and None, False, "other files than its"),
    "a byte that is another": (
        lambda files: files.update({"card.json": files["card.json"].replace(b"toy", b"toe")}), False, "digest differs",
    ),
    "another size": (lambda files: files.update({"card.json": files["card.json"] + b" "}), False, "a size differs"),
    "compressed weights": (lambda files: None, False, "compressed, which no export does"),
    "no manifest": (lambda files: files.update({"manifest.json": b""}), False, "manifest.json"),
    "a manifest that is a list": (lambda files: files.update({"manifest.json": b"[1]"}), False, "manifest.json is damaged"),
    "another format": (
        lambda files: files.update({"manifest.json": b'{"format": 2, "files": {}}'}),
        False,
        "is of another version of Zeus: format 2, this one reads 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_no_export_writes_is_one_line_and_nothing_is_written(archive: Path, tmp_path: Path, what: str) -> None:
    change, honest, expected = BAD[what]
    bad = rewritten(archive, tmp_path / "bad.zeus.zip", change, honest=honest)
    if what == "compressed weights":
        with zipfile.ZipFile(archive) as opened, zipfile.ZipFile(bad, "w", compresslevel=1) as written:
            for name in opened.namelist():
                method = zipfile.ZIP_DEFLATED if name.endswith("last.safetensors") else zipfile.ZIP_STORED
                written.writestr(name, opened.read(name), method)
    done = run(zeus, "import", bad, "--out", tmp_path / "runs" / "bad")
    assert done.exit_code == 2, done.output
    assert expected in said(done) and done.output.count("error:") == 1 and done.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zeus.zip"]
    assert not Path("/tmp/zeus-was-here").exists()


def test_links_bombs_doubles_and_strangers_are_refused_before_anything_is_unpacked(small: Path, tmp_path: Path) -> None:
    def with_entry(name: str, content: bytes, **facts: int) -> Path:
        path = tmp_path / "bad.zeus.zip"
        shutil.copy(small, path)
        path.chmod(0o644)
        with zipfile.ZipFile(path, "a") as opened:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = facts.pop("compress_type", zipfile.ZIP_DEFLATED)
            for fact, value in facts.items():
                setattr(entry, fact, value)
            opened.writestr(entry, content)
        return path

    link = with_entry("MODEL_CARD.md", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16)
    with pytest.raises(UserError, match=r"'MODEL_CARD\.md', which is none"):
        unpack(link, tmp_path)
    with pytest.raises(UserError, match="of 17 MB"):
        unpack(with_entry("MODEL_CARD.md", bytes(17_000_000)), tmp_path)
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"holds card\.json twice"):
        unpack(with_entry("card.json", b"{}"), tmp_path)
    with pytest.raises(UserError, match="a compression of its own"):
        unpack(with_entry("MODEL_CARD.md", b"x", compress_type=zipfile.ZIP_LZMA), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zeus.zip"]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_file_with_damage_anywhere_is_never_taken_for_another(
    data: st.DataObject, small: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Flipped, cut off or overwritten: it is refused in one line, or what comes out is what went in."""
    content = bytearray(small.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "overwrite"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[at:]
    else:
        noise = random.Random(at).randbytes(data.draw(st.integers(1, 64)))
        content[at : at + len(noise)] = noise
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "damaged.zeus.zip"
    path.write_bytes(bytes(content))
    (folder / "out").mkdir()
    (folder / "sound").mkdir()
    try:
        unpack(path, folder / "out")
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return
    unpack(small, folder / "sound")
    for file in (folder / "sound").rglob("*.*"):
        assert (folder / "out" / file.relative_to(folder / "sound")).read_bytes() == file.read_bytes()


PARTS = ("architecture", "inputs", "split", "recipe")  # whose fields may have defaults
KINDS: tuple[Any, ...] = (None, True, -1, 2.5, "", "x", [], [1], {}, {"x": []})


def write_over(data: st.DataObject, values: dict[str, Any]) -> None:
    """One part of a description becomes another value, or goes."""
    while True:
        key = data.draw(st.sampled_from(sorted(values)))
        if not isinstance(values[key], dict) or not values[key] or data.draw(st.booleans()):
            break
        values = values[key]
    if data.draw(st.booleans()):
        values[key] = data.draw(st.sampled_from(KINDS))
    else:
        del values[key]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_description_is_read_as_it_was_written_or_the_part_that_differs_is_named(
    data: st.DataObject, cohort: Cohort
) -> None:
    values = json.loads((cohort.runs[0] / "config.json").read_text())
    write_over(data, values)
    try:
        config = RunConfig.from_json(values)
    except TypeError as error:
        assert str(error)
    else:
        again = json.loads(json.dumps(config.to_json()))
        assert again == {**values, "extended": values.get("extended", []), **{k: again[k] for k in PARTS}}


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_description_that_was_written_over_is_never_a_traceback(
    data: st.DataObject, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any part of it is of another kind, or gone: the run is imported as if nothing were, or it is one line."""
    folder = tmp_path_factory.mktemp("written-over")

    def change(files: dict[str, bytes]) -> None:
        values = json.loads(files["runs/0/config.json"])
        write_over(data, values)
        files["runs/0/config.json"] = json.dumps(values).encode()

    path = rewritten(archive, folder / "toy.zeus.zip", change)
    try:
        import_runs(path, folder / "toy")
    except UserError as error:
        assert "\n" not in str(error)
        assert [file.name for file in folder.iterdir()] == ["toy.zeus.zip"]


def test_a_run_comes_whole_under_its_name_or_not_at_all(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(importing, "load_trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_runs(archive)
    assert not list(tmp_path.iterdir())
    done = run(zeus, "import", archive)
    assert done.exit_code == 0 and said(done).startswith("1 run in runs/toy. Next: zeus segment")
    names = {path.name for path in (tmp_path / "runs" / "toy").iterdir()}
    assert names >= {"config.json", "weights", "card.json", "MODEL_CARD.md", "profile.json"} and "runs" not in names
    again = run(zeus, "import", archive)
    assert again.exit_code == 2 and "runs/toy exists; give another --out, or remove it" in said(again)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["toy"]


def test_an_ensemble_is_a_folder_of_runs_that_stands_for_all_of_them(cohort: Cohort, tmp_path: Path) -> None:
    export_runs(cohort.runs, tmp_path / "both.zeus.zip")
    runs = import_runs(tmp_path / "both.zeus.zip", tmp_path / "both")
    assert [path.relative_to(tmp_path).as_posix() for path in runs] == ["both/run0", "both/run1"]  # of no fold
    with opened_runs([tmp_path / "both"]) as opened:
        assert opened == runs
    assert [load_config(path).seed for path in runs] == [0, 1]


def test_a_run_option_that_is_no_run_says_so_in_one_line(tmp_path: Path, cohort: Cohort, archive: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    cases = {
        tmp_path / "text.txt": "is damaged or no .zeus.zip file",
        tmp_path / "nowhere.zeus.zip": "is not a run folder",
        tmp_path: "is not a run folder",
    }
    for path, expected in cases.items():
        done = run(zeus_segment, "predict", "--run", path, "--cache", cohort.other, "--out", tmp_path / "masks")
        assert done.exit_code == 2 and expected in said(done), done.output
    done = run(zeus, "import", tmp_path / "nowhere.zeus.zip")
    assert done.exit_code == 2 and "nowhere.zeus.zip does not exist" in said(done)
    assert not (tmp_path / "masks").exists()
