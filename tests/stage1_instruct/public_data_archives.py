"""The public data sets' archives in their real layout, small: phantoms, and tiny volumes with the Decathlon's dataset.json."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np

from zeus_union.stage1_instruct.studies.msd import tasks

TASKS = {"msd-prostate": "Task05_Prostate", "msd-brain": "Task01_BrainTumour"}


def zip_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def tar_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def chaos_zip(phantom: Path, split: str = "Train_Sets") -> bytes:
    """CHAOS_Train_Sets.zip, or that of the test set, which has no labels: MR beside CT, of which only MR is read.

    Args:
        phantom: a folder of `write_demo` in the layout 'chaos'.
    """
    mr = {f"{split}/{name}": content for name, content in files_in(phantom).items() if name.startswith("MR/")}
    if split == "Test_Sets":
        mr = {name.replace("/MR/", "/MR/9"): content for name, content in mr.items() if "/Ground/" not in name}
    ct = {
        f"{split}/CT/1/DICOM_anon/i0000.dcm": b"computed tomography",
        f"{split}/CT/1/Ground/liver_GT_000.png": b"picture",
    }
    return zip_of({f"{split}/": b"", **ct, **mr})


def msd_files(name: str, subjects: int = 2, tests: int = 1) -> dict[str, bytes]:
    """What the Decathlon's tar of a task holds, macOS's files among it; volumes of 8 x 8 x 4 voxels."""
    task = TASKS[name]
    facts = tasks()[task]
    random = np.random.default_rng(0)
    stem = "BRATS" if name == "msd-brain" else "prostate"
    files: dict[str, bytes] = {}
    for number in range(1, subjects + tests + 1):
        kind = "Tr" if number <= subjects else "Ts"
        image = random.integers(1, 1000, (8, 8, 4, len(facts.modalities))).astype(np.int16)
        files[f"{task}/images{kind}/{stem}_{number:03d}.nii.gz"] = _nifti(image)
        if kind == "Tr":
            labels = random.integers(0, len(facts.labels) + 1, (8, 8, 4)).astype(np.uint8)
            files[f"{task}/labelsTr/{stem}_{number:03d}.nii.gz"] = _nifti(labels)
    dataset_json = {
        "name": "BRATS" if name == "msd-brain" else "PROSTATE",
        "licence": "CC-BY-SA 4.0",
        "modality": {str(i): modality for i, modality in enumerate(facts.modalities)},
        "labels": {str(i): label for i, label in enumerate(("background", *facts.labels))},
        "training": [
            {"image": f"./imagesTr/{stem}_{n:03d}.nii.gz", "label": f"./labelsTr/{stem}_{n:03d}.nii.gz"}
            for n in range(1, subjects + 1)
        ],
        "test": [f"./imagesTs/{stem}_{n:03d}.nii.gz" for n in range(subjects + 1, subjects + tests + 1)],
    }
    files[f"{task}/dataset.json"] = json.dumps(dataset_json).encode()
    junk = {f"{Path(path).parent.as_posix()}/._{Path(path).name}": b"\0\5\26\7Mac OS X" for path in files}
    return {"._" + task: b"\0\5\26\7Mac OS X", **junk, **files}


def _nifti(volume: np.ndarray) -> bytes:  # type: ignore[type-arg]
    image = nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0]))
    import gzip

    return gzip.compress(image.to_bytes())
