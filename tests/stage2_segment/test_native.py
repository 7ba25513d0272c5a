"""Logits go to the native grid, and only there the class is decided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nearest import from_square
from tests.stage2_segment.conftest import CLASSES, MODALITIES
from tests.stage2_segment.untrained import untrained_run
from zeus_union.cache.grid import VIEWS, Grid, to_square
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, SubjectSlices
from zeus_union.stage2_segment.evaluation.evaluate import measure_run
from zeus_union.stage2_segment.evaluation.scoring import begin_scoring
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.model.zeus import class_map
from zeus_union.stage2_segment.native import NativeSlices, predict_subject, read_subject
from zeus_union.stage2_segment.nifti import stored_probabilities, to_volume
from zeus_union.stage2_segment.trained import load_trained


def test_logits_are_interpolated_and_then_the_class_is_decided() -> None:
    """Between a pixel that is surely liver and one that is barely spleen a fine voxel is liver; labels would say half."""
    grid = Grid((512, 512, 1), np.diag([1.0, 1, 1, 1]))
    logits = torch.full((2, 256, 256), -10.0)
    logits[0, :, :100], logits[1, :, 100:] = 20.0, 1.0
    labels = class_map(NativeSlices(grid, torch.device("cpu"))(logits)[None])[0].numpy()
    assert labels.shape == (512, 512)
    of_labels = from_square(class_map(logits[None])[0].numpy(), (512, 512), (1.0, 1.0))
    boundary = [int((row == 1).sum()) for row in (labels[200], of_labels[200])]
    assert boundary == [201, 200]  # pixel 99 shows voxel 199, pixel 100 voxel 201; halfway the logits are 5 and -4.5
    assert (labels[:, 201:] == 2).all()


@pytest.mark.parametrize("view", VIEWS)
def test_a_grid_of_256_comes_back_to_the_bit_in_every_view(view: str) -> None:
    grid = Grid((256, 256, 256), np.diag([-0.9, 0.9, 0.9, 1]), view)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 256, 256)).astype(np.float32))
    torch.testing.assert_close(NativeSlices(grid, torch.device("cpu"))(logits), logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    "spacing", [(0.5, 0.8, 3.0), (3.0, 0.8, 0.5), (1.7, 0.4, 0.9)], ids=["axial", "sagittal", "thin rows"]
)
def test_a_mask_that_touches_the_edge_reaches_it(spacing: tuple[float, float, float]) -> None:
    """Rectangular slices of anisotropic voxels, with a margin in the square beside them."""
    grid = Grid((90, 60, 75), np.diag([*spacing, 1.0]))
    rows, columns = grid.slice_shape[1:]
    mask = np.zeros((rows, columns), np.float32)
    mask[: rows // 3], mask[:, -columns // 4 :] = 1, 1
    square = torch.from_numpy(to_square(mask, grid.slice_spacing[1:], 256)) * 20 - 10  # -10 in the margin too
    native = NativeSlices(grid.seen("axial"), torch.device("cpu"))(square)
    labels = (native > 0).numpy()
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        # Where the mask itself ends along the edge, half a voxel may fall to either side.
        assert np.count_nonzero(labels[edge] != (mask[edge] > 0)) <= 1


def test_a_stored_probability_is_above_a_half_exactly_where_the_mask_is() -> None:
    logits = torch.tensor([-40, -1, -1e-7, 0, 1e-7, 1, 40], dtype=torch.float32)
    stored = stored_probabilities(logits) * 2.0**-15
    np.testing.assert_array_equal(stored > 0.5, (logits > 0).numpy())
    np.testing.assert_allclose(stored, logits.sigmoid().numpy(), atol=2**-15)
    assert stored[0] == 0 and stored[-1] == 1 and stored.dtype == np.float64


def fine_cache(path: Path, shape: tuple[int, int, int], spacing: tuple[float, float]) -> Path:
    """Ellipses in slices finer than 256: subject 'ben' of the toy's modalities and classes, pictures alone."""
    y, x = np.mgrid[: shape[1], : shape[2]] / np.array(shape[1:]).max()
    native = np.zeros(shape, np.uint8)
    for z in range(shape[0]):
        native[z][((y - 0.3) / 0.17) ** 2 + ((x - 0.3 - z / 50) / 0.12) ** 2 < 1] = 1
        native[z][((y - 0.45) / 0.08) ** 2 + ((x - 0.65) / 0.1) ** 2 < 1] = 2
    card = DatasetCard("fine", MODALITIES, {name: name for name in MODALITIES}, CLASSES, "organs", ("ben", "ada"))
    grid = Grid((shape[2], shape[1], shape[0]), np.diag([-spacing[1], -spacing[0], 4.0, 1]))
    numbers = np.arange(shape[0], dtype=np.int32)
    masks = to_square(native, spacing, 256)
    images = np.repeat((masks * 80)[:, None], 2, axis=1)
    writer = CacheWriter(path, card)
    writer.begin_layer("slices", {"toy": 1})
    for subject in card.subjects:
        writer.write_slices(subject, SubjectSlices(grid, numbers, images, masks, None, native, {}))
    writer.finalize()
    return path


@pytest.mark.parametrize(("shape", "spacing"), [((3, 384, 512), (0.7, 0.7)), ((2, 400, 300), (0.6, 0.9))])
def test_evaluation_measures_the_interpolated_masks_and_they_are_nearer_than_nearest_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], spacing: tuple[float, float]
) -> None:
    """Of a network that sees the masks through a blur of a pixel, measured by evaluate and counted by hand."""
    from scipy import ndimage

    path = fine_cache(tmp_path / "fine.h5", shape, spacing)
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"]}
    run = untrained_run(path, tmp_path / "run", model="unext", preset="quarter", **split)

    def blurred(self: RunInputs, _: object, __: object, batch: object, *___: object, **____: object) -> torch.Tensor:
        labels = (batch.images[:, 0] * 255 / 80).round().numpy()  # type: ignore[attr-defined]
        shares = [ndimage.gaussian_filter((labels == k).astype(float), (0, 1, 1)) for k in (1, 2)]
        return torch.logit(torch.from_numpy(np.stack(shares, 1)).float().clamp(1e-6, 1 - 1e-6))

    monkeypatch.setattr(RunInputs, "logits", blurred)
    with Cache(path) as cache:
        rows = measure_run(run, cache, device="cpu").rows
        trained, grid = load_trained(run, device="cpu"), cache.grid("ben")
        predicted = predict_subject([trained], read_subject(cache, "ben", [trained], MODALITIES), grid)
        again, _ = begin_scoring(cache, "ben", predicted)()
        truth = cache.native_masks("ben")
        nearest = from_square(predicted.labels_256, shape[1:], spacing)
    assert rows == again
    for label, row in enumerate(rows, 1):
        scores = [
            2 * ((labels == label) & (truth == label)).sum() / ((labels == label).sum() + (truth == label).sum())
            for labels in (predicted.labels, nearest)
        ]
        assert row["dsc"] == pytest.approx(scores[0])
        assert scores[0] > scores[1] and scores[0] > 0.985
    volume = to_volume(predicted.labels, np.arange(shape[0], dtype=np.int32), grid)
    np.testing.assert_array_equal(grid.to_slices(volume), predicted.labels)
