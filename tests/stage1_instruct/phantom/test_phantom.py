"""The phantom: contrasts of MR physics, different patients, the same bytes for the same seed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.phantom import anatomy as phantom
from zeus_union.stage1_instruct.phantom import write
from zeus_union.stage1_instruct.phantom.write import write_demo


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("layout", ["chaos", "msd", "nnunet"])
def test_the_same_seed_gives_the_same_bytes_another_seed_others(layout: str, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo(layout, tmp_path / name, subjects=1, seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys() and a != c


def test_fat_is_bright_in_t1_dark_in_fat_suppressed_t2_and_marrow_vanishes_out_of_phase():
    in_phase, out_of_phase, t2 = (phantom.contrast(modality) for modality in phantom.MODALITIES)
    assert in_phase[phantom.FAT] > 1.5 * in_phase[phantom.LIVER]
    assert t2[phantom.FAT] < 0.5 * t2[phantom.LIVER]
    # (1 - exp(-1900/3500)) * exp(-70/1200): the longest T2, but half of it has not recovered at this TR.
    assert t2[phantom.CANAL] == pytest.approx(0.395, abs=1e-3)
    # Half fat, half water: the signals cancel where they point against one another.
    assert out_of_phase[phantom.VERTEBRA] < 0.2 * in_phase[phantom.VERTEBRA]


def test_every_patient_has_all_organs_in_their_places_and_of_another_size(phantoms: Path):
    dataset = open_dataset("chaos", phantoms / "chaos")
    volumes = []
    for subject in dataset.card.subjects:
        study = dataset.load(subject)
        labels = study.grid.to_slices(study.labels)  # slices, posterior, left
        places = {k: np.argwhere(labels == k).mean(axis=0) for k in (1, 2, 3, 4)}
        assert places[1][2] < 64 < places[4][2]  # liver on the patient's right: on the left of the picture
        assert places[2][2] < 64 < places[3][2]
        assert places[2][1] > places[1][1]  # kidneys behind the liver
        volumes.append([int((labels == k).sum()) for k in (1, 2, 3, 4)])
    assert all(one != other for one, other in zip(*volumes))


def test_the_files_are_dicom_that_other_readers_can_order(phantoms: Path):
    files = sorted((phantoms / "chaos").rglob("*.dcm"))
    headers = [pydicom.dcmread(path) for path in files]
    assert len({header.SOPInstanceUID for header in headers}) == len(files)
    for header in headers:
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        assert header.file_meta.TransferSyntaxUID.is_little_endian
        assert header.pixel_array.shape == (header.Rows, header.Columns)
    assert {float(header.EchoTime) for header in headers} == {2.3, 4.6, 70.0}


def test_a_phantom_is_never_written_over_something_else(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        write_demo("chaos", tmp_path / "file")
    write_demo("nnunet", tmp_path / "there", subjects=1)
    (tmp_path / "there" / "phantom.json").write_text("{")
    with pytest.raises(UserError, match=r"phantom.json is damaged"):
        write_demo("nnunet", tmp_path / "there", subjects=1)


def test_an_interrupted_phantom_leaves_nothing_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(phantom, "acquire", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_demo("chaos", tmp_path / "demo", subjects=1)
    assert list(tmp_path.iterdir()) == []


OPEN_DEMO = """
import sys
from pathlib import Path
from zeus_union.stage1_instruct.datasets import open_dataset

sys.stdin.readline()  # both begin at once
print(len(open_dataset("demo", Path(sys.argv[1])).card.subjects))
"""


def test_two_processes_that_want_the_demo_at_once_both_have_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN_DEMO, str(tmp_path / "demo")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[3]}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.communicate("\n", timeout=300)[0] for process in processes] == ["6\n", "6\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_phantom_that_another_process_wrote_meanwhile_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chaos = write.WRITERS["chaos"]

    def overtaken(out: Path, subjects: int, seed: int) -> None:
        write_chaos(out, subjects, seed)
        with monkeypatch.context() as patch:
            patch.setattr(write, "WRITERS", {"chaos": write_chaos})
            write.write_demo("chaos", tmp_path / "demo", subjects=1)

    monkeypatch.setattr(write, "WRITERS", {"chaos": overtaken})
    write.write_demo("chaos", tmp_path / "demo", subjects=1)
    assert write.is_demo(tmp_path / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
