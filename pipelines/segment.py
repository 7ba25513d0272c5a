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
from zeus_union.cache.fold_layers import base_of
from zeus_union.cache.leaks import leak_of
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import say
from zeus_union.pipelines.study_files import find_modalities
from zeus_union.stage1_instruct.building.loop import LAYERS, BuildOptions, build_cache
from zeus_union.stage1_instruct.models.assembly import best_device, load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.studies.file_formats import NIFTI
from zeus_union.stage1_instruct.studies.intensity import windows_in
from zeus_union.stage1_instruct.studies.nifti import onto_grid, read_volume
from zeus_union.stage1_instruct.studies.study import Dataset, Study
from zeus_union.stage1_instruct.texts.import_export import IMPORTED
from zeus_union.stage2_segment.carried import PROJECTION
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.compatibility import check_instructions
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.predict import predict_run
from zeus_union.stage2_segment.trained import open_cache


def segment_study(
    study: Path,
    run: Path,
    out: Path,
    *,
    profile: str = "lite",
    overrides: Mapping[str, str] | None = None,
    cache: Path | None = None,
    modalities: Mapping[str, Path] | None = None,
    slice_step: int = 1,
    send_images_to: str | None = None,
    device: str | None = None,
) -> Path:
    """Writes the run's mask of a study that is in no cache, in the study's own grid; returns its path.

    Slices and grey values are made as those of the run's cache were.

    Args:
        study: folder with one file a modality (NIfTI, .mha, .mhd, .nrrd), see `study_files`.
        out: the mask, .nii.gz.
        profile, overrides: the frozen models, the same that made the run's cache; the projection is the one that the run
            carries, unless they name another.
        cache: the run's, where it is no longer where it was; it says what the classes and modalities are called.
        modalities: modality -> file, where names do not say it; a name without a folder is one in `study`.
        slice_step: every n-th slice; the others stay 0.
        send_images_to: as for `load_models`.

    Raises:
        UserError: no file of any of the run's modalities; files on different grids; other models than the run's.
    """
    config = load_config(run)
    if not out.name.endswith(NIFTI):
        raise UserError(f"--out {out}: the mask is NIfTI, give a name that ends in .nii.gz")
    with open_cache(run, cache) as known:
        files = find_modalities(
            study, config.inputs.modalities, config.inputs.channels, known=known.modalities, chosen=modalities
        )
        say("; ".join(f"{name} from {path.name}" for name, path in files.items()))
        view = config.inputs.views[0] if len(config.inputs.views) == 1 else None
        dataset = _dataset(study, files, known, view)
        windows = windows_in(config.inputs.windows)
        chosen = load_profile(profile, overrides)
        if chosen.projection == "auto" and (run / PROJECTION).is_file():
            chosen = replace(chosen, projection=str(run / PROJECTION))
        models = load_models(chosen, device or best_device(), send_images_to=send_images_to)
        for name in config.inputs.texts_read:
            recipe = config.inputs.instruction_recipes[name]
            _check_has_instructor(name, recipe)
            # The question is asked as the run's was: its terms and instance come from the card.
            question: dict[str, Any] = {part: recipe[part] for part in ("terms", "instance") if part in recipe}
            check_instructions(
                recipe,
                {**question, **models.instruction_recipe()},
                "these --models and --set",
                "give the --models and --set that build-cache was given",
            )
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "study.h5"
            wanted = LAYERS if config.inputs.texts_read else LAYERS[:2] if config.is_zeus else LAYERS[:1]
            options = BuildOptions(
                temporary,
                wanted,
                slice_step=slice_step,
                pack=True,
                view=view,
                windows={name: windows[name] for name in files},
                **_variant(config),
            )
            build_cache(dataset, models, options)
            with Cache(temporary) as built:
                (mask,) = predict_run(run, built, Path(folder), modalities=tuple(files), device=device)
                write_atomically(out, mask.read_bytes())
    missing = [name for name in config.inputs.modalities if name not in files]
    if missing:
        say(f"{study} has no {', '.join(missing)}; the mask comes from {', '.join(files)} alone")
    return out


def _dataset(study: Path, files: Mapping[str, Path], known: Cache, view: str | None) -> Dataset:
    """The study as a data set of one, described as the run's cache is.

    Args:
        view: of all the run's studies, if they have one.
    """
    subject = re.sub(r"[^A-Za-z0-9._-]+", "-", study.resolve().name).strip("-.") or "study"

    def load(_: str) -> Study:
        (first, reference_path), *others = files.items()
        volume, reference = read_volume(reference_path)
        images = {first: volume}
        for name, path in others:
            volume, grid = read_volume(path)
            images[name] = onto_grid(volume, grid, path, reference, reference_path)
        if view not in (None, reference.acquired_view):
            say(f"{study}: cut into {view} slices, as all studies of the run are")
        return Study(subject, reference, images, None, sources={path.name: path for path in files.values()})

    terms = {name: known.card.terms[name] for name in files}
    channels = {name: known.card.channels[name] for name in files if name in known.card.channels}
    card = replace(
        known.card, modalities=tuple(files), terms=terms, channels=channels, subjects=(subject,), slice_step=1
    )
    return Dataset(card, load)


def _check_has_instructor(variant: str, recipe: Mapping[str, Any]) -> None:
    """Raises UserError: nobody can write such instructions for a new study."""
    if leak_of(recipe) is not None:
        raise UserError(
            f"the run reads instructions made from the true labels ({variant}), which a new study does not have; it is an "
            "upper bound, train one on other instructions to segment with"
        )
    if recipe.get("instructor") == IMPORTED:
        raise UserError(
            f"the run reads instructions that were imported ({variant}), which no model here can write for a new study: "
            "build a cache of it (zeus-instruct build-cache), import its texts (import-texts), then zeus-segment predict"
        )


def _variant(config: RunConfig) -> dict[str, Any]:
    """How `BuildOptions` names the layers that the run reads."""
    if not config.inputs.texts_read:
        return {}
    variant = base_of(config.inputs.texts_read[0])
    if config.architecture.instructions == "class":
        return {"variant": variant.rpartition(".")[0], "per_class": True}
    return {"variant": variant}
