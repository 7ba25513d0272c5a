"""Frames of one series that can be one volume: what they are and where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import VIEWS, Grid
from zeus_union.cache.terminal import counted
from zeus_union.pipelines.intake.tags import component, description, image_words, text_of
from zeus_union.pipelines.intake.traits import Traits, words_of
from zeus_union.stage1_instruct.studies.depth import reading
from zeus_union.stage1_instruct.studies.dicom import read_series
from zeus_union.stage1_instruct.studies.dicom_frames import Frame, tag_value

_LOCALISERS = frozenset(
    ("loc", "localizer", "localiser", "localizers", "scout", "survey", "topogram", "surview", "scanogram", "pilot")
)
_PROJECTIONS = frozenset(("mip", "minip", "mnip", "projection", "projected"))
_REFORMATS = frozenset(("mpr", "reformat", "reformatted", "reformation", "csa"))
_SUBTRACTIONS = frozenset(("sub", "subtraction", "subtract"))
# The classes of objects that hold no image of a patient, by the end of their names in the standard's list.
_NO_IMAGES = (
    "Capture",
    "SR Storage",
    "Report",
    "Document",
    "PDF",
    "Presentation State",
    "Structure Set",
    "Segmentation",
)


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames of one series that can be one volume.

    Attributes:
        frames: in the order of the files.
        label: what the user calls it: the series' number, with .1, .2 where the series holds several stacks.
        traits: what tags and description together say it is.
        tags: what the tags alone say.
    """

    frames: tuple[Frame, ...]
    label: str
    traits: Traits
    tags: Traits

    @property
    def first(self) -> Frame:
        return self.frames[0]

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return text_of(self.first, "SeriesInstanceUID")

    @property
    def description(self) -> str:
        return description(self.first)

    @property
    def frame_of_reference(self) -> str:
        """FrameOfReferenceUID; '' where the files do not say it."""
        return text_of(self.first, "FrameOfReferenceUID")

    @property
    def named(self) -> str:
        """'5 (t2_tse_tra, 19 slices)'."""
        return f"{self.label} ({self.description or 'no description'}, {self.size_in_words})"

    @property
    def size_in_words(self) -> str:
        return f"{counted(len(self.frames), 'slice')}"

    @property
    def grid(self) -> Grid | None:
        """Where it lies; None where its frames are no volume."""
        return self._geometry[0]

    @property
    def fault(self) -> str:
        """Why its frames are no volume (a slice is missing, ...); '' where they are."""
        return self._geometry[1]

    @cached_property
    def _geometry(self) -> tuple[Grid | None, str]:
        try:
            with reading("headers"):
                return read_series(self.frames).grid, ""
        except UserError as error:
            return None, str(error)

    @property
    def is_original(self) -> bool:
        return image_words(self.first)[:1] != ("DERIVED",)

    @property
    def plane(self) -> str:
        """The view whose slices its frames are; '' where its frames are no volume."""
        if self.grid is None:
            return ""
        across = int(nibabel.io_orientation(self.grid.affine)[2, 0])
        return next(view for view, axes in VIEWS.items() if axes[0][0] == across)

    @property
    def is_attenuation_corrected(self) -> bool:
        """Of PET: whether CorrectedImage says so."""
        return "ATTN" in text_of(self.first, "CorrectedImage")

    @property
    def is_reformat(self) -> bool:
        return bool(_REFORMATS & self._words)

    @property
    def unsuitable(self) -> str:
        """Why it is no image that could be segmented, in plain words; '' where it may be."""
        storage = tag_value(self.first, "SOPClassUID")
        name = str(getattr(storage, "name", storage or ""))
        if any(word in name for word in _NO_IMAGES):
            return f"no image of a modality ({name.removesuffix(' Storage')})"
        if tag_value(self.first, "Rows") is None:
            return f"no image ({name or 'unknown class'})"
        photometric = text_of(self.first, "PhotometricInterpretation")
        if photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
            return f"colours ({photometric}), no grey values"
        if tag_value(self.first, "ImagePositionPatient") is None:
            frames = f"{self.first.count} frames without" if self.first.count > 1 else "no"
            return f"{frames} position (ImagePositionPatient)"
        for words, kind in (
            (_LOCALISERS, "a localiser"),
            (_PROJECTIONS, "a projection"),
            (_SUBTRACTIONS, "a subtraction"),
        ):
            if words & self._words:
                return kind
        if component(self.first):
            return f"the {component(self.first)} image of a complex one"
        return ""

    @cached_property
    def _words(self) -> frozenset[str]:
        words = (part.casefold() for word in image_words(self.first)[1:] for part in (word, *word.split()))
        return frozenset((*words_of(self.description), *words))
