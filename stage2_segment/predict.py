"""Masks of cached studies as NIfTI in each study's own grid, from one run or from an ensemble."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose, counted, progress, say
from zeus_union.stage2_segment.checkpoint import write_json
from zeus_union.stage2_segment.chosen_postprocessing import postprocessing_of
from zeus_union.stage2_segment.ensemble import DEFINITIONS, check_members_cache, describe_members, load_members
from zeus_union.stage2_segment.gaps import describe_slices, filled_volume
from zeus_union.stage2_segment.native import predict_subject, read_subject
from zeus_union.stage2_segment.nifti import (
    to_fractions,
    to_volume,
    write_fractions,
    write_labels,
    write_probabilities,
)

ENDING = ".nii.gz"
DISAGREEMENT, PROBABILITY = f"disagreement{ENDING}", f"prob{ENDING}"
ENSEMBLE = "ensemble.json"


def predict_run(
    run: Path | Sequence[Path],
    cache: Cache,
    out: Path,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
    probabilities: bool = False,
    postprocess: bool = True,
) -> list[Path]:
    """Writes SUBJECT.nii.gz with the study's own shape and geometry for every subject; the masks written.

    Between slices that the cache's --slice-step left out the mask is filled (`gaps.fill_gaps`); all maps are 0 there.
    Of several runs also SUBJECT.disagreement.nii.gz and ensemble.json (`ensemble.DEFINITIONS`).

    Args:
        run: a run's folder, or several: the mean of their probabilities.
        subjects: all of the cache if None.
        modalities: to predict from, of those the run was trained with; all if None.
        which: 'last' or 'best' weights.
        probabilities: also SUBJECT.CLASS.prob.nii.gz (`nifti.write_probabilities`) of every class.
        postprocess: with what was chosen for these weights (`postprocessing_of`).

    Raises:
        UserError: as `load_members` and `check_cache`.
    """
    members = load_members(run, which, device)
    classes = members[0].config.inputs.classes
    wanted = check_members_cache(members, cache, modalities)
    postprocessing = postprocessing_of(members, which, postprocess)
    chosen = choose(subjects, cache.subjects, "subject")
    names = class_file_names(classes)
    written, agreement = [], {}
    for subject in progress(chosen, "predicting"):
        grid, numbers = cache.grid(subject), cache.rows["number"][cache.rows_of([subject])]
        data = read_subject(cache, subject, members, wanted)
        predicted = predict_subject(members, data, grid, wanted, probabilities_in=out if probabilities else None)
        step = cache.card.slice_step
        mask = filled_volume(postprocessing(predicted.labels), numbers, step, grid)
        written.append(write_labels(out / f"{subject}{ENDING}", mask, grid, classes))
        if predicted.probabilities is not None:
            for name, stored in zip(names, predicted.probabilities):
                path = out / f"{subject}.{name}.{PROBABILITY}"
                write_probabilities(path, to_volume(np.asarray(stored), numbers, grid), grid)
        if predicted.differing is not None:
            write_fractions(
                out / f"{subject}.{DISAGREEMENT}", to_fractions(predicted.differing, len(members), numbers, grid), grid
            )
            agreement[subject] = predicted.agreement
        if len(numbers) < grid.slice_shape[0]:
            say(f"{subject}: {describe_slices(grid.slice_shape[0], numbers, step)}")
    if len(members) > 1:
        write_agreement(out, [member.folder for member in members], which, agreement)
    say(postprocessing.summary)
    return written


def class_file_names(classes: Sequence[str]) -> list[str]:
    """What each class is called in the names of files: what these cannot hold becomes '-', equal ones get their label."""
    names = [re.sub(r"[^\w+=-]+", "-", name).strip("-") for name in classes]
    lower = [name.lower() for name in names]  # file systems may not tell case apart
    return [
        f"{name}-{label}".lstrip("-") if not name or lower.count(name.lower()) > 1 else name
        for label, name in enumerate(names, 1)
    ]


def write_agreement(out: Path, runs: Sequence[Path], which: str, agreement: dict[str, dict[str, float | None]]) -> Path:
    """OUT/ensemble.json: the members, what the numbers mean, and subject -> class -> mean DSC between the members.

    Subjects that the same members predicted into this folder before are kept.
    """
    path = out / ENSEMBLE
    described = describe_members(runs, which)
    before: dict[str, Any] = {}
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            before = earlier["agreement"] if earlier["members"] == described else {}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} was not written by zeus ({error!r}); choose another --out or move it away"
            ) from error
    write_json(path, {"members": described, "definitions": DEFINITIONS, "agreement": {**before, **agreement}})
    return path


def read_agreement(path: Path) -> dict[str, dict[str, float | None]]:
    """Subject -> class -> mean DSC between the members, of an ensemble.json."""
    return json.loads(path.read_text(encoding="utf-8"))["agreement"]


def agreement_table(agreement: dict[str, dict[str, float | None]], members: int) -> Table:
    """One line per subject and class."""
    table = Table(title=f"{counted(members, 'member')}: DSC of their pairs")
    for name in ("subject", "class"):
        table.add_column(name)
    table.add_column("mean DSC", justify="right")
    for subject, classes in agreement.items():
        for name, value in classes.items():
            table.add_row(subject, name, "-" if value is None else f"{value:.4f}")
    return table
