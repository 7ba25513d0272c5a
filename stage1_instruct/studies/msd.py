"""The Medical Segmentation Decathlon's layout: dataset.json, 4D NIfTI with the modalities on the last axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.terminal import choose
from zeus_union.stage1_instruct.studies.dataset_json import channel_numbers, numbered_names, read_dataset_json
from zeus_union.stage1_instruct.studies.labels import LabelMapping, in_prose
from zeus_union.stage1_instruct.studies.nifti import read_channels, read_labels
from zeus_union.stage1_instruct.studies.study import Dataset, Study

# name -> (what is to be segmented, modality in dataset.json -> its name in the instruction).
TASKS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "msd-brain": (
        "brain tumour",
        {"FLAIR": "MRI-FLAIR", "T1w": "MRI-T1", "t1gd": "MRI-T1Gd", "T2w": "MRI-T2"},
    ),
    "msd-prostate": ("prostate", {"T2": "MRI-T2", "ADC": "MRI-ADC"}),
}


def open_msd(name: str, root: Path, labels: str, modalities: Sequence[str] | None) -> Dataset:
    """MSD-Brain (Task01) or MSD-Prostate (Task05); the paper's single class unless `labels` is 'native'.

    Raises:
        UserError: wrong or empty root, or a modality that is not there.
    """
    merged, known_terms = TASKS[name]
    values = read_dataset_json(root, {"modality": dict, "labels": dict, "training": list})
    channels = channel_numbers(root, "modality", values["modality"])
    names = numbered_names(root, "labels", values["labels"])
    mapping = LabelMapping.native(names) if labels == "native" else LabelMapping.binary(names, merged)
    wanted = choose(modalities, tuple(channels), "modality")
    cases = _cases(root, values)
    if not cases:
        raise UserError(f"{root / 'dataset.json'} names no training or test case; is the download complete?")

    def load(subject: str) -> Study:
        image, label = cases[subject]
        images, grid = read_channels(image, {name: channels[name] for name in wanted}, len(channels))
        sources = {path.relative_to(root).as_posix(): path for path in (image, label) if path}
        mask = None if label is None else mapping.apply(read_labels(label, grid, sorted(names), image))
        return Study(subject, grid, images, mask, sources=sources)

    card = DatasetCard(
        name=name,
        modalities=wanted,
        terms={modality: known_terms.get(modality, f"MRI-{modality}") for modality in wanted},
        classes=mapping.classes,
        instance=in_prose(mapping.classes),
        subjects=tuple(sorted(cases)),
        channels={name: channels[name] for name in wanted},
    )
    return Dataset(card, load, facts=mapping.facts())


def _cases(root: Path, values: dict[str, Any]) -> dict[str, tuple[Path, Path | None]]:
    """subject -> (image, label or None), from the lists in dataset.json; a training case wins over a test case.

    Raises:
        UserError: an entry that names no files, or files outside the root, or two training cases of one name.
    """
    cases: dict[str, tuple[Path, Path | None]] = {}
    for entry in values["training"]:
        image, label = (_inside(root, entry, key) for key in ("image", "label"))
        if _subject(image) in cases:
            raise UserError(f"{root / 'dataset.json'} names two training cases {_subject(image)}; remove one")
        cases[_subject(image)] = (image, label)
    for entry in values.get("test", []):
        image = _inside(root, entry if isinstance(entry, dict) else {"image": entry}, "image")
        cases.setdefault(_subject(image), (image, None))
    return cases


def _inside(root: Path, entry: Any, key: str) -> Path:
    """The file that an entry of dataset.json names."""
    name = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            f"{root / 'dataset.json'}: the case {str(entry)[:80]} has no usable {key!r}; expected the name of a file below {root}"
        )
    return root / name


def _subject(image: Path) -> str:
    return image.name.removesuffix(".gz").removesuffix(".nii")
