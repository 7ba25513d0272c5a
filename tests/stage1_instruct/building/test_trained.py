"""build-cache trains the projection behind the instructions itself, for each split of the subjects, and crosses it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.projection import fold as fold_training
from zeus_union.stage1_instruct.projection.fold import FoldProjection
from zeus_union.stage2_segment.plan import plan_run

SUBJECTS = 4


@dataclass(frozen=True)
class Labelled:
    """Builds a cache of four labelled phantoms in two modalities with tiny models and no projection."""

    path: Path
    command: tuple[str, ...]

    def build(self, *more: str) -> Result:
        return CliRunner().invoke(main, [*self.command, *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=SUBJECTS, seed=1)
    return root


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_training, "RECIPE", replace(fold_training.RECIPE, steps=3))


@pytest.fixture
def labelled(data: Path, tiny_parts: dict[str, str], tmp_path: Path) -> Labelled:
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(data), "--slice-step", "6"]
    command += ["--modalities", "T1-DUAL-in,T2-SPIR", "--out", str(tmp_path / "c.h5"), "--device", "cpu"]
    for part, value in tiny_parts.items():
        command += ["--set", f"{part}={value}"]
    return Labelled(tmp_path / "c.h5", tuple(command))


def folds_of(cache: Cache) -> dict[str, int]:
    return {name: int(cache.rows["fold"][cache.rows_of([name])[0]]) for name in cache.subjects}


def test_a_build_trains_a_projection_on_the_training_subjects_of_fold_0(labelled: Labelled) -> None:
    done = labelled.build()
    assert done.exit_code == 0, done.output
    assert "UNTRAINED" not in done.output
    with Cache(labelled.path) as cache:
        assert cache.variants == ("lite@fold0",)
        train = [name for name, fold in folds_of(cache).items() if fold != 0]
        recipe = cache.recipe("instructions/lite@fold0")
        trained_on = recipe["projection"]["trained_on"]
        assert trained_on["fold"] == 0 and trained_on["subjects"] == sorted(train) and len(train) == SUBJECTS - 1
        stored = FoldProjection.from_constants(
            recipe["connector"], recipe["projection"], cache.constants("instructions/lite@fold0")
        )
        assert stored.everyone.digest() == recipe["projection"]["sha256"]
        assert plan_run(cache, run=labelled.path.parent / "run", fold=0).inputs.variants == ("lite@fold0",)
        assert plan_run(cache, run=labelled.path.parent / "run", variant=("lite",)).inputs.variants == ("lite@fold0",)
        with pytest.raises(UserError, match=r"for fold 1 are not in .*lite@fold0.*--folds all adds them"):
            plan_run(cache, run=labelled.path.parent / "run", fold=1)
        with pytest.raises(UserError, match="which this run would be tested on"):
            plan_run(cache, run=labelled.path.parent / "run", fold=1, variant=("lite@fold0",))
    again = labelled.build()
    assert again.exit_code == 0 and "projection 1 of" not in again.output, again.output
