"""The rule that decides how pictures are batched: an embedding's bytes do not depend on its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import to_square
from zeus_union.cache.quantize import check_finite, encode_uint8, quantise
from zeus_union.stage1_instruct.building.encoding import EmbeddingsOfSubject, OnCPU, OnDevice, Picture, PictureLine
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.building.threads import Worker
from zeus_union.stage1_instruct.models.image.litemedsam import LiteMedSAM

CPU = torch.device("cpu")


def noise(count: int, seed: int = 0, size: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoder(random_litemedsam: Path) -> LiteMedSAM:
    return LiteMedSAM(str(random_litemedsam))


@pytest.mark.parametrize("size", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_an_embeddings_bytes_depend_neither_on_neighbours_nor_on_the_place_in_a_batch_of_one_size(
    encoder: LiteMedSAM, size: int
) -> None:
    """So a batch may cross subjects, and a build that goes on may begin its batches elsewhere, padded with black."""
    (picture,) = noise(1)
    expected = None
    for seed, place in enumerate([*range(size), 0]):
        batch = np.zeros((size, 256, 256), np.uint8) if seed == 0 else noise(size, seed)
        batch[place] = picture
        embedding = encoder.embed(torch.from_numpy(batch))[place]
        assert expected is None or torch.equal(embedding, expected)
        expected = embedding


def test_on_a_cpu_a_picture_goes_alone(encoder: LiteMedSAM) -> None:
    assert encoder.at_once is None
    pictures = noise(2)
    together = encoder.encode(pictures)
    for picture, embedding in zip(pictures, together):
        (row,) = OnCPU(encoder).run([Picture(picture)])
        assert np.array_equal(row(), embedding.numpy())


class Sums:
    """An encoder for pictures of 64 pixels, whose every number is the picture's."""

    name, input_size, device = "sums", 64, CPU

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def embed(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        return images.float()[:, None] * torch.linspace(0.5, 2, 256)[:, None, None]


@pytest.mark.parametrize("shape, spacing", [((40, 64), (1.0, 1.0)), ((64, 40), (2.5, 1.25)), ((100, 90), (0.7, 0.9))])
def test_a_picture_is_made_square_on_the_device_as_on_the_cpu(shape: tuple[int, int], spacing: Any) -> None:
    native = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    device, encoder = OnDevice, Sums()
    (row,) = device(encoder, "uint8", 3, CPU).run([Picture(native, spacing)])  # type: ignore[arg-type]
    assert np.array_equal(encoder.batches[0][0].numpy(), to_square(native, spacing, 64))
    assert encoder.batches[0].shape == (3, 64, 64) and not encoder.batches[0][1:].any()
    values, scale, offset = encode_uint8(encoder.embed(encoder.batches[0][:1])[0].numpy())
    stored = row()
    assert isinstance(stored, dict)
    assert np.array_equal(stored["values"], values)
    assert np.array_equal(stored["scale"], scale) and np.array_equal(stored["offset"], offset)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-40, 1e-30, 1e-6, 1.0, 300.0, 1e30]),
    st.sampled_from([0.0, 1.0, -7.5]),
)
def test_quantised_by_torch_is_quantised_by_numpy_byte_for_byte(seed: int, magnitude: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    embeddings = (random.normal(size=(2, 5, 6, 6)) * magnitude + shift).astype(np.float32)
    embeddings[0, 0] = shift  # a constant channel
    embeddings[1, 1] = (np.arange(36).reshape(6, 6) * 127.5 * magnitude).clip(max=255 * magnitude)  # ties
    for expected, made in zip(encode_uint8(embeddings), quantise(torch.from_numpy(embeddings))):
        assert expected.tobytes() == made.numpy().tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_what_comes_back_from_the_device(value: float) -> None:
    embeddings = torch.randn(1, 4, 3, 3)
    embeddings[0, 2, 1, 1] = value
    _, scale, offset = quantise(embeddings)
    with pytest.raises(UserError, match="NaN or infinite"):
        check_finite(offset.numpy(), scale.numpy())


@pytest.mark.parametrize("store, factor, said", [("uint8", np.inf, "NaN or infinite"), ("fp16", 1e6, "beyond 65504")])
def test_only_the_picture_with_bad_numbers_is_refused(store: str, factor: float, said: str) -> None:
    class Bad(Sums):
        def embed(self, images: Tensor) -> Tensor:
            embeddings = super().embed(images)
            embeddings[1] = embeddings[1] * factor + 1
            return embeddings

    rows = OnDevice(Bad(), store, 4, CPU).run([Picture(picture) for picture in noise(3, size=64)])  # type: ignore[arg-type]
    assert rows[0]()["values"].any() and rows[2]()["values"].any()
    with pytest.raises(UserError, match=said):
        rows[1]()


def test_out_of_memory_halves_the_batch_and_no_picture_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Small(Sums):
        def embed(self, images: Tensor) -> Tensor:
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().embed(images)

    pictures = noise(7, size=64)
    whole = OnDevice(Sums(), "uint8", 7, CPU).run([Picture(picture) for picture in pictures])  # type: ignore[arg-type]
    device = OnDevice(Small(), "uint8", 8, CPU)  # type: ignore[arg-type]
    halved = device.run([Picture(picture) for picture in pictures])
    assert device.at_once == 2 and "--batch-size 2" in " ".join(capsys.readouterr().err.split())
    for expected, row in zip(whole, halved, strict=True):
        assert all(np.array_equal(row()[name], array) for name, array in expected().items())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 3))
def test_batches_are_full_whatever_subjects_they_are_of_and_each_gets_what_is_its(
    slices: list[int], at_once: int, modalities: int
) -> None:
    encoder = Sums()
    device = OnDevice(encoder, "fp16", at_once, CPU)  # type: ignore[arg-type]
    line = PictureLine(device, BuildReport())
    made: list[list[float]] = []

    def write(embeddings: EmbeddingsOfSubject) -> None:
        made.append([float(value) for piece in embeddings.pieces() for value in piece["values"][0, :, 0, 0, 0]])

    number, expected = 0, []
    with Worker("writer", 20) as writing:
        for count in slices:
            of_subject = EmbeddingsOfSubject(writing, count, modalities, lambda error: None, 1 << 20)
            writing.submit(lambda of_subject=of_subject: write(of_subject))
            expected.append([number + at for at in range(count * modalities)])
            for _ in range(count * modalities):
                line.add(Picture(np.full((64, 64), number, np.uint8)), of_subject)
                number += 1
        line.flush()
    assert made == [[float(np.float16(value * 0.5)) for value in of_one] for of_one in expected]
    assert {len(batch) for batch in encoder.batches} == {at_once}
    assert len(encoder.batches) == -(-number // at_once)
