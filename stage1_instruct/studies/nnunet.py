"""nnU-Net v2's raw layout, so that whoever has nnU-Net data can use it unchanged.

imagesTr/CASE_0000.nii.gz (one file a channel), labelsTr/CASE.nii.gz, dataset.json; imagesTs where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import DatasetCard
from zeus_union.cache.terminal import choose
from zeus_union.stage1_instruct.studies.dataset_json import channel_numbers, read_dataset_json
from zeus_union.stage1_instruct.studies.labels import LabelMapping, in_prose
from zeus_union.stage1_instruct.studies.nifti import check_same_grid, read_labels, read_volume
from zeus_union.stage1_instruct.studies.study import Dataset, Study

ENDINGS = (".nii.gz", ".nii")


def open_nnunet(root: Path, labels: str, modalities: Sequence[str] | None) -> Dataset:
    """A data set in nnU-Net v2's raw layout; its own classes unless `labels` is 'binary'.

    Raises:
        UserError: wrong or empty root, a file ending or labels that are not supported, a modality that is not there.
    """
    values = read_dataset_json(root, {"channel_names": dict, "labels": dict, "file_ending": str})
    ending = values["file_ending"]
    if ending not in ENDINGS:
        raise UserError(f"{root / 'dataset.json'}: file_ending {ending} cannot be read; there are {', '.join(ENDINGS)}")
    names = _label_names(root, values["labels"])
    foreground = tuple(name for value, name in sorted(names.items()) if value != 0)
    merged = in_prose(foreground)
    mapping = LabelMapping.binary(names, merged) if labels == "binary" else LabelMapping.native(names)
    channels = channel_numbers(root, "channel_names", values["channel_names"])
    wanted = choose(modalities, tuple(channels), "modality")
    folders = _cases(root, ending)
    if not folders:
        raise UserError(f"{root} holds no imagesTr/CASE_0000{ending}; is it in nnU-Net's raw layout?")

    def load(subject: str) -> Study:
        folder = folders[subject]
        paths = {name: folder / f"{subject}_{channels[name]:04d}{ending}" for name in wanted}
        images = {}
        grid, first = None, None
        for name, path in paths.items():
            images[name], channel_grid = read_volume(path)
            if grid is None or first is None:
                grid, first = channel_grid, path
            check_same_grid(channel_grid, path, grid, first)
        assert grid is not None and first is not None
        label = root / folder.name.replace("images", "labels") / f"{subject}{ending}"
        if folder.name == "imagesTr" and not label.is_file():
            raise UserError(f"{label} is missing; every training case needs its labels, or move the case to imagesTs")
        mask = mapping.apply(read_labels(label, grid, sorted(names), first)) if label.is_file() else None
        read = [*paths.values(), label] if mask is not None else list(paths.values())
        return Study(subject, grid, images, mask, sources={path.relative_to(root).as_posix(): path for path in read})

    card = DatasetCard(
        name="nnunet",
        modalities=wanted,
        terms={name: "CT" if name.upper() == "CT" else f"MRI-{name}" for name in wanted},
        classes=mapping.classes,
        instance=in_prose(mapping.classes),
        subjects=tuple(sorted(folders)),
        channels={name: channels[name] for name in wanted},
    )
    return Dataset(card, load, facts=mapping.facts())


def _label_names(root: Path, labels: dict[str, object]) -> dict[int, str]:
    """value -> name.

    Raises:
        UserError: regions (lists of values), an ignore label, or two names for one value.
    """
    names: dict[int, str] = {}
    for name, value in labels.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 255:
            raise UserError(
                f"{root / 'dataset.json'}: label {name} = {value}; expected one whole number from 0 to 254 "
                "(region-based labels are not supported, give plain ones)"
            )
        if name == "ignore":
            raise UserError(
                f"{root / 'dataset.json'}: the ignore label {value} is not supported; it would be learnt as a class, "
                "label those voxels and remove it"
            )
        if value in names:
            raise UserError(f"{root / 'dataset.json'}: labels {names[value]} and {name} are both {value}; rename one")
        names[value] = name
    if 0 not in names or len(names) < 2:
        raise UserError(f"{root / 'dataset.json'}: labels need a background of 0 and at least one class")
    return names


def _cases(root: Path, ending: str) -> dict[str, Path]:
    """subject -> the images folder it lies in; a training case wins over a test case of the same name."""
    cases: dict[str, Path] = {}
    for folder in (root / "imagesTs", root / "imagesTr"):
        for path in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
            if not path.name.startswith("."):  # macOS leaves ._CASE_0000.nii.gz beside the file
                cases[path.name.removesuffix(ending)[:-5]] = folder
    return cases
