"""A file is a modality's by clear rules, or nobody guesses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zeus_union.cache.errors import UserError
from zeus_union.pipelines.intake.file_names import find_modalities, parse_choices, read_name, words

BRAIN = {"FLAIR": 0, "T1w": 1, "T2w": 2}


def folder(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).touch()
    return path


def taken(study: Path, channels: dict[str, int], **how: object) -> dict[str, str]:
    return {name: path.name for name, path in find_modalities(study, tuple(channels), channels, **how).items()}


def test_files_are_found_by_name_or_by_number(tmp_path: Path):
    study = folder(
        tmp_path, "p_flair.nii.gz", "p_0001.nii", "T2w.txt", "mask.nii.gz", "FLAIR_seg.nii.gz", "._FLAIR.nii"
    )
    assert taken(study, BRAIN) == {"FLAIR": "p_flair.nii.gz", "T1w": "p_0001.nii"}
    with pytest.raises(UserError, match=r"no file of T2w \(it has .*\); call it T2w.nii.gz or PATIENT_0002.nii.gz"):
        taken(study, {"T2w": 2})
    folder(tmp_path, "T1w.nii.gz")
    with pytest.raises(UserError, match=r"several files of T1w: T1w\.nii\.gz, p_0001\.nii; choose one with --modality"):
        taken(study, BRAIN)
    assert taken(study, BRAIN, chosen={"T1w": Path("p_0001.nii")})["T1w"] == "p_0001.nii"
    with pytest.raises(UserError, match="is not a folder"):
        taken(tmp_path / "T1w.nii.gz", BRAIN)


def test_numbers_are_those_of_the_original_data_set(tmp_path: Path):
    """A run of T1Gd alone, channel 1 of its data set: 0000 is FLAIR."""
    study = folder(tmp_path, "pat_0000.nii.gz", "pat_0001.nii.gz")
    assert taken(study, {"T1Gd": 1}) == {"T1Gd": "pat_0001.nii.gz"}


def test_the_longest_name_is_meant_and_no_file_serves_two(tmp_path: Path):
    assert taken(folder(tmp_path, "p_ce_T1.nii.gz"), {"T1": 0, "ce_T1": 1}) == {"ce_T1": "p_ce_T1.nii.gz"}
    assert taken(folder(tmp_path, "p_T1.nii"), {"T1": 0, "ce_T1": 1}) == {"T1": "p_T1.nii", "ce_T1": "p_ce_T1.nii.gz"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("FLAIR_to_T1Gd", "flair, to"),
        ("x_to_T1Gd", "to"),
        ("seg-T1Gd", "seg"),
        ("ce_T1Gd", "ce"),
        ("PET.T1Gd", "pet"),
        ("FLAIR_0001", "flair"),
    ],
)
def test_a_name_that_says_more_is_refused_with_what_it_says(tmp_path: Path, name: str, says: str):
    study = folder(tmp_path, f"{name}.nii.gz")
    with pytest.raises(
        UserError, match=f"{name}.nii.gz could be T1Gd, but its name also contains {says}; .* --modality T1Gd=FILE"
    ):
        taken(study, {"T1Gd": 1})
    assert taken(study, {"T1Gd": 1}, chosen={"T1Gd": Path(f"{name}.nii.gz")}) == {"T1Gd": f"{name}.nii.gz"}


def test_usual_names_are_read_without_a_doubt():
    chaos = {"T1-DUAL-in": 0, "T1-DUAL-out": 1, "T2-SPIR": 2}
    for stem, modality, channels in [
        ("BraTS-GLI-00001-000-t1c", "t1c", {"t1n": 0, "t1c": 1}),
        ("sub-01_ses-1_T1w", "T1w", BRAIN),
        ("scan_T1-DUAL-in", "T1-DUAL-in", chaos),
        ("t2_flair", "FLAIR", BRAIN),
        ("Müller (2)_T2w", "T2w", BRAIN),
        ("ct_liver_03_0000", "CT", {"CT": 0}),
        ("p_T1w_0001", "T1w", BRAIN),
    ]:
        reading = read_name(stem, tuple(channels), channels)
        assert reading is not None and (reading.modality, reading.doubts) == (modality, ()), stem


def test_files_of_two_cases_are_never_one_study(tmp_path: Path):
    study = folder(tmp_path, "pat1_0000.nii.gz", "pat2_0001.nii.gz")
    with pytest.raises(UserError, match=r"several cases \(pat1_0000.nii.gz, pat2_0001.nii.gz"):
        taken(study, BRAIN)
    assert taken(study, BRAIN, chosen={"FLAIR": "pat1_0000.nii.gz"}) == {"FLAIR": "pat1_0000.nii.gz"}
    both = {"FLAIR": "pat1_0000.nii.gz", "T1w": "pat1_0001.nii.gz"}
    assert taken(folder(tmp_path, "pat1_0001.nii.gz"), BRAIN, chosen={"FLAIR": "pat1_0000.nii.gz"}) == both
    named = folder(tmp_path / "named", "pat1_FLAIR_0000.nii.gz", "pat1_T1w_0001.nii.gz")
    assert list(taken(named, BRAIN)) == ["FLAIR", "T1w"]


def test_a_choice_is_a_modality_of_the_run_and_a_series_or_file_of_its_own(tmp_path: Path):
    study = folder(tmp_path, "a.nii.gz")
    assert parse_choices(["T1w=5", "FLAIR=b=c.nii"]) == {"T1w": "5", "FLAIR": "b=c.nii"}
    for wrong in (["T1w"], ["=a.nii"], ["T1w="]):
        with pytest.raises(UserError, match="MODALITY=SERIES or MODALITY=FILE"):
            parse_choices(wrong)
    with pytest.raises(UserError, match=r"--modality names T1w twice, a\.nii and b\.nii"):
        parse_choices(["T1w=a.nii", "T1w=b.nii"])
    with pytest.raises(UserError, match="unknown modality of the run PET"):
        taken(study, BRAIN, chosen={"PET": Path("a.nii.gz")})
    with pytest.raises(UserError, match=r"--modality T1w=b\.nii\.gz: no volume"):
        taken(study, BRAIN, chosen={"T1w": Path("b.nii.gz")})
    with pytest.raises(UserError, match="for FLAIR and for T1w; a file holds one modality"):
        taken(study, BRAIN, chosen={"FLAIR": Path("a.nii.gz"), "T1w": Path("a.nii.gz")})


WORD = st.text("abcdeflrt12", min_size=1, max_size=5)
NAME = st.lists(WORD, min_size=1, max_size=3).map("_".join)
SEPARATOR = st.sampled_from(["_", "-", " ", "."])


@given(modalities=st.lists(NAME, min_size=1, max_size=4, unique_by=words), prefix=NAME, separator=SEPARATOR)
def test_a_name_is_read_as_at_most_one_modality_and_only_as_whole_words(
    modalities: list[str], prefix: str, separator: str
):
    channels = {name: number for number, name in enumerate(modalities)}
    for name in modalities:
        reading = read_name(f"{prefix}{separator}{name}".upper(), modalities, channels)
        assert reading is not None  # it ends in the name, so it is that modality's, or a longer one's
        assert words(f"{prefix}{separator}{name}")[-len(words(reading.modality)) :] == words(reading.modality)
        assert len(words(reading.modality)) >= len(words(name))
        others = [other for other in modalities if other != reading.modality]
        left = words(f"{prefix}{separator}{name}")[: -len(words(reading.modality))]
        for other in others:  # any other modality in what is left is a doubt
            count = len(words(other))
            if any(left[at : at + count] == words(other) for at in range(len(left) - count + 1)):
                assert other in reading.doubts
        assert read_name(f"{prefix}{separator}{name}x9", [name], {}) is None


@given(modalities=st.lists(NAME, min_size=2, max_size=4, unique_by=words), number=st.integers(0, 9), prefix=WORD)
def test_a_number_is_that_of_the_data_set_or_nothing(modalities: list[str], number: int, prefix: str):
    channels = {name: 2 * index + 1 for index, name in enumerate(modalities)}
    assume((prefix,) not in [words(name) for name in modalities])
    reading = read_name(f"{prefix}_{number:04d}", modalities, channels)
    assert (reading.modality if reading else None) == {value: name for name, value in channels.items()}.get(number)
