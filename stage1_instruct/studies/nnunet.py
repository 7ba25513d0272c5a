"""nnU-Net v2's raw layout, so that whoever has nnU-Net data can use it unchanged.

imagesTr/CASE_0000.nii.gz (one file a channel), labelsTr/CASE.nii.gz, dataset.json; imagesTs where there is one. Where
dataset.json has a `dataset`, the training cases are the files that it names. A colour picture is one file of several
channels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.terminal import choose, counted, warn
from zeus_union.stage1_instruct.studies.cases import Case, source_names, subjects_of
from zeus_union.stage1_instruct.studies.dataset_json import channel_names, channel_numbers, read_dataset_json
from zeus_union.stage1_instruct.studies.file_formats import ENDINGS, PICTURES, data_files, ending_of
from zeus_union.stage1_instruct.studies.label_table import map_labels, read_label_table
from zeus_union.stage1_instruct.studies.labels import in_prose, read_labels
from zeus_union.stage1_instruct.studies.modality_terms import terms_of
from zeus_union.stage1_instruct.studies.nifti import onto_grid, read_channels, read_volume
from zeus_union.stage1_instruct.studies.study import Dataset, Study


def open_nnunet(root: Path, labels: str, modalities: Sequence[str] | None, trust_voxels: bool = False) -> Dataset:
    """A data set in nnU-Net v2's raw layout; its own classes unless `labels` is 'binary' or 'regions'.

    Args:
        trust_voxels: see `onto_grid`.
    Raises:
        UserError: wrong or empty root, a file ending or labels that are not supported, a modality that is not there.
    """
    values = read_dataset_json(root, {"channel_names": dict, "labels": dict, "file_ending": str})
    ending = values["file_ending"]
    if ending.lower() not in ENDINGS:
        raise UserError(f"{root / 'dataset.json'}: file_ending {ending} cannot be read; there are {', '.join(ENDINGS)}")
    mapping = map_labels(root, read_label_table(root, values["labels"]), labels)
    channels = channel_numbers(root, "channel_names", values["channel_names"])
    wanted = choose(modalities, tuple(channels), "modality")
    cases = subjects_of(_training(root, values, ending, len(channels)), _scan(root, "Ts", ending, len(channels)), root)
    if not cases:
        raise UserError(f"{root} holds no imagesTr/CASE_0000{ending}; is it in nnU-Net's raw layout?")

    def load(subject: str) -> Study:
        case = cases[subject]
        if case.label is not None and not case.label.is_file():
            raise UserError(
                f"{case.label} is missing; every training case needs its labels, or move the case to imagesTs"
            )
        images, grid, paths = _read_images(case, channels, wanted, trust_voxels)
        mask = None if case.label is None else read_labels(case.label, grid, mapping, paths[0], trust_voxels)
        files = [file for path in (*paths, case.label) if path for file in data_files(path)]
        return Study(subject, grid, images, mask, sources=source_names(root, files))

    names = channel_names(values["channel_names"])
    card = DatasetCard(
        name="nnunet",
        modalities=wanted,
        terms=terms_of({name: names[channels[name]] for name in wanted}),
        classes=mapping.classes,
        instance=in_prose(mapping.classes),
        subjects=tuple(sorted(cases)),
        channels={name: channels[name] for name in wanted},
    )
    facts = {**mapping.facts(), **({"trust_voxels": True} if trust_voxels else {})}
    return Dataset(card, load, facts, labelled={name: case.name for name, case in cases.items() if case.label})


def _read_images(
    case: Case, channels: Mapping[str, int], wanted: Sequence[str], trust_voxels: bool
) -> tuple[dict[str, NDArray[np.float32]], Grid, list[Path]]:
    """The wanted channels on the grid of the first, and the files they came from."""
    if len(case.images) != len(channels):  # a file of several channels: a colour picture
        images, grid = read_channels(case.images, {name: channels[name] for name in wanted}, len(channels))
        return images, grid, list(case.images)
    paths = {name: case.images[channels[name]] for name in wanted}
    first = paths[wanted[0]]
    volume, grid = read_volume(first)
    images = {wanted[0]: volume}
    for name in wanted[1:]:
        volume, channel_grid = read_volume(paths[name])
        images[name] = onto_grid(volume, channel_grid, paths[name], grid, first, trust_voxels)
    return images, grid, list(paths.values())


def _training(root: Path, values: Mapping[str, Any], ending: str, channels: int) -> list[Case]:
    """The cases of dataset.json's `dataset`, or of imagesTr."""
    if "dataset" not in values:
        return _scan(root, "Tr", ending, channels)
    file = root / "dataset.json"
    if not isinstance(values["dataset"], dict):
        raise UserError(f"{file}: dataset is not an object; expected {{CASE: {{'images': [...], 'label': ...}}}}")
    cases = []
    for name, entry in values["dataset"].items():
        images = entry.get("images") if isinstance(entry, dict) else None
        listed = [*images, entry.get("label")] if isinstance(images, list) and images else [None]
        if not all(isinstance(path, str) for path in listed):
            raise UserError(f"{file}: case {name} of dataset needs 'images', a list of files, and 'label', a file")
        # As nnU-Net: relative to the data set's folder, or anywhere; environment variables are filled in.
        paths = [root / os.path.expandvars(str(path)) for path in listed]
        count = len(paths) - 1
        if count != channels and not (count < channels and ending.lower() in PICTURES):
            raise UserError(
                f"{file}: case {name} of dataset has {counted(count, 'image')} for {counted(channels, 'channel')}"
            )
        cases.append(Case(name, tuple(paths[:-1]), paths[-1]))
    return cases


def _scan(root: Path, part: str, ending: str, channels: int) -> list[Case]:
    """The cases of imagesTr ('Tr') or imagesTs ('Ts'), by name."""
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    folder = root / f"images{part}"
    numbers: dict[str, list[int]] = {}
    unclear = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):  # macOS leaves ._CASE_0000.nii.gz beside the file
            continue
        match = pattern.fullmatch(path.name)
        if match and int(match[2]) < channels:
            numbers.setdefault(match[1], []).append(int(match[2]))
        elif ending_of(path):
            unclear.append(path.name)
    if unclear:
        listed = ", ".join(unclear[:3]) + (" and more" if len(unclear) > 3 else "")
        warn(
            f"{folder}: left out: {counted(len(unclear), 'file')} not named CASE_0000{ending} "
            f"(or not one of {counted(channels, 'channel')}): {listed}"
        )
    cases = []
    for name, present in numbers.items():
        several = len(present) < channels and ending.lower() in PICTURES
        images = (folder / f"{name}_{number:04d}{ending}" for number in (present if several else range(channels)))
        label = root / f"labels{part}" / f"{name}{ending}"
        cases.append(Case(name, tuple(images), label if part == "Tr" or label.is_file() else None))
    return cases
