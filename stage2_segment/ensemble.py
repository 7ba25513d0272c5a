"""Several runs as one: the mean of their probabilities, and how far they disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import describe, sha256_file
from zeus_union.stage2_segment.checkpoint import load_config, name_of, weights_path
from zeus_union.stage2_segment.compatibility import check_cache, what_differs
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.trained import TrainedRun, load_trained

DEFINITIONS = {
    "mask": "the class whose probability (sigmoid), averaged over the members at 256 x 256 and interpolated as a logit onto "
    "the native grid, is highest and above 0.5",
    "agreement": "mean DSC of the pairs of members, each member's own mask in the native grid over the cached slices; pairs "
    "that both lack the class are not counted",
    "disagreement": "of a voxel, the fraction of the members whose label is another than the ensemble's",
}


def as_runs(runs: Path | Sequence[Path]) -> tuple[Path, ...]:
    """One run folder, or several."""
    return (runs,) if isinstance(runs, Path) else tuple(runs)


def load_members(runs: Path | Sequence[Path], which: str = "last", device: str | None = None) -> list[TrainedRun]:
    """Runs that predict together, ready to do so; a single one is an ensemble of itself.

    They may differ in model, fusion, aligner and text. Their classes, modalities, pictures and image encoder must be the
    same; a baseline reads pictures only and goes with any encoder.

    Args: as `load_trained`.

    Raises:
        UserError: as `load_trained`; no run; one run twice; runs that differ in what must be the same, naming it.
    """
    folders = as_runs(runs)
    check_members(folders, [load_config(folder) for folder in folders])
    members = [load_trained(folder, which, device) for folder in folders]
    check_other_weights(folders, which)
    return members


def check_other_weights(runs: Sequence[Path], which: str) -> None:
    """Raises UserError: two runs of an ensemble are one run under two names."""
    if len(runs) > 1:
        files = [weights_path(run, which) for run in runs]
        _check_once(runs, [sha256_file(file) for file in files if file.is_file()], "hold the same weights")


def check_members(runs: Sequence[Path], configs: Sequence[RunConfig]) -> None:
    """Raises UserError: no run; one twice; what the runs of an ensemble must share and do not."""
    if not runs:
        raise UserError("an ensemble needs at least one run; give --run FOLDER for each")
    _check_once(runs, [str(run.resolve()) for run in runs], "are the same folder")
    parts: dict[str, Callable[[RunConfig], Any]] = {
        "classes": lambda config: list(config.inputs.classes),
        "modalities": lambda config: sorted(config.inputs.modalities),
        "windows": lambda config: config.inputs.windows,
        "preprocessing": lambda config: config.inputs.preprocessing,
    }
    for name, part in parts.items():
        _check_same(runs, [part(config) for config in configs], name)
    encoding = [(run, config) for run, config in zip(runs, configs) if config.inputs.encoder is not None]
    encoders = [config.inputs.encoder for _, config in encoding]
    _check_same([run for run, _ in encoding], encoders, "image encoder")
    _check_same(
        [run for run, _ in encoding], [config.inputs.embedding_recipe for _, config in encoding], "image encoder"
    )


def check_members_cache(
    members: Sequence[TrainedRun], cache: Cache, modalities: Sequence[str] | None = None
) -> tuple[str, ...]:
    """`check_cache` of every member; the modalities to predict from."""
    wanted: tuple[str, ...] = ()
    said: set[tuple[str, ...]] = set()
    for member in members:
        views = member.config.inputs.views
        wanted = check_cache(member.config, cache, modalities, say_views=views not in said)
        said.add(views)
    return wanted


def _check_once(runs: Sequence[Path], marks: Sequence[str], what: str) -> None:
    seen: dict[str, Path] = {}
    for run, mark in zip(runs, marks):
        if mark in seen:
            raise UserError(f"{seen[mark]} and {run} {what}; give every run of an ensemble once")
        seen[mark] = run


def _check_same(runs: Sequence[Path], values: Sequence[Any], what: str) -> None:
    for run, value in zip(runs[1:], values[1:]):
        if value == values[0]:
            continue
        if isinstance(value, dict):
            changed = what_differs(values[0], value)
            if not changed:
                continue
            differs = describe(changed)
        else:
            differs = " -> ".join(
                ", ".join(side) if isinstance(side, list) else str(side) for side in (values[0], value)
            )
        raise UserError(
            f"{runs[0]} and {run} cannot predict together, they differ in {what} ({differs}); an ensemble shares "
            "classes, modalities, pictures and image encoder"
        )


class LogitOfMean:
    """The logit of the mean of sigmoids, from logits given one after the other; of a single one they themselves."""

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._sum: tuple[Tensor, Tensor] | None = None

    def add(self, logits: Tensor) -> None:
        if self._first is None:
            self._first = logits
            return
        above, below = self._sum or (logsigmoid(self._first), logsigmoid(-self._first))
        self._sum = torch.logaddexp(above, logsigmoid(logits)), torch.logaddexp(below, logsigmoid(-logits))

    def logits(self) -> Tensor:
        """log p - log(1 - p) of the mean p, whose number of terms cancels; near 0 and 1 no less exact than the logits."""
        assert self._first is not None
        return self._first if self._sum is None else self._sum[0] - self._sum[1]


class Agreement:
    """How far the members of an ensemble disagree about a subject (`DEFINITIONS`).

    Attributes:
        differing: whole numbers (n, rows, columns): of each voxel how many members' label is another than the ensemble's.
    """

    def __init__(self, classes: Sequence[str], members: int, shape: tuple[int, ...]) -> None:
        self._classes = tuple(classes)
        self._both: NDArray[np.float64] | int = 0  # (K, members, members): voxels that both give the class
        self.differing = np.zeros(shape, np.min_scalar_type(members))

    def add(self, position: int, of_members: Tensor, of_ensemble: Tensor) -> None:
        """One slice: labels uint8 (members, rows, columns) of each member, and (rows, columns) of all together."""
        self.differing[position] = (of_members != of_ensemble).sum(dim=0).cpu().numpy()
        flat = of_members.flatten(1)
        # Whole numbers below 2^24 are exact in float32; no slice has more voxels.
        masks = [(flat == label).float() for label in range(1, len(self._classes) + 1)]
        self._both = self._both + np.stack([(mask @ mask.T).cpu().double().numpy() for mask in masks])

    def pairwise_dsc(self) -> dict[str, float | None]:
        """Class -> mean DSC of the pairs of members; None where no member has the class."""
        values: dict[str, float | None] = {}
        for name, both in zip(self._classes, np.asarray(self._both)):
            one, other = np.triu_indices(len(both), 1)
            sizes = np.diag(both)
            total = sizes[one] + sizes[other]
            scores = 2 * both[one, other][total > 0] / total[total > 0]
            values[name] = float(scores.mean()) if len(scores) else None
        return values


def describe_members(runs: Sequence[Path], which: str) -> list[dict[str, Any]]:
    """What ensemble.json says of each member."""
    return [
        {
            "run": name_of(run),
            "weights": which,
            "weights_sha256": sha256_file(weights_path(run, which)),
            "model": config.architecture.model,
            "fusion": config.architecture.fusion,
            "text": config.inputs.text,
            "fold": config.split.fold,
            "seed": config.seed,
        }
        for run, config in zip(runs, map(load_config, runs))
    ]


def ensemble_folder(runs: Sequence[Path]) -> Path:
    """Where results of several runs go if nothing is said: beside the first one, named by all."""
    names = "\n".join(sorted(str(run.resolve()) for run in runs))
    return runs[0].parent / f"ensemble-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
