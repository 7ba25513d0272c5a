"""zeus ablate: the numbers of separate runs, from one pass; goes on after a kill; one bad run hurts no other."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from tests.stage2_segment.baselines.test_pretrained_unet import published
from tests.stage2_segment.conftest import add_views, make_cache
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.ablation import memory, timing
from zeus_union.pipelines.ablation import run as ablate
from zeus_union.pipelines.ablation.grid import AblationGrid, GridRow, grid_names, paper_figures, read_grid, read_weights
from zeus_union.pipelines.ablation.memory import runs_at_once
from zeus_union.pipelines.ablation.plan import plan_ablation, rows_not_run
from zeus_union.pipelines.ablation.run import run_ablation
from zeus_union.pipelines.ablation.timing import StepTimes
from zeus_union.pipelines.cli import main
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.losses import Losses
from zeus_union.stage2_segment.training.train import train_run

BASELINES = """
title: baselines
options: {model: unext, epochs: 1, batch-size: 2, train-subjects: ada, test-subjects: ben}
rows:
  - {name: early, set: {fusion: early}}
  - {name: hybrid, set: {fusion: hybrid, merge: mean}}
  - {name: late, set: {fusion: late, modalities: T2}}
  - {name: zeus, set: {model: zeus, fusion: hybrid, modalities: T2}}
"""
GRID = """
title: a test
options: {fusion: hybrid, epochs: 2, batch-size: 2, train-subjects: ada, test-subjects: [ben]}
rows:
  - {name: both, paper: {MSD-Brain: [80.5, 78.0]}}
  - {name: T2, set: {modalities: [T2], combine: max}}
  - {name: late, set: {fusion: late, lr: 1e-3}}
controls: [random, none]
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache") / "toy.h5")


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "mine.yaml"
    path.write_text(GRID)
    return path


def ablation(toy: Path, grid_file: Path, out: Path, **how: Any) -> list[dict[str, Any]]:
    with Cache(toy) as cache:
        grid = read_grid(str(grid_file), {})
        run_ablation(cache, grid, plan_ablation(cache, grid, out), out, device="cpu", **how)
    return pq.read_table(out / "results.parquet").to_pylist()


@pytest.fixture(scope="module")
def whole(toy: Path, grid_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows, trained side by side; `batches.json` has how many batches were decoded for them."""
    out = tmp_path_factory.mktemp("ablation") / "whole"
    decoded: list[int] = []
    on_device = SliceData._on_device

    def counted(self: SliceData, *stored: Any) -> Any:
        decoded.append(1)
        return on_device(self, *stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SliceData, "_on_device", counted)
        ablation(toy, grid_file, out)
    (out / "batches.json").write_text(json.dumps(len(decoded)))
    return out


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["ablate", *map(str, arguments)], catch_exceptions=False)


def weights(out: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(out / "runs" / run / "weights" / "last.safetensors")


SEPARATE: dict[str, dict[str, Any]] = {
    "both": {},
    "T2": {"modalities": ["T2"], "combine": "max"},
    "late": {"fusion": "late", "lr": 1e-3},
    "both-text-random": {"text": "random"},
    "both-text-none": {"text": "none"},
}


@pytest.mark.parametrize("row", SEPARATE)
def test_each_row_has_the_weights_and_scores_of_a_run_of_its_own(
    toy: Path, whole: Path, tmp_path: Path, row: str
) -> None:
    options = {"fusion": "hybrid", "epochs": 2, "batch_size": 2, **SEPARATE[row]}
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"]}
    train_run(toy, tmp_path / "run", validate_every=0, device="cpu", **split, **options)
    beside = load_file(whole / "runs" / f"{row}-named-seed0" / "weights" / "last.safetensors")
    alone = load_file(tmp_path / "run" / "weights" / "last.safetensors")
    assert beside.keys() == alone.keys()
    assert all(torch.equal(beside[name], alone[name]) for name in alone)
    scores = evaluate_run(tmp_path / "run", device="cpu").rows
    results = [
        line for line in pq.read_table(whole / "results.parquet").to_pylist() if line["run"].startswith(f"{row}-named")
    ]
    assert [line["dsc"] for line in results] == [score["dsc"] for score in scores]


def test_stacked_models_have_the_same_weights_up_to_rounding(
    toy: Path, grid_file: Path, whole: Path, tmp_path: Path
) -> None:
    ablation(toy, grid_file, tmp_path / "stacked", stacked=True)
    for run in (whole / "runs").iterdir():
        one = load_file(run / "weights" / "last.safetensors")
        other = load_file(tmp_path / "stacked" / "runs" / run.name / "weights" / "last.safetensors")
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{run.name} {name}")


def test_each_batch_is_read_once_for_all_rows(whole: Path) -> None:
    steps, tested = 2 * 2, 1
    assert json.loads((whole / "batches.json").read_text()) == steps + 5 * tested


def test_killed_anywhere_and_started_again_it_ends_the_same(
    toy: Path, grid_file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("zeus_union.stage2_segment.checkpoint.SAVE_EVERY_S", 0)
    monkeypatch.setattr("zeus_union.stage2_segment.checkpoint.SAVING_SHARE", float("inf"))
    take, taken = Learner.take, []

    def killed_at(step: int) -> Any:
        def spoiled(self: Learner, *rest: Any) -> None:
            taken.append(1)
            if len(taken) == step:
                raise KeyboardInterrupt
            take(self, *rest)

        return spoiled

    for step in (3, 8):  # the learners are then at different places
        taken.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Learner, "take", killed_at(step))
            ablation(toy, grid_file, out)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        write, count = ablate.write_table, []

        def table(path: Path, lines: list[dict[str, Any]]) -> None:
            count.append(1)
            if len(count) == 3:
                raise KeyboardInterrupt
            write(path, lines)

        patch.setattr(ablate, "write_table", table)
        ablation(toy, grid_file, out)
    assert len({line["run"] for line in pq.read_table(out / "results.parquet").to_pylist()}) == 2
    ended = ablation(toy, grid_file, out)
    expected = pq.read_table(whole / "results.parquet").to_pylist()
    assert sorted((line["run"], line["class"]) for line in ended) == sorted(
        (line["run"], line["class"]) for line in expected
    )
    for run in {line["run"] for line in expected}:
        found, wanted = weights(out, run), weights(whole, run)
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == [], run


def test_a_run_whose_loss_is_not_finite_stops_alone(
    toy: Path, grid_file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Learner.losses

    def spoiled(self: Learner, *rest: Any) -> Losses:
        found = losses(self, *rest)
        bad = self.run.name.startswith("T2") and self.epoch == 2
        return Losses(*(part * torch.nan for part in found)) if bad else found

    monkeypatch.setattr(Learner, "losses", spoiled)
    for stacked, tolerance in ((False, {"rtol": 0.0, "atol": 0.0}), (True, {"rtol": 1e-4, "atol": 1e-5})):
        out = tmp_path / f"{stacked}"
        results = ablation(toy, grid_file, out, stacked=stacked)
        stopped = json.loads((out / "stopped.json").read_text())
        assert list(stopped) == ["T2-named-seed0"] and "loss became nan" in stopped["T2-named-seed0"]
        assert all(torch.isfinite(tensor).all() for tensor in weights(out, "T2-named-seed0").values())
        others = {run.name for run in (whole / "runs").iterdir()} - {"T2-named-seed0"}
        assert {(line["run"], line["class"]) for line in results} == {
            (run, name) for run in others for name in ("liver", "spleen")
        }
        for run in others:
            found, wanted = weights(out, run), weights(whole, run)
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                torch.testing.assert_close(found[name], tensor, **tolerance, msg=f"{run} {name}")


def test_the_command_prints_a_table_and_a_dry_run_trains_nothing(toy: Path, grid_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = ("--cache", toy, "--grid", grid_file, "--out", out, "--device", "cpu", "--epochs", 1)
    small = ("--set", "modalities=T1", "--set", "fusion=hybrid", "--set", "batch-size=1")  # a step of each is measured
    dry = command(*grid, "--dry-run", "--seeds", "0,1", *small)
    assert dry.exit_code == 0, dry.output
    assert "both, text: random" in dry.output.replace("\n", " ") and "minutes" in dry.output
    assert not out.exists()
    done = command(*grid, "--controls", "none", "--set", "modalities=T1", "--set", "fusion=hybrid")
    assert done.exit_code == 0, done.output
    for name in ("table.md", "table.csv", "table.tex", "classes.md", "table.png", "results.parquet"):
        assert (out / name).stat().st_size > 0, name
    table = (out / "table.md").read_text()
    assert "both, text: none" in table and "80.5" in table and "random" not in table
    changed = command(*grid[:-1], 2, "--controls", "none", "--set", "modalities=T1", "--set", "fusion=hybrid")
    assert changed.exit_code == 2 and "epochs: 1 -> 2" in changed.output
    shown = CliRunner().invoke(main, ["report", str(out), "--reference", "late"], catch_exceptions=False)
    assert shown.exit_code == 0 and "late" in shown.output


def test_seeds_and_folds_are_runs_of_their_own(toy: Path) -> None:
    grid = read_grid("table2", {"fusion": "late"})
    with Cache(toy) as cache:
        runs = plan_ablation(cache, grid.__class__(grid.title, grid.rows, (0, 1), None, grid.reference), Path("out"))
        folds = set(cache.rows["fold"][cache.rows["labelled"]].tolist())
    assert len(runs) == 23 * 2 * len(folds)
    assert len({run.name for run in runs}) == len(runs)


def test_a_row_without_its_weights_is_marked_as_not_run_and_the_others_are(toy: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(
        "options: {epochs: 1, batch-size: 3, fusion: early, train-subjects: ada, test-subjects: ben}\n"
        "rows:\n"
        "  - {name: none given, set: {model: pretrained_unet}}\n"
        "  - {name: absent, set: {model: transunet, pretrained: absent.npz}, paper: {CHAOS: [82.0, 80.0]}}\n"
        "  - {name: there, set: {model: unext, preset: quarter}}\n"
    )
    result = command("--cache", toy, "--grid", path, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "row absent is not run: no weights at absent.npz" in said
    assert "row none given is not run: pretrained_unet begins from published weights" in said
    lines = list(csv.DictReader((out / "table.csv").open()))
    assert [line["row"] for line in lines] == ["none given", "absent", "there"]
    assert [line["DSC mean"] == "" for line in lines] == [True, True, False]
    assert lines[1]["paper's DSC %"] == "82.0"
    notes = (out / "table.md").read_text()
    assert "not run: absent: no weights at absent.npz" in notes
    assert [line["row"] for line in csv.DictReader((out / "subjects.csv").open())] == ["there"]


def test_weights_of_a_model_reach_its_rows(toy: Path, tmp_path: Path) -> None:
    save_file(published("timm"), tmp_path / "b0.safetensors")
    weights = read_weights([f"pretrained_unet={tmp_path / 'b0.safetensors'}"])
    grid = read_grid("table2", {}, None, weights)
    with Cache(toy) as cache:
        assert list(rows_not_run(read_grid("table2", {}))) == [
            f"Pretrained U-Net {f}" for f in ("early", "hybrid", "late")
        ]
        assert rows_not_run(grid) == {}
        few = replace(grid, rows=tuple(row for row in grid.rows if "early" in row.name), reference="U-Net early")
        with_weights = {run.row for run in plan_ablation(cache, few, tmp_path) if run.pretrained}
    assert with_weights == {"Pretrained U-Net early"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--pretrained", "unet=x.pth"],
            "'unet' is not a model with published weights; expected MODEL=FILE with a MODEL of",
        ),
        (["--pretrained", "transunet=absent.npz"], "--pretrained transunet=absent.npz: no weights at absent.npz"),
        (["--pretrained", "absent.npz"], "expected MODEL=FILE"),
        (["--set", "pretrained=absent.npz"], "--set pretrained=absent.npz: the file does not exist"),
    ],
)
def test_weights_that_were_typed_and_are_not_there_are_refused(
    toy: Path, tmp_path: Path, given: list[str], message: str
) -> None:
    result = command("--cache", toy, "--grid", "table2", "--out", tmp_path / "out", *given)
    assert result.exit_code == 2 and message in result.output and result.output.count("\n") == 1, result.output


def test_a_batchs_augmentation_is_part_of_a_steps_time(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_seconds_a_slice", lambda modalities: 100.0 * modalities)
    with Cache(toy) as cache:
        plain, augmented = (
            plan_run(cache, run=Path("run"), model="unext", preset="quarter", fusion="early", augment=augment)
            for augment in (False, True)
        )
    times = StepTimes(torch.device("cpu"))
    assert times.of(plain) < 100 and 800 < times.of(augmented) < 900  # four slices of two modalities


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            "rows: [{name: a, set: {learning: 3}}]",
            "unknown option learning; there are: accumulate, aligner, aligner-depth",
        ),
        ("rows: [{name: a, set: {lr: fast}}]", "lr = 'fast'"),
        ("rows: [{name: a, set: {fusion: early-ish}}]", "fusion = 'early-ish'"),
        ("rows: [{name: a}, {name: a}]", "names a twice"),
        ("rows: [{set: {}}]", "row 1 has no name"),
        ("rose: []", "unknown key rose; there are: title"),
        (
            "rows: [{name: a, set: {variant: vicuna}}]",
            "row a: the cache has no layer instructions/vicuna; it has toy; ",
        ),
        ("rows: [{name: a, set: {modalities: CT}}]", "row a: unknown modality CT; there are: T1, T2"),
        ("rows: [{name: a}]\nfolds: [9]", "row a: there is no fold 9; folds of this cache: "),
        ("rows: [{name: a}]\ncontrols: [noise]", "unknown control noise; there are: shuffled-slices"),
        ("rows: [{name: a}]\nseeds: [x]", "seeds is ['x'], expected a list of numbers"),
        ("rows: [{name: a}]\nreference: b", "unknown reference row b; there are: a"),
        ("rows: [{name: a}]\nlists: {lr: 3}", "lr is 3, expected a list of values"),
        ("rows: [{name: a, paper: 3}]", "paper: expected DATASET: [DSC, mIoU]"),
        ("rows: [{name: a}]\nminutes: soon", "minutes is 'soon', expected a number above 0"),
        ("rows: [{name: a, set: {epochs: 3}}]\nminutes: 1", "minutes and epochs exclude one another"),
        ("[1, 2]", "expected a mapping with the keys title"),
    ],
)
def test_bad_grids_are_one_line_and_leave_nothing(toy: Path, tmp_path: Path, grid: str, message: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(grid)
    result = command("--cache", toy, "--grid", path, "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 2
    assert message in result.output and result.output.count("\n") == 1, result.output
    assert not (tmp_path / "out").exists()


def test_rows_the_cache_lacks_can_be_left_out(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cache(toy) as cache:
        grid = read_grid("controls", {})
        with pytest.raises(UserError, match="--set instructor=prompt makes the layer; --skip-missing"):
            plan_ablation(cache, grid, tmp_path)
        rows = {run.row for run in plan_ablation(cache, grid, tmp_path, skip_missing=True)}
    assert len(rows) == 6 and "Zeus, text: prompt" not in rows
    assert "row Zeus, text: prompt is left out" in capsys.readouterr().err


def test_lists_are_every_combination(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("lists: {combine: [mean, max], modalities: [[T1], [T1, T2]]}")
    rows = read_grid(str(path), {}).rows
    assert [row.name for row in rows][1] == "combine=mean, modalities=T1+T2"
    assert [dict(row.options) for row in rows] == [
        {"combine": combine, "modalities": modalities}
        for combine in ("mean", "max")
        for modalities in (("T1",), ("T1", "T2"))
    ]


def test_options_for_every_row_reach_those_that_have_them(tmp_path: Path, toy: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("rows: [{name: u, set: {model: unext, merge: mean}}, {name: z, set: {form: sentence}}]")
    unext, zeus = read_grid(str(path), {"variant": "toy", "preset": "quarter", "epochs": "3"}).rows
    assert unext.options == {"model": "unext", "merge": "mean", "preset": "quarter", "epochs": 3}
    assert zeus.options == {"form": "sentence", "variant": ("toy",), "epochs": 3}
    path.write_text("rows: [{name: u, set: {model: unext, variant: toy}}]")
    with Cache(toy) as cache, pytest.raises(UserError, match=r"row u: .* to zeus only and this is unext; leave out"):
        plan_ablation(cache, read_grid(str(path), {}), tmp_path)


def test_what_needs_a_text_does_not_reach_rows_without_one(tmp_path: Path, toy: Path) -> None:
    """One command trains a grid and its controls, whichever of them have no text or an aligner that is all text."""
    path = tmp_path / "grid.yaml"
    path.write_text(
        "{rows: [{name: a}, {name: b, set: {aligner: mlp}}, {name: c, set: {text: none}}, {name: d, set: {recipe: paper}}],"
        " controls: [none, shuffled-slices]}"
    )
    grid = read_grid(str(path), {"variant": "toy", "text_drop": "0.5"})
    assert {row.name: {"variant", "text_drop"} & set(row.options) for row in grid.rows} == {
        "a": {"variant", "text_drop"},
        "b": {"variant"},
        "c": set(),
        "d": {"variant"},
        "a, text: none": set(),
        "a, text: shuffled-slices": {"variant", "text_drop"},
    }
    with Cache(toy) as cache:
        assert plan_ablation(cache, grid, tmp_path)
    path.write_text("{options: {text_drop: 0.5}, lists: {text: [instruction, none], aligner: [residual, mlp]}}")
    rows = read_grid(str(path), {}).rows
    assert ["text_drop" in row.options for row in rows] == [True, False, False, False]
    path.write_text("rows: [{name: c, set: {text: none, text_drop: 0.5}}]")
    with Cache(toy) as cache, pytest.raises(UserError, match="row c: --text-drop leaves out"):
        plan_ablation(cache, read_grid(str(path), {}), tmp_path)


@pytest.mark.parametrize("name", grid_names())
def test_our_grids_can_be_read_and_have_the_papers_figures(name: str, toy: Path) -> None:
    grid = read_grid(name, {})
    assert len({row.name for row in grid.rows}) == len(grid.rows)
    if name.startswith("table"):
        with Cache(toy) as cache:
            assert all(row.paper for row in grid.rows if row.options.get("model") != "pretrained_unet")
            figures = paper_figures(grid.rows, cache)
        assert bool(figures) == (name in ("table4", "table5"))  # of one data set; the toy is none of the paper's


def test_baselines_are_rows_like_any_other(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(BASELINES)
    results = ablation(toy, path, tmp_path / "out", stacked=True)
    assert {line["row"] for line in results} == {"early", "hybrid", "late", "zeus"}
    alone = tmp_path / "alone"
    train_run(toy, alone, model="unext", fusion="early", epochs=1, batch_size=2, validate_every=0, device="cpu",
              train_subjects=["ada"], test_subjects=["ben"])  # fmt: skip
    beside = load_file(tmp_path / "out" / "runs" / "early-named-seed0" / "weights" / "last.safetensors")
    assert all(
        torch.equal(beside[name], tensor) for name, tensor in load_file(alone / "weights" / "last.safetensors").items()
    )


class FixedTimes(StepTimes):
    """Steps that take as long as a test says."""

    def __init__(self, late: float, hybrid: float) -> None:
        super().__init__(torch.device("cpu"))
        self.seconds = {"late": late, "hybrid": hybrid}

    def of(self, config: RunConfig) -> float:
        return self.seconds[config.architecture.fusion]


def test_equal_time_gives_a_slower_model_fewer_epochs(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"]}
    rows = tuple(GridRow(fusion, {"fusion": fusion, "batch_size": 2, **split}) for fusion in ("late", "hybrid"))
    grid = AblationGrid("t", rows, (0,), (0,), "late", minutes=1)
    with Cache(toy) as cache:
        batches = -(-len(cache.rows_of(["ada"])) // 2)
        late, hybrid = plan_ablation(cache, grid, tmp_path, times=FixedTimes(6.0, 2.0))
        assert late.config.recipe.epochs == 60 // (6 * batches)
        assert hybrid.config.recipe.epochs == 60 // (2 * batches)
        assert "takes longer" not in capsys.readouterr().err
        assert plan_ablation(cache, grid, tmp_path, times=FixedTimes(60.0, 2.0))[0].config.recipe.epochs == 1
        said = " ".join(capsys.readouterr().err.split())
        assert said.endswith(f"one epoch takes longer than 1 minutes; one epoch is trained anyway: late ({batches}.0)")


def test_a_begun_ablation_keeps_the_epochs_it_measured(toy: Path, grid_file: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(GRID.replace("epochs: 2, ", "").replace("controls: [random, none]\n", "") + "minutes: 0.01\n")
    with Cache(toy) as cache:
        grid = read_grid(str(path), {})
        runs = plan_ablation(cache, grid, out, times=FixedTimes(0.09, 0.14))
        assert {run.config.recipe.epochs for run in runs} == {2, 3}
        run_ablation(cache, grid, runs, out, device="cpu")
        assert plan_ablation(cache, grid, out, times=FixedTimes(1.0, 1.0)) == runs
        with pytest.raises(UserError, match=r"was started with minutes: 0\.01"):
            plan_ablation(cache, replace(grid, minutes=2), out)
    records = {run.name: pq.read_table(out / "runs" / run.name / "metrics.parquet").num_rows for run in runs}
    assert records == {run.name: run.config.recipe.epochs for run in runs}


def test_minutes_beside_epochs_are_refused(toy: Path, grid_file: Path, tmp_path: Path) -> None:
    result = command("--cache", toy, "--grid", grid_file, "--out", tmp_path / "out", "--minutes", 1)
    assert result.exit_code == 2 and "minutes and epochs exclude one another" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["preset", "merge"])
def test_a_steps_time_is_measured_anew_where_a_baseline_is_built_otherwise(toy: Path, option: str) -> None:
    values = {"preset": ("published", "quarter"), "merge": ("concat", "mean")}[option]
    with Cache(toy) as cache:
        plans = [
            plan_run(cache, run=Path("run"), model="unext", fusion="hybrid", **{option: value})  # type: ignore[arg-type]
            for value in values
        ]
    assert plans[0].architecture != plans[1].architecture


def test_results_on_labels_that_were_corrected_since_are_not_mixed_with_new_ones(
    toy: Path, grid_file: Path, tmp_path: Path
) -> None:
    grid, out = read_grid(str(grid_file), {}), tmp_path / "out"
    with Cache(toy) as cache:
        ablate._enter(cache, grid, plan_ablation(cache, grid, out), out)
        ablate._enter(cache, grid, plan_ablation(cache, grid, out), out)
    with Cache(make_cache(tmp_path / "toy.h5", shift=1)) as cache:
        runs = plan_ablation(cache, grid, out)
        with pytest.raises(UserError, match="holds results on other slices or labels of ada, ben: the cache was built"):
            run_ablation(cache, grid, runs, out, device="cpu")
    with Cache(make_cache(tmp_path / "more.h5", ("ada", "ben", "cleo"), ())) as cache:  # other subjects change nothing
        ablate._enter(cache, grid, plan_ablation(cache, grid, out), out)


def test_runs_side_by_side_are_as_many_as_their_steps_leave_memory_for(
    toy: Path, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU of 80 GiB, made up: from the parameters alone it would be hundreds."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * gib, 80 * gib))
    measured: list[str] = []

    def step(config: RunConfig, device: torch.device) -> int:
        measured.append(config.architecture.fusion)
        return 2 * gib if config.architecture.fusion == "late" else gib

    gpu = torch.device("cuda")
    with Cache(toy) as cache:
        runs = plan_ablation(cache, read_grid(str(grid_file), {}), tmp_path)
    kept = max(run.parameters for run in runs) * 24
    assert runs_at_once(runs, gpu, True, step) == 40 * gib // (2 * gib + kept) < 20
    assert runs_at_once(runs, gpu, False, step) == 38 * gib // kept > 100
    shapes = {(run.config.architecture, run.config.recipe.batch_size) for run in runs}
    assert len(measured) == 2 * len(shapes) < 2 * len(runs)  # one of each shape
    assert (
        runs_at_once(runs, gpu, True, lambda *_: 100 * gib) == runs_at_once(runs, gpu, False, lambda *_: 100 * gib) == 1
    )
    assert runs_at_once(runs, torch.device("cpu"), False) >= 1


def test_a_steps_memory_is_its_peak_above_what_stays(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(memory, "noise_step", lambda *_: lambda: calls.append("step"))
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with Cache(toy) as cache:
        assert memory.measure_step(plan_run(cache, run=Path("run")), torch.device("cuda")) == 600
    assert calls == ["step", "synchronize", "reset_peak_memory_stats", "step", "synchronize"]


def test_a_row_without_views_stands_beside_rows_with_them(tmp_path: Path) -> None:
    """Each sees the batches that a run of its own would see: two passes over the cache."""
    path = add_views(make_cache(tmp_path / "toy.h5"), 1)
    (tmp_path / "grid.yaml").write_text(
        "title: views\n"
        "options: {fusion: hybrid, epochs: 1, batch-size: 2, modalities: T1, train-subjects: ada, test-subjects: ben}\n"
        "rows:\n  - {name: views}\n  - {name: none, set: {views: 0}}\n"
    )
    ablation(path, tmp_path / "grid.yaml", tmp_path / "out")
    kept = {row: weights(tmp_path / "out", f"{row}-named-seed0") for row in ("views", "none")}
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"], "modalities": ["T1"]}
    for row, views in (("views", None), ("none", 0)):
        run = tmp_path / row
        train_run(
            path, run, device="cpu", fusion="hybrid", epochs=1, batch_size=2, views=views, validate_every=0, **split
        )
        alone = load_file(run / "weights" / "last.safetensors")
        assert all(torch.equal(kept[row][name], alone[name]) for name in alone)
    assert any(not torch.equal(kept["views"][name], kept["none"][name]) for name in kept["none"])
