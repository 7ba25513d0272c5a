"""The memory of a build does not grow with the slices of a study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.stage1_instruct.building import instructions
from zeus_union.stage1_instruct.building.instructions import stored_images
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.studies.study import Dataset, Study

ROOT = Path(__file__).parents[3]


class FakeEncoder:
    """Embeddings of the right size, which cost nothing: the mean of each picture."""

    name, input_size, at_once = "fake", 256, None

    def encode(self, images: np.ndarray, device: object = None) -> torch.Tensor:
        means = torch.from_numpy(images.mean(axis=(1, 2), dtype=np.float32))
        return means[:, None, None, None].expand(-1, 256, 64, 64).contiguous()

    def constants(self) -> dict[str, Any]:
        return {"no_mask": np.zeros(256, np.float32)}


def build(out: Path, slices: int, modalities: int) -> BuildReport:
    """The layers `slices` and `embeddings` of one study of `slices` slices."""
    names = tuple(f"M{number}" for number in range(modalities))
    card = DatasetCard("synthetic", names, {name: name for name in names}, ("organ",), "organ", ("A",))
    volume = np.random.default_rng(0).random((24, 24, slices), np.float32)
    study = Study("A", Grid(volume.shape, np.diag([1.0, 1.0, 1.0, 1.0])), dict.fromkeys(names, volume), None)
    models = SimpleNamespace(
        encoder=FakeEncoder(), profile=SimpleNamespace(encoder="fake", to_json=dict), encoder_recipe=lambda: {"fake": 1}
    )
    options = BuildOptions(out, layers=("slices", "embeddings"), pack=False)
    return build_cache(Dataset(card, lambda subject: study), models, options)


GROWTH = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_memory import build
peaks = [build(Path({folder!r}) / f"{{n}}.h5", n, 2).peak_memory_bytes() for n in (48, 128)]
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_slices(tmp_path: Path) -> None:
    """Both sizes are several pieces; 80 slices more of two modalities are 640 MiB of embeddings."""
    code = GROWTH.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 100 << 20


def test_the_encoder_is_given_one_picture_at_a_time_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    encode = FakeEncoder.encode
    monkeypatch.setattr(FakeEncoder, "encode", lambda self, images: batches.append(len(images)) or encode(self, images))
    assert build(tmp_path / "a.h5", 20, 3).complete
    assert batches == [1] * 60


def test_the_instructor_is_given_all_embeddings_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "EMBEDDINGS_AT_ONCE", 4)
    whole = np.random.default_rng(0).random((5, 2, 1, 2, 2), np.float32)
    writer = SimpleNamespace(
        slices=lambda subject: SimpleNamespace(numbers=np.arange(5), images=np.zeros((5, 2, 1, 1), np.uint8)),
        embeddings=lambda layer, subject, piece: whole[piece],
    )
    pieces = list(stored_images(writer, "A", "embeddings/fake", "embeddings"))
    assert [len(piece.numbers) for piece in pieces] == [2, 2, 1]
    assert (torch.cat([piece.images for piece in pieces]).numpy() == whole).all()
    assert np.concatenate([piece.numbers for piece in pieces]).tolist() == [0, 1, 2, 3, 4]
