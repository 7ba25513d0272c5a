"""A run stands alone: where its training cache is gone, only training asks for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.stage2_segment.conftest import CLASSES, MODALITIES, make_cache
from tests.stage2_segment.untrained import untrained_run
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.carried import carried_profile
from zeus_union.stage2_segment.cli import main as zeus_segment


def run(command, *words: str | Path) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture(scope="module")
def deserted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/, whose training cache was deleted, and other.h5: other patients, read from files."""
    tmp_path = tmp_path_factory.mktemp("deserted")
    folder = tmp_path / "run"
    trained_on = make_cache(tmp_path / "trained.h5", sources=True)
    untrained_run(trained_on, folder)
    trained_on.unlink()
    shutil.rmtree(tmp_path / "trained.h5.d", ignore_errors=True)
    (tmp_path / "trained.instructions.parquet").unlink()
    make_cache(tmp_path / "other.h5", ("ada", "dan"), names={"ada": "p1"}, sources=True)
    return tmp_path


@pytest.fixture
def alone(deserted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deserted / "run", tmp_path / "run"))


def test_a_run_knows_its_data_set(alone: Path) -> None:
    inputs = checkpoint.load_config(alone).inputs
    terms = {name: f"MRI-{name}" for name in MODALITIES}
    assert inputs.card == DatasetCard("toy", MODALITIES, terms, CLASSES, "liver, spleen", (), slice_step=2)
    assert carried_profile(alone) is None  # the toy cache names no models


def test_another_cache_is_predicted_and_measured_without_the_training_cache(
    alone: Path, deserted: Path, tmp_path: Path
) -> None:
    other = deserted / "other.h5"
    done = run(
        zeus_segment, "predict", "--run", alone, "--cache", other, "--out", tmp_path / "masks", "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"p1.nii.gz", "dan.nii.gz"}
    done = run(zeus_segment, "evaluate", "--run", alone, "--cache", other, "--out", tmp_path / "e", "--device", "cpu")
    assert done.exit_code == 0, done.output
    (written,) = (tmp_path / "e").glob("evaluation-other-*.json")
    assert json.loads(written.read_text())["subjects"] == ["dan"]  # p1 is ada, who was trained on


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (zeus_segment, ("evaluate", "--run")),
        (zeus_segment, ("predict", "--out", "masks", "--run")),
        (zeus, ("report",)),
    ],
)
def test_what_is_of_the_runs_own_cases_names_the_cache_that_is_gone(
    alone: Path, command, words: tuple[str, ...]
) -> None:
    done = run(command, *words, alone)
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "trained.h5, which is not there" in said and "--cache FILE" in said


def test_a_run_of_an_earlier_version_is_refused_in_one_line(alone: Path) -> None:
    values = json.loads((alone / checkpoint.CONFIG).read_text())
    del values["inputs"]["card"]
    (alone / checkpoint.CONFIG).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"damaged or of another version of Zeus .*train again") as error:
        checkpoint.load_config(alone)
    assert "\n" not in str(error.value)
