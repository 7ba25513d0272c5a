"""A user's own texts become a layer, and a layer becomes a table; there and back nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stage1_instruct.texts.conftest import make_labelled_cache
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import shard_folder
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.models.text.bert import TextEncoder
from zeus_union.stage1_instruct.texts.import_export import export_texts, import_texts


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def texts_of(path: Path, variant: str) -> dict[tuple[str, int, str], str]:
    with Cache(path) as cache:
        table = cache.instructions(variant).to_pylist()
    return {(row["subject"], row["slice"], row["modality"]): row["text"] for row in table}


def write_lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_one_report_for_a_study_serves_all_its_slices_and_modalities(
    labelled: Path, encoder: TextEncoder, tiny_bert: Path, tmp_path: Path
) -> None:
    file = tmp_path / "reports.csv"
    file.write_text("subject,text\nA,Liver of normal size.\nB,Spleen enlarged.\n")
    before = texts_of(labelled, "lite")
    parts = ("--set", f"text_encoder={tiny_bert}", "--set", "llm=/nowhere", "--set", "encoder_weights=/nowhere")
    done = run("import-texts", labelled, file, "--variant", "radiologist", "--device", "cpu", *parts)
    assert done.exit_code == 0, done.output
    assert f"Next: zeus-segment train --cache {labelled} --variant radiologist" in done.output
    texts = texts_of(labelled, "radiologist")
    assert {key[0]: text for key, text in texts.items()} == {"A": "Liver of normal size.", "B": "Spleen enlarged."}
    assert len(texts) == len(before) and texts_of(labelled, "lite") == before
    with Cache(labelled) as cache:
        recipe = cache.recipe("instructions/radiologist")
        assert recipe["instructor"] == "imported"
        assert recipe["imported_file"] == {"sha256": sha256_file(file)}
        assert recipe["text_encoder"] == encoder.recipe()
        vectors = cache.text_embeddings("radiologist", [0, 1, 2, 3])
        wanted = encoder.encode(["Liver of normal size.", "Spleen enlarged."])
        np.testing.assert_allclose(vectors, wanted.repeat(4, axis=0).reshape(4, 2, -1), atol=1e-5)
    assert verify(labelled) == []


def test_the_row_that_names_most_goes_first(labelled: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "t.jsonl",
        {"subject": "A", "text": "study"},
        {"subject": "A", "slice": 3, "text": "slice"},
        {"subject": "A", "modality": "T2", "text": "modality"},
        {"subject": "A", "slice": 6, "modality": "T2", "text": "both"},
        {"subject": "B", "text": "other"},
    )
    import_texts(labelled, file, "mixed", encoder)
    texts = texts_of(labelled, "mixed")
    assert {key[1:]: text for key, text in texts.items() if key[0] == "A"} == {
        (3, "T1"): "slice",
        (3, "T2"): "slice",
        (6, "T1"): "study",
        (6, "T2"): "both",
    }


def test_classes_become_layers_of_their_own(labelled: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "t.jsonl",
        {"subject": "A", "class": "liver", "text": "A's liver"},
        {"subject": "A", "text": "all of A"},
        {"subject": "B", "text": "all of B"},
    )
    assert import_texts(labelled, file, "own", encoder) == ("own.liver", "own.spleen")
    assert {key[0]: text for key, text in texts_of(labelled, "own.liver").items()} == {
        "A": "A's liver",
        "B": "all of B",
    }
    assert {key[0]: text for key, text in texts_of(labelled, "own.spleen").items()} == {
        "A": "all of A",
        "B": "all of B",
    }
    with Cache(labelled) as cache:
        assert cache.recipe("instructions/own.liver")["instance"] == "liver"
        assert export_texts(cache, "own", tmp_path / "out.csv") == 16
    import_texts(labelled, tmp_path / "out.csv", "again", encoder)
    for name in ("liver", "spleen"):
        assert texts_of(labelled, f"again.{name}") == texts_of(labelled, f"own.{name}")


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_layer_exported_and_imported_is_the_same(
    ending: str, pack: bool, encoder: TextEncoder, tmp_path: Path
) -> None:
    path = make_labelled_cache(tmp_path / "c.h5", encoder, pack=pack)
    state = "packed" if pack else "sharded"
    file = tmp_path / f"t.{ending}"
    assert run("export-texts", path, file, "--variant", "lite").exit_code == 0
    import_texts(path, file, "back", encoder)
    with Cache(path) as cache:
        assert cache.state == state and shard_folder(path).exists() != pack
        rows = np.arange(len(cache.rows))
        np.testing.assert_array_equal(cache.text_embeddings("back", rows), cache.text_embeddings("lite", rows))
        export_texts(cache, "back", tmp_path / f"again.{ending}")
    assert texts_of(path, "back") == texts_of(path, "lite")
    assert (tmp_path / f"again.{ending}").read_bytes() == file.read_bytes()
    assert verify(path) == []


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=4, max_size=4))
def test_any_texts_come_back_as_they_were(texts: list[str], encoder: TextEncoder, tmp_path: Path) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    path = make_labelled_cache(tmp_path / "c.h5", encoder, ("A",), texts=texts)
    for ending in ("jsonl", "parquet"):
        with Cache(path) as cache:
            export_texts(cache, "lite", tmp_path / f"t.{ending}")
        import_texts(path, tmp_path / f"t.{ending}", ending, encoder)
        assert texts_of(path, ending) == texts_of(path, "lite")


def test_a_killed_import_goes_on_and_leaves_the_cache_as_it_was(
    labelled: Path, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lines(tmp_path / "t.jsonl", {"subject": "A", "text": "a"}, {"subject": "B", "text": "b"})
    before = labelled.read_bytes()
    write = CacheWriter.write_instructions

    def killed(self: CacheWriter, layer: str, subject: str, *args: object) -> None:
        if subject == "B":
            raise KeyboardInterrupt
        write(self, layer, subject, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CacheWriter, "write_instructions", killed)
        import_texts(labelled, file, "own", encoder)
    assert labelled.read_bytes() == before
    with Cache(labelled) as cache:
        assert cache.variants == ("lite",)
    encoded: list[str] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: (encoded.extend(texts), encode(texts))[1])
    import_texts(labelled, file, "own", encoder)
    assert encoded == ["b"]
    assert set(texts_of(labelled, "own").values()) == {"a", "b"}
    import_texts(labelled, file, "own", encoder)  # is there already
    assert encoded == ["b"]


def test_another_table_under_the_same_name_is_refused(labelled: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    rows = [{"subject": name, "text": name} for name in ("A", "B")]
    import_texts(labelled, write_lines(tmp_path / "t.jsonl", *rows), "own", encoder)
    rows[0]["text"] = "corrected"
    with pytest.raises(UserError, match=r"another recipe \(imported_file.sha256: .*give --variant NAME"):
        import_texts(labelled, write_lines(tmp_path / "t.jsonl", *rows), "own", encoder)
    assert set(texts_of(labelled, "own").values()) == {"A", "B"}


BOTH = [{"subject": "A", "text": "a"}, {"subject": "B", "text": "b"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*BOTH, {"subject": "C", "text": ""}, {"subject": "D", "text": ""}],
            r"unknown subject C \(line 3\), D \(line 4",
        ),
        ([*BOTH, {"subject": "A", "modality": "T3", "text": ""}], r"unknown modality T3 \(line 3\); .* has T1, T2"),
        ([*BOTH, {"subject": "A", "class": "lung", "text": ""}], r"unknown class lung \(line 3\); .* liver, spleen"),
        ([*BOTH, {"subject": "A", "slice": 9, "text": ""}], r"not there: A 9 \(line 3; it has 0 to 8\)"),
        ([*BOTH, {"subject": "B", "text": "b"}], r"two texts for B \(lines 2 and 3\)"),
        (BOTH[:1], r"no text for 4 of 8 slices and modalities of .*: B 3 T1, B 3 T2, B 6 T1, B 6 T2; add rows, or"),
        ([{"subject": "A", "slice": 3, "text": "a"}, BOTH[1]], "no text for 2 of 8 .*: A 6 T1, A 6 T2;"),
    ],
)
def test_texts_that_do_not_fit_the_cache_are_one_clear_error(
    rows: list[dict[str, object]], message: str, labelled: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "t.jsonl", *rows)
    before = labelled.read_bytes()
    done = run("import-texts", labelled, file, "--variant", "own", "--set", f"text_encoder={tiny_bert}")
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    with pytest.raises(UserError, match=message):
        raise UserError(lines[0])
    assert labelled.read_bytes() == before and not shard_folder(labelled).exists()


def test_slices_that_the_cache_does_not_keep_are_passed_over_and_said(
    labelled: Path, encoder: TextEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"subject": name, "slice": number, "text": f"{name}{number}"} for name in "AB" for number in range(9)]
    import_texts(labelled, write_lines(tmp_path / "t.jsonl", *rows), "all", encoder)
    assert (
        "left out: 14 of 18 texts, of slices that the cache does not keep (it keeps one in 3)"
        in capsys.readouterr().err
    )
    assert set(texts_of(labelled, "all").values()) == {"A3", "A6", "B3", "B6"}


def test_fill_stands_where_the_table_says_nothing(labelled: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    import_texts(labelled, write_lines(tmp_path / "t.jsonl", BOTH[0]), "own", encoder, fill="")
    assert {key[0]: text for key, text in texts_of(labelled, "own").items()} == {"A": "a", "B": ""}
    with Cache(labelled) as cache:
        assert cache.recipe("instructions/own")["imported_file"]["fill"] == ""


def test_another_text_encoder_than_the_caches_has_to_be_chosen(
    labelled: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lines(tmp_path / "t.jsonl", *BOTH)
    monkeypatch.setattr(TextEncoder, "recipe", lambda _: {"weights_sha256": "another"})
    done = run("import-texts", labelled, file, "--variant", "own", "--set", f"text_encoder={tiny_bert}")
    assert done.exit_code == 0, done.output
    assert "another text encoder than that of instructions/lite" in " ".join(done.stderr.split())


def test_the_caches_own_files_are_not_overwritten(labelled: Path) -> None:
    done = run("export-texts", labelled, labelled.with_name("c.instructions.parquet"), "--variant", "lite")
    assert done.exit_code == 2 and "is a file of the cache" in done.stderr
    done = run("export-texts", labelled, labelled.with_name("t.csv"), "--variant", "light")
    assert done.exit_code == 2 and "has no instructions/light; it has lite" in done.stderr


def test_layers_of_a_fold_are_exported_by_their_name_and_their_base_is_not_taken(
    labelled: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    whole = write_lines(tmp_path / "whole.jsonl", *BOTH)
    by_class = write_lines(tmp_path / "class.jsonl", {**BOTH[0], "class": "liver"}, *BOTH)
    assert import_texts(labelled, whole, "own@fold0", encoder) == ("own@fold0",)
    assert import_texts(labelled, by_class, "each@fold0", encoder) == ("each.liver@fold0", "each.spleen@fold0")
    with Cache(labelled) as cache:
        assert export_texts(cache, "own@fold0", tmp_path / "t.csv") == 8
        assert export_texts(cache, "own", tmp_path / "t.csv") == 8
        assert export_texts(cache, "each@fold0", tmp_path / "t.csv") == 16
    with pytest.raises(UserError, match=r"own is what own@fold0 of .* are called together; give another --variant"):
        import_texts(labelled, whole, "own", encoder)
