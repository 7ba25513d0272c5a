"""What an instruction calls a modality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.modality_terms import term_of


@pytest.mark.parametrize(
    ("channel", "term"),
    [
        *(("CT", "CT"), ("ct", "CT"), ("CTA", "CTA"), ("CT_arterial", "CT_arterial"), ("CBCT", "CBCT")),
        *(("PET", "PET"), ("FDG", "PET-FDG"), ("FDG-PET", "FDG-PET"), ("US", "ultrasound"), ("X-ray", "X-ray")),
        *(("T1", "MRI-T1"), ("T1w", "MRI-T1w"), ("T2-SPIR", "MRI-T2-SPIR"), ("t1ce", "MRI-t1ce"), ("ADC", "MRI-ADC")),
        *(("FLAIR", "MRI-FLAIR"), ("T1-DUAL-in", "MRI-T1-DUAL-in"), ("MRI", "MRI"), ("mr", "MRI"), ("MR-T1", "MR-T1")),
        *(("DWI_b1000", "MRI-DWI_b1000"), ("b800", "MRI-b800"), ("XR", "X-ray"), ("chest x-ray", "chest x-ray")),
        *(("noNorm", None), ("rescale_to_0_1", None), ("R", None), ("octet", None), ("", None)),
    ],
)
def test_a_term_follows_from_the_channels_name(channel: str, term: str | None):
    assert term_of(channel) == term


def rename(nnunet: Path, *names: str) -> None:
    path = nnunet / "dataset.json"
    values = {**json.loads(path.read_text()), "channel_names": {str(k): name for k, name in enumerate(names)}}
    path.write_text(json.dumps(values))


def test_channels_of_one_name_are_called_by_that_name(nnunet: Path):
    rename(nnunet, "CT", "CT", "PET")
    assert open_dataset("nnunet", nnunet).card.terms == {"CT-0": "CT", "CT-1": "CT", "PET": "PET"}


def test_a_name_that_says_no_modality_is_taken_as_it_is_and_said(nnunet: Path, capsys: pytest.CaptureFixture[str]):
    rename(nnunet, "noNorm", "noNorm", "CT")
    assert open_dataset("nnunet", nnunet).card.terms == {"noNorm-0": "noNorm", "noNorm-1": "noNorm", "CT": "CT"}
    assert "--term noNorm-1=TERM" in capsys.readouterr().err


def test_terms_and_what_to_segment_can_be_given(nnunet: Path):
    rename(nnunet, "noNorm", "noNorm", "CT")
    card = open_dataset("nnunet", nnunet, terms=("noNorm-0=CBCT", "CT=planning CT"), instance="lung tumour").card
    assert card.terms == {"noNorm-0": "CBCT", "noNorm-1": "noNorm", "CT": "planning CT"}
    assert card.instance == "lung tumour" and len(card.classes) == 4


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (("T2-SPIR",), "expected NAME=TERM"),
        (("T2-SPIR=",), "expected NAME=TERM"),
        (("PET=PET",), "unknown modality PET"),
        (("T2-SPIR=a", "T2-SPIR=b"), "names T2-SPIR twice"),
    ],
)
def test_terms_that_fit_no_modality_are_one_line(nnunet: Path, terms: tuple[str, ...], said: str):
    with pytest.raises(UserError, match=said):
        open_dataset("nnunet", nnunet, terms=terms)


def test_an_empty_instance_or_one_beside_per_class_is_refused(nnunet: Path):
    with pytest.raises(UserError, match="--instance is empty"):
        open_dataset("nnunet", nnunet, instance=" ")
    build = ["build-cache", "--dataset", "nnunet", "--data-root", str(nnunet)]
    result = CliRunner().invoke(main, [*build, "--per-class", "--instance", "x"])
    assert result.exit_code == 2 and "leave out --instance" in result.stderr


def test_build_cache_tells_what_it_will_ask_for(nnunet: Path, tmp_path: Path):
    build = ["build-cache", "--dataset", "nnunet", "--data-root", str(nnunet), "--models", "nonsense"]
    result = CliRunner().invoke(main, [*build, "--instance", "lung tumour", "--term", "T2-SPIR=CT"])
    assert "to segment: lung tumour" in result.stderr and "no profile nonsense" in result.stderr
