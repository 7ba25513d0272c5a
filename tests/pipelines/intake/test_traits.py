"""What descriptions and names of modalities say, in the words of people and scanners."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeus_union.pipelines.intake.traits import Traits, read_words

MR = "MR"
NAMES = {
    "T1": Traits(MR, "T1"),
    "T1w": Traits(MR, "T1"),
    "t1n": Traits(MR, "T1"),
    "t1gd": Traits(MR, "T1", contrast=True),
    "T1ce": Traits(MR, "T1", contrast=True),
    "ce_T1": Traits(MR, "T1", contrast=True),
    "t1c": Traits(MR, "T1", contrast=True),
    "T1_post": Traits(MR, "T1", contrast=True),
    "T1 pre": Traits(MR, "T1", contrast=False),
    "T1 without contrast": Traits(MR, "T1", contrast=False),
    "AX T1 +C": Traits(MR, "T1", contrast=True, plane="axial"),
    "T1+c": Traits(MR, "T1", contrast=True),
    "t1_mprage_sag_p2_iso_KM": Traits(MR, "T1", contrast=True, plane="sagittal"),
    "T1 FLAIR": Traits(MR, "T1"),
    "sT1W_3D_FFE": Traits(MR, "T1"),
    "T2w": Traits(MR, "T2"),
    "T2-SPIR": Traits(MR, "T2", fat_suppressed=True),
    "t2 fat sat cor": Traits(MR, "T2", fat_suppressed=True, plane="coronal"),
    "t2f": Traits(MR, "FLAIR"),
    "T2-FLAIR": Traits(MR, "FLAIR"),
    "t2_tirm_dark-fluid": Traits(MR, "FLAIR", fat_suppressed=True),
    "STIR": Traits(MR, "STIR", fat_suppressed=True),
    "T2*": Traits(MR, "T2*"),
    "T1-DUAL-in": Traits(MR, "T1", phase="in phase"),
    "T1-DUAL-out": Traits(MR, "T1", phase="out of phase"),
    "MRI-T1 in-phase": Traits(MR, "T1", phase="in phase"),
    "MRI-T1 out-of-phase": Traits(MR, "T1", phase="out of phase"),
    "t1_vibe_dixon_opp": Traits(MR, "T1", phase="out of phase"),
    "t1_vibe_dixon_W": Traits(MR, "T1", phase="water"),
    "t1_fl2d_opp-in": Traits(MR, "T1"),
    "ADC": Traits(MR, "ADC"),
    "ep2d_diff_ADC": Traits(MR, "ADC"),
    "ep2d_diff_FA": Traits(MR, "diffusion map"),
    "DWI": Traits(MR, "DWI"),
    "b1400": Traits(MR, "DWI", b_value=1400),
    "dwi b=800": Traits(MR, "DWI", b_value=800),
    "ep2d_diff_b50_800": Traits(MR, "DWI"),
    "HBV": Traits(MR, "DWI", high_b=True),
    "high-b": Traits(MR, "DWI", high_b=True),
    "CT": Traits("CT"),
    "CECT": Traits("CT", contrast=True),
    "PET": Traits("PT"),
    "FDG": Traits("PT"),
    "MRI": Traits(MR),
    "noNorm": Traits(),
    "inside": Traits(),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says(name: str):
    assert read_words(name)[0] == NAMES[name]


@given(st.text(max_size=40))
def test_any_text_is_read_and_its_case_says_nothing(text: str):
    assert read_words(text.casefold()) == read_words(text)


def test_words_that_say_something_unknown_are_kept():
    assert read_words("CT_arterial")[1] == ("arterial",)
    assert read_words("T1-DUAL-in")[1] == ()
