"""Probing a run, and using one where modalities are missing."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from tests.stage2_segment.conftest import native_labels, oblique_grid
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.evaluation.evaluate import measure_run
from zeus_union.stage2_segment.evaluation.missing import evaluate_missing, known_loss, subsets
from zeus_union.stage2_segment.evaluation.probe import probe_sentences, probe_texts, sentence_table
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.predict import predict_run
from zeus_union.stage2_segment.trained import load_trained, predict_inputs
from zeus_union.stage2_segment.training.train import train_run


@pytest.fixture(scope="module")
def run(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    split = {"train_subjects": ["ada", "cleo", "dan"], "test_subjects": ["ben"]}
    train_run(toy_cache, folder, fusion="late", combine="learned", aligner="mlp", epochs=12, lr=1e-3, lr_new=5e-3,
              batch_size=3, device="cpu", validate_every=0, **split)  # fmt: skip
    return folder


def write_sentences(path: Path, cache: Cache, variant: str = "toy", other: bool = True) -> Path:
    """As zeus-instruct sentences writes them: slice 2 of ben, one sentence that matters and one that does not."""
    rows = cache.rows_of(["ben"])
    row = rows[cache.rows["number"][rows] == 2]
    own = cache.text_embeddings("toy", row)[0, 0]
    vectors = [own, -own if other else own, own]
    lines = {
        "subject": ["ben"] * 3,
        "slice": pa.array([2] * 3, pa.int32()),
        "modality": ["T1"] * 3,
        "sentence": pa.array([-1, 0, 1], pa.int32()),
        "text": ["All.", "It matters.", "It does not."],
        "embedding": pa.array([vector.tolist() for vector in vectors], pa.list_(pa.float32())),
    }
    facts = {"variant": variant, "fingerprint": cache.fingerprint("instructions/toy")}
    pq.write_table(pa.table(lines).replace_schema_metadata(facts), path)
    return path


def test_other_texts_are_measured_against_the_runs_own(run: Path, toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        lines = probe_texts(run, cache, device="cpu")
        own = {line["class"]: line for line in lines if line["text"] == "instruction"}
        expected = {row["class"]: row["dsc_256"] for row in measure_run(run, cache, device="cpu").rows}
    assert {name: line["dsc_256"] for name, line in own.items()} == pytest.approx(expected)
    assert all(line["changed"] == 0 for line in own.values())
    others = {line["text"] for line in lines} - {"instruction"}
    assert others == {"shuffled-slices", "shuffled-modalities", "constant", "random"}
    assert any(line["changed"] > 0 for line in lines)  # the text has a say at all
    assert pq.read_table(run / "probe.parquet").num_rows == len(lines)


def test_a_text_that_is_a_part_is_also_left_out(toy_cache: Path, tmp_path: Path) -> None:
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"]}
    train_run(toy_cache, tmp_path, fusion="hybrid", epochs=2, batch_size=3, device="cpu", validate_every=0, **split)
    with Cache(toy_cache) as cache:
        trained = load_trained(tmp_path, device="cpu")
        rows = cache.rows_of(["ben"])
        data = SliceData(cache, "toy", cache.modalities, rows, trained.device)
        inputs = RunInputs(trained.config, data)
        with torch.no_grad():  # the text's part is what the weights make of it, whatever the text
            for part in trained.model.aligners:
                part.layers[-1].weight.normal_(std=10.0, generator=torch.Generator().manual_seed(0))
        said, without = (predict_inputs(trained.model, inputs, data, use_text=use) for use in (True, False))
        assert not np.array_equal(said, without)
        trained.model.set_text_statistics(torch.zeros(2, 24), 1e9)
        np.testing.assert_array_equal(predict_inputs(trained.model, inputs, data), without)
        lines = probe_texts(tmp_path, cache, device="cpu")
    assert {line["text"] for line in lines} >= {"instruction", "none"}


def test_a_sentence_that_matters_comes_before_one_that_does_not(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    with Cache(toy_cache) as cache:
        lines = probe_sentences(run, cache, write_sentences(tmp_path / "s.parquet", cache), device="cpu")
    assert [line["text"] for line in lines] == ["It matters.", "It does not."]
    assert lines[0]["changed"] > 0 == lines[1]["changed"]
    assert lines[1]["dsc_256"] == lines[1]["dsc_256_without"]
    assert sentence_table(lines, 1).row_count == 1


def test_the_command_probes_both(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    with Cache(toy_cache) as cache:
        path = write_sentences(tmp_path / "s.parquet", cache)
    result = CliRunner().invoke(
        main, ["probe", "--run", str(run), "--sentences", str(path), "--device", "cpu"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "random vector" in result.output and "It matters." in result.output


def test_bad_sentences_and_runs_are_refused(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"]}
    train_run(toy_cache, silent, text="none", epochs=1, batch_size=3, device="cpu", **split)
    with Cache(toy_cache) as cache:
        with pytest.raises(UserError, match="trained with --text none"):
            probe_texts(silent, cache, device="cpu")
        with pytest.raises(UserError, match=r"absent\.parquet does not exist; zeus-instruct sentences"):
            probe_sentences(run, cache, tmp_path / "absent.parquet", device="cpu")
        (tmp_path / "bad.parquet").write_bytes(b"bad")
        with pytest.raises(UserError, match="is not a Parquet table"):
            probe_sentences(run, cache, tmp_path / "bad.parquet", device="cpu")
        pq.write_table(pa.table({"subject": ["ben"]}), tmp_path / "few.parquet")
        with pytest.raises(UserError, match="no column slice, modality"):
            probe_sentences(run, cache, tmp_path / "few.parquet", device="cpu")
        other = write_sentences(tmp_path / "other.parquet", cache, variant="vicuna")
        with pytest.raises(UserError, match=r'written for "vicuna".*--variant toy'):
            probe_sentences(run, cache, other, device="cpu")
        here = write_sentences(tmp_path / "here.parquet", cache)
        with pytest.raises(UserError, match="no sentence of ada; write it with these --subjects"):
            probe_sentences(run, cache, here, subjects=["ada"], device="cpu")


def test_every_subset_of_the_modalities_is_measured(run: Path, toy_cache: Path) -> None:
    assert subsets("abc") == [("a", "b", "c"), *[tuple(two) for two in ("ab", "ac", "bc")], ("a",), ("b",), ("c",)]
    with Cache(toy_cache) as cache:
        found = evaluate_missing(run, cache, device="cpu")
        alone = measure_run(run, cache, modalities=["T2"], device="cpu")
        assert list(found) == [("T1", "T2"), ("T1",), ("T2",)]
        assert found["T2",].rows == alone.rows
        assert found["T1", "T2"].rows == measure_run(run, cache, device="cpu").rows
        assert found["T1",].rows != found["T2",].rows
        with pytest.raises(UserError, match="unknown modality of the run CT; there are: T1, T2"):
            measure_run(run, cache, modalities=["CT"], device="cpu")
    names = pq.read_table(run / "missing.parquet")["modalities"].to_pylist()
    assert dict.fromkeys(names) == dict.fromkeys(["T1+T2", "T1", "T2"])
    of_all, of_t2 = (found[part].summary()["mean_over_classes"]["dsc"] for part in (("T1", "T2"), ("T2",)))
    assert known_loss([run], ["T2"]) == pytest.approx(of_all - of_t2, abs=1e-12)
    assert known_loss([run], ["T1", "T2"]) == 0
    assert known_loss([run], ["CT"]) is None and known_loss([run.parent], ["T2"]) is None


def test_masks_are_written_from_the_modalities_there_are(run: Path, toy_cache: Path, tmp_path: Path) -> None:
    """In the study's grid, near the truth, and other ones than from the other modality or from both."""
    volumes = {}
    with Cache(toy_cache) as cache:
        for names in (["T1"], ["T2"], ["T1", "T2"]):
            out = tmp_path / "-".join(names)
            (written,) = predict_run(run, cache, out, subjects=["ben"], modalities=names, device="cpu")
            assert written == out / "ben.nii.gz"
            image = nibabel.load(written)
            assert image.shape == oblique_grid().shape
            np.testing.assert_allclose(image.affine, oblique_grid().affine, atol=1e-6)
            volumes["-".join(names)] = np.asarray(image.dataobj)[:, ::2]  # the slices that are cached
        alone = {row["class"]: row for row in measure_run(run, cache, modalities=["T1"], device="cpu").rows}
    truth = native_labels("ben").transpose(1, 0, 2)[:, ::2]
    found = volumes["T1"]
    for label, name in enumerate(("liver", "spleen"), start=1):
        both = ((found == label) & (truth == label)).sum()
        assert alone[name]["both"] == both and alone[name]["predicted"] == (found == label).sum()
    assert ((found > 0) & (truth > 0)).sum() > 0.5 * (truth > 0).sum()
    assert not np.array_equal(found, volumes["T2"]) and not np.array_equal(found, volumes["T1-T2"])
