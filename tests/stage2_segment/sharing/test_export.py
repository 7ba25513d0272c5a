"""A shared run has all that a prediction needs, and nothing by which a patient, a machine or its user is known."""

from __future__ import annotations

import errno
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from tests.stage2_segment.sharing.conftest import DAY, MACHINE, NAMES, SALT, Cohort, run, said
from zeus_union.cache import atomic
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage2_segment.carried import carried_profile
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.cli import main as zeus_segment
from zeus_union.stage2_segment.evaluation.evaluate import measure_run
from zeus_union.stage2_segment.evaluation.missing import known_loss
from zeus_union.stage2_segment.measured import read_measured
from zeus_union.stage2_segment.sharing.archive import FILES, opened_runs
from zeus_union.stage2_segment.sharing.export import export_runs
from zeus_union.stage2_segment.sharing.importing import import_runs
from zeus_union.stage2_segment.trained import load_trained
from zeus_union.stage2_segment.training_subjects import trained_by_run_or_projection


@pytest.fixture(scope="module")
def archive(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs."""
    out = tmp_path_factory.mktemp("shared") / "toy.zeus.zip"
    export_runs(cohort.runs, out, licence="CC-BY-4.0", salt=SALT, day=DAY)
    return out


def texts_in(archive: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of every string in a file: names, keys and values of JSON, metadata of tensors, lines of Markdown."""
    with zipfile.ZipFile(archive) as opened:
        yield "comment", opened.comment.decode()
        for entry in opened.infolist():
            yield "name", entry.filename
            content = opened.read(entry)
            if entry.filename.endswith(".safetensors"):
                header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                yield from strings(entry.filename, header)
                yield from strings(entry.filename, [json.loads(v) for v in header.get("__metadata__", {}).values()])
            elif entry.filename.endswith(".json"):
                yield from strings(entry.filename, json.loads(content))
            else:
                yield entry.filename, content.decode()


def strings(where: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield where, key
            yield from strings(f"{where} {key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(where, inner)
    elif isinstance(value, str):
        yield where, value


def test_no_name_path_host_or_user_is_in_any_string_of_the_file(archive: Path, cohort: Cohort) -> None:
    forbidden = [*NAMES.values(), *(f"digest of {name}" for name in NAMES), MACHINE, "jdoe42", "host."]
    forbidden += [str(cohort.cache.parent), cohort.cache.name]
    texts = list(texts_in(archive))
    assert len(texts) > 500
    for where, text in texts:
        assert not [word for word in forbidden if word.lower() in text.lower()], (where, text)
        assert "/" not in text or where.endswith((".md", "manifest.json")) or not Path(text).is_absolute(), (
            where,
            text,
        )
    raw = archive.read_bytes()
    assert not [word for word in forbidden if word.encode() in raw]


def test_only_safetensors_json_and_the_card_are_in_it(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
    assert all(FILES.fullmatch(name) for name in names if name != "manifest.json")
    files = {"config.json", "profile.json", "projection.safetensors", "postprocessing.json"}
    files |= {"weights/last.safetensors", "weights/best.safetensors"}
    for number, more in enumerate([{"measured.json"}, set()]):
        prefix = f"runs/{number}/"
        assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == files | more


def test_the_same_runs_salt_and_day_give_the_same_bytes(archive: Path, cohort: Cohort, tmp_path: Path) -> None:
    again, other = tmp_path / "again.zeus.zip", tmp_path / "toy.zeus.zip"
    export_runs(cohort.runs, tmp_path / "toy.zeus.zip", licence="CC-BY-4.0", salt=SALT, day=DAY)
    assert other.read_bytes() == archive.read_bytes()
    export_runs(cohort.runs, again, licence="CC-BY-4.0", day=DAY)
    marks = [
        set(re.findall(rb"salted:[0-9a-f]+:[0-9a-f]+", zipfile.ZipFile(path).read("runs/0/config.json")))
        for path in (again, other)
    ]
    assert len(marks[0]) == len(marks[1]) > 4 and marks[0].isdisjoint(marks[1])


def test_an_imported_run_predicts_bit_for_bit_as_the_folder_does(archive: Path, cohort: Cohort, tmp_path: Path) -> None:
    imported = import_runs(archive, tmp_path / "toy")
    with Cache(cohort.other) as cache:
        for before, after, which in zip(cohort.runs, imported, ("last", "best")):
            expected = load_trained(before, which, "cpu").predict(cache, [2])
            assert expected.any()
            np.testing.assert_array_equal(load_trained(after, which, "cpu").predict(cache, [2]), expected)


def test_predict_and_evaluate_take_the_file_as_the_folders(archive: Path, cohort: Cohort, tmp_path: Path) -> None:
    words = {"folders": [w for folder in cohort.runs for w in ("--run", folder)], "file": ["--run", archive]}
    for name, chosen in words.items():
        how = ("--cache", cohort.other, "--subjects", "new", "--device", "cpu")
        done = run(zeus_segment, "predict", *chosen, *how, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    masks = sorted(path.name for path in (tmp_path / "folders").glob("*.nii.gz"))
    assert len(masks) == 2  # the mask, and where the members disagree
    for name in masks:
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "folders" / name).read_bytes()
    single = tmp_path / "one.zeus.zip"
    export_runs(cohort.runs[:1], single)
    done = run(zeus_segment, "evaluate", "--run", single, "--cache", cohort.other, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "not measured, because they were trained on" in said(done) and "renamed" in said(done)
    (written,) = (tmp_path / "one").glob("evaluation-other-*.json")
    assert json.loads(written.read_text())["subjects"] == ["new"]
    done = run(zeus, "report", single, "--cache", cohort.other, "--slices", 1)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "one" / "picture.png").is_file()
    for command in (["evaluate"], ["predict", "--out", tmp_path / "x"]):
        done = run(zeus_segment, *command, "--run", single)
        assert done.exit_code == 2
        assert "was shared without the cache it was trained on; give --cache FILE" in said(done)


def test_on_the_training_cache_a_shared_run_is_measured_as_before(
    archive: Path, cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cache(cohort.cache) as cache, opened_runs([archive]) as runs:
        expected = measure_run(cohort.runs[0], cache, device="cpu")
        evaluation = measure_run(runs[0], cache, device="cpu")
    assert evaluation.rows == expected.rows
    assert [row["subject"] for row in expected.rows] == [NAMES["ben"]] * 2
    assert evaluation.postprocessing.steps == expected.postprocessing.steps == {"liver": ("largest_component",)}
    assert NAMES["dan"] in expected.postprocessing.summary
    assert "chosen on 1 subject whose names were not shared, one subject alone" in evaluation.postprocessing.summary


def test_a_training_subject_is_recognised_by_its_name_and_under_another_by_its_pictures(archive: Path) -> None:
    with opened_runs([archive]) as (first, second):
        configs = load_config(first), load_config(second)
    assert not {*NAMES.values()} & {*configs[0].split.train, *configs[0].split.test}
    known = trained_by_run_or_projection(configs[0])
    assert known.has(NAMES["ada"]) and known.has(NAMES["cleo"]) and not known.has(NAMES["ben"])
    assert known.has("somebody", ["x", "digest of ada"]) and known.has("somebody", ["digest of cleo"])
    assert not known.has("somebody", ["digest of ben", "x"]) and not known.has("somebody")
    assert trained_by_run_or_projection(configs[1]).has("x", ["digest of ben"])


def test_the_profile_says_what_has_to_be_given_in_place_of_files_of_another_machine(archive: Path) -> None:
    with opened_runs([archive]) as (first, _):
        with pytest.raises(
            UserError, match=r"give --set llm=\.\.\. \(vicuna-7b\), --set address=\.\.\., as they are"
        ) as error:
            carried_profile(first)
        assert "jdoe42" not in str(error.value)
        assert carried_profile(first, {"llm": "mine", "address": "x"}) == {
            "name": "mine",
            "llm": "none",
            "address": "none",
        }


def test_the_card_says_data_classes_licence_and_dsc_by_numbered_subject(archive: Path, cohort: Cohort) -> None:
    opened = zipfile.ZipFile(archive)
    card = json.loads(opened.read("card.json"))
    assert card["dataset"] == "toy" and card["classes"] == ["liver", "spleen"] and card["licence"] == "CC-BY-4.0"
    assert card["modalities"] == {"T1": "MRI-T1", "T2": "MRI-T2"} and card["training_subjects"] == 4
    first, second = card["members"]
    summary = json.loads((cohort.runs[0] / "evaluation.json").read_text())
    assert first["measured"]["dsc"] == {
        name: {"1": pytest.approx(scores["dsc"])} for name, scores in summary["classes"].items()
    }
    assert second["measured"] is None
    page = opened.read("MODEL_CARD.md").decode()
    for words in ("not a medical device", "CC-BY-4.0", "toy, 4 training subjects", "1 liver, 2 spleen", "| liver | 0."):
        assert words in page
    assert "--set llm=VICUNA-7B" in page and "Not measured on its held-out subjects" in page


def test_what_a_missing_modality_cost_goes_along(archive: Path, cohort: Cohort) -> None:
    before = read_measured(cohort.runs[0])
    with opened_runs([archive]) as (first, second):
        after = read_measured(first)
        assert read_measured(second) is None
        losses = [known_loss([run], ["T2"]) for run in (cohort.runs[0], first, second)]
        assert known_loss([first], ["T1", "T2"]) == 0
        assert known_loss([first, cohort.runs[0]], ["T2"]) == losses[0] and known_loss([first, second], ["T2"]) is None
    assert before is not None and after is not None
    assert after.of_modalities == before.of_modalities and [*after.of_modalities] == ["T1+T2", "T1", "T2"]
    lost = before.of_modalities["T1+T2"] - before.of_modalities["T2"]
    assert losses == [pytest.approx(lost), pytest.approx(lost), None]


def test_the_command_says_what_is_not_inside_and_writes_over_nothing(cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "new" / "toy.zeus.zip"
    done = run(zeus, "export", *cohort.runs, out)
    assert done.exit_code == 0, done.output
    assert "no licence given" in said(done) and "1 of 2 runs without DSC" in said(done)
    assert "not inside: llm (vicuna-7b); whoever uses the file gives --set llm=..." in said(done)
    before = out.read_bytes()
    again = run(zeus, "export", *cohort.runs, out)
    assert again.exit_code == 2 and "toy.zeus.zip exists; choose another name" in said(again)
    assert out.read_bytes() == before and [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_disk_that_is_full_leaves_nothing(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = atomic.write_at, []

    def write_some(fd: int, data: memoryview, offset: int) -> int:
        written.append(len(data))
        if sum(written) > 1_000_000:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, data, offset)

    monkeypatch.setattr(atomic, "write_at", write_some)
    done = run(zeus, "export", cohort.runs[0], tmp_path / "toy.zeus.zip")
    assert done.exit_code == 2 and "no space left on the device" in said(done)
    assert not list(tmp_path.iterdir())


def test_what_cannot_predict_together_or_is_not_whole_is_not_exported(cohort: Cohort, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(cohort.runs[0], broken)
    out = tmp_path / "out.zeus.zip"
    values = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**values, "inputs": {**values["inputs"], "classes": ["a", "b"]}}))
    with pytest.raises(UserError, match="they differ in classes"):
        export_runs([cohort.runs[1], broken], out)
    (broken / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="hold the same weights"):
        export_runs([cohort.runs[0], broken], out)
    with pytest.raises(UserError, match="are the same folder"):
        export_runs([broken, broken], out)
    weights = broken / "weights" / "last.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file(tensors, weights, {"epoch": "1", "patient": NAMES["ada"]})
    with pytest.raises(UserError, match=r"says more than its epoch \(patient\)"):
        export_runs([broken], out)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a safetensors file, or is damaged"):
        export_runs([broken], out)
    weights.unlink()
    with pytest.raises(UserError, match="has not come to its first save"):
        export_runs([broken], out)
    with pytest.raises(UserError, match=r"a shared run is called NAME\.zeus\.zip"):
        export_runs(cohort.runs, tmp_path / "out.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_an_imported_run_is_exported_again_with_the_same_marks(archive: Path, tmp_path: Path) -> None:
    imported = import_runs(archive, tmp_path / "toy")
    export_runs(imported, tmp_path / "toy.zeus.zip", licence="CC-BY-4.0", day=DAY)
    assert (tmp_path / "toy.zeus.zip").read_bytes() == archive.read_bytes()


def test_an_imported_run_is_not_trained_on(archive: Path, cohort: Cohort, tmp_path: Path) -> None:
    from zeus_union.stage2_segment.training.train import train_run

    imported = import_runs(archive, tmp_path / "toy")
    with pytest.raises(UserError, match="was imported, without what training goes on from; choose another --out"):
        train_run(cohort.cache, imported[0], resume=True, epochs=1, device="cpu", allow_seen=True)
