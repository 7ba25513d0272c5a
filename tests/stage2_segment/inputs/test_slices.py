from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.stage2_segment.conftest import GRID
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.inputs import slices as data_module
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData, epoch_batches
from zeus_union.stage2_segment.inputs.staging import Staging
from zeus_union.stage2_segment.plan import plan_run

cases = st.tuples(
    st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 3), st.integers(1, 5)
)


@given(cases, st.sampled_from([0.5, 2 / 3, 0.9]))
def test_every_batch_has_its_share_of_foreground(case: tuple, share: float) -> None:
    foreground, batch_size, seed, epoch = case
    batches = epoch_batches(foreground, batch_size, share, seed, epoch)
    flags = np.array(foreground)
    assert sum(len(batch) for batch in batches) == len(flags)
    assert all(0 < len(batch) <= batch_size for batch in batches)
    if flags.any() and not flags.all():
        seen = 0
        for index, batch in enumerate(batches):
            seen += flags[batch].sum()
            drawn = min((index + 1) * batch_size, len(flags))
            assert seen >= share * drawn - 1e-6


@given(cases)
def test_without_a_share_every_slice_comes_once(case: tuple) -> None:
    foreground, batch_size, seed, epoch = case
    batches = epoch_batches(foreground, batch_size, 0, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(foreground)))


def test_order_follows_from_seed_and_epoch() -> None:
    flags = [True, False] * 20

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(flags, 4, 2 / 3, seed, epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize("share_of_memory", [0.5, 0.0], ids=["resident", "from the file"])
def test_batches_are_the_rows_of_the_cache(
    toy_cache: Path, share_of_memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "SHARE_OF_MEMORY", share_of_memory)
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["cleo", "ada"])
        data = SliceData(cache, "toy", ["T2"], rows, torch.device("cpu"))
        assert data.resident == ("ram" if share_of_memory else "disk")
        batch = data.batch(np.array([4, 1]))
        assert batch.images.shape == (2, 1, 256, GRID, GRID)
        assert batch.images.dtype == torch.float32
        assert batch.masks is not None
        np.testing.assert_array_equal(batch.masks.numpy(), cache.masks(rows[[4, 1]]))
        stored = cache.read_embeddings("toy", rows[[4, 1]], [1])
        expected = stored.values * stored.scale[..., None, None] + stored.offset[..., None, None]
        np.testing.assert_allclose(batch.images.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert [(places.tolist(), len(part.images)) for places, part in data.in_order(4)] == [
            ([0, 1, 2, 3], 4),
            ([4, 5], 2),
        ]
        ahead = data.batches(np.array([place]) for place in (5, 0))
        for place, part in zip((5, 0), ahead, strict=True):
            assert torch.equal(part.images, data.batch(np.array([place])).images)


def test_a_device_that_is_no_gpu_keeps_nothing(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache, pytest.raises(UserError, match="needs a GPU; --resident ram"):
        SliceData(cache, "toy", ["T2"], cache.rows_of(["ada"]), torch.device("cpu"), resident="device")


def test_a_run_takes_its_own_modalities_of_what_was_read_for_several(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["ada"])
        data = SliceData(cache, "toy", ["T1", "T2"], rows, torch.device("cpu"))
        positions = np.array([2, 0])
        batch = data.batch(positions)
        both = RunInputs(plan_run(cache, run=Path("run")), data)
        second = RunInputs(plan_run(cache, run=Path("run"), modalities=["T2"]), data)
        left = RunInputs(plan_run(cache, run=Path("run")), data, ["T2"])
        texts = cache.text_embeddings("toy", rows[positions])
        for inputs, keep, present in ((second, None, [0]), (left, None, [1]), (both, [1], [1])):
            embeddings, text, found = inputs.of(positions, batch, keep)
            assert torch.equal(embeddings, batch.images[:, 1:])
            np.testing.assert_array_equal(text.numpy(), texts[:, 1:])
            assert found == present


@pytest.mark.parametrize("resident", ["disk", "ram"])
@pytest.mark.parametrize("encoder", ["toy", None], ids=["embeddings", "pictures"])
def test_batches_for_a_gpu_are_read_into_the_same_memory_after_its_last_copy_arrived(
    toy_cache: Path, encoder: str | None, resident: str
) -> None:
    """On a CPU, where the memory is not pinned and the copy is made up."""
    waited: list[int] = []

    class Copy:
        def synchronize(self) -> None:
            waited.append(1)

    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["ada", "ben"])
        data = SliceData(cache, encoder, ["T2"], rows, torch.device("cpu"), resident=resident)
        staging, places = Staging(torch.device("cpu")), set()
        for positions in ([5, 0, 3], [1], [2, 4], [0, 1, 2]):
            stored = data._stored(np.array(positions), staging)
            for part, plain in zip(stored, data._stored(np.array(positions)), strict=True):
                assert (part is None) == (plain is None)
                assert part is None or torch.equal(part, plain)
            places.add((stored.values.data_ptr(), stored.masks.data_ptr()))
            staging._sent = Copy()
        assert len(places) == 1 and len(waited) == 3
        batch, again = data._on_device(stored), data.batch(np.array([0, 1, 2]))
        assert torch.equal(batch.images, again.images) and torch.equal(batch.masks, again.masks)
        assert len(data._stored(np.array([], int), staging).values) == 0
