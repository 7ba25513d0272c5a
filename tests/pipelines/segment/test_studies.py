"""Many studies in one call: which there are, what is finished, and that one that fails stops no other."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from zeus_union.cache.errors import JobError, UserError
from zeus_union.cache.grid import Grid
from zeus_union.pipelines.segment.segmentation import MADE_BY, Segmentation
from zeus_union.pipelines.segment.studies import FAILURES, StudySource, find_studies, segment_studies
from zeus_union.stage1_instruct.building.parts import Share

CHANNELS = {"FLAIR": 0, "T1Gd": 1}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_dicom(path: Path, study: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = study
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def names(*paths: Path) -> list[tuple[str, Path]]:
    return [(source.name, source.path) for source in find_studies(paths, CHANNELS)]


def test_a_folder_with_volumes_is_a_study_and_a_folder_of_such_is_all_of_them(tmp_path: Path) -> None:
    touch(*(tmp_path / "all" / name / "FLAIR.nii.gz" for name in ("b", "a")), tmp_path / "all" / "c.zip")
    touch(tmp_path / "all" / "readme.txt", tmp_path / "all" / ".hidden" / "FLAIR.nii.gz")
    every = [("a", tmp_path / "all" / "a"), ("b", tmp_path / "all" / "b"), ("c", tmp_path / "all" / "c.zip")]
    assert names(tmp_path / "all") == every
    assert names(tmp_path / "all" / "a") == every[:1]
    assert names(tmp_path / "all" / "b", tmp_path / "all" / "c.zip") == every[1:]


def test_volumes_numbered_as_nnunets_are_a_study_a_case(tmp_path: Path) -> None:
    touch(*(tmp_path / "imagesTs" / f"{case}_{channel:04d}.nii.gz" for case in ("p_1", "p_2") for channel in range(3)))
    assert find_studies([tmp_path / "imagesTs"], CHANNELS) == [
        StudySource(case, tmp_path / "imagesTs", {"FLAIR": f"{case}_0000.nii.gz", "T1Gd": f"{case}_0001.nii.gz"})
        for case in ("p_1", "p_2")
    ]
    touch(tmp_path / "one" / "p_1_0000.nii.gz", tmp_path / "one" / "p_1_0001.nii.gz")
    assert find_studies([tmp_path / "one"], CHANNELS) == [StudySource("one", tmp_path / "one")]
    touch(tmp_path / "imagesTs" / "T1Gd.nii.gz")  # no longer numbered: whose it is has to be said
    assert names(tmp_path / "imagesTs") == [("imagesTs", tmp_path / "imagesTs")]


def test_a_folder_a_series_is_one_study_and_a_folder_a_patient_is_several(tmp_path: Path) -> None:
    first, second = generate_uid(), generate_uid()
    for folder in ("t2", "adc"):
        write_dicom(tmp_path / "export" / folder / "0001", first)
    assert names(tmp_path / "export") == [("export", tmp_path / "export")]
    write_dicom(tmp_path / "export" / "other" / "deep" / "0001", second)
    assert [name for name, _ in names(tmp_path / "export")] == ["adc", "other", "t2"]
    write_dicom(tmp_path / "flat" / "IM0", first)
    (tmp_path / "flat" / "more").mkdir()
    assert names(tmp_path / "flat") == [("flat", tmp_path / "flat")]


def test_studies_that_are_not_there_or_called_alike_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not there; give a folder, a zip or a volume"):
        find_studies([tmp_path / "nowhere"], CHANNELS)
    touch(tmp_path / "x" / "p" / "FLAIR.nii.gz", tmp_path / "y" / "p" / "FLAIR.nii.gz")
    with pytest.raises(UserError, match=r"two studies are called p .*rename one"):
        find_studies([tmp_path / "x", tmp_path / "y"], CHANNELS)
    touch(tmp_path / "Müller 1" / "FLAIR.nii.gz")
    assert [name for name, _ in names(tmp_path / "Müller 1")] == ["Mueller-1"]


class Stub:
    """Segments whatever is called 'good...'; of what is called otherwise it raises what it was given."""

    def __init__(self, weights: str = "abc", errors: dict[str, BaseException] | None = None) -> None:
        self.weights, self.errors = weights, errors or {}
        self.segmented: list[tuple[str, dict[str, str]]] = []

    def made_by(self, slice_step: int) -> dict[str, Any]:
        member = {"run": "somewhere", "weights_sha256": self.weights}
        return {"members": [member], "postprocessing": {"steps": {}}, "slice_step": slice_step}

    def segment(self, path: Path, *, name: str, modalities: dict[str, str], slice_step: int = 1) -> Segmentation:
        if name in self.errors:
            raise self.errors[name]
        self.segmented.append((name, modalities))
        mask, grid = np.zeros((2, 2, 2), np.uint8), Grid((2, 2, 2), np.eye(4))
        return Segmentation(name, ("tumour",), mask, grid, {}, made_by=self.made_by(slice_step))


def write(segmentation: Segmentation, folder: Path, replace: bool) -> None:
    folder.mkdir(parents=True, exist_ok=replace)
    (folder / MADE_BY).write_text(json.dumps(segmentation.made_by))


def sources(*names: str) -> list[StudySource]:
    return [StudySource(name, Path("in") / name, {"FLAIR": f"{name}_0000.nii.gz"}) for name in names]


def take(stub: Stub, out: Path, studies: list[StudySource], **how: Any) -> dict[str, str]:
    return segment_studies(stub, studies, out, write, modalities={"T1Gd": "x.nii"}, **how)  # type: ignore[arg-type]


def test_a_study_that_fails_is_listed_and_the_next_call_takes_up_only_it(tmp_path: Path) -> None:
    broken = {"b": UserError("b has no, comma\nFLAIR"), "c": ValueError("odd tag")}
    stub = Stub(errors=broken)
    assert take(stub, tmp_path, sources("a", "b", "c", "d")) == {
        "b": "b has no, comma\nFLAIR",
        "c": "ValueError: odd tag",
    }
    assert stub.segmented == [(name, {"FLAIR": f"{name}_0000.nii.gz", "T1Gd": "x.nii"}) for name in ("a", "d")]
    with (tmp_path / FAILURES).open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["study", "path", "error"],
            ["b", "in/b", "b has no, comma\nFLAIR"],
            ["c", "in/c", "ValueError: odd tag"],
        ]
    mended = Stub()
    assert take(mended, tmp_path, sources("a", "b", "c", "d")) == {}
    assert [name for name, _ in mended.segmented] == ["b", "c"]
    assert not (tmp_path / FAILURES).exists()


def test_a_single_study_fails_by_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no FLAIR"):
        take(Stub(errors={"a": UserError("no FLAIR")}), tmp_path, sources("a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [JobError("disk full"), KeyboardInterrupt()])
def test_what_the_next_study_would_meet_too_stops_all(tmp_path: Path, error: BaseException) -> None:
    stub = Stub(errors={"b": error})
    with pytest.raises(type(error)):
        take(stub, tmp_path, sources("a", "b", "c"))
    assert [name for name, _ in stub.segmented] == ["a"] and (tmp_path / "a").is_dir()


def test_results_of_another_run_or_of_something_else_are_never_taken_for_finished(tmp_path: Path) -> None:
    take(Stub(), tmp_path, sources("a"))
    for stub, how in ((Stub("def"), {}), (Stub(), {"slice_step": 2})):
        with pytest.raises(UserError, match=r"made by another run or with other options.*--overwrite"):
            take(stub, tmp_path, sources("a", "b"), **how)
        assert stub.segmented == []
    other = Stub("def")
    take(other, tmp_path, sources("a", "b"), overwrite=True)
    assert [name for name, _ in other.segmented] == ["a", "b"]
    assert json.loads((tmp_path / "a" / MADE_BY).read_text())["members"][0]["weights_sha256"] == "def"
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=r"c is there and has no made_by\.json"):
        take(Stub("def"), tmp_path, sources("c"))
    (tmp_path / "a" / MADE_BY).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        take(Stub("def"), tmp_path, sources("a"))


def test_the_parts_are_all_studies_each_once(tmp_path: Path) -> None:
    studies, taken = sources(*"abcde"), []
    for number in (1, 2, 3):
        stub = Stub(errors={"b": UserError("no")})
        take(stub, tmp_path, studies, part=Share(number, 3))
        taken += [name for name, _ in stub.segmented]
    assert sorted(taken) == ["a", "c", "d", "e"]
    assert [path.name for path in tmp_path.glob("failures*")] == ["failures-2-of-3.csv"]


def test_what_another_process_has_in_work_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hold = "import sys; from pathlib import Path; from zeus_union.cache.locks import acquire\n"
    hold += "assert acquire(Path(sys.argv[1]), False, False); print('held', flush=True); sys.stdin.read()"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / ".b.lock")], **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        stub = Stub()
        assert take(stub, tmp_path, sources("a", "b", "c")) == {}
        assert [name for name, _ in stub.segmented] == ["a", "c"]
        assert "another process is segmenting b" in capsys.readouterr().err
        other.communicate()
    take(stub, tmp_path, sources("a", "b", "c"))
    assert [name for name, _ in stub.segmented] == ["a", "c", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
