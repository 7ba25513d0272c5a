"""Instructions without one of their sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.instructions import Instruction
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, SubjectSlices
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.models.text.bert import TextEncoder
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import Profile
from zeus_union.stage1_instruct.sentences import split_sentences, write_sentences

TEXTS = {
    "A": ["Bright liver. Dark spleen; no kidney.", "Dark spleen; no kidney.", "One sentence", ""],
    "B": ["1. The liver is bright.\n2. The spleen is not.", "One sentence", "Bright liver. Dark spleen.", "  "],
}


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n", []),
        ("One", ["One"]),
        ("A liver. A spleen! A kidney? Yes", ["A liver. ", "A spleen! ", "A kidney? ", "Yes"]),
        ("bright liver; dark spleen;no kidney", ["bright liver; ", "dark spleen;", "no kidney"]),
        ("first line\nsecond line\r\nthird", ["first line\n", "second line\r\n", "third"]),
        ("It is 1.5 cm at 3.0 T. It grew.", ["It is 1.5 cm at 3.0 T. ", "It grew."]),
        ("Organs, e.g. the liver, vs. muscle. Next", ["Organs, e.g. the liver, vs. muscle. ", "Next"]),
        ("It is approx. 5 cm (cf. Fig. 2). Next", ["It is approx. 5 cm (cf. Fig. 2). ", "Next"]),
        ("Liver, spleen, etc. The rest, etc. is dark.", ["Liver, spleen, etc. ", "The rest, etc. is dark."]),
        ("Is it bright? No. See No. 4.", ["Is it bright? ", "No. ", "See No. 4."]),
        ("1. The liver.\n2. The spleen.", ["1. The liver.\n", "2. The spleen."]),
        ('He said "bright." Then', ['He said "bright." ', "Then"]),
        ("Bright... and so on. ...", ["Bright... ", "and so on. ..."]),
        (" Liver. Spleen. ", [" Liver. ", "Spleen. "]),
        ("12.", ["12."]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(st.sampled_from('aB1 .;!?\n\r\t)"egvs')) | st.text())
def test_sentences_are_the_text_and_are_not_split_again(text: str) -> None:
    found = split_sentences(text)
    assert "".join(found) == (text if text.strip() else "")
    assert all(one.strip() for one in found)
    assert all(len(split_sentences(one)) == 1 for one in found)


class Counting:
    """A text encoder that remembers what it was asked."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder, self.asked = encoder, list[str]()

    @property
    def width(self) -> int:
        return self._encoder.width

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        return self._encoder.encode(texts)

    def recipe(self) -> dict[str, object]:
        return self._encoder.recipe()


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path) -> TextEncoder:
    return TextEncoder(str(tiny_bert))


@pytest.fixture(scope="module")
def told(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of `TEXTS`: two subjects, two slices, two modalities; the variant 'silent' has no text at all."""
    path = tmp_path_factory.mktemp("cache") / "c.h5"
    modalities = ("T1", "T2")
    writer = CacheWriter(
        path, DatasetCard("toy", modalities, {"T1": "MRI", "T2": "MRI"}, ("liver",), "liver", ("A", "B"))
    )
    writer.begin_layer("slices", {})
    for variant in ("told", "silent"):
        writer.begin_layer(f"instructions/{variant}", {"text_encoder": encoder.recipe()})
    for subject, own in TEXTS.items():
        numbers = np.array([3, 7], np.int32)
        images = np.zeros((2, 2, 256, 256), np.uint8)
        writer.write_slices(
            subject, SubjectSlices(Grid((256, 256, 9), np.eye(4)), numbers, images, None, None, None, {})
        )
        for variant, texts in (("told", own), ("silent", [""] * 4)):
            keys = [(int(number), modality) for number in numbers for modality in modalities]
            rows = [Instruction(*key, "Where?", text, 1, 1, "stop", 0) for key, text in zip(keys, texts)]
            vectors = encoder.encode(texts).reshape(2, 2, -1)
            writer.write_instructions(f"instructions/{variant}", subject, vectors, rows)
    writer.finalize()
    return path


def run(cache: Path, *more: str | Path) -> Result:
    return CliRunner().invoke(main, ["sentences", str(cache), "--device", "cpu", *map(str, more)])


def test_each_sentence_comes_with_the_embedding_of_the_rest(told: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    with Cache(told) as cache:
        assert write_sentences(cache, "told", encoder, out, cache.subjects) == 3 + 2 + 1 + 2 + 1 + 2
        table = pq.read_table(out)
        assert [str(table.schema.field(name).type) for name in ("slice", "sentence", "embedding")] == [
            "int32",
            "int32",
            "list<element: float>",
        ]
        facts = table.schema.metadata
        assert facts[b"variant"] == b"told"
        assert facts[b"fingerprint"].decode() == cache.fingerprint("instructions/told")
        lines = {(r["subject"], r["slice"], r["modality"], r["sentence"]): r for r in table.to_pylist()}
        assert len(lines) == len(table)
        first = [lines["A", 3, "T1", number]["text"] for number in (-1, 0, 1, 2)]
        assert first == [TEXTS["A"][0], "Bright liver.", "Dark spleen;", "no kidney."]
        rest = ["Dark spleen; no kidney.", "Bright liver. no kidney.", "Bright liver. Dark spleen;"]
        found = [lines["A", 3, "T1", number]["embedding"] for number in (0, 1, 2)]
        np.testing.assert_allclose(found, encoder.encode(rest), atol=1e-5)
        np.testing.assert_allclose(lines["A", 7, "T1", 0]["embedding"], encoder.encode([""])[0], atol=1e-5)
        # Wordless instructions (A, 7, T2 and B, 7, T2) have no line; the whole text of all others is the cache's.
        whole = {key[:3]: line for key, line in lines.items() if key[3] == -1}
        assert len(whole) == 6 and ("A", 7, "T2") not in whole
        for (subject, number, modality), line in whole.items():
            row = next(row for row in cache.rows_of([subject]) if cache.rows["number"][row] == number)
            stored = cache.text_embeddings("told", [row])[0, cache.modalities.index(modality)]
            np.testing.assert_allclose(line["embedding"], stored, atol=1e-5)


def test_text_is_encoded_once_however_often_it_comes(told: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    counting = Counting(encoder)
    with Cache(told) as cache:
        write_sentences(cache, "told", counting, tmp_path / "s.parquet", cache.subjects)
    assert len(counting.asked) == len(set(counting.asked))
    # 'One sentence' of both subjects, and what is left of A's first instruction without its first sentence.
    assert {"One sentence", "", "Dark spleen; no kidney."} < set(counting.asked)


def test_command_writes_the_wanted_subjects_beside_the_cache(told: Path, tiny_bert: Path) -> None:
    # The language model and the image encoder are not needed.
    parts = ("--set", f"text_encoder={tiny_bert}", "--set", "llm=/nowhere", "--set", "encoder_weights=/nowhere")
    done = run(told, "--variant", "told", "--subjects", "B", *parts)
    assert done.exit_code == 0, done.output
    out = told.with_name("c.told.sentences.parquet")
    assert f"5 sentences in {out}. Next: zeus-segment probe --run RUN --sentences {out}" in done.output
    assert set(pq.read_table(out)["subject"].to_pylist()) == {"B"}
    before = out.read_bytes()
    assert run(told, "--variant", "told", "--subjects", "B", *parts).exit_code == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--variant", "lite"), "unknown variant lite; there are: silent, told"),
        (("--variant", "told", "--subjects", "C"), "unknown subject C; there are: A, B"),
        (("--variant", "silent"), "has no text of A, B"),
        (("--variant", "told", "--set", "text_kind=clip"), "expected CLIP"),
    ],
)
def test_bad_input_is_one_line(
    more: tuple[str, ...], message: str, told: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    done = run(told, *more, "--set", f"text_encoder={tiny_bert}", "--out", tmp_path / "s.parquet")
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.iterdir())


def test_another_text_encoder_than_the_variants_is_refused(
    told: Path, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_max_tokens", 64)
    with (
        Cache(told) as cache,
        pytest.raises(UserError, match=r"another text encoder \(max_tokens: 128 -> 64\); give the"),
    ):
        write_sentences(cache, "told", encoder, tmp_path / "s.parquet", cache.subjects)


def test_the_caches_own_files_are_not_overwritten(told: Path, encoder: TextEncoder) -> None:
    with Cache(told) as cache:
        for name in ("c.h5", "c.instructions.parquet"):
            with pytest.raises(UserError, match="is a file of the cache"):
                write_sentences(cache, "told", encoder, told.with_name(name), cache.subjects)


@pytest.mark.slow
def test_real_models_from_phantom_to_sentences(lite: Profile, tmp_path: Path) -> None:
    write_demo("nnunet", tmp_path / "data", subjects=1, seed=1)
    build = ["build-cache", "--dataset", "nnunet", "--data-root", str(tmp_path / "data"), "--slice-step", "12"]
    build += ["--modalities", "T1-DUAL-in,T2-SPIR", "--out", str(tmp_path / "c.h5"), "--device", "cpu"]
    for more in (
        ("--set", "projection=untrained", "--set", "max_new_tokens=12"),
        ("--set", "instructor=prompt", "--variant", "own", "--per-class"),
    ):
        done = CliRunner().invoke(main, [*build, *more])
        assert done.exit_code == 0, done.output
    for variant in ("lite", "own.left-kidney"):
        done = run(tmp_path / "c.h5", "--variant", variant, "--out", tmp_path / f"{variant}.parquet")
        assert done.exit_code == 0, done.output
        lines = pq.read_table(tmp_path / f"{variant}.parquet").to_pylist()
        with Cache(tmp_path / "c.h5") as cache:
            whole = [line["embedding"] for line in lines if line["sentence"] == -1]
            np.testing.assert_allclose(whole, cache.text_embeddings(variant, [0])[0], atol=1e-5)
    # A question is one sentence: without it nothing is left.
    one, other = (line["embedding"] for line in lines if line["sentence"] == 0)
    assert one == other
