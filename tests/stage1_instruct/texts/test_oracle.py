"""Captions from the true labels as a layer, marked as a leak wherever it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.stage1_instruct.texts.conftest import make_labelled_cache
from tests.stage1_instruct.texts.test_import_export import texts_of
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.models.text.bert import TextEncoder
from zeus_union.stage1_instruct.texts.import_export import export_texts, import_texts
from zeus_union.stage1_instruct.texts.oracle import make_oracle


def test_each_slice_gets_the_caption_of_its_labels(labelled: Path, encoder: TextEncoder, tiny_bert: Path) -> None:
    parts = ("--set", f"text_encoder={tiny_bert}", "--set", "llm=/nowhere", "--device", "cpu")
    done = CliRunner().invoke(main, ["make-oracle", str(labelled), *parts])
    assert done.exit_code == 0, done.output
    assert "an upper bound, not a result" in done.output and "--text oracle --allow-leak" in done.output
    texts = texts_of(labelled, "oracle")
    assert len(texts) == 8
    for (_, number, modality), text in texts.items():
        assert f"MRI-{modality}" in text and "liver" in text and "right" in text
        assert ("no spleen" in text) == (number == 3)
    with Cache(labelled) as cache:
        recipe = cache.recipe("instructions/oracle")
        assert recipe["leak"] == "true labels" and recipe["instructor"] == "oracle"
        assert recipe["text_encoder"] == encoder.recipe()
        vectors = cache.text_embeddings("oracle", [0])
        wanted = encoder.encode([texts["A", 3, "T1"], texts["A", 3, "T2"]])
        np.testing.assert_allclose(vectors[0], wanted, atol=1e-5)
    assert verify(labelled) == []


def test_a_class_has_captions_of_its_own(labelled: Path, encoder: TextEncoder) -> None:
    assert make_oracle(labelled, encoder, per_class=True) == ("oracle.liver", "oracle.spleen")
    for text in texts_of(labelled, "oracle.liver").values():
        assert "liver" in text and "spleen" not in text
    assert "no spleen" in texts_of(labelled, "oracle.spleen")["A", 3, "T1"]
    with Cache(labelled) as cache:
        assert [cache.recipe(f"instructions/oracle.{name}")["instance"] for name in cache.classes] == [*cache.classes]


def test_subjects_without_labels_have_no_caption_and_it_is_said(
    encoder: TextEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_labelled_cache(tmp_path / "c.h5", encoder, ("A", "B"), unlabelled=("B",))
    make_oracle(path, encoder)
    assert "B: no labels, so no caption" in capsys.readouterr().err
    assert {key[0]: bool(text) for key, text in texts_of(path, "oracle").items()} == {"A": True, "B": False}
    path = make_labelled_cache(tmp_path / "d.h5", encoder, ("A",), unlabelled=("A",))
    with pytest.raises(UserError, match="is labelled: the oracle's captions"):
        make_oracle(path, encoder)


def test_a_leak_stays_one_under_another_name(
    labelled: Path, encoder: TextEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_oracle(labelled, encoder)
    for variant, leaks in (("oracle", True), ("lite", False)):
        with Cache(labelled) as cache:
            export_texts(cache, variant, tmp_path / "t.csv")
        import_texts(labelled, tmp_path / "t.csv", f"copy-of-{variant}", encoder)
        with Cache(labelled) as cache:
            assert ("leak" in cache.recipe(f"instructions/copy-of-{variant}")) == leaks
    assert "marked as a leak of true labels" in " ".join(capsys.readouterr().err.split())
