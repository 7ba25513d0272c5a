"""The Medical Segmentation Decathlon's layout: dataset.json, 4D NIfTI with the modalities on the last axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.terminal import choose
from zeus_union.stage1_instruct.studies.cases import Case, source_names, subjects_of
from zeus_union.stage1_instruct.studies.dataset_json import (
    IGNORED,
    channel_names,
    channel_numbers,
    numbered_names,
    read_dataset_json,
)
from zeus_union.stage1_instruct.studies.file_formats import data_files, stem_of
from zeus_union.stage1_instruct.studies.labels import LabelMapping, in_prose, read_labels
from zeus_union.stage1_instruct.studies.modality_terms import terms_of
from zeus_union.stage1_instruct.studies.nifti import read_channels
from zeus_union.stage1_instruct.studies.study import Dataset, Study

# The paper's two: name -> (task, what is to be segmented, modality in dataset.json -> its name in the instruction).
PAPER_TASKS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "msd-brain": (
        "Task01_BrainTumour",
        "brain tumour",
        {"FLAIR": "MRI-FLAIR", "T1w": "MRI-T1", "t1gd": "MRI-T1Gd", "T2w": "MRI-T2"},
    ),
    "msd-prostate": ("Task05_Prostate", "prostate", {"T2": "MRI-T2", "ADC": "MRI-ADC"}),
}
NAMES = (*PAPER_TASKS, "msd")


@dataclass(frozen=True)
class Task:
    """A task of the Decathlon; what the fields are is said in msd_tasks.yaml."""

    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    instance: str


@cache
def tasks() -> Mapping[str, Task]:
    """Name of a task -> what it is."""
    table = yaml.safe_load(Path(__file__).with_name("msd_tasks.yaml").read_text())
    return {
        name: Task(tuple(task["modalities"]), tuple(task["labels"]), tuple(task["classes"]), task["instance"])
        for name, task in table.items()
    }


def open_msd(
    name: str, root: Path, labels: str, modalities: Sequence[str] | None, trust_voxels: bool = False
) -> Dataset:
    """One of the ten tasks, or a data set of one's own in their layout.

    Args:
        name: 'msd' takes any and keeps its classes unless `labels` is 'binary'; 'msd-brain' (Task01) and 'msd-prostate'
            (Task05) have the paper's single class unless `labels` is 'native'.
        trust_voxels: see `onto_grid`.
    Raises:
        UserError: wrong or empty root, a modality that is not there, or another task than the name says.
    """
    values = read_dataset_json(root, {"modality": dict, "labels": dict, "training": list})
    channels = channel_numbers(root, "modality", values["modality"])
    names = numbered_names(root, "labels", values["labels"])
    ignore = next((value for value, label in names.items() if label == IGNORED), None)
    names = {value: label for value, label in names.items() if value != ignore}
    wanted = choose(modalities, tuple(channels), "modality")
    if name in PAPER_TASKS:
        task, merged, known_terms = PAPER_TASKS[name]
        _check_task(name, task, root, values, channels, names)
        mapping = LabelMapping.binary(names, merged) if labels in ("default", "binary") else LabelMapping.native(names)
        by_name = {modality.casefold(): term for modality, term in known_terms.items()}
        terms = {modality: by_name[modality.casefold()] for modality in wanted}
        instance = in_prose(mapping.classes)
    else:
        mapping, instance = _classes(names, channels, labels)
        terms = terms_of({modality: channel_names(values["modality"])[channels[modality]] for modality in wanted})
    mapping = mapping.ignoring(ignore)
    cases = subjects_of(_training(root, values), _test(root, values), root / "dataset.json")
    if not cases:
        raise UserError(f"{root / 'dataset.json'} names no training or test case; is the download complete?")

    def load(subject: str) -> Study:
        case = cases[subject]
        images, grid = read_channels(case.images, {name: channels[name] for name in wanted}, len(channels))
        mask = None if case.label is None else read_labels(case.label, grid, mapping, case.images[0], trust_voxels)
        files = [file for path in (*case.images, case.label) if path for file in data_files(path)]
        return Study(subject, grid, images, mask, sources=source_names(root, files))

    card = DatasetCard(
        name=name,
        modalities=wanted,
        terms=terms,
        classes=mapping.classes,
        instance=instance,
        subjects=tuple(sorted(cases)),
        channels={name: channels[name] for name in wanted},
    )
    facts = {**mapping.facts(), **({"trust_voxels": True} if trust_voxels else {})}
    return Dataset(
        card, load, facts=facts, labelled={subject: case.name for subject, case in cases.items() if case.label}
    )


def _foreground(names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(names[value] for value in sorted(names) if value != 0)


def _known_task(names: Mapping[int, str], channels: Mapping[str, int]) -> Task | None:
    """The task of the Decathlon that has these labels and modalities."""

    def alike(given: Sequence[str], known: Sequence[str]) -> bool:
        return [name.casefold() for name in given] == [name.casefold() for name in known]

    matching = (
        t for t in tasks().values() if alike(_foreground(names), t.labels) and alike(tuple(channels), t.modalities)
    )
    return next(matching, None)


def _classes(names: Mapping[int, str], channels: Mapping[str, int], labels: str) -> tuple[LabelMapping, str]:
    """The classes of any task, and what an instruction asks for."""
    task = _known_task(names, channels)
    if task is not None:
        values = [value for value in sorted(names) if value != 0]
        names = {0: "background", **dict(zip(values, task.classes))}
    instance = task.instance if task else in_prose(_foreground(names))
    return LabelMapping.binary(names, instance) if labels == "binary" else LabelMapping.native(names), instance


def _check_task(
    name: str, task: str, root: Path, values: Mapping[str, Any], channels: Mapping[str, int], names: Mapping[int, str]
) -> None:
    """Raises a UserError where dataset.json is not that of the task which the paper calls `name`."""
    if _known_task(names, channels) != tasks()[task]:
        what = f"{', '.join(_foreground(names)) or 'no labels'} in {', '.join(channels)}"
        raise UserError(
            f"{root / 'dataset.json'} is {values.get('name', 'a data set')!r} with {what}; {name} is {task} with "
            f"{', '.join(tasks()[task].labels)} in {', '.join(tasks()[task].modalities)}; read it with --dataset msd"
        )


def _training(root: Path, values: Mapping[str, Any]) -> list[Case]:
    cases = []
    for entry in values["training"]:
        image, label = (_inside(root, entry, key) for key in ("image", "label"))
        cases.append(Case(stem_of(image), (image,), label))
    return cases


def _test(root: Path, values: Mapping[str, Any]) -> list[Case]:
    entries = [entry if isinstance(entry, dict) else {"image": entry} for entry in values.get("test", [])]
    images = [_inside(root, entry, "image") for entry in entries]
    return [Case(stem_of(image), (image,), None) for image in images]


def _inside(root: Path, entry: Any, key: str) -> Path:
    """The file that an entry of dataset.json names."""
    name = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            f"{root / 'dataset.json'}: the case {str(entry)[:80]} has no usable {key!r}; expected the name of a file below {root}"
        )
    return root / name
