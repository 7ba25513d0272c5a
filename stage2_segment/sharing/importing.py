"""zeus import: a shared file as run folders."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from zeus_union.cache.atomic import make_folder, sync_folder
from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.checkpoint import load_config, weights_path
from zeus_union.stage2_segment.chosen_postprocessing import WEIGHTS
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.ensemble import check_members
from zeus_union.stage2_segment.sharing.archive import stem_of, unpack_runs
from zeus_union.stage2_segment.trained import load_trained


def import_runs(archive: Path, out: Path | None = None) -> tuple[Path, ...]:
    """Writes the runs of a .zeus.zip as folders; they are there whole, or not at all.

    Args:
        out: of one run its folder, of several the folder that gets one for each (fold0, fold1, ... where they differ in
            the fold, else run0, ...); None: runs/NAME.

    Raises:
        UserError: as `unpack_runs`; runs that do not load or cannot predict together; `out` exists.
    """
    out = out or Path("runs") / stem_of(archive)
    if os.path.lexists(out):
        raise UserError(f"{out} exists; give another --out, or remove it")
    made = [parent for parent in out.parents if not parent.exists()]
    make_folder(out.parent)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        runs = unpack_runs(archive, temporary)
        configs = [load_config(run) for run in runs]
        check_members(runs, configs)
        for run in runs:
            for which in WEIGHTS:
                if which == "last" or weights_path(run, which).is_file():
                    load_trained(run, which, "cpu")
        names = _names(configs)
        for run, name in zip(runs, names):
            for file in [run] if name else list(run.iterdir()):
                os.rename(file, temporary / (name or file.name))
        shutil.rmtree(temporary / "runs")
        for folder, _, _ in os.walk(temporary, topdown=False):
            sync_folder(Path(folder))
        os.rename(temporary, out)
        sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:  # made for nothing
            parent.rmdir()
        raise
    return tuple(out / name if name else out for name in names)


def _names(configs: Sequence[RunConfig]) -> list[str]:
    """What the runs' folders are called; '' of a single one, whose folder is the whole."""
    if len(configs) == 1:
        return [""]
    folds = [config.split.fold for config in configs]
    if None not in folds and len(set(folds)) == len(folds):
        return [f"fold{fold}" for fold in folds]
    return [f"run{number}" for number in range(len(configs))]
