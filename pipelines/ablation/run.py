"""zeus ablate: every row of a grid, over seeds and folds, from one cache, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from zeus_union.cache.errors import UserError
from zeus_union.cache.log import log_to
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, progress, say, warn
from zeus_union.cache.text_statistics import warn_of_texts
from zeus_union.pipelines.ablation.grid import AblationGrid, paper_figures
from zeus_union.pipelines.ablation.memory import runs_at_once
from zeus_union.pipelines.ablation.plan import PlannedRun, rows_not_run
from zeus_union.pipelines.report.published import published_for
from zeus_union.stage2_segment.ablation_folder import PLAN, RESULTS, STOPPED, run_folder
from zeus_union.stage2_segment.checkpoint import CONFIG, read_table, write_json, write_table
from zeus_union.stage2_segment.choose_postprocessing import predict_validation, why_not_chosen
from zeus_union.stage2_segment.chosen_postprocessing import load_postprocessing, write_choices
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.evaluation.scoring import begin_scoring
from zeus_union.stage2_segment.evaluation.surfaces import workers
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.native import predict_subject
from zeus_union.stage2_segment.trained import TrainedRun
from zeus_union.stage2_segment.training.learner import Learner, check_same_plan
from zeus_union.stage2_segment.training.messages import say_what_is_faster, say_what_views_bring, warn_of_learned_texts
from zeus_union.stage2_segment.training.train import shared_plan, train_together


def run_ablation(
    cache: Cache,
    grid: AblationGrid,
    runs: Sequence[PlannedRun],
    out: Path,
    *,
    device: str | None = None,
    stacked: bool | None = None,
    at_once: int | None = None,
    resident: str = "auto",
) -> None:
    """Trains and scores all runs; those that are finished are left as they are, begun ones go on.

    Writes OUT/ablation.json, results.parquet (one line per run, subject and class), runs/NAME, and stopped.json with the
    runs whose loss was not finite.

    Args:
        stacked: models of one architecture as one (`Stack`); None: on a GPU.
        at_once: runs side by side; None: `runs_at_once`.
    """
    accelerator = make_accelerator(device, precisions={run.config.recipe.precision for run in runs})
    if accelerator.num_processes > 1:
        raise UserError("zeus ablate runs in one process; start it without accelerate launch")
    _enter(cache, grid, runs, out)
    with log_to(out):
        _train_and_score(cache, runs, out, accelerator, stacked, at_once, resident)


def _train_and_score(
    cache: Cache,
    runs: Sequence[PlannedRun],
    out: Path,
    accelerator: Accelerator,
    stacked: bool | None,
    at_once: int | None,
    resident: str,
) -> None:
    results = read_table(out / RESULTS)
    stopped = json.loads((out / STOPPED).read_text()) if (out / STOPPED).exists() else {}
    finished = {line["run"] for line in results} | set(stopped)
    waiting = [run for run in runs if run.name not in finished]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {counted(len(runs), 'run')} finished already")
    instructed = [run.config for run in waiting if run.config.inputs.text == "instruction"]
    warn_of_texts(cache, (variant for config in instructed for variant in config.inputs.texts_read))
    warn_of_learned_texts(cache, instructed)
    say_what_is_faster((run.config for run in waiting), accelerator.device, "--set precision=bf16")
    say_what_views_bring(cache, (run.config for run in waiting))
    stacked = accelerator.device.type == "cuda" if stacked is None else stacked
    passes = [
        part
        for group in _passes(waiting)
        for part in _parts(group, at_once or runs_at_once(group, accelerator.device, stacked))
    ]
    for number, group in enumerate(passes, 1):
        start = time.monotonic()
        first = group[0].config
        split = f"fold {first.split.fold}" if first.split.fold is not None else "named subjects"
        say(f"pass {number} of {len(passes)}: {counted(len(group), 'run')} side by side, {split}, seed {first.seed}")
        learners = [
            Learner(cache, run.config, run_folder(out, run.name), accelerator, _begun(out, run), run.pretrained)
            for run in group
        ]
        train_together(
            cache,
            learners,
            accelerator,
            resident=resident,
            validate_every=0,
            stacked=stacked,
            title=f"pass {number}/{len(passes)}",
        )
        for run, learner in zip(group, learners):
            if learner.stopped:
                stopped[run.name] = learner.stopped
                write_json(out / STOPPED, stopped)
        good = [run for run, learner in zip(group, learners) if not learner.stopped]
        trained = [
            TrainedRun(learner.run, learner.config, learner.predictor, accelerator.device)
            for learner in learners
            if not learner.stopped
        ]
        _choose_postprocessing(cache, trained, resident)
        with workers() as pool:
            scored = _score(cache, good, trained, resident, pool)
        for lines in scored:
            results += lines
            write_table(out / RESULTS, results)
        say(f"pass {number} of {len(passes)} took {time.monotonic() - start:.0f} s")


def _begun(out: Path, run: PlannedRun) -> bool:
    return (run_folder(out, run.name) / CONFIG).exists()


def _enter(cache: Cache, grid: AblationGrid, runs: Sequence[PlannedRun], out: Path) -> None:
    """Makes the folder, or checks that it holds this ablation; rows, seeds and folds may be added, no run may change."""
    not_run = rows_not_run(grid)
    trained = {run.row for run in runs}
    now: dict[str, Any] = {
        "title": grid.title,
        "dataset": cache.card.name,
        "reference": grid.reference,
        "cache": {layer: cache.fingerprint(layer) for layer in cache.layers},
        "content": _content(cache, runs),
        "paper": paper_figures(grid.rows, cache),
        "published": published_for(cache),
        "rows": [row.name for row in grid.rows if row.name in trained or row.name in not_run],
        "not_run": not_run,
        "controls": {row.control: row.name for row in grid.rows if row.control},
        "controls_of": grid.rows[0].name,
        "minutes": grid.minutes,
        "runs": {
            run.name: {
                "row": run.row,
                "parameters": run.parameters,
                "epochs": run.config.recipe.epochs,
                "seen": run.config.inputs.seen,
                "leaks": run.config.inputs.leaks,
            }
            for run in runs
        },
    }
    path = out / PLAN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["cache"].get("slices") != now["cache"]["slices"]:
            raise UserError(f"{out} holds an ablation of another cache; choose another --out")
        known = before["content"]
        changed = [subject for subject, digest in now["content"].items() if known.get(subject, digest) != digest]
        if changed:
            raise UserError(
                f"{out} holds results on other slices or labels of {', '.join(changed)}: the cache was built again since; "
                "choose another --out"
            )
        now["content"] = {**known, **now["content"]}
        now["rows"] = list(dict.fromkeys([*before["rows"], *now["rows"]]))
        now["not_run"] = {
            row: why for row, why in {**before.get("not_run", {}), **not_run}.items() if row not in trained
        }
        now["runs"], now["paper"] = {**before["runs"], **now["runs"]}, {**before["paper"], **now["paper"]}
        now["reference"] = before["reference"]
        now["controls"] = {**before["controls"], **now["controls"]}
        for run in runs:
            if _begun(out, run):
                check_same_plan(run_folder(out, run.name), run.config)
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not an ablation; choose another --out")
    write_json(path, now)


def _content(cache: Cache, runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Subject -> digest of its slices and labels, of all that the runs train or test on."""
    splits = [run.config.split for run in runs]
    subjects = dict.fromkeys(name for split in splits for name in (*split.train, *split.test, *split.validation))
    return {name: cache.content_digest("slices", [name]) for name in subjects}


def _passes(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that see the same batches, together."""
    groups: dict[tuple[Any, ...], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(shared_plan(run.config), []).append(run)
    return list(groups.values())


def _parts(group: list[PlannedRun], at_once: int) -> list[list[PlannedRun]]:
    return [group[start : start + at_once] for start in range(0, len(group), at_once)]


def _choose_postprocessing(cache: Cache, trained: Sequence[TrainedRun], resident: str) -> None:
    """Of the last weights of each, which are the ones scored."""
    reasons = {run.folder: why_not_chosen(run.folder, run.config) for run in trained}
    without = [reason for reason in reasons.values() if reason is not None]
    if without:
        warn(f"{len(without)} of {counted(len(trained), 'run')}: {without[0]}")
    choosing = {run.folder: run for run in trained if reasons[run.folder] is None}
    if not choosing:
        return
    for folder, candidates in predict_validation(cache, choosing, resident).items():
        write_choices(folder, {"last": candidates})


def _score(
    cache: Cache,
    planned: Sequence[PlannedRun],
    trained: Sequence[TrainedRun],
    resident: str,
    pool: Executor | None = None,
) -> list[list[dict[str, Any]]]:
    """Per run its lines of results; every held-out subject is read, and its true surfaces found, once for all runs.

    Args:
        planned, trained: the same runs, of one split.
    """
    if not trained:
        return []
    first = trained[0]
    encoder = first.config.inputs.encoder
    wanted = {name for run in trained for name in run.config.inputs.modalities}
    modalities = [name for name in cache.modalities if name in wanted]
    lines: list[list[dict[str, Any]]] = [[] for _ in trained]
    postprocessing = [load_postprocessing(run.folder, run.config, "last") for run in trained]
    for subject in progress(first.config.split.test, "scoring"):
        rows, grid = cache.rows_of([subject]), cache.grid(subject)
        data = SliceData(cache, encoder, modalities, rows, first.device, labelled=False, resident=resident)
        waiting = [
            begin_scoring(cache, subject, predict_subject([run], {encoder: data}, grid), steps, pool)
            for run, steps in zip(trained, postprocessing)
        ]
        for run, finish, run_lines in zip(planned, waiting, lines):
            scores, miou = finish()
            head = {"run": run.name, "row": run.row, "seed": run.config.seed, "fold": run.config.split.fold}
            run_lines += [{**head, **score, "miou_256": miou} for score in scores]
    return lines
