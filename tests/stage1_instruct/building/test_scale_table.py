"""What docs/scale.md says a data set takes is what its script computes."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import scale_table

PAGE = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_page_has_the_tables_of_the_script() -> None:
    assert scale_table.table() in PAGE and scale_table.parts_table() in PAGE


def test_brain_has_300_080_slice_modalities() -> None:
    assert "| MSD-Brain | 300,080 |" in scale_table.table()


def test_the_arithmetic_of_an_encoder_without_windows_is_the_textbooks() -> None:
    """Of a block 24 n d^2 for its four projections and its MLP, and 4 n^2 d for attention; Kaplan et al. 2020, section 2.1."""
    width, tokens = 768, 4096
    assert scale_table.vit_flops(1, width, 0) == 24 * tokens * width**2 + 4 * tokens**2 * width
