"""A folder above a data set or inside it stands for it, and that is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset

LAYOUTS = ["nnunet", "msd", "chaos"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("between", ["", "raw"])
def test_a_folder_above_the_only_data_set_stands_for_it(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, between: str
) -> None:
    folder = tmp_path / between / "Dataset007_Liver"
    shutil.copytree(phantoms / layout, folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "list.txt").write_text("what is here")
    above = open_dataset(layout, tmp_path)
    assert f"the data set is {folder}, in the given {tmp_path}" in said(capsys)
    exact = open_dataset(layout, folder)
    assert said(capsys) == ""
    assert above.card == exact.card and above.load(above.card.subjects[0]).sources.keys() == (
        exact.load(exact.card.subjects[0]).sources.keys()
    )


@pytest.mark.parametrize(("layout", "part"), [("nnunet", "imagesTr"), ("nnunet", "labelsTr"), ("msd", "imagesTr")])
def test_a_folder_inside_a_data_set_stands_for_it(
    phantoms: Path, capsys: pytest.CaptureFixture[str], layout: str, part: str
) -> None:
    inside = open_dataset(layout, phantoms / layout / part)
    assert "is part of the data set" in said(capsys)
    assert inside.card == open_dataset(layout, phantoms / layout).card


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_data_sets_are_listed_in_one_line(phantoms: Path, tmp_path: Path, layout: str) -> None:
    for name in ("Dataset001_A", "Dataset002_B"):
        shutil.copytree(phantoms / layout, tmp_path / name)
    with pytest.raises(UserError, match="2 data sets: Dataset001_A, Dataset002_B; give the folder of one") as raised:
        open_dataset(layout, tmp_path)
    assert "\n" not in str(raised.value)


def test_the_papers_task_is_taken_from_among_several(phantoms: Path, tmp_path: Path) -> None:
    for name in ("Task01_BrainTumour", "task05_prostate"):
        (tmp_path / name).mkdir()
        shutil.copy(phantoms / "msd" / "dataset.json", tmp_path / name)
    with pytest.raises(UserError, match=r"Task01_BrainTumour.dataset.json is .*; msd-brain is Task01_BrainTumour"):
        open_dataset("msd-brain", tmp_path)
    with pytest.raises(UserError, match=r"task05_prostate.dataset.json is .*; msd-prostate is Task05_Prostate"):
        open_dataset("msd-prostate", tmp_path)


def test_a_folder_without_any_is_what_its_user_called_it(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path} holds no dataset.json"):
        open_dataset("nnunet", tmp_path)


def test_splits_are_those_of_the_data_set(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / "nnunet", tmp_path / "Dataset001_A")
    (tmp_path / "Dataset001_A" / "splits_final.json").write_text('[{"train": ["phantom_001"], "val": ["phantom_002"]}]')
    assert open_dataset("nnunet", tmp_path).folds == {"phantom_001": -1, "phantom_002": 0}
