"""Pairs of image and caption, in every layout they come in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.projection.pairs import Pair, read_pairs


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def test_parquet_reads_as_the_same_lines_of_json_would(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "caption": "A liver.", "instance": "liver", "modality": "MRI-T2"},
        {"subject": "s1", "slice": 3, "modality": "T2", "caption": "A spleen."},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist([{"subject": None, "slice": None, **rows[0]}, rows[1]]), tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet") == read_pairs(tmp_path / "pairs.jsonl")


def test_xraygpts_folder_is_read_with_jpg_and_png(tmp_path: Path) -> None:
    for name in ("image/1.jpg", "image/two.png"):
        picture(tmp_path / name)
    annotations = [{"image_id": 1, "caption": "Clear lungs."}, {"image_id": "two", "caption": "Large heart."}]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    assert read_pairs(tmp_path) == [
        Pair("Clear lungs.", "chest", "X-ray", image=tmp_path / "image" / "1.jpg"),
        Pair("Large heart.", "chest", "X-ray", image=tmp_path / "image" / "two.png"),
    ]


def test_broken_layouts_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected filter_cap\.json"):
        read_pairs(tmp_path)
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": [{"image_id": 7, "caption": "x"}]}))
    with pytest.raises(UserError, match=r"names image 7, but there is no image/7\.jpg"):
        read_pairs(tmp_path)
    (tmp_path / "filter_cap.json").write_text('{"annotations": []}')
    with pytest.raises(UserError, match="holds no pairs"):
        read_pairs(tmp_path)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_pairs(tmp_path / "p.parquet")
    pq.write_table(pa.table({"image": ["a.png"], "modality": ["T2"]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"row 0: 'caption'"):
        read_pairs(tmp_path / "p.parquet")
