"""docs/cache-format.md is enough to read a cache: its code is run on packed, sharded and grown ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cache.tiny_cache import build
from zeus_union.cache.layout import LAYOUT, SCHEMA_VERSION
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import fingerprint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cache-format.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    """What the page's code defines."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("how", ["packed", "sharded", "a layer was added"])
def test_the_pages_code_reads_what_the_reader_reads(reader: dict[str, Any], tmp_path: Path, how: str) -> None:
    path = tmp_path / "tiny.h5"
    build(path, pack=how != "sharded")
    if how == "a layer was added":
        build(path, variants=("zeus", "other"), pack=False)
    manifest, arrays = reader["read_cache"](path)
    with Cache(path) as cache:
        assert set(arrays) == set(cache.layers)
        assert manifest["card"]["subjects"] == list(cache.subjects)
        assert all(fingerprint(recipe) == cache.fingerprint(layer) for layer, recipe in manifest["recipes"].items())
        for index, subject in enumerate(cache.subjects):
            rows = np.flatnonzero(cache.rows["subject"] == index)
            np.testing.assert_array_equal(arrays["slices"][subject]["images"], cache.images(rows))
            np.testing.assert_array_equal(arrays["slices"][subject]["masks"], cache.masks(rows))
            batch = cache.read_embeddings("tiny", rows, [0, 1])
            assert batch.scale is not None and batch.offset is not None
            expected = batch.values[1, 0] * batch.scale[1, 0][:, None, None] + batch.offset[1, 0][:, None, None]
            stored = reader["embedding"](arrays, "embeddings/tiny", subject, 1, 0)
            np.testing.assert_array_equal(stored, expected)


def test_the_page_names_every_array_and_the_version() -> None:
    assert f"Schema version {SCHEMA_VERSION}" in TEXT
    for layouts in LAYOUT.values():
        for array in layouts:
            assert f"`{array.name}`" in TEXT
