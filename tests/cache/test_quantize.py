"""uint8 per channel and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zeus_union.cache.errors import UserError
from zeus_union.cache.quantize import decode, decode_channels_last, encode_fp16, encode_uint8

SHAPE = (2, 3, 4, 2, 5)


@settings(max_examples=200, deadline=None)
@given(
    embeddings=arrays.arrays(np.float32, (2, 3, 2, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    magnitude=st.sampled_from([1e-30, 1e-6, 1.0, 1e4]),
)
def test_error_is_at_most_half_a_step(embeddings: np.ndarray, magnitude: float) -> None:
    embeddings = (embeddings * np.float32(magnitude)).astype(np.float32)
    values, scale, offset = encode_uint8(embeddings)
    error = np.abs(decode(values, scale, offset).numpy().astype(np.float64) - embeddings)
    largest = np.abs(embeddings).max(axis=(-2, -1))
    rounding = 4 * np.finfo(np.float32).eps * largest + np.finfo(np.float32).tiny * 256
    assert (error <= (scale * 0.5001 + rounding)[..., None, None]).all()


def test_shapes_and_dtypes() -> None:
    values, scale, offset = encode_uint8(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    assert (values.shape, values.dtype) == (SHAPE, np.uint8)
    assert (scale.shape, scale.dtype, offset.shape, offset.dtype) == (SHAPE[:3], np.float32, SHAPE[:3], np.float32)
    assert values.min() == 0 and values.max() == 255


def test_constant_channel_is_exact() -> None:
    embeddings = np.full(SHAPE, np.float32(-3.7))
    assert (decode(*encode_uint8(embeddings)).numpy() == embeddings).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encode", [encode_uint8, encode_fp16])
def test_values_that_are_not_finite_are_refused(bad: float, encode: object) -> None:
    embeddings = np.zeros(SHAPE, np.float32)
    embeddings[1, 2, 3, 0, 1] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        encode(embeddings)  # type: ignore[operator]


def test_fp16_is_decoded_to_float32_and_refuses_what_it_cannot_hold() -> None:
    embeddings = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    decoded = decode(encode_fp16(embeddings)).numpy()
    assert decoded.dtype == np.float32
    assert (decoded == embeddings.astype(np.float16)).all()
    with pytest.raises(UserError, match="65504"):
        encode_fp16(np.full(SHAPE, 7e4, np.float32))


def test_decoding_leaves_the_stored_values_alone() -> None:
    stored = encode_uint8(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    before = [array.copy() for array in stored]
    decode(*stored)
    assert all((array == copy).all() for array, copy in zip(stored, before))


@pytest.mark.parametrize("store", ["uint8", "fp16"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_decoding_channels_last_gives_the_same_numbers_in_another_order_in_memory(store: str, device: str) -> None:
    embeddings = np.random.default_rng(4).normal(size=(2, 3, 8, 5, 4)).astype(np.float32)
    stored = encode_uint8(embeddings) if store == "uint8" else (encode_fp16(embeddings),)
    tensors = [torch.from_numpy(part).to(device) for part in stored]
    turned = decode_channels_last(*tensors)
    assert turned.shape == embeddings.shape and turned.flatten(-2).transpose(-1, -2).is_contiguous()
    if device == "cpu":
        assert torch.equal(turned, decode(*stored))
