"""What tags say of an image, as the vendors write them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from zeus_union.pipelines.intake.tags import component, description, traits_of_tags
from zeus_union.stage1_instruct.studies.dicom_frames import Frame


def frame(**tags: Any) -> Frame:
    header = Dataset()
    for keyword, value in {"Modality": "MR", **tags}.items():
        setattr(header, keyword, value)
    return Frame(Path("IM1"), header)


def timed(sequence: object, echo: float, repetition: float, inversion: float | None = None, **tags: Any) -> Frame:
    times = {"EchoTime": echo, "RepetitionTime": repetition, "InversionTime": inversion}
    return frame(ScanningSequence=sequence, **{k: v for k, v in times.items() if v}, **tags)


SEQUENCES = {
    "T1 spin echo": (timed("SE", 12, 500), "T1"),
    "T1 turbo spin echo in 3D": (timed("SE", 24, 700), "T1"),
    "T1 gradient echo": (timed("GR", 2.4, 5), "T1"),
    "MPRAGE": (timed(["GR", "IR"], 3, 2300, 900), "T1"),
    "T1-FLAIR": (timed(["SE", "IR"], 20, 2000, 860), "T1"),
    "spoiled, with a steady state": (timed("GR", 3, 7, SequenceVariant=["SS", "SP", "SK"]), "T1"),
    "TrueFISP": (timed("GR", 1.6, 4, SequenceVariant=["SK", "SS", "OSP"]), ""),
    "T2 turbo spin echo": (timed("SE", 104, 5660), "T2"),
    "HASTE": (timed("SE", 83, 1000), "T2"),
    "no sequence said": (timed(None, 100, 4000), "T2"),
    "proton density": (timed("SE", 20, 2500), "PD"),
    "FLAIR": (timed(["SE", "IR"], 120, 9000, 2500), "FLAIR"),
    "STIR": (timed(["SE", "IR"], 60, 4000, 150), "STIR"),
    "T2*": (timed("GR", 20, 600), "T2*"),
    "time of flight": (timed("GR", 3.5, 22, AngioFlag="Y"), "angiography"),
    "functional": (timed("EP", 30, 2000), ""),
    "diffusion": (timed("EP", 70, 4000, DiffusionBValue=800.0), "DWI"),
    "b 0": (timed("EP", 70, 4000, DiffusionBValue=0.0), "DWI"),
    "a factor of 0 in every series": (timed("SE", 104, 5660, DiffusionBValue=0.0), "T2"),
    "a map of diffusion": (frame(ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "DIS2D"]), "ADC"),
    "trace": (frame(ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]), "DWI"),
    "anisotropy": (frame(ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "FA"]), "diffusion map"),
    "enhanced": (frame(AcquisitionContrast="FLUID_ATTENUATED"), "FLAIR"),
    "nothing": (frame(), ""),
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_the_weighting_of_a_sequence(case: str):
    image, weighting = SEQUENCES[case]
    traits = traits_of_tags(image)
    assert traits.weighting == weighting and (not weighting or traits.reasons["weighting"])


@pytest.mark.parametrize(
    ("tag", "kind", "value", "b_value"),
    [
        ((0x0019, 0x100C), "IS", "1400", 1400),
        ((0x0019, 0x100C), "UN", b"1400 ", 1400),
        ((0x2001, 0x1003), "FL", 800.0, 800),
        ((0x2001, 0x1003), "UN", struct.pack("<f", 800.0), 800),
        ((0x0043, 0x1039), "IS", ["1000000500", "8", "0", "0"], 500),
        ((0x0043, 0x1039), "UN", b"1000000500\\8\\0\\0", 500),
        ((0x0065, 0x1009), "UN", struct.pack("<d", 50.0), 50),
        ((0x0019, 0x100C), "UN", b"\xff\x00\x01", None),
        ((0x0019, 0x100C), "LO", "many", None),
    ],
)
def test_b_values_stand_in_private_tags(tag: tuple[int, int], kind: str, value: object, b_value: float | None):
    image = timed("EP", 70, 4000)
    image.header.add_new(tag, kind, value)
    traits = traits_of_tags(image)
    assert traits.b_value == b_value and traits.weighting == ("" if b_value is None else "DWI")


@pytest.mark.parametrize("agent", ["", "NONE", "no", "N", " "])
def test_no_contrast_agent_is_said_in_many_ways(agent: str):
    assert traits_of_tags(frame(ContrastBolusAgent=agent)).contrast is None
    assert traits_of_tags(frame(ContrastBolusAgent="Dotarem")).contrast is True


def test_contrast_agents_of_enhanced_files_are_a_sequence():
    item = Dataset()
    item.CodeMeaning = "Gadobutrol"
    assert traits_of_tags(frame(ContrastBolusAgentSequence=[item])).reasons["contrast"] == "contrast agent Gadobutrol"


@pytest.mark.parametrize(
    ("words", "phase"),
    [("IN_PHASE", "in phase"), ("OPP_PHASE", "out of phase"), ("OP", "out of phase"), ("WATER", "water"), ("F", "fat")],
)
def test_the_phase_stands_in_the_image_type(words: str, phase: str):
    assert traits_of_tags(frame(ImageType=["DERIVED", "PRIMARY", "M", words])).phase == phase


@pytest.mark.parametrize(
    ("tags", "suppressed"),
    [
        ({"ScanOptions": ["PFP", "FS"]}, True),
        ({"ScanOptions": "SPIR"}, True),
        ({"ScanOptions": "PFP"}, None),
        ({}, None),
    ],
)
def test_fat_is_suppressed_by_the_scan_options(tags: dict[str, Any], suppressed: bool | None):
    assert traits_of_tags(frame(**tags)).fat_suppressed is suppressed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["ORIGINAL", "PRIMARY", "M", "ND"], ""),
        (["ORIGINAL", "PRIMARY", "P", "ND"], "phase"),
        (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"], "phase"),
        (["ORIGINAL", "PRIMARY", "R_FFE", "R", "FFE"], "real"),
        (["ORIGINAL", "PRIMARY", "I_FFE", "I", "FFE"], "imaginary"),
        (["P"], ""),
    ],
)
def test_only_the_magnitude_of_a_complex_image_is_one(words: list[str], part: str):
    assert component(frame(ImageType=words)) == part


def test_the_device_is_all_that_tags_say_of_a_ct():
    traits = traits_of_tags(frame(Modality="CT", EchoTime=100.0, ContrastBolusAgent="Ultravist"))
    assert (traits.device, traits.weighting, traits.contrast) == ("CT", "", True)


@pytest.mark.parametrize(
    ("storage", "device"),
    [("1.2.840.10008.5.1.4.1.1.2", "CT"), ("1.2.840.10008.5.1.4.1.1.4.1", "MR"), ("1.2.840.10008.5.1.4.1.1.128", "PT")],
)
def test_the_kind_of_file_tells_the_device_where_the_tag_is_lost(storage: str, device: str):
    assert traits_of_tags(frame(Modality="", SOPClassUID=storage)).device == device


def test_the_protocol_describes_what_has_no_description():
    assert description(frame(SeriesDescription="", ProtocolName="t2  tse")) == "t2 tse"


def test_damaged_tags_say_nothing():
    image = timed("SE", 104, 5660)
    image.header.EchoTime = None
    image.header.add_new("InversionTime", "DS", ["1", "2"])
    assert traits_of_tags(image).weighting == ""
