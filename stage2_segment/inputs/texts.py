"""What the aligner reads: the instructions' embeddings, or a control in their place (`choices.TEXTS`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.choices import MLP
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.inputs.layers import layer_read

STATE_PARTS = 4  # that a text's states are averaged in, where one token is made of all of them
SCALE_FLOOR = 0.05  # of the text's own size: texts that differ less are not told apart
_AT_ONCE = 256  # rows


def read_text(
    cache: Cache, config: RunConfig, rows: NDArray[np.intp], modalities: Sequence[str]
) -> NDArray[np.floating]:
    """Text of rows of a cache: float32 (n, m, D); (n, m, K, D) with an instruction for each class; D = 0 for none.
    In the form of tokens the states as they are stored, float16 (n, m, L, D), zeros after the last; with the residual
    aligner their means over the quarters of the text, side by side: float32 (n, m, 4 D).

    A control depends on subject, slice and modality alone: the same rows give the same text in training, in
    evaluation, and in a cache that holds other subjects too.

    Args:
        modalities: the m wanted, of the run's.

    Raises:
        UserError: shuffled between slices, and a subject has one slice.
    """
    columns = [cache.modalities.index(name) for name in modalities]
    per_class = config.architecture.instructions == "class"
    if config.inputs.text in ("none", "constant"):  # no text, or one that is kept with the weights
        shape = (len(rows), len(columns), len(config.inputs.classes), 0) if per_class else (len(rows), len(columns), 0)
        return np.empty(shape, np.float32)
    if config.inputs.text == "random":
        return _random(cache, config, rows, modalities)
    text = _instructions(cache, config, _other_slices(cache, rows) if config.inputs.text == "shuffled-slices" else rows)
    if config.inputs.text == "shuffled-modalities":
        return text[np.arange(len(rows))[:, None], _other_modalities(cache, rows)[:, columns]]
    return text[:, columns]


def pool_states(states: NDArray[np.floating]) -> NDArray[np.float32]:
    """States (..., L, D), zeros after the last -> their means over `STATE_PARTS` parts of the text: (..., parts x D).

    The parts are as long as one another to a token; a text of fewer tokens than parts has its last ones in several.
    """
    length = (states != 0).any(axis=-1).sum(axis=-1)[..., None]  # (..., 1)
    parts = np.arange(STATE_PARTS)
    first = np.minimum(parts * length // STATE_PARTS, np.maximum(length - 1, 0))
    last = np.maximum((parts + 1) * length // STATE_PARTS, first + 1)
    sums = np.concatenate([np.zeros_like(states[..., :1, :], np.float64), states.cumsum(axis=-2, dtype=np.float64)], -2)
    total = np.take_along_axis(sums, last[..., None], -2) - np.take_along_axis(sums, first[..., None], -2)
    means = total / (last - first)[..., None]
    return means.reshape(*means.shape[:-2], -1).astype(np.float32)


def text_statistics(cache: Cache, config: RunConfig, rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], float]:
    """What the aligner brings text to mean 0 and a common scale by, over what it reads of `rows`.

    Returns:
        mean, float32 (M, D) or (M, K, D); scale, the root mean square of what entries differ from it, over all, and at
        least `SCALE_FLOOR` of the entries' own: texts that are nearly the same do not become noise at full size.
    """
    if config.architecture.constant_text:
        return typical_text(cache, config, rows), 1.0
    total, squares = np.zeros(()), 0.0
    for start in range(0, len(rows), _AT_ONCE):
        text = read_text(cache, config, rows[start : start + _AT_ONCE], config.inputs.modalities).astype(np.float64)
        total, squares = total + text.sum(axis=0), squares + float((text**2).sum())
    mean = total / len(rows)
    size = squares / (mean.size * len(rows))
    spread = max(size - float((mean**2).mean()), 0.0)
    scale = max(np.sqrt(spread), SCALE_FLOOR * np.sqrt(size))
    return mean.astype(np.float32), float(scale) or 1.0


def typical_text(cache: Cache, config: RunConfig, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Per modality the instruction of `rows` that is nearest to their mean: float32 (M, D) or (M, K, D)."""
    columns = [cache.modalities.index(name) for name in config.inputs.modalities]
    text = _instructions(cache, config, rows)[:, columns]
    distance = ((text - text.mean(axis=0)) ** 2).sum(-1)  # (n, M) or (n, M, K)
    return np.take_along_axis(text, distance.argmin(axis=0)[None, ..., None], axis=0)[0]


def _instructions(cache: Cache, config: RunConfig, rows: NDArray[np.intp]) -> NDArray[np.floating]:
    """All the cache's modalities: (n, M, D), (n, M, K, D) or (n, M, L, D)."""
    if config.architecture.form == "tokens":
        states = cache.states(layer_read(config, cache, config.inputs.variants[0]), rows)
        return states if config.architecture.aligner == MLP else pool_states(states)
    texts = [cache.text_embeddings(layer_read(config, cache, name), rows) for name in config.inputs.variants]
    return np.stack(texts, axis=2) if config.architecture.instructions == "class" else texts[0]


def _other_slices(cache: Cache, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each row another one of the same subject, each taken once."""
    other = np.empty(len(cache.rows), np.intp)
    for subject in np.unique(cache.rows["subject"][rows]):
        name = cache.subjects[subject]
        slices = cache.rows_of([name])
        if len(slices) < 2:
            raise UserError(f"subject {name} has one slice; text shuffled-slices needs two or more of each subject")
        # A random cycle through all of the subject's slices: none keeps its own.
        order = _generator(name).permutation(slices)
        other[order] = np.roll(order, 1)
    return other[rows]


def _other_modalities(cache: Cache, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """(n, all M): for each row and modality another modality, each taken once."""
    count = len(cache.modalities)
    taken = np.empty((len(rows), count), np.intp)
    for index, row in enumerate(rows):
        order = _generator(*_slice_key(cache, row)).permutation(count)
        taken[index, order] = np.roll(order, 1)
    return taken


def _random(cache: Cache, config: RunConfig, rows: NDArray[np.intp], modalities: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors."""
    per_class = config.architecture.instructions == "class"
    shape = (
        (len(config.inputs.classes), config.architecture.text_width) if per_class else (config.architecture.text_width,)
    )
    vectors = np.empty((len(rows), len(modalities), *shape), np.float32)
    for index, row in enumerate(rows):
        for column, modality in enumerate(modalities):
            vectors[index, column] = _generator(*_slice_key(cache, row), modality).standard_normal(shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _slice_key(cache: Cache, row: np.intp) -> tuple[str, str]:
    record = cache.rows[row]
    return cache.subjects[record["subject"]], str(record["number"])


def _generator(*names: str) -> np.random.Generator:
    """Seeded by names, the same on every machine."""
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
