"""A patient is recognised by the images, in every layout's way of naming files; never by a label that others share."""

from __future__ import annotations

from typing import Any

import pytest

from zeus_union.stage2_segment.training_subjects import KnownSubjects, sources_of


class Sources:
    """A cache, as far as its source files go: subject -> file -> digest."""

    def __init__(self, **subjects: dict[str, str]) -> None:
        self.subjects = subjects

    def sources(self, subject: str) -> dict[str, str]:
        return self.subjects[subject]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"),
        ("MR/{}/T2SPIR/DICOM_anon/IMG-1.dcm", "MR/{}/T2SPIR/Ground/IMG-1.png"),
        ("{}/image.nrrd", "{}/segmentation.nrrd"),
        ("{}/T1.nii.gz", "{}/label.nii.gz"),
    ],
)
def test_one_image_in_common_is_the_same_patient_and_one_label_is_not(image: str, label: str) -> None:
    def files(name: str, picture: str, mask: str) -> dict[str, str]:
        return {image.format(name): picture, label.format(name): mask}

    cache: Any = Sources(
        trained=files("trained", "A", "empty"), renamed=files("renamed", "A", "new"), other=files("other", "B", "empty")
    )
    known = KnownSubjects(frozenset({"trained"}), frozenset(sources_of(cache, ["trained"])))
    assert known.among(cache, ["trained", "renamed", "other"]) == ("trained", "renamed")
