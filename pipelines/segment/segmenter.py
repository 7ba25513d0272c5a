"""A new study through both stages, with models that are loaded once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.grid import Grid
from zeus_union.cache.instructions import Instruction
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import say, say_table, warn
from zeus_union.pipelines.intake.study import OpenedStudy, open_study
from zeus_union.pipelines.intake.tables import choice_table
from zeus_union.pipelines.segment.frozen import frozen_parts
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage1_instruct.building.loop import LAYERS, BuildOptions, build_cache
from zeus_union.stage1_instruct.models.assembly import best_device
from zeus_union.stage1_instruct.studies.intensity import windows_in
from zeus_union.stage1_instruct.studies.study import Dataset, Study
from zeus_union.stage2_segment.checkpoint import name_of
from zeus_union.stage2_segment.chosen_postprocessing import postprocessing_of
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.ensemble import as_runs, check_members_cache, describe_members, load_members
from zeus_union.stage2_segment.evaluation.missing import known_loss
from zeus_union.stage2_segment.gaps import describe_slices, filled_volume
from zeus_union.stage2_segment.inputs.layers import layers_read
from zeus_union.stage2_segment.native import SubjectPrediction, predict_subject, read_subject
from zeus_union.stage2_segment.nifti import to_fractions, to_volume
from zeus_union.stage2_segment.sharing.archive import opened_runs
from zeus_union.stage2_segment.training_subjects import trained_by_run_or_projection

DECODER, READING = "decoder", "reading"


class Segmenter:
    """A run, or an ensemble of several, with its frozen models: ready to segment any number of studies.

    Attributes:
        runs: their folders.
        modalities: of the run.
        classes: label k of a mask is classes[k - 1].
    """

    def __init__(
        self,
        run: Path | str | Sequence[Path],
        *,
        profile: str | None = None,
        overrides: Mapping[str, str] | None = None,
        device: str | None = None,
        send_images_to: str | None = None,
        which: str = "last",
        postprocess: bool = True,
    ) -> None:
        """Loads the decoders; stage 1's models are loaded with the first study.

        Args:
            run: a run's folder or a file of zeus export, or several: the mean of their probabilities.
            profile, overrides: the frozen models, where they are not where the run found them; the projection is the one
                that the run carries, unless they name another.
            device: 'cpu', 'cuda', 'mps', ...; the best there is for None.
            send_images_to: as for `load_models`.
            which: 'last' or 'best' weights.
            postprocess: as for `predict_run`.

        Raises:
            UserError: no run there; runs that cannot predict together; models that cannot write the instructions that a
                run reads.
        """
        self._unpacked = ExitStack()  # what a file of zeus export holds is on the disk as long as this is
        self.runs = self._unpacked.enter_context(opened_runs(as_runs(Path(run) if isinstance(run, str) else run)))
        self.members = load_members(self.runs, which, device)
        self._described = describe_members(self.runs, which)  # once: it digests the weights
        self._configs = [member.config for member in self.members]
        self.postprocessing = postprocessing_of(self.members, which, postprocess)
        self._parts = frozen_parts(
            self.runs, self._configs, profile, overrides or {}, device or best_device(), send_images_to
        )
        self.modalities = self._configs[0].inputs.modalities
        self.classes = self._configs[0].inputs.classes
        say(self.postprocessing.summary)

    @property
    def card(self) -> DatasetCard:
        """What the run's data set calls modalities and classes."""
        return self._configs[0].inputs.card

    def made_by(self, slice_step: int) -> dict[str, Any]:
        """What decides a mask, JSON-able (`Segmentation.made_by`)."""
        return {
            "members": [{**member, "run": Path(member["run"]).name} for member in self._described],
            "postprocessing": self.postprocessing.to_json(),
            "slice_step": slice_step,
        }

    def segment(
        self,
        study: Path | str,
        *,
        name: str | None = None,
        modalities: Mapping[str, str] | None = None,
        register: bool = False,
        slice_step: int = 1,
        probabilities: bool = False,
    ) -> Segmentation:
        """The mask of a study that is in no cache, in the grid of its first modality.

        Slices and grey values are made as those that the run was trained on were.

        Args:
            study: a folder of DICOM, a zip of it, or a folder with one file a modality (NIfTI, .mha, .mhd, .nrrd).
            name: what the study is called; as its folder or file is, for None.
            modalities: modality -> series or file, where tags and names do not say it (`file_names.parse_choices`).
            register: move modalities of another frame of reference onto the first one.
            slice_step: every n-th slice is segmented, what is between is interpolated (`gaps.fill_gaps`).
            probabilities: also a map of each class.

        Raises:
            UserError: as `open_study`; layers that the run cannot read.
        """
        start = time.perf_counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            open_study(
                Path(study), self.modalities, chosen=modalities, register=register, **recognised_by(self._configs)
            ) as opened,
        ):
            opened = opened if name is None else replace(opened, name=name)
            read_s = time.perf_counter() - start
            say_table(choice_table(opened.name, opened.choices, opened.missing))
            self._say_missing(opened)
            options = self._pictures(Path(folder) / "study.h5", tuple(opened.images), slice_step)
            seconds = self._build(opened, options)
            seconds[READING] = seconds.get(READING, 0.0) + read_s
            with Cache(options.out) as cache:
                segmentation = self._predict(opened, cache, slice_step, Path(folder) if probabilities else None)
        return replace(segmentation, seconds={**seconds, **segmentation.seconds})

    def _say_missing(self, opened: OpenedStudy) -> None:
        if not opened.missing:
            return
        loss = known_loss(self.runs, tuple(opened.images))
        cost = (
            "what that costs, zeus-segment evaluate --missing measures"
            if loss is None
            else f"without it the run lost {loss:.3f} DSC on its test subjects"
        )
        warn(
            f"{opened.name} has no {', '.join(opened.missing)}; the mask comes from {', '.join(opened.images)} alone: {cost}"
        )

    def _say_trained_on(self, cache: Cache, subject: str) -> None:
        known = [
            Path(name_of(run)).name
            for run, config in zip(self.runs, self._configs)
            if trained_by_run_or_projection(config).among(cache, [subject])
        ]
        if known:
            warn(f"{subject} was trained on ({', '.join(known)}): its mask is better than that of a new study")

    def _pictures(self, out: Path, modalities: Sequence[str], slice_step: int) -> BuildOptions:
        windows = windows_in(self._configs[0].inputs.windows)
        return BuildOptions(
            out,
            LAYERS[:2] if any(config.is_zeus for config in self._configs) else LAYERS[:1],
            slice_step=slice_step,
            pack=True,
            view=common_view(self._configs),
            windows={name: windows[name] for name in modalities},
        )

    def _build(self, opened: OpenedStudy, pictures: BuildOptions) -> dict[str, float]:
        """Stage 1 of the study; seconds by part."""
        seconds: dict[str, float] = {}
        dataset = _dataset(opened, self.card)
        for models, texts in self._parts:
            report = build_cache(dataset, models, replace(pictures, layers=LAYERS, **texts) if texts else pictures)
            for part, spent in report.seconds.items():
                seconds[part] = seconds.get(part, 0.0) + spent
        return seconds

    def _predict(
        self, opened: OpenedStudy, cache: Cache, slice_step: int, probabilities_in: Path | None
    ) -> Segmentation:
        start = time.perf_counter()
        (subject,) = cache.subjects
        grid, numbers = cache.grid(subject), cache.rows["number"][cache.rows_of([subject])]
        wanted = check_members_cache(self.members, cache, tuple(opened.images))
        self._say_trained_on(cache, subject)
        data = read_subject(cache, subject, self.members, wanted)
        predicted = predict_subject(self.members, data, grid, wanted, probabilities_in=probabilities_in)
        if slice_step > 1:
            say(f"{subject}: {describe_slices(grid.slice_shape[0], numbers, slice_step)}")
        return Segmentation(
            study=subject,
            classes=self.classes,
            mask=filled_volume(self.postprocessing(predicted.labels), numbers, slice_step, grid),
            grid=grid,
            images=opened.images,
            missing=opened.missing,
            instructions=self._instructions(cache),
            segmented=tuple(int(number) for number in numbers),
            series=opened.series,
            probabilities=_probabilities(self.classes, predicted, numbers, grid),
            disagreement=None
            if predicted.differing is None
            else to_fractions(predicted.differing, len(self.members), numbers, grid),
            agreement=predicted.agreement,
            seconds={DECODER: time.perf_counter() - start},
            made_by=self.made_by(slice_step),
        )

    def _instructions(self, cache: Cache) -> dict[str, tuple[Instruction, ...]]:
        layers = dict.fromkeys(layer for config in self._configs for layer in layers_read(config, cache))
        return {layer: _texts(cache, layer) for layer in layers}


def recognised_by(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """What `open_study` and `list_study` have to know of runs that predict together."""
    inputs = configs[0].inputs
    card = inputs.card
    return {
        "channels": inputs.channels,
        "known": card.modalities,
        "terms": card.terms,
        "view": common_view(configs),
    }


def common_view(configs: Sequence[RunConfig]) -> str | None:
    """Of the slices of all studies that the runs were trained on; None where they differ."""
    views = {view for config in configs for view in config.inputs.views}
    return views.pop() if len(views) == 1 else None


def load_run(run: Path | str | Sequence[Path], **options: Any) -> Segmenter:
    """A run, or several as an ensemble, ready to segment studies; see `Segmenter` for the options."""
    return Segmenter(run, **options)


def segment_study(
    study: Path | str, run: Path | str | Sequence[Path], *, device: str | None = None, **how: Any
) -> Segmentation:
    """`Segmenter.segment` of one study; for many, `load_run` once."""
    return Segmenter(run, device=device).segment(study, **how)


def _dataset(opened: OpenedStudy, card: DatasetCard) -> Dataset:
    """The study as a data set of one, described as the run's is."""
    names = tuple(opened.images)
    card = replace(
        card,
        modalities=names,
        terms={name: card.terms[name] for name in names},
        channels={name: card.channels[name] for name in names if name in card.channels},
        subjects=(opened.name,),
        slice_step=1,
    )
    study = Study(opened.name, opened.grid, opened.images, None, sources=opened.sources)
    return Dataset(card, lambda _: study)


def _texts(cache: Cache, variant: str) -> tuple[Instruction, ...]:
    rows = cache.instructions(variant).drop_columns(["subject", "variant"]).to_pylist()
    return tuple(Instruction(slice_number=row.pop("slice"), **row) for row in rows)


def _probabilities(
    classes: Sequence[str], predicted: SubjectPrediction, numbers: NDArray[np.int32], grid: Grid
) -> dict[str, NDArray[np.uint16]]:
    """In memory: the file that holds them goes with the study's temporary folder."""
    if predicted.probabilities is None:
        return {}
    return {name: to_volume(np.asarray(of), numbers, grid) for name, of in zip(classes, predicted.probabilities)}
