"""Published values of the same subjects beside ours, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.cache.tiny_cache import build
from tests.pipelines.report.test_tables import cells, results
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.report.published import FILE, Published, published_for, with_published
from zeus_union.pipelines.report.tables import ablation_sheet, subject_sheet

NNUNET = Published("nnU-Net (published)", "five folds", "a file", {"s0": 0.455, "s1": 0.942, "s2": 0.946, "s9": 0.9})
OURS = results(zeus={"liver": [0.5, 0.8, 0.9], "spleen": [0.3, 0.8, 0.7]}, unet={"liver": [0.6, 0.1, 0.2]})


def test_the_row_has_a_value_for_each_subject_and_names_its_source() -> None:
    sheet = with_published(subject_sheet(OURS), [NNUNET], ["s0", "s1", "s2"])
    assert sheet.columns == ("row", "DSC mean", "s0", "s1", "s2")
    assert cells(sheet, "nnU-Net (published)") == {
        "row": "nnU-Net (published)",
        "DSC mean": "0.781",
        "s0": "0.455",
        "s1": "0.942",
        "s2": "0.946",
    }
    assert cells(sheet, "zeus")["s1"] == "0.800" and "nnU-Net (published): five folds; from a file" in sheet.notes
    assert sheet.best == {(1, 2), (0, 3), (0, 4)}  # ours alone are compared


def test_its_mean_stands_in_the_table_only_where_it_is_over_the_same_subjects() -> None:
    sheet = ablation_sheet(OURS, {}, {}, {}, None)
    whole = cells(with_published(sheet, [NNUNET], ["s0", "s1", "s2"]), NNUNET.method)
    assert whole["DSC mean"] == "0.781" and set(whole.values()) == {NNUNET.method, "0.781", "-"}
    assert cells(with_published(sheet, [NNUNET], ["s0", "s5"]), NNUNET.method)["DSC mean"] == "-"
    assert with_published(sheet, [NNUNET], ["other"]) == sheet


CHAOS = DatasetCard(
    "nnunet",
    ("T2-SPIR",),
    {"T2-SPIR": "T2"},
    ("liver", "right kidney", "left kidney", "spleen"),
    "organs",
    ("chaos15",),
)


@pytest.mark.parametrize(
    ("card", "matches"),
    [
        (CHAOS, True),
        (replace(CHAOS, classes=("spleen", "liver", "left kidney", "right kidney")), True),
        (replace(CHAOS, classes=("liver",)), False),
        (replace(CHAOS, modalities=("T1",), terms={"T1": "T1"}), False),
        (replace(CHAOS, subjects=("A",)), False),
    ],
)
def test_a_cache_is_known_by_modalities_classes_and_subjects(card: DatasetCard, matches: bool, tmp_path: Path) -> None:
    class Named:
        modalities, classes, subjects = card.modalities, card.classes, card.subjects

    assert bool(published_for(Named())) is matches  # type: ignore[arg-type]


def test_another_data_sets_cache_has_none(tmp_path: Path) -> None:
    build(tmp_path / "tiny.h5")
    with Cache(tmp_path / "tiny.h5") as cache:
        assert published_for(cache) == []


def test_the_file_holds_shares_with_their_source() -> None:
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert entries
    for entry in entries:
        assert entry["source"] and entry["setting"] and all(0 <= score <= 1 for score in entry["dsc"].values())
    chaos = Published(**{key: entries[0][key] for key in ("method", "setting", "source", "dsc")})
    assert chaos.mean(["chaos15", "chaos19", "chaos20"]) == pytest.approx(0.781, abs=5e-4)
