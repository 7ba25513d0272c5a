"""One vector a text, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.text.bert import TextEncoder
from zeus_union.stage1_instruct.profiles.profile import Profile

TEXTS = ["The liver is bright.", "", "A large, dark spleen lies at the back left of this slice.", "Kidney"]


def test_padding_and_batch_do_not_change_a_vector(tiny_bert: Path) -> None:
    encoder = TextEncoder(str(tiny_bert))
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5


def test_vectors_are_float32_of_unit_length_in_order(tiny_bert: Path) -> None:
    encoder = TextEncoder(str(tiny_bert), batch_size=2)
    vectors = encoder.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, encoder.width))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[::-1], encoder.encode(TEXTS[::-1]), atol=1e-5)


def test_text_beyond_the_model_is_cut(tiny_bert: Path) -> None:
    encoder = TextEncoder(str(tiny_bert))
    assert np.allclose(encoder.encode(["a" * 500]), encoder.encode(["a" * 900]), atol=1e-6)


def test_no_texts_give_no_vectors(tiny_bert: Path) -> None:
    assert TextEncoder(str(tiny_bert)).encode([]).shape == (0, 32)


def test_folder_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text encoder"):
        TextEncoder(str(tmp_path))


@pytest.mark.slow
def test_minilm_puts_like_texts_near_and_unlike_ones_far(lite: Profile) -> None:
    near, near2, far = TextEncoder(lite.text_encoder).encode(
        ["The liver is large and dark.", "A big, dark liver.", "The stock market fell on Monday."]
    )
    assert near @ near2 > 0.7
    assert abs(near @ far) < 0.2
