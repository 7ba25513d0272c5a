"""Pairs of image and caption that the projection learns from, and their vision features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import to_square
from zeus_union.cache.terminal import progress
from zeus_union.stage1_instruct.studies.slices import PICTURE_SIZE

if TYPE_CHECKING:
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.models.assembly import Models


@dataclass(frozen=True)
class Pair:
    """One line of a pairs file.

    Attributes:
        caption: what the language model should say of the image.
        instance: what the question asks to segment; empty: the cache's.
        modality: what the question calls the modality; for a row of a cache the modality's name there.
        image: a picture, or None where the image is a row of a cache.
        subject, slice: the row of the cache; of a picture, the patient, where the file names one.
    """

    caption: str
    instance: str
    modality: str
    image: Path | None = None
    subject: str = ""
    slice: int = -1

    @property
    def source(self) -> tuple[str, int, str]:
        """Equal for pairs that show the same image."""
        return (str(self.image), -1, "") if self.image is not None else (self.subject, self.slice, self.modality)

    @property
    def patient(self) -> str:
        """Equal for pairs that have to be held out together: the subject, or the picture where none is named."""
        return f"subject {self.subject}" if self.subject else f"image {self.image}"


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of image and caption: JSON Lines, Parquet (the same keys as columns), or XrayGPT's folder.

    Each has 'caption', and either 'image' (a picture; relative to the file) with 'instance' and 'modality' for the
    question (and 'subject', where the patient is known), or 'subject', 'slice' and 'modality', a row of a cache.
    XrayGPT's folder holds filter_cap.json and image/, all of it chest X-rays.

    Raises:
        UserError: no such file, no pairs, or a malformed line, by its number.
    """
    if path.is_dir():
        return _xraygpt_pairs(path)
    if path.suffix == ".parquet":
        return _parquet_pairs(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"no pairs at {path}: expected a file of JSON Lines with image and caption") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8; expected JSON Lines with image and caption") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            if line.strip():
                pairs.append(_pair(json.loads(line), path.parent, where))
        except ValueError as error:
            raise UserError(f"{where} is not JSON: {error}") from error
    return _some(pairs, path)


def _parquet_pairs(path: Path) -> list[Pair]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error
    present = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return _some([_pair(row, path.parent, f"{path}, row {number}") for number, row in enumerate(present)], path)


def _xraygpt_pairs(folder: Path) -> list[Pair]:
    path = folder / "filter_cap.json"
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        named = [(str(entry["image_id"]), entry["caption"]) for entry in annotations]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a folder of pairs: expected filter_cap.json with annotations of image_id and caption, and "
            f"image/ ({error})"
        ) from error
    kinds = {file.stem: file.name for file in (folder / "image").glob("*") if file.suffix in (".jpg", ".png")}
    pairs = []
    for name, caption in named:
        if name not in kinds:
            raise UserError(f"{path} names image {name}, but there is no image/{name}.jpg or .png beside it")
        values = {"image": f"image/{kinds[name]}", "caption": caption, "instance": "chest", "modality": "X-ray"}
        pairs.append(_pair(values, folder, f"{path}, image {name}"))
    return _some(pairs, path)


def _some(pairs: list[Pair], path: Path) -> list[Pair]:
    if not pairs:
        raise UserError(f"{path} holds no pairs; expected image and caption")
    return pairs


def _pair(values: Any, folder: Path, where: str) -> Pair:
    if not isinstance(values, dict):
        raise UserError(f"{where} holds {type(values).__name__}, expected an object with 'caption'")

    def text(key: str) -> str:
        value = values.get(key)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: {key!r} is {value!r}, expected some text")
        return value.strip()

    caption, modality = text("caption"), text("modality")
    if "image" in values:
        image = folder / text("image")
        if not image.is_file():
            raise UserError(f"{where}: there is no image {image}")
        subject = text("subject") if "subject" in values else ""
        return Pair(caption, text("instance"), modality, image=image, subject=subject)
    if "subject" not in values:
        raise UserError(f"{where} has neither 'image' nor 'subject' and 'slice'; expected one of the two")
    if not isinstance(values.get("slice"), int):
        raise UserError(f"{where}: 'slice' is {values.get('slice')!r}, expected a whole number")
    instance = text("instance") if "instance" in values else ""
    return Pair(caption, instance, modality, subject=text("subject"), slice=values["slice"])


def from_cache(pairs: Sequence[Pair], cache: Cache | None) -> tuple[list[int], list[int]]:
    """Row and modality index in the cache of each pair that is one.

    Raises:
        UserError: there is no cache, or it has no such slice or modality.
    """
    if cache is None:
        raise UserError("the pairs name slices of a cache; give that cache with --cache")
    index = {(cache.subjects[int(r["subject"])], int(r["number"])): i for i, r in enumerate(cache.rows)}
    rows, modalities = [], []
    for pair in pairs:
        if (pair.subject, pair.slice) not in index or pair.modality not in cache.modalities:
            raise UserError(
                f"the cache holds no {pair.modality} of slice {pair.slice} of {pair.subject}; "
                f"its modalities: {', '.join(cache.modalities)}"
            )
        rows.append(index[pair.subject, pair.slice])
        modalities.append(cache.modalities.index(pair.modality))
    return rows, modalities


def vision_features(pairs: Sequence[Pair], models: Models, cache: Cache | None = None) -> Tensor:
    """The frozen vision features of each pair's image, computed once: float32 (N, T, C) on the CPU."""
    features: list[Any] = [None] * len(pairs)
    cached = [i for i, pair in enumerate(pairs) if pair.image is None]
    if cached:
        for i, tokens in zip(cached, _cached_features([pairs[i] for i in cached], models, cache)):
            features[i] = tokens
    by_source: dict[tuple[str, int, str], Tensor] = {}
    pictures = [i for i, pair in enumerate(pairs) if pair.image is not None]
    for i in progress(pictures, "images") if pictures else ():
        source = pairs[i].source
        if source not in by_source:
            image = pairs[i].image
            assert image is not None
            by_source[source] = models.projected_llm.features(_seen(image, models))[0].cpu()
        features[i] = by_source[source]
    return torch.stack(features)


def _cached_features(pairs: Sequence[Pair], models: Models, cache: Cache | None) -> list[Tensor]:
    from zeus_union.cache.quantize import decode

    rows, modalities = from_cache(pairs, cache)
    assert cache is not None
    if models.projected_llm.sees == "pictures":
        return [
            models.projected_llm.features(torch.from_numpy(cache.images([row])[:, modality]))[0].cpu()
            for row, modality in zip(rows, modalities)
        ]
    encoder = models.profile.encoder
    if encoder not in cache.encoders:
        raise UserError(f"the cache has no embeddings of {encoder}; it has: {', '.join(cache.encoders)}")
    tokens = []
    for row, modality in zip(rows, modalities):
        stored = cache.read_embeddings(encoder, [row], [modality])
        embedding = decode(stored.values, stored.scale, stored.offset)[:, 0]  # (1, 256, 64, 64)
        tokens.append(models.projected_llm.features(embedding.float())[0].cpu())
    return tokens


def _seen(path: Path, models: Models) -> Tensor:
    """A picture as the profile's vision sees it: itself, or its embedding."""
    if models.projected_llm.sees == "pictures":
        return torch.from_numpy(_picture(path, PICTURE_SIZE)[None])
    return models.encoder.encode(_picture(path, models.encoder.input_size)[None])


def _picture(path: Path, size: int) -> NDArray[np.uint8]:
    """A picture as grey values uint8 (size, size), nearest neighbour, centred on black as `to_square` does."""
    try:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} is not a picture that can be read: {error}") from error
    return to_square(grey, (1.0, 1.0), size)
