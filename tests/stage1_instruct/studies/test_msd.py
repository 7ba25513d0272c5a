"""Each of the Decathlon's tasks is itself; none is taken for another."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.msd import PAPER_TASKS, tasks


def write_task(root: Path, modalities: list[str], labels: list[str]) -> Path:
    """One training case of a task, every label in a voxel of its own."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    image = np.random.default_rng(0).uniform(1, 9, (8, 8, 4, len(modalities))).astype(np.float32)
    label = np.zeros((8, 8, 4), np.uint8)
    label[0, 0, : len(labels)] = range(1, len(labels) + 1)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), root / "imagesTr" / "case_1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / "labelsTr" / "case_1.nii.gz")
    values = {
        "name": root.name,
        "modality": {str(number): name for number, name in enumerate(modalities)},
        "labels": {str(number): name for number, name in enumerate(["background", *labels])},
        "training": [{"image": "./imagesTr/case_1.nii.gz", "label": "./labelsTr/case_1.nii.gz"}],
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(values))
    return root


@pytest.mark.parametrize("name", tasks())
def test_every_task_is_read_with_names_of_its_own(tmp_path: Path, name: str):
    task = tasks()[name]
    dataset = open_dataset("msd", write_task(tmp_path / name, list(task.modalities), list(task.labels)))
    assert dataset.card.classes == task.classes and dataset.card.instance == task.instance
    terms = set(dataset.card.terms.values())
    assert terms == {"CT"} if "CT" in task.modalities else all(term.startswith("MRI") for term in terms)
    study = dataset.load("case_1")
    assert study.labels.max() == len(task.classes) and list(study.images) == list(task.modalities)


@pytest.mark.parametrize("paper", PAPER_TASKS)
@pytest.mark.parametrize("name", tasks())
def test_the_papers_tasks_refuse_every_other(tmp_path: Path, paper: str, name: str):
    task = tasks()[name]
    root = write_task(tmp_path / name, list(task.modalities), list(task.labels))
    if PAPER_TASKS[paper][0] == name:
        card = open_dataset(paper, root).card
        assert card.classes == (card.instance,) == (PAPER_TASKS[paper][1],)
        assert open_dataset(paper, root, labels="native").card.classes == task.labels
    else:
        with pytest.raises(UserError, match=rf"'{name}'.*{paper} is .*--dataset msd"):
            open_dataset(paper, root)


def test_the_real_brain_tumours_are_read_as_both(shared_data: Path):
    root = shared_data / "Task01_BrainTumour"
    assert open_dataset("msd-brain", root).card.terms["t1gd"] == "MRI-T1Gd"
    card = open_dataset("msd", root).card
    assert card.classes == ("edema", "non-enhancing tumour", "enhancing tumour") and card.instance == "brain tumour"


def test_a_data_set_of_ones_own_in_that_layout_keeps_its_names(tmp_path: Path):
    root = write_task(tmp_path / "mine", ["CT", "PET"], ["lymphoma"])
    card = open_dataset("msd", root).card
    assert (card.classes, card.instance, card.terms) == (("lymphoma",), "lymphoma", {"CT": "CT", "PET": "PET"})


def test_the_ignore_label_is_ignored_in_msd_too(tmp_path: Path):
    dataset = open_dataset("msd", write_task(tmp_path / "mine", ["CT"], ["liver", "ignore"]))
    assert dataset.card.classes == ("liver",) and sorted(np.unique(dataset.load("case_1").labels)) == [0, 1, 255]
