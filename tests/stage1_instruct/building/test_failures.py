"""A study that cannot be built costs itself and nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.failures import BuildFailures
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.studies.check import check_studies
from zeus_union.stage1_instruct.studies.study import Dataset, Study

MODELS = SimpleNamespace()  # the layer `slices` needs none
ROOT = Path(__file__).parents[3]
NAMES = ["phantom_001", "phantom_002", "phantom_003"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms; only for reading."""
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=3, seed=3)
    return root


@pytest.fixture
def dataset(written: Path) -> Dataset:
    return open_dataset("nnunet", written, modalities=("T2-SPIR",))


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions(out=tmp_path / "a.h5", layers=("slices",), slice_step=6)


def failing(dataset: Dataset, errors: dict[str, Exception]) -> Dataset:
    """The data set with studies that cannot be read."""

    def load(subject: str) -> Study:
        if subject in errors:
            raise errors[subject]
        return dataset.load(subject)

    return replace(dataset, load=load)


@pytest.mark.parametrize(
    "error",
    [UserError("damaged"), ValueError("odd header"), OSError(5, "Input/output error"), KeyError(1), MemoryError()],
)
def test_the_studies_behind_a_damaged_one_are_built_and_a_rerun_takes_up_only_that(
    dataset: Dataset, options: BuildOptions, error: Exception
) -> None:
    with pytest.raises(BuildFailures, match=r"1 of 3 subjects could not be built.*phantom_001.*same command") as raised:
        build_cache(failing(dataset, {"phantom_001": error}), MODELS, options)
    assert list(raised.value.reasons) == ["phantom_001"]
    with pytest.raises(UserError, match="2 of 3 subjects finished"):
        Cache(options.out)
    again = build_cache(dataset, MODELS, options)
    assert (again.subjects, again.complete) == (1, True)
    assert Cache(options.out).subjects == tuple(NAMES)


def test_every_failure_is_named(dataset: Dataset, options: BuildOptions) -> None:
    errors = {"phantom_001": UserError("no header"), "phantom_003": UserError("two grids")}
    with pytest.raises(BuildFailures) as raised:
        build_cache(failing(dataset, errors), MODELS, options)
    assert raised.value.reasons == {"phantom_001": "no header", "phantom_003": "two grids"}


def test_a_full_disk_stops_the_build(dataset: Dataset, options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def write(writer: CacheWriter, subject: str, slices: object) -> None:
        tried.append(subject)
        raise NoSpaceError("no space left")

    monkeypatch.setattr(CacheWriter, "write_slices", write)
    with pytest.raises(NoSpaceError):
        build_cache(dataset, MODELS, options)
    assert tried == NAMES[:1]


def test_a_damaged_shard_is_a_failure_of_its_subject(dataset: Dataset, options: BuildOptions) -> None:
    two = replace(dataset, card=replace(dataset.card, subjects=tuple(NAMES)))
    with pytest.raises(BuildFailures):
        build_cache(failing(two, {"phantom_003": UserError("damaged")}), MODELS, options)
    (shard,) = options.out.with_name("a.h5.d").glob("slices/phantom_001.*.h5")
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BuildFailures, match=r"phantom_001: .*truncated"):
        build_cache(dataset, MODELS, options)
    shard.unlink()
    assert build_cache(dataset, MODELS, options).subjects == 1


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.datasets import open_dataset

dataset = open_dataset("nnunet", Path(sys.argv[1]), modalities=("T2-SPIR",))

def load(subject):
    if subject == "phantom_001":
        raise ValueError("damaged")
    return dataset.load(subject)

try:
    build_cache(replace(dataset, load=load), SimpleNamespace(), BuildOptions(Path(sys.argv[2]), ("slices",), slice_step=6))
except Exception as error:
    print(type(error).__name__, sorted(error.reasons))
"""


def test_no_process_of_several_is_stopped_by_a_damaged_study(
    written: Path, dataset: Dataset, options: BuildOptions
) -> None:
    command = [sys.executable, "-c", WORKER, str(written), str(options.out)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    assert [worker.communicate(timeout=400)[0] for worker in workers] == ["BuildFailures ['phantom_001']\n"] * 2
    assert build_cache(dataset, MODELS, options).subjects == 1


def damage(root: Path, kind: str) -> None:
    """Damages phantom_002 in one way."""
    import nibabel
    import numpy as np

    image, label = root / "imagesTr" / "phantom_002_0002.nii.gz", root / "labelsTr" / "phantom_002.nii.gz"
    if kind == "missing":
        image.unlink()
    elif kind == "header":
        image.write_bytes(b"no NIfTI")
    elif kind == "grid":
        volume = nibabel.load(image)
        nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj)[1:], volume.affine), image)
    else:
        volume = nibabel.load(label)
        values = np.asarray(volume.dataobj).copy()
        values[0, 0, 0] = 77
        nibabel.save(nibabel.Nifti1Image(values, volume.affine), label)


@pytest.mark.parametrize(
    ("kind", "line"), [("missing", "missing"), ("header", "NIfTI"), ("grid", "shape"), ("labels", "77")]
)
def test_check_names_the_study_with_which_something_is_wrong_without_reading_images(
    nnunet: Path, kind: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(nnunet, kind)
    arguments = ["check", "--dataset", "nnunet", "--data-root", str(nnunet)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    (wrong,) = result.stdout.splitlines()
    assert wrong.startswith("WRONG  phantom_002: ") and line in wrong
    assert "1 of 2 studies" in result.stderr
    sound = CliRunner().invoke(main, [*arguments, "--subjects", "phantom_001"])
    step = f"zeus-instruct build-cache --dataset nnunet --data-root {nnunet}, with the same options"
    assert (sound.exit_code, sound.stdout) == (0, f"1 study of nnunet: in order. Next: {step}\n")


def test_check_of_headers_leaves_label_values_to_the_whole_check(nnunet: Path) -> None:
    damage(nnunet, "labels")
    dataset = open_dataset("nnunet", nnunet)
    assert check_studies(dataset, dataset.card.subjects, "headers") == {}
    assert list(check_studies(dataset, dataset.card.subjects, "labels")) == ["phantom_002"]


@pytest.mark.parametrize("layout", ["chaos", "msd", "nnunet"])
def test_sound_studies_pass_every_depth(layout: str, phantoms: Path) -> None:
    name = {"msd": "msd"}.get(layout, layout)
    dataset = open_dataset(name, phantoms / layout)
    for depth in ("headers", "labels", "voxels"):
        assert check_studies(dataset, dataset.card.subjects[:1], depth) == {}


def test_a_build_checks_the_headers_of_what_it_will_build_before_a_model_is_loaded(
    nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(nnunet, "header")
    dataset = open_dataset("nnunet", nnunet)
    options = BuildOptions(out=tmp_path / "a.h5", layers=("slices",), slice_step=6, check=True)
    loaded: list[str] = []

    def load(subject: str) -> Study:
        loaded.append(subject)
        return dataset.load(subject)

    with pytest.raises(BuildFailures, match="phantom_002"):
        build_cache(replace(dataset, load=load), MODELS, options)
    assert loaded == ["phantom_001", "phantom_002", "phantom_001"]  # headers of both, then the sound one
