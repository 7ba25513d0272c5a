"""Cached views: augmented copies of every labelled slice, through the frozen image encoder like the slices themselves.

A view is a layer of pictures and masks, slices@viewK, and one of embeddings, embeddings/ENCODER@viewK, with recipes of
their own. So they are built, resumed and refused as all layers are, and K more can be added to a finished cache. Subjects
without labels have no views: nothing could be learned from them (`CacheWriter.finished` knows).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.augmentation_draws import augmentation_recipe
from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import fingerprint
from zeus_union.cache.terminal import some_of
from zeus_union.cache.view_layers import view_layer
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.encoding import Picture
from zeus_union.stage1_instruct.studies.slices import Slices
from zeus_union.stage1_instruct.studies.study import Dataset

SEED = "sha256 of subject, slice number, view, and 'geometry' or the modality"  # as `seeds.view_random` says

# As classes name their side: 'left kidney', 'kidney_right', 'lung_L'.
_LEFT, _RIGHT = (re.compile(rf"(?<![a-z0-9])({side})(?![a-z0-9])", re.IGNORECASE) for side in ("left|l", "right|r"))


@dataclass(frozen=True)
class Views:
    """The views of a build.

    Attributes:
        count: of every labelled slice.
        mirror: whether half of them are mirrored, left for right.
        embeddings: the layer they are views of; '': pictures only.
    """

    count: int = 0
    mirror: bool = False
    embeddings: str = ""

    @property
    def layers(self) -> Iterator[str]:
        """Of each view the pictures, then the embeddings."""
        for view in range(1, self.count + 1):
            yield view_layer("slices", view)
            if self.embeddings:
                yield view_layer(self.embeddings, view)


def check_views(dataset: Dataset, count: int, mirror: bool) -> None:
    """Refuses views that nothing could be learned from, or that would be wrong.

    Raises:
        UserError: fewer than none; a data set without labels; mirrored views of classes that have a side.
    """
    if count < 0:
        raise UserError(f"--views {count}: expected the number of augmented copies of every labelled slice, 0 or more")
    if mirror and not count:
        raise UserError("--mirror-views is about augmented copies and there are none; add --views K")
    card = dataset.card
    if count and dataset.labelled is not None and not {*dataset.labelled} & {*card.subjects}:
        raise UserError(
            f"{card.name} has no labels: --views makes copies of labelled slices, to train on; leave --views out"
        )
    if mirror and (sided := [name for name in card.classes if bool(_LEFT.search(name)) != bool(_RIGHT.search(name))]):
        raise UserError(
            f"--mirror-views would show {some_of(sided)} on the other side of the body; leave it out, or merge the sides "
            "with --labels binary"
        )


def begin_views(writer: CacheWriter, views: Views, slices: Mapping[str, Any], embeddings: Mapping[str, Any]) -> None:
    """Opens the layers of all views under their recipes.

    Args:
        slices, embeddings: recipes of what they are views of.

    Raises:
        UserError: views that are there already were made otherwise.
    """
    for view in range(1, views.count + 1):
        pictures = {"slices": fingerprint(slices), "view": view, "seed": SEED, **augmentation_recipe(views.mirror)}
        writer.begin_layer(view_layer("slices", view), pictures)
        if views.embeddings:
            writer.begin_layer(view_layer(views.embeddings, view), {**embeddings, "slices": fingerprint(pictures)})


def copies_of(
    views: Views, subject: str, view: int, modalities: Sequence[str], slices: Slices
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A subject's pictures uint8 (n, M, 256, 256) and masks uint8 (n, 256, 256) in a view."""
    from zeus_union.stage1_instruct.studies.augment import augmented  # MONAI's transforms take seconds to import

    images, masks = augmented(subject, slices.numbers, view, modalities, slices.images, slices.masks, views.mirror)
    assert masks is not None  # a subject without labels is finished in every view
    return images, masks


def pictures_of_view(
    views: Views,
    subject: str,
    view: int,
    modalities: Sequence[str],
    slices: Slices,
    small: NDArray[np.uint8],
    size: int,
) -> Iterator[Picture]:
    """A subject's pictures in a view as the encoder reads them, modality by modality within a slice.

    The stored ones, or the native ones moved and changed alike where the encoder reads larger ones.

    Args:
        small: uint8 (n, M, 256, 256), the stored ones.
        size: of the encoder's pictures.
    """
    from zeus_union.stage1_instruct.studies.augment import augmented

    for at in range(len(slices.numbers)):
        of_slice = small[at]
        if size != small.shape[-1]:
            piece = slice(at, at + 1)
            large = slices.images_at(size, piece)
            of_slice = augmented(subject, slices.numbers[piece], view, modalities, large, mirror=views.mirror)[0][0]
        for pixels in of_slice:
            yield Picture(pixels)
