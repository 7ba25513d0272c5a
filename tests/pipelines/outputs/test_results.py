"""A study's folder is whole under its name or not there, and has everything that was said of it."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.pipelines.outputs.studies import SHAPE, abdomen, dicom_series, of_series, random_mask, turned
from zeus_union.cache.errors import UserError
from zeus_union.cache.instructions import Instruction
from zeus_union.pipelines.outputs import results
from zeus_union.pipelines.outputs.results import write_results
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage2_segment.label_names import read_label_table

ALWAYS = [
    "instructions.json",
    "labels.ctbl",
    "labels.txt",
    "made_by.json",
    "mask.nii.gz",
    "statistics.csv",
    "statistics.json",
]


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    results._say_once.cache_clear()


def dicom_study(folder: Path, **fields: Any) -> Segmentation:
    series = dicom_series(folder / "source", turned("oblique"))
    return of_series(series, random_mask(SHAPE, 2), ("liver", "Couinaud VIII"), **fields)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_nifti_study_has_everything_but_a_dicom_mask(tmp_path: Path) -> None:
    written = write_results(abdomen(), tmp_path / "out" / "patient 7")
    assert [path.name for path in written] == sorted([*ALWAYS, "preview.png"])
    assert names(tmp_path / "out") == ["patient 7"]
    mask = nibabel.load(tmp_path / "out" / "patient 7" / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), abdomen().mask)
    np.testing.assert_array_equal(mask.affine, abdomen().grid.affine)
    assert read_label_table(mask) == {1: "liver", 2: "spleen", 3: "left kidney"}
    assert json.loads((tmp_path / "out" / "patient 7" / "instructions.json").read_text()) == []


def test_a_dicom_study_has_a_dicom_mask_and_private_codes_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    study = dicom_study(tmp_path)
    for number in range(2):
        written = write_results(study, tmp_path / "out" / str(number), preview=False)
    assert [path.name for path in written] == sorted([*ALWAYS, "mask.dcm"])
    said = capsys.readouterr().err
    assert said.count("Couinaud VIII: no SNOMED CT code is known for this name") == 1 and "liver" not in said


def test_without_highdicom_the_extra_is_named_and_all_else_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    write_results(dicom_study(tmp_path), tmp_path / "out", preview=False)
    assert names(tmp_path / "out") == ALWAYS
    assert "pip install 'zeus-union[dicom]'" in capsys.readouterr().err


def test_a_source_that_no_dicom_mask_can_refer_to_is_said_and_all_else_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    study = dicom_study(tmp_path)
    assert study.series is not None
    for frame in study.series.frames:
        del frame.header.FrameOfReferenceUID
    write_results(study, tmp_path / "out", preview=False)
    assert names(tmp_path / "out") == ALWAYS
    said = capsys.readouterr().err
    assert "study: mask.dcm is not written: " in said and "has no FrameOfReferenceUID of digits" in said


def test_probabilities_and_disagreement_lie_beside_the_mask(tmp_path: Path) -> None:
    study = abdomen()
    stored = np.full(study.mask.shape, 1 << 14, np.uint16)
    fractions = np.full(study.mask.shape, 0.25, np.float32)
    maps = {"liver": stored, "left kidney": stored}
    write_results(replace(study, probabilities=maps, disagreement=fractions), tmp_path / "out", preview=False)
    extra = ["disagreement.nii.gz", "left-kidney.prob.nii.gz", "liver.prob.nii.gz"]
    assert names(tmp_path / "out") == sorted([*ALWAYS, *extra])
    assert np.unique(nibabel.load(tmp_path / "out" / "liver.prob.nii.gz").get_fdata()) == 0.5
    assert np.unique(nibabel.load(tmp_path / "out" / "disagreement.nii.gz").get_fdata()) == 0.25


def test_what_was_said_is_kept_with_slice_modality_and_class(tmp_path: Path) -> None:
    def said(number: int, modality: str) -> Instruction:
        return Instruction(number, modality, f"What of {modality}?", "Größe \u2028 {x}", 5, 7, "marker", None)

    texts = {
        "lite.left-kidney@fold0": (said(0, "T1"), said(0, "T2"), said(3, "T1")),
        "v1.2": (said(1, "T1"),),
        "lite": (said(2, "T2"),),
    }
    write_results(abdomen(instructions=texts), tmp_path / "out", preview=False)
    content = json.loads((tmp_path / "out" / "instructions.json").read_text(encoding="utf-8"))
    assert [(row["slice"], row["modality"], row["class"]) for row in content] == [
        (0, "T1", "left kidney"),
        (0, "T2", "left kidney"),
        (3, "T1", "left kidney"),
        (1, "T1", None),
        (2, "T2", None),
    ]
    first = content[0]
    assert (first["prompt"], first["text"], first["stop_reason"]) == ("What of T1?", "Größe \u2028 {x}", "marker")
    assert (first["variant"], first["output_tokens"], first["seed"]) == ("lite.left-kidney@fold0", 7, None)


# Whole or not there.


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out exists already; give --overwrite"):
        write_results(abdomen(), folder)
    assert names(folder) == ["notes.txt"] and names(tmp_path) == ["out"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is not a folder"):
        write_results(abdomen(), tmp_path / "file", replace=True)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="is not a folder"):
        write_results(abdomen(), tmp_path / "link", replace=True)
    assert (tmp_path / "file").read_text() == "mine" and names(folder) == ["notes.txt"]


def test_only_results_are_replaced(tmp_path: Path) -> None:
    """Else --overwrite with --out set to the folder of the studies would take the images away."""
    folder = tmp_path / "patient 7"
    folder.mkdir()
    for name in ("FLAIR.nii.gz", "mask.nii.gz"):
        (folder / name).write_text("mine")
    with pytest.raises(UserError, match=r"patient 7 also holds FLAIR.nii.gz, which zeus did not write"):
        write_results(abdomen(), folder, replace=True)
    assert names(tmp_path) == ["patient 7"] and (folder / "mask.nii.gz").read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_results(abdomen(), tmp_path / "out", preview=False)
    assert names(tmp_path / "out") == ALWAYS


def test_a_replaced_folder_has_nothing_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "liver.prob.nii.gz").write_text("old")
    write_results(abdomen(), tmp_path / "out", preview=False, replace=True)
    assert names(tmp_path / "out") == ALWAYS and names(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_cleared_away_and_what_it_took_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("half")
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "mask.dcm").write_text("of before")
    with pytest.raises(UserError, match="exists already"):
        write_results(abdomen(), tmp_path / "out")
    assert (tmp_path / "out" / "mask.dcm").read_text() == "of before"
    write_results(abdomen(), tmp_path / "out", preview=False, replace=True)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ALWAYS


class DiskFull:
    """Refuses to open any file below `inside` for writing after the first `allowed` ones, as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, inside: Path, allowed: int) -> None:
        self.opened, self.allowed, self.inside = 0, allowed, str(inside)
        self._open = builtins.open
        monkeypatch.setattr(builtins, "open", self.open)
        monkeypatch.setattr(io, "open", self.open)

    def open(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+") and not isinstance(path, int) and os.fspath(path).startswith(self.inside):
            self.opened += 1
            if self.opened > self.allowed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        return self._open(path, mode, *arguments, **options)


@pytest.mark.parametrize("there_before", [False, True])
def test_a_disk_that_fills_up_at_any_file_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
) -> None:
    study = dicom_study(tmp_path)
    out = tmp_path / "out"
    if there_before:
        out.mkdir()
        (out / "preview.png").write_text("of before")
    for allowed in range(len(ALWAYS) + 1):
        with monkeypatch.context() as patch:
            DiskFull(patch, tmp_path / ".out.partial", allowed)
            with pytest.raises(OSError, match="No space left"):
                write_results(study, out, replace=there_before)
        assert names(tmp_path) == (["out", "source"] if there_before else ["source"])
        assert not there_before or names(out) == ["preview.png"]
    write_results(study, out, preview=False, replace=there_before)
    assert names(tmp_path) == ["out", "source"] and "preview.png" not in names(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_permission_nothing_is_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            write_results(abdomen(), tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
    assert names(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "draw_preview", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_results(abdomen(), tmp_path / "out")
    assert names(tmp_path) == []


def test_every_file_is_durable_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "nt":
        pytest.skip("folders have no fsync there")
    synced: list[str] = []
    sync, rename = os.fsync, os.rename

    def keep(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        if Path(target).name == "out":
            assert {*ALWAYS, "preview.png", ".out.partial"} <= set(synced)
        rename(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors have no names here")
    monkeypatch.setattr(os, "fsync", keep)
    monkeypatch.setattr(os, "rename", renamed)
    write_results(abdomen(), tmp_path / "out")
    assert synced[-1] == tmp_path.name


def test_no_file_names_the_folder_it_was_made_in(tmp_path: Path) -> None:
    written = write_results(dicom_study(tmp_path), tmp_path / "out")
    assert not [path for path in written if str(tmp_path).encode() in path.read_bytes()]
