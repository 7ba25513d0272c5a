"""Readers: every data set in, the same `Study` out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import choose
from zeus_union.stage1_instruct.studies.labels import LABELS
from zeus_union.stage1_instruct.studies.msd import TASKS, open_msd
from zeus_union.stage1_instruct.studies.nnunet import open_nnunet
from zeus_union.stage1_instruct.studies.study import Dataset, Study

__all__ = ["DATASETS", "Dataset", "Study", "open_dataset"]

DATASETS = ("demo", "chaos", *TASKS, "nnunet")


def open_dataset(
    name: str, root: Path | None = None, labels: str = "default", modalities: Sequence[str] | None = None
) -> Dataset:
    """A data set by name; no voxel is read before `Dataset.load`.

    Args:
        name: one of `DATASETS`; 'demo' writes its phantoms into `root` if they are not there.
        root: its folder; data/NAME if not given.
        labels: 'binary' (all classes merged), 'native' (the data set's own) or 'default' (binary for msd-*, as the paper).
        modalities: only these; the others are neither read nor checked.

    Raises:
        UserError: an unknown name, a wrong or empty root, an unknown modality.
    """
    choose([name], DATASETS, "data set")
    choose([labels], LABELS, "way of labelling")
    root = Path("data") / name if root is None else root
    if name in TASKS:
        dataset = open_msd(name, root, labels, modalities)
    elif name == "nnunet":
        dataset = open_nnunet(root, labels, modalities)
    elif name == "chaos":
        from zeus_union.stage1_instruct.studies.chaos import open_chaos

        dataset = open_chaos(root, labels, modalities)
    else:
        from zeus_union.stage1_instruct.phantom.open import open_demo

        dataset = open_demo(root, labels, modalities)
    if not dataset.card.subjects:
        raise UserError(f"{root} holds no study that {name} can read")
    return dataset
