"""What the projection of a split learns from: captions of labelled slices, and what the language model is shown of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.layout import IGNORE
from zeus_union.cache.terminal import progress
from zeus_union.stage1_instruct.building.job import Build
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.projection.fold import RECIPE, Captioned
from zeus_union.stage1_instruct.projection.label_captions import caption
from zeus_union.stage1_instruct.seeds import slice_seed


def captions_of(build: Build, subjects: Sequence[str]) -> list[Captioned]:
    """Captions of the labelled slices of some subjects, of every modality; of every class, where each has a layer.

    A training looks at a few hundred: of many slices four times as many are captioned, drawn subject by subject.

    Args:
        subjects: labelled, with finished slices.
    """
    card, writer, seed = build.dataset.card, build.writer, build.options.seed
    most = math.ceil(4 * RECIPE.steps * RECIPE.batch_size / (len(subjects) * len(card.modalities)))
    captioned = []
    for subject in progress(subjects, "captions"):
        slices = writer.slices(subject)
        assert slices.masks is not None
        drawn = np.random.default_rng([seed, len(slices.numbers)]).permutation(len(slices.numbers))[:most]
        for position in sorted(drawn.tolist()):
            for index, modality in enumerate(card.modalities):
                image = slices.images[position, index]
                words = slice_seed(seed, subject, int(slices.numbers[position]), modality)
                for instance, classes, labels in _instances(build, slices.masks[position]):
                    text = caption(image, labels, classes, card.terms[modality], slices.grid.view, words)
                    if text:
                        shows = bool(((labels > 0) & (labels <= len(classes))).any())
                        prompt = question(instance, card.terms[modality])
                        captioned.append(Captioned(subject, position, index, prompt, text, shows))
    return captioned


def _instances(build: Build, mask: NDArray[np.uint8]) -> list[tuple[str, tuple[str, ...], NDArray[np.uint8]]]:
    """What is asked of a slice, with the classes it is about and their mask."""
    card = build.dataset.card
    if not build.options.per_class:
        return [(card.instance, card.classes, mask)]
    alone: list[tuple[str, tuple[str, ...], NDArray[np.uint8]]] = []
    for label, name in enumerate(card.classes, 1):
        labels = (mask == label).astype(mask.dtype)
        labels[mask == IGNORE] = IGNORE
        alone.append((name, (name,), labels))
    return alone


def features_of(build: Build, captioned: Sequence[Captioned]) -> Tensor:
    """The frozen vision features of each, float32 (N, T, C); every slice is read once."""
    writer, llm = build.writer, build.models.projected_llm
    by_slice: dict[tuple[str, int], list[int]] = {}
    for row, pair in enumerate(captioned):
        by_slice.setdefault((pair.subject, pair.slice), []).append(row)
    features: list[Any] = [None] * len(captioned)
    pictures: Mapping[str, Any] = {}
    if llm.sees == "pictures":
        pictures = {subject: writer.slices(subject).images for subject in {pair.subject for pair in captioned}}
    for (subject, position), rows in progress(list(by_slice.items()), "vision features"):
        if llm.sees == "pictures":
            seen = torch.from_numpy(pictures[subject][position])
        else:
            seen = torch.from_numpy(
                writer.embeddings(build.layers.embeddings, subject, slice(position, position + 1))[0]
            )
        of_slice = llm.features(seen)
        for row in rows:
            features[row] = of_slice[captioned[row].modality]
    return torch.stack(features)
