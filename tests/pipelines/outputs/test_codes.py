"""Every code is in pydicom's dictionary, with that meaning; what is in none gets a private one."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.sr.codedict import codes

from zeus_union.pipelines.outputs.codes import PRIVATE_SCHEME, class_code, code_table, dicom_text, private_code

TABLE = code_table()
ENTRIES = [*TABLE["categories"].values(), *TABLE["sides"].values(), *TABLE["types"]]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["meaning"])
def test_every_code_and_meaning_is_in_pydicom_s_dictionary(entry: dict[str, Any]) -> None:
    known = getattr(codes, entry["scheme"]).concepts.values()
    assert (entry["value"], entry["meaning"]) in {(code.value, code.meaning) for code in known}


def test_no_name_and_no_code_is_there_twice() -> None:
    names = [name for entry in TABLE["types"] for name in entry["names"]]
    assert len(names) == len(set(names))
    values = [(entry["scheme"], entry["value"]) for entry in TABLE["types"]]
    assert len(values) == len(set(values))
    assert all(entry["category"] in TABLE["categories"] for entry in TABLE["types"])


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("liver", "10200004", None),
        ("Left Kidney", "64033007", "Left"),
        ("kidney_right", "64033007", "Right"),
        ("right-kidney", "64033007", "Right"),
        ("spleen", "78961009", None),
        ("prostate", "41216001", None),
        ("PZ", "279706003", None),
        ("transition zone", "399384005", None),
        ("left atrium", "82471001", None),
        ("edema", "79654002", None),
        ("Oedema", "79654002", None),
        ("non-enhancing tumour", "C81175", None),
        ("enhancing tumor", "C113842", None),
        ("whole tumour", "108369006", None),
        ("spinal_cord", "2748008", None),
        ("grey matter", "389081007", None),
    ],
)
def test_names_are_recognised_however_they_are_spelled(name: str, value: str, side: str | None) -> None:
    code = class_code(name)
    assert (code.type.value, code.side and code.side.meaning) == (value, side)
    assert not code.private


def test_what_is_wrong_is_no_anatomy() -> None:
    assert class_code("edema").category.meaning == "Morphologically Abnormal Structure"
    assert class_code("liver").category.meaning == "Anatomical Structure"


@pytest.mark.parametrize("name", ["Couinaud VIII", "left liver", "left right kidney", "脾", "tumor core", ""])
def test_a_name_that_is_not_known_gets_a_private_code_of_its_own(name: str) -> None:
    code = class_code(name)
    assert code.private and code.type.scheme == PRIVATE_SCHEME and code.side is None
    assert code.type == private_code(name) == class_code(name).type
    assert len(code.type.value) <= 16 and 0 < len(code.type.meaning) <= 64
    assert code.type.value != private_code(name + " 2").value


def test_texts_are_what_dicom_can_hold() -> None:
    assert dicom_text("a\\b\n\x00c") == "a b c"
    assert dicom_text("x" * 99) == "x" * 64
    assert dicom_text("\\") == "class"
