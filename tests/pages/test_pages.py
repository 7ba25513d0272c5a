"""Reports as one HTML file: what is in them, what is escaped, and that they need nothing else."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest
from click.testing import CliRunner

from tests.cache import tiny_cache
from tests.pages.conftest import EVIL, SPLEEN, TEXT, assert_stands_alone, data_of
from tests.pipelines.outputs.studies import abdomen
from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.instructions import Instruction
from zeus_union.cache.page.render import SCRIPTS
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.cli import main as zeus
from zeus_union.pipelines.outputs.results import write_results
from zeus_union.pipelines.report.ablation_page import write_ablation_page
from zeus_union.pipelines.report.charts import curve_charts
from zeus_union.pipelines.report.reproduce import train_command
from zeus_union.pipelines.report.run import report_run
from zeus_union.pipelines.report.run_page import telling_subjects
from zeus_union.pipelines.report.slice_views import marked
from zeus_union.pipelines.report.study_page import write_study_page
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.cli import main as zeus_segment
from zeus_union.stage2_segment.options import OPTIONS, read_command_line
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.sharing.export import export_runs

MOST_BYTES = 20 << 20


@pytest.fixture(scope="module")
def run_html(run: Path) -> str:
    _, page = report_run(run, None, None, 2, None)
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ablation_html(ablation: Path, run: Path) -> str:
    return write_ablation_page(ablation).read_text(encoding="utf-8")


def test_a_run_s_page_has_slices_of_its_best_and_worst_subject_with_their_texts(run_html: str, tmp_path: Path) -> None:
    assert_stands_alone(run_html, str(tmp_path.parents[1]))
    subjects = data_of(run_html, "slice-data")
    assert [subject["role"] for subject in subjects] == ["best", "worst"]
    assert sorted(subject["name"] for subject in subjects) == ["ben", "dan"]
    for subject in subjects:
        assert subject["modalities"] == ["T1", "T2"] and len(subject["slices"]) == 3
        for part in subject["slices"]:
            assert [said["of"] for said in part["said"]] == ["T1", "T2"]
            assert all(said["cut"] for said in part["said"])
            assert len(part["images"]) == 2 and all(url.startswith("data:image/webp;base64,") for url in part["images"])
        assert subject["slices"][subject["first"]]["truth"]["classes"] == ["liver", SPLEEN]


def test_what_a_probe_measured_is_marked_and_nothing_else(run_html: str) -> None:
    ben = next(subject for subject in data_of(run_html, "slice-data") if subject["name"] == "ben")
    probed, other = ben["slices"][1], ben["slices"][2]
    assert probed["number"] == 2
    sentences = probed["said"][0]["sentences"]
    assert sentences[0] == ["A liver on the right.", 0.31]
    assert [changed for _, changed in sentences] == [0.31, None, 0.02, None]
    assert " ".join(text for text, _ in sentences) == f"{TEXT} Slice 2."
    assert {changed for said in [probed["said"][1], *other["said"]] for _, changed in said["sentences"]} == {None}
    assert "another slice&#39;s instruction costs 0.050 DSC, and no text at all costs 0.200 DSC" in run_html


def test_without_evaluation_and_probes_a_run_s_page_says_so_and_invents_nothing(
    ablation: Path, evil_cache: Path, tmp_path: Path
) -> None:
    without_text = next(iter(sorted((ablation / "runs").glob("*none*"))))
    _, page = report_run(without_text, evil_cache, "ben", 1, tmp_path / "picture.png", tmp_path / "results")
    html = page.read_text(encoding="utf-8")
    assert page == tmp_path / "results" / "report.html"
    assert "was not evaluated yet" in html and "Mean DSC" not in html
    assert "reads no instruction of its own slice" in html
    (subject,) = data_of(html, "slice-data")
    assert subject["name"] == "ben" and all(part["said"] == [] for part in subject["slices"])


def test_a_shared_run_s_page_names_nobody_who_was_trained_on(run: Path, evil_cache: Path, tmp_path: Path) -> None:
    shared = tmp_path / "toy.zeus.zip"
    export_runs([run], shared)
    result = CliRunner().invoke(zeus, ["report", str(shared), "--cache", str(evil_cache), "--subjects", "ben"])
    assert result.exit_code == 0, result.output
    html = (tmp_path / "toy" / "report.html").read_text(encoding="utf-8")
    assert_stands_alone(html, str(tmp_path))
    (subject,) = data_of(html, "slice-data")
    assert subject["name"] == "ben"
    words = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)
    assert "1 subject whose names were not shared" in words and "it cannot be trained again from this file" in words
    assert not re.search(r"\b(ada|cleo|dan|salted)\b", words)


def test_a_loss_that_is_no_number_leaves_a_gap_and_no_broken_page() -> None:
    metrics = [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate((1.0, math.nan, math.inf, 0.5), 1)]
    (chart,) = curve_charts({"run": metrics})
    assert chart.data[0]["x"] == [1, 4]
    json.dumps(chart.data, allow_nan=False)


def test_an_ablation_s_page_has_its_table_points_answer_and_slices(ablation_html: str, ablation: Path) -> None:
    assert_stands_alone(ablation_html, str(ablation.parent))
    points = next(chart for chart in data_of(ablation_html, "plot-data") if chart["layout"]["yaxis"].get("ticktext"))
    assert points["layout"]["yaxis"]["ticktext"][0] == "row &lt;i&gt;one&lt;/i&gt;"
    assert points["layout"]["xaxis"]["range"][0] == 0
    assert len(points["data"][0]["x"]) == 2  # a point a subject
    assert "Not shown: row &lt;i&gt;one&lt;/i&gt; with its instruction minus without text is" in ablation_html
    subjects = data_of(ablation_html, "slice-data")
    assert len(subjects) == 2
    for subject in subjects:
        assert subject["compared"].startswith("row <i>one</i>, text: none")
        assert all(part["compared"] is not None for part in subject["slices"])


def test_an_ablation_without_its_cache_has_a_page_without_slices(
    ablation: Path, evil_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "elsewhere" / "rows"
    for path in (path for path in ablation.rglob("*") if path.is_file() and path.name != "state.pt"):
        (copy / path.relative_to(ablation)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(ablation)).write_bytes(path.read_bytes())
    html = write_ablation_page(copy).read_text(encoding="utf-8")
    assert data_of(html, "slice-data") == [] and "it has no slices" in html
    assert "the page has no slices" in capsys.readouterr().err
    with pytest.raises(UserError, match="was not tested on ada; it was on: ben, dan"):
        write_ablation_page(copy, cache_path=evil_cache, subjects=("ada",))


def test_figures_are_such_as_plotly_takes(run_html: str, ablation_html: str) -> None:
    charts = [*data_of(run_html, "plot-data"), *data_of(ablation_html, "plot-data")]
    assert len(charts) >= 5
    for chart in charts:
        plotly.graph_objects.Figure(json.loads(json.dumps(chart).replace('"ink"', '"black"')))


@pytest.mark.parametrize("images", [True, False])
def test_a_study_s_page_has_volumes_slices_and_texts(tmp_path: Path, images: bool) -> None:
    texts = (Instruction(5, "T1", "where?", TEXT, 1, 1, "stop", None),)
    segmentation = abdomen(
        instructions={"lite": texts},
        segmented=(5,),
        missing=("T3",),
        made_by={
            "members": [{"run": EVIL, "weights_sha256": "12" * 32}],
            "postprocessing": {"summary": "post-processing: none", "steps": {}, "chosen_on": []},
            "slice_step": 4,
        },
    )
    folder = tmp_path / "patient 7"
    write_results(segmentation, folder, preview=False)
    html = write_study_page(folder, segmentation.images if images else None).read_text(encoding="utf-8")
    assert_stands_alone(html, str(tmp_path))
    (subject,) = data_of(html, "slice-data")
    assert len(subject["slices"]) == 12 and subject["modalities"] == (["T1", "T2"] if images else [])
    said = {part["number"]: part["said"] for part in subject["slices"] if part["said"]}
    assert said == {5: [{"of": "T1", "cut": False, "sentences": [[TEXT, None]]}]}
    assert "nothing predicted" in html and "Segmented without T3" in html and "1 of 12 slices segmented" in html
    again = CliRunner().invoke(zeus, ["report", str(folder)])
    assert again.exit_code == 0 and f"open {folder / 'report.html'} in a browser" in again.output
    write_results(segmentation, folder, preview=False, replace=True)  # a page among the results stops nothing


def test_a_long_study_of_noise_is_a_page_below_20_mb(tmp_path: Path) -> None:
    shape = (48, 48, 300)
    random = np.random.default_rng(0)
    mask = np.zeros(shape, np.uint8)
    mask[10:30, 10:30, 40:250] = 1
    mask[2:5, 2:5, 290] = 2
    images = {name: random.normal(size=shape).astype(np.float32) for name in ("T1", "T2")}
    made_by = {"members": [{"run": "r", "weights_sha256": "12"}], "postprocessing": {"summary": ""}, "slice_step": 1}
    segmentation = Segmentation("long", ("liver", "spleen"), mask, Grid(shape, np.eye(4)), images, made_by=made_by)
    write_results(segmentation, tmp_path / "long", preview=False)
    page = write_study_page(tmp_path / "long", images)
    assert page.stat().st_size < MOST_BYTES
    (subject,) = data_of(page.read_text(encoding="utf-8"), "slice-data")
    assert len(subject["slices"]) == 40 and subject["left_out"] == 260
    assert 290 in [part["number"] for part in subject["slices"]]


def test_images_of_another_study_are_refused(tmp_path: Path) -> None:
    segmentation = abdomen(
        made_by={"members": [{"run": "r", "weights_sha256": "12"}], "postprocessing": {"summary": ""}, "slice_step": 1}
    )
    write_results(segmentation, tmp_path / "study", preview=False)
    with pytest.raises(UserError, match="give the study that was segmented"):
        write_study_page(tmp_path / "study", {"T1": np.zeros((3, 3, 3), np.float32)})


def test_a_cache_s_page_has_coverage_texts_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tiny_cache.make_texts

    def evil(subject: str, variant: str) -> Any:
        vectors, rows = original(subject, variant)
        return vectors, [Instruction(row.slice_number, row.modality, "?", EVIL, 1, 1, "length", None) for row in rows]

    monkeypatch.setattr(tiny_cache, "make_texts", evil)
    tiny_cache.build(tmp_path / "tiny.h5", variants=("zeus", "other"))
    page = tmp_path / "page.html"
    result = CliRunner().invoke(zeus_instruct, ["inspect", str(tmp_path / "tiny.h5"), "--html", str(page)])
    assert result.exit_code == 0, result.output
    html = page.read_text(encoding="utf-8")
    assert_stands_alone(html, str(tmp_path))
    assert [subject["name"] for subject in data_of(html, "slice-data")] == ["A", "B", "C"]
    assert "12 instructions, 1 distinct: the text says nothing of the image" in html
    with Cache(tmp_path / "tiny.h5") as cache:
        assert all(cache.fingerprint(layer)[:12] in html for layer in cache.layers)
    wrong = CliRunner().invoke(
        zeus_instruct, ["inspect", str(tmp_path / "tiny.h5"), "--html", str(page), "--subject", "D"]
    )
    assert wrong.exit_code == 2 and "unknown subject D; there are: A, B, C" in wrong.output


def test_only_the_scripts_of_the_page_may_run(run_html: str) -> None:
    policy = run_html.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src 'none'; img-src data:;")
    allowed = policy.split("script-src")[1].split(";")[0].split()
    assert len(allowed) == len(SCRIPTS) + 1 and all(source.startswith("'sha256-") for source in allowed)


def test_best_median_and_worst_are_those_of_the_mean_over_the_classes() -> None:
    results = [
        {"row": "r", "seed": 0, "fold": 0, "subject": name, "class": label, "dsc": score}
        for name, scores in {"a": (0.5, 0.7), "b": (0.9, 0.9), "c": (0.1, 0.3), "d": (0.8, None)}.items()
        for label, score in zip(("x", "y"), scores)
    ]
    roles = {name: role for name, role, _ in telling_subjects(results, ["a", "b", "c", "d"])}
    assert roles == {"b": "best", "a": "median", "c": "worst"}
    assert telling_subjects(results, ["a"]) == [("a", "", "DSC 0.600, the mean over its classes.")]
    assert [name for name, _, _ in telling_subjects([], ["a", "b", "c", "d"])] == ["a", "b", "c"]


def test_a_text_stays_whole_where_its_sentences_are_marked() -> None:
    text = "One. Two. One. Three"
    for weights in (
        {},
        {"Two.": 0.5},
        {"One.": 0.1, "Three": 0.2},
        {"not there": 1.0},
        {"One. Two.": 0.3, "Two.": 0.4},
    ):
        assert " ".join(part.text for part in marked(text, weights)) == text
    assert [(part.text, part.changed) for part in marked(text, {"Two.": 0.5})] == [
        ("One.", None),
        ("Two.", 0.5),
        ("One. Three", None),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "late", "epochs": 3, "lr": 1e-3, "text": "constant", "seed": 7, "fold": 1},
        {"model": "unet", "preset": "quarter", "augment": False, "fusion": "early", "epochs": 2},
        {"train_subjects": ("ada", "ben"), "test_subjects": ("dan",), "modalities": ("T2",), "text": "none"},
        {"recipe": "paper", "class_weights": "inverse", "modality_drop": 0.3, "text_drop": 0.0, "aligner": "mlp"},
    ],
)
def test_the_command_on_the_page_plans_the_same_run(evil_cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with Cache(evil_cache) as cache:
        config = plan_run(cache, run=tmp_path / "run", **options)
        words = shlex.split(train_command(config, "run"))
        assert words[:4] == ["zeus-segment", "train", "--cache", "toy.h5"] and words[-2:] == ["--out", "run"]
        command = zeus_segment.commands["train"]
        # With its group above it, else click remembers --help without -h for the command.
        with zeus_segment.make_context("zeus-segment", [], resilient_parsing=True) as group:
            parsed = command.make_context("train", words[2:], parent=group).params
        given = read_command_line({option.name: parsed[option.name] for option in OPTIONS})
        assert plan_run(cache, run=tmp_path / "run", **given) == config


def test_a_run_s_page_is_small(run: Path, run_html: str) -> None:
    assert len(run_html) < MOST_BYTES
    assert (
        load_config(run).inputs.cache.startswith("..")
        and "../" not in run_html.split("</style>")[1].split("<script>")[0]
    )
