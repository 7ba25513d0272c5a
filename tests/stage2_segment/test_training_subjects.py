"""A patient is recognised by the images, in every layout's way of naming files; never by a label that others share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zeus_union.stage2_segment.training.messages import warn_of_learned_texts
from zeus_union.stage2_segment.training_subjects import KnownSubjects, learned_their_texts, sources_of


class Sources:
    """A cache, as far as its source files go: subject -> file -> digest; and, by variant, whom a projection was trained on."""

    def __init__(self, **subjects: dict[str, str]) -> None:
        self.subjects = subjects
        self.trained_on: dict[str, Any] = {}

    def recipe(self, layer: str) -> dict[str, Any]:
        variant = layer.removeprefix("instructions/")
        return {"projection": {"trained_on": self.trained_on[variant]}} if variant in self.trained_on else {"llm": None}

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


def run_of(variants: tuple[str, ...], train: tuple[str, ...]) -> Any:
    return SimpleNamespace(inputs=SimpleNamespace(texts_read=variants), split=SimpleNamespace(train=train))


def test_texts_of_the_projection_that_learned_from_their_subject_are_told_from_crossed_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache: Any = Sources(anna={"a.nii": "A"}, ben={"b.nii": "B"}, carl={"c.nii": "C"}, another={"a.nii": "A"})
    halves = [{"subjects": ["anna"], "sha256": "1"}, {"subjects": ["ben"], "sha256": "0"}]
    cache.trained_on = {
        "crossed": {"subjects": ["anna", "ben"], "crossed": halves},
        "alone": {"subjects": ["anna"], "crossed": []},
        "file": {"subjects": ["somebody"], "digests": ["A"]},  # of another cache, under another name, without halves
    }
    crossed, alone = run_of(("crossed", "prompt"), ("anna", "ben")), run_of(("alone", "prompt"), ("anna", "carl"))
    assert learned_their_texts(cache, ("crossed", "prompt"), ("anna", "ben")) == ()
    warn_of_learned_texts(cache, [crossed])
    assert capsys.readouterr().err == ""
    assert learned_their_texts(cache, ("alone", "prompt"), ("anna", "carl")) == ("anna",)
    assert learned_their_texts(cache, ("crossed", "alone"), ("anna", "ben")) == ("anna",)  # a class's texts are crossed
    assert learned_their_texts(cache, ("file", "prompt"), ("another", "ben")) == ("another",)
    warn_of_learned_texts(cache, [crossed, alone, alone])
    said = " ".join(capsys.readouterr().err.split())
    assert "the texts of anna, to train on, come from a projection that was trained on them" in said
    assert "--text none" in said and said.count("anna") == 1
