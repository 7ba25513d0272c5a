"""Readers: every data set in, the same `Study` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import choose
from zeus_union.stage1_instruct.public_data.sources import how_to_get
from zeus_union.stage1_instruct.studies.data_root import find_root
from zeus_union.stage1_instruct.studies.dataset_json import INSIDE, has_dataset_json
from zeus_union.stage1_instruct.studies.labels import LABELS
from zeus_union.stage1_instruct.studies.modality_terms import parse_terms
from zeus_union.stage1_instruct.studies.msd import NAMES, PAPER_TASKS, open_msd
from zeus_union.stage1_instruct.studies.nnunet import open_nnunet
from zeus_union.stage1_instruct.studies.splits import find_splits, read_splits
from zeus_union.stage1_instruct.studies.study import Dataset, Study

__all__ = ["DATASETS", "Dataset", "Study", "open_dataset"]

DATASETS = ("demo", "chaos", *NAMES, "nnunet")


def default_root(name: str) -> Path:
    """The folder of a data set where none is given."""
    return Path("data") / name


def is_missing(name: str, root: Path | None) -> bool:
    """Whether the folder of a data set is not there, or empty; the demo's is written where it is not."""
    folder = default_root(name) if root is None else root
    return name != "demo" and not (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))


def _require_data(name: str, root: Path | None) -> None:
    """Raises a UserError that names the command which gets a public data set, where its folder is not there or empty."""
    command = how_to_get(name, root)
    folder = default_root(name) if root is None else root
    if command is None or not is_missing(name, root):
        return
    state = "is empty" if folder.exists() else "does not exist"
    raise UserError(f"the data root {folder} {state}; {command} gets the data, or give its folder with --data-root")


def _data_root(name: str, root: Path) -> Path:
    """The data set's folder, where `root` is one above it or inside it; the demo's is written where it is said."""
    if name == "demo":
        return root
    if name == "chaos":
        from zeus_union.stage1_instruct.studies.chaos import holds_subjects

        return find_root(root, holds_subjects)
    return find_root(root, has_dataset_json, INSIDE, PAPER_TASKS[name][0] if name in PAPER_TASKS else None)


def open_dataset(
    name: str,
    root: Path | None = None,
    labels: str = "default",
    modalities: Sequence[str] | None = None,
    *,
    terms: Sequence[str] = (),
    instance: str | None = None,
    splits: Path | None = None,
    trust_voxels: bool = False,
) -> Dataset:
    """A data set by name; no voxel is read before `Dataset.load`.

    Args:
        name: one of `DATASETS`; 'demo' writes its phantoms into `root` if they are not there.
        root: its folder; data/NAME if not given. A folder above the only data set in it, and imagesTr and the like inside
            one, stand for it, which is said.
        labels: 'binary' (all classes merged), 'native' (the data set's own), 'regions' (nnU-Net's regions as classes
            that share no voxel) or 'default' (binary for msd-brain and msd-prostate, as the paper; else native).
        modalities: only these; the others are neither read nor checked.
        terms: 'NAME=TERM', what instructions call a modality; the reader's own term if not given.
        instance: what instructions ask to segment; the classes if not given.
        splits: nnU-Net's splits_final.json; where there is none, of an nnunet data set the one in its folder or in
            nnUNet_preprocessed. Without any the cache draws folds.
        trust_voxels: lay files of one shape voxel on voxel where their headers differ (NIfTI and the like).

    Raises:
        UserError: an unknown name, a wrong or empty root, an unknown modality, splits that do not fit.
    """
    choose([name], DATASETS, "data set")
    choose([labels], LABELS, "way of labelling")
    _require_data(name, root)
    root = _data_root(name, default_root(name) if root is None else root)
    if trust_voxels and name in ("chaos", "demo"):
        raise UserError(f"--trust-voxels is for files with a header of their own, {name} is DICOM; leave it out")
    if name in NAMES:
        dataset = open_msd(name, root, labels, modalities, trust_voxels)
    elif name == "nnunet":
        dataset = open_nnunet(root, labels, modalities, trust_voxels)
        splits = splits or find_splits(root)
    elif name == "chaos":
        from zeus_union.stage1_instruct.studies.chaos import open_chaos

        dataset = open_chaos(root, labels, modalities)
    else:
        from zeus_union.stage1_instruct.phantom.open import open_demo

        dataset = open_demo(root, labels, modalities)
    card = dataset.card
    if not card.subjects:
        raise UserError(f"{root} contains no study in the layout {name}")
    if instance is not None and not instance.strip():
        raise UserError("--instance is empty; say what to segment, or leave it out")
    card = replace(
        card,
        terms={**card.terms, **parse_terms(terms, card.modalities)},
        instance=instance.strip() if instance else card.instance,
    )
    cases = dict.fromkeys(card.subjects) if dataset.labelled is None else dataset.labelled
    folds = read_splits(splits, {case or subject: subject for subject, case in cases.items()}) if splits else None
    return replace(dataset, card=card, folds=folds)
