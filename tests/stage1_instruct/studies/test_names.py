"""Any case name becomes a subject that a cache can hold; none is lost, whatever two cases are called."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.cases import Case, subjects_of
from zeus_union.stage1_instruct.studies.names import subject_names

names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=12)
alike = st.sampled_from(
    ["a b", "a-b", "a_b", "a(b", "a  b", "A b", "ä", "ae", "a\u0308", "ß", "ss", "病", "病例", "..", "."]
)
cases = st.lists(names | alike, min_size=1, max_size=12, unique_by=lambda name: unicodedata.normalize("NFC", name))


@settings(max_examples=150, deadline=None)
@given(cases)
def test_every_case_has_a_subject_of_its_own_that_a_cache_can_hold(listed):
    subjects = subject_names(listed)
    assert list(subjects) == listed
    DatasetCard(
        "any", ("T1",), {"T1": "MRI-T1"}, ("a",), "a", tuple(subjects.values())
    )  # raises where one is not allowed
    changed = [subject.casefold() for case, subject in subjects.items() if case != subject]
    assert len(set(changed)) == len(changed)


@settings(max_examples=100, deadline=None)
@given(cases, st.randoms())
def test_a_subjects_name_does_not_depend_on_the_order_of_the_cases(listed, random):
    shuffled = listed.copy()
    random.shuffle(shuffled)
    assert subject_names(listed) == subject_names(shuffled)


def test_names_that_a_cache_can_hold_stay_and_the_others_are_said(capsys: pytest.CaptureFixture[str]):
    assert subject_names(["BRATS_001", "BraTS-GLI-00001-000"]) == {
        "BRATS_001": "BRATS_001",
        "BraTS-GLI-00001-000": "BraTS-GLI-00001-000",
    }
    assert capsys.readouterr().err == ""
    assert subject_names(["Müller (links)"]) == {"Müller (links)": "Mueller-links"}
    assert "'Müller (links)' is Mueller-links" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["pat 1", "pat[2]", "Müller, Jürgen", "пациент"])
def test_a_case_of_any_name_is_read_and_its_sources_keep_the_name(nnunet: Path, case: str):
    for path in sorted(nnunet.rglob("phantom_001*.nii.gz")):
        path.rename(path.with_name(path.name.replace("phantom_001", case)))
    dataset = open_dataset("nnunet", nnunet)
    assert len(dataset.card.subjects) == 2
    (subject,) = set(dataset.card.subjects) - {"phantom_002"}
    study = dataset.load(subject)
    assert study.subject == subject and study.labels is not None
    assert set(study.sources) >= {f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"}


def test_a_test_case_of_a_training_cases_name_is_kept_and_said(nnunet: Path, capsys: pytest.CaptureFixture[str]):
    (nnunet / "imagesTs").mkdir()
    for path in (nnunet / "imagesTr").glob("phantom_001*"):
        (nnunet / "imagesTs" / path.name).write_bytes(path.read_bytes())
    dataset = open_dataset("nnunet", nnunet)
    assert dataset.card.subjects == ("phantom_001", "phantom_001-test", "phantom_002")
    assert dataset.load("phantom_001").labels is not None and dataset.load("phantom_001-test").labels is None
    assert all(name.startswith("imagesTs/phantom_001_") for name in dataset.load("phantom_001-test").sources)
    assert "phantom_001 is phantom_001-test" in capsys.readouterr().err


def test_a_test_case_of_a_training_cases_name_is_kept_in_msd(msd: Path):
    (msd / "imagesTs").mkdir()
    (msd / "imagesTs" / "phantom_001.nii.gz").write_bytes((msd / "imagesTr" / "phantom_001.nii.gz").read_bytes())
    path = msd / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "test": ["./imagesTs/phantom_001.nii.gz"]}))
    dataset = open_dataset("msd", msd)
    assert dataset.card.subjects == ("phantom_001", "phantom_001-test", "phantom_002")
    assert list(dataset.load("phantom_001-test").sources) == ["imagesTs/phantom_001.nii.gz"]


def test_no_case_is_lost_between_training_and_test_names():
    def listed(*names: str) -> list[Case]:
        return [Case(name, (), None) for name in names]

    subjects = subjects_of(listed("a", "a-test"), listed("a", "b", "a-test"), Path("x"))
    assert len(subjects) == 5 and {case.name for case in subjects.values()} == {"a", "a-test", "b"}
    subjects = subjects_of(listed("a"), listed("a", "a-test"), Path("x"))
    assert sorted(subjects) == ["a", "a-test", "a-test-test"]
    for training, test in ((("a", "a"), ()), ((), ("a", "a"))):
        with pytest.raises(UserError, match=r"two (training|test) cases a"):
            subjects_of(listed(*training), listed(*test), Path("x"))
