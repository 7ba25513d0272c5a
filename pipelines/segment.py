"""zeus segment: a new study through both stages."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.building.loop import LAYERS, BuildOptions, build_cache
from zeus_union.stage1_instruct.models.assembly import best_device, load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.studies.nifti import check_same_grid, read_volume
from zeus_union.stage1_instruct.studies.study import Dataset, Study
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.compatibility import check_instructions
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.predict import open_cache, predict_run

ENDINGS = (".nii.gz", ".nii")


def segment_study(
    study: Path,
    run: Path,
    out: Path,
    *,
    profile: str = "lite",
    overrides: Mapping[str, str] | None = None,
    cache: Path | None = None,
    slice_step: int = 1,
    device: str | None = None,
) -> Path:
    """Writes the run's mask of a study that is in no cache, in the study's own grid; returns its path.

    Args:
        study: folder with one NIfTI file a modality, see `find_modalities`.
        out: the mask, .nii.gz.
        profile, overrides: the frozen models, the same that made the run's cache.
        cache: the run's, where it is no longer where it was; it says what the classes and modalities are called.
        slice_step: every n-th slice; the others stay 0.

    Raises:
        UserError: no file of any of the run's modalities; files on different grids; other models than the run's.
    """
    config = load_config(run)
    if not out.name.endswith(ENDINGS):
        raise UserError(f"--out {out}: the mask is NIfTI, give a name that ends in .nii.gz")
    with open_cache(run, cache) as known:
        files = find_modalities(study, known.modalities, config.inputs.modalities)
        dataset = _dataset(study, files, known)
        models = load_models(load_profile(profile, overrides), device or best_device())
        for name in config.inputs.texts_read:
            recipe = config.inputs.instruction_recipes[name]
            # The question is asked as the run's was: its terms and instance come from the card.
            asked = {part: recipe[part] for part in ("terms", "instance") if part in recipe}
            check_instructions(recipe, {**asked, **models.instruction_recipe()}, "--models and --set")
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "study.h5"
            wanted = LAYERS if config.inputs.texts_read else LAYERS[:2] if config.is_zeus else LAYERS[:1]
            options = BuildOptions(temporary, wanted, slice_step=slice_step, pack=True, **_variant(config))
            build_cache(dataset, models, options)
            with Cache(temporary) as built:
                (mask,) = predict_run(run, built, Path(folder), modalities=tuple(files), device=device)
                write_atomically(out, mask.read_bytes())
    missing = [name for name in config.inputs.modalities if name not in files]
    if missing:
        say(f"{study} has no {', '.join(missing)}; the mask comes from {', '.join(files)} alone")
    return out


def find_modalities(study: Path, known: tuple[str, ...], wanted: tuple[str, ...]) -> dict[str, Path]:
    """Modality -> file, of the run's modalities that a folder has.

    A file belongs to the modality it is called after (FLAIR.nii.gz, patient_FLAIR.nii.gz, in any case), or to the one whose
    number it ends in, as nnU-Net counts them (patient_0000.nii.gz).

    Args:
        known: the cache's modalities, in order.
        wanted: the run's.

    Raises:
        UserError: no folder, none of them in it, or two files for one.
    """
    if not study.is_dir():
        raise UserError(f"{study} is no folder; give one with a NIfTI file for each of {', '.join(wanted)}")
    modalities = {}
    for name in wanted:
        pattern = re.compile(rf"(?:.*_)?{re.escape(name)}|.*_{known.index(name):04d}", re.IGNORECASE)
        files = [path for path in sorted(study.iterdir()) if path.name.endswith(ENDINGS)]
        matching = [path for path in files if pattern.fullmatch(path.name.removesuffix(".gz").removesuffix(".nii"))]
        if len(matching) > 1:
            raise UserError(
                f"{study} has several files of {name}: {', '.join(path.name for path in matching)}; keep one"
            )
        if matching:
            modalities[name] = matching[0]
    if not modalities:
        raise UserError(f"{study} has no NIfTI file of {', '.join(wanted)}; call them {wanted[0]}.nii.gz and so on")
    return modalities


def _dataset(study: Path, files: Mapping[str, Path], known: Cache) -> Dataset:
    """The study as a data set of one, described as the run's cache is."""
    subject = re.sub(r"[^A-Za-z0-9._-]+", "-", study.resolve().name).strip("-.") or "study"

    def load(_: str) -> Study:
        images, first = {}, None
        for name, path in files.items():
            images[name], grid = read_volume(path)
            first = first or (grid, path)
            check_same_grid(grid, path, *first)
        assert first is not None
        return Study(subject, first[0], images, None, sources={path.name: path for path in files.values()})

    terms = {name: known.card.terms[name] for name in files}
    card = replace(known.card, modalities=tuple(files), terms=terms, subjects=(subject,), slice_step=1)
    return Dataset(card, load)


def _variant(config: RunConfig) -> dict[str, Any]:
    """How `BuildOptions` names the layers that the run reads."""
    if not config.inputs.texts_read:
        return {}
    if config.architecture.instructions == "class":
        return {"variant": config.inputs.texts_read[0].rpartition(".")[0], "per_class": True}
    return {"variant": config.inputs.texts_read[0]}
