"""A tiny cache that can be learned: the embeddings carry the mask, in an oblique, anisotropic native grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zeus_union.cache.grid import Grid, to_square
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.writer import CacheWriter, Instruction, SubjectSlices
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model.decoder import MaskDecoder

SUBJECTS = ("eve", "ada", "ben", "cleo", "dan")
UNLABELLED = "eve"
MODALITIES = ("T1", "T2")
CLASSES = ("liver", "spleen")
SLICES, TEXT = 3, 24
SIDE = 64  # pixels of a slice; the cost of a step is that of the positions of its embedding
GRID = SIDE // 4


def oblique_grid() -> Grid:
    """Array axes (posterior-ish, superior, left-ish), 1.2 x 4 x 0.8 mm, turned by 20 degrees about the body axis."""
    turn = np.deg2rad(20)
    axes = np.array([[np.sin(turn), 0, -np.cos(turn)], [-np.cos(turn), 0, -np.sin(turn)], [0, 1, 0]])
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array([1.2, 4.0, 0.8])
    affine[:3, 3] = (11, -7, 30)
    return Grid((40, 2 * SLICES, 70), affine)


def native_labels(subject: str) -> np.ndarray:
    """Two discs a slice, moved by the subject; the lowest slice is empty. uint8 (slices, rows, columns)."""
    slices, rows, columns = oblique_grid().slice_shape
    shift = SUBJECTS.index(subject)
    y, x = np.mgrid[:rows, :columns]
    labels = np.zeros((slices, rows, columns), np.uint8)
    for z in range(1, slices):
        labels[z][((y - 15 - shift) / 8) ** 2 + ((x - 20 - z) / 12) ** 2 < 1] = 1
        labels[z][((y - 24) / 6) ** 2 + ((x - 52 + shift) / 8) ** 2 < 1] = 2
    return labels


def decoder_constants(grid: int = GRID) -> dict[str, np.ndarray]:
    torch.manual_seed(7)
    state = MaskDecoder(4, keep_iou_token=True).state_dict()
    random = np.random.default_rng(7)
    constants = {f"decoder.{name}": tensor.numpy() for name, tensor in state.items()}
    constants["dense_pe"] = random.standard_normal((256, grid, grid)).astype(np.float32)
    constants["no_mask"] = random.standard_normal(256).astype(np.float32)
    return constants


def make_cache(
    path: Path,
    subjects: tuple[str, ...] = SUBJECTS,
    unlabelled: tuple[str, ...] = (UNLABELLED,),
    *,
    names: Mapping[str, str] | None = None,
    shift: int = 0,
    sources: bool = False,
    slices: Mapping[str, Any] | None = None,
    llm: Mapping[str, Any] | None = None,
    side: int = SIDE,
) -> Path:
    """The toy cache, or one that differs from it.

    Args:
        names: what subjects are called in it, of those that have other names.
        shift: of the labels, in voxels.
        sources: whether subjects were read from files.
        slices, llm: recipes of the slices and the instructions.
        side: pixels of a slice, 256 in a user's cache.
    """
    called = {subject: (names or {}).get(subject, subject) for subject in subjects}
    card = DatasetCard(
        "toy",
        MODALITIES,
        {name: f"MRI-{name}" for name in MODALITIES},
        CLASSES,
        "liver, spleen",
        tuple(called.values()),
        slice_step=2,
    )
    labelled_subjects = {name for subject, name in called.items() if subject not in unlabelled}
    writer = CacheWriter(path, card, labelled=labelled_subjects)
    writer.begin_layer("slices", dict(slices or {"toy": 1}))
    writer.begin_layer("embeddings/toy", {"encoder": "toy", "slices": "toy"}, lambda: decoder_constants(side // 4))
    writer.begin_layer("instructions/toy", dict(llm or {"llm": "toy"}))
    grid, numbers = oblique_grid(), np.arange(0, 2 * SLICES, 2, dtype=np.int32)
    for subject in subjects:
        random = np.random.default_rng(SUBJECTS.index(subject))
        native = np.roll(native_labels(subject)[numbers], shift, axis=1)
        files = {f"{called[subject]}.nii.gz": f"digest of {subject}"} if sources else {}
        masks = to_square(native, grid.slice_spacing[1:], side)
        images = np.repeat((masks * 80)[:, None], 2, axis=1)
        labelled = subject not in unlabelled
        truth = (masks, None, native) if labelled else (None, None, None)
        writer.write_slices(called[subject], SubjectSlices(grid, numbers, images, *truth, files))
        embeddings = random.standard_normal((SLICES, 2, 256, side // 4, side // 4), dtype=np.float32) * 0.3
        small = masks[:, ::4, ::4]
        for label in (1, 2):
            embeddings[:, :, label::8] += 1.5 * (small == label)[:, None, None]
        writer.write_embeddings("embeddings/toy", called[subject], embeddings)
        text = random.standard_normal((SLICES, 2, TEXT)).astype(np.float32)
        text /= np.linalg.norm(text, axis=-1, keepdims=True)
        rows = [Instruction(int(n), m, "where?", "there", 1, 1, "stop", 0) for n in numbers for m in MODALITIES]
        writer.write_instructions("instructions/toy", called[subject], text, rows)
    writer.finalize()
    return path


def add_views(path: Path, count: int, *, recipe: Mapping[str, Any] | None = None, first: int = 1) -> Path:
    """Adds views to the toy cache: the labels moved by some rows and the embeddings that carry them, other noise in each.

    Args:
        recipe: what they were drawn by, beside their number.
        first: the number of the first one; those before are there.
    """
    with Cache(path) as cache:
        card, labelled = cache.card, [name for name in cache.subjects if cache.rows[cache.rows_of([name])[0]].labelled]
        masks = {name: cache.masks(cache.rows_of([name])) for name in labelled}
        images = {name: cache.images(cache.rows_of([name])) for name in labelled}
    writer = CacheWriter(path, card)
    for view in range(first, count + 1):
        writer.begin_layer(f"slices@view{view}", {"slices": "toy", "view": view, "mirrored": False, **(recipe or {})})
        writer.begin_layer(f"embeddings/toy@view{view}", {"encoder": "toy", "slices": f"toy {view}"})
        for name in labelled:
            random = np.random.default_rng([view, len(name), ord(name[0])])
            moved = np.roll(masks[name], SIDE // 32 * view, axis=1)
            writer.write_view(name, view, np.roll(images[name], SIDE // 32 * view, axis=2), moved)
            embeddings = random.standard_normal((SLICES, 2, 256, GRID, GRID), dtype=np.float32) * 0.3
            for label in (1, 2):
                embeddings[:, :, label::8] += 1.5 * (moved[:, ::4, ::4] == label)[:, None, None]
            writer.write_embeddings(f"embeddings/toy@view{view}", name, embeddings)
    writer.finalize()
    return path


@pytest.fixture(scope="session")
def viewed_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy cache with two views."""
    return add_views(make_cache(tmp_path_factory.mktemp("cache") / "toy.h5"), 2)


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five subjects of three slices and two modalities; 'eve' has no labels."""
    return make_cache(tmp_path_factory.mktemp("cache") / "toy.h5")


def answer_with(monkeypatch: pytest.MonkeyPatch, labels_of: Callable[[SliceData], np.ndarray]) -> None:
    """Every model says these label maps uint8 (n, SIDE, SIDE) of its slices, with logits of 10 and -10."""
    begin = RunInputs.__init__

    def remember(self: Any, config: Any, data: SliceData, *more: Any, **named: Any) -> None:
        begin(self, config, data, *more, **named)
        self.answers = torch.from_numpy(np.ascontiguousarray(labels_of(data)))
        self.classes = len(config.inputs.classes)

    def logits(self: Any, _: Any, positions: np.ndarray, *__: Any, **___: Any) -> torch.Tensor:
        labels = torch.arange(1, self.classes + 1)[:, None, None]
        return torch.where(self.answers[positions][:, None] == labels, 10.0, -10.0)

    monkeypatch.setattr(RunInputs, "__init__", remember)
    monkeypatch.setattr(RunInputs, "logits", logits)
