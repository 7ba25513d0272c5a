"""zeus segment: a new study through both stages."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_of
from zeus_union.cache.leaks import leak_of
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import say
from zeus_union.pipelines.intake.file_names import find_modalities
from zeus_union.stage1_instruct.building.loop import LAYERS, BuildOptions, build_cache
from zeus_union.stage1_instruct.models.assembly import Models, best_device, load_models
from zeus_union.stage1_instruct.profiles.profile import Profile, load_profile
from zeus_union.stage1_instruct.studies.file_formats import NIFTI, stem_of
from zeus_union.stage1_instruct.studies.intensity import windows_in
from zeus_union.stage1_instruct.studies.nifti import onto_grid, read_volume
from zeus_union.stage1_instruct.studies.study import Dataset, Study
from zeus_union.stage1_instruct.texts.import_export import IMPORTED
from zeus_union.stage2_segment.carried import PROJECTION
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.compatibility import check_instructions
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.ensemble import as_runs, check_members
from zeus_union.stage2_segment.predict import predict_run
from zeus_union.stage2_segment.trained import open_cache


def segment_study(
    study: Path,
    run: Path | Sequence[Path],
    out: Path,
    *,
    profile: str = "lite",
    overrides: Mapping[str, str] | None = None,
    cache: Path | None = None,
    modalities: Mapping[str, Path] | None = None,
    slice_step: int = 1,
    send_images_to: str | None = None,
    device: str | None = None,
    postprocess: bool = True,
    probabilities: bool = False,
) -> Path:
    """Writes the mask of a study that is in no cache, in the study's own grid; returns its path.

    Slices and grey values are made as those of the run's cache were. What `predict_run` writes beside a mask goes beside
    this one, under its name: NAME.disagreement.nii.gz and NAME.ensemble.json of several runs, NAME.CLASS.prob.nii.gz.

    Args:
        study: folder with one file a modality (NIfTI, .mha, .mhd, .nrrd), see `intake.file_names`.
        run: a run's folder, or several: the mean of their probabilities.
        out: the mask, .nii.gz or .nii.
        profile, overrides: the frozen models, the same that made the run's cache; the projection is the one that the run
            carries, unless they name another.
        cache: the first run's, where it is no longer where it was; it says what the classes and modalities are called.
        modalities: modality -> file, where names do not say it; a name without a folder is one in `study`.
        slice_step: every n-th slice; the others stay 0.
        send_images_to: as for `load_models`.
        postprocess: as for `predict_run`.
        probabilities: also a map of each class.

    Raises:
        UserError: no file of any of the run's modalities; files on different grids; other models than the run's; runs that
            cannot predict together.
    """
    runs = as_runs(run)
    configs = [load_config(folder) for folder in runs]
    check_members(runs, configs)
    if not out.name.endswith(NIFTI):
        raise UserError(f"--out {out}: the mask is NIfTI, give a name that ends in .nii.gz")
    inputs = configs[0].inputs
    with open_cache(runs[0], cache) as known, tempfile.TemporaryDirectory() as folder:
        files = find_modalities(study, inputs.modalities, inputs.channels, known=known.modalities, chosen=modalities)
        say("; ".join(f"{name} from {path.name}" for name, path in files.items()))
        views = {view for config in configs for view in config.inputs.views}
        view = views.pop() if len(views) == 1 else None
        windows = windows_in(inputs.windows)
        pictures = BuildOptions(
            Path(folder) / "study.h5",
            LAYERS[:2] if any(config.is_zeus for config in configs) else LAYERS[:1],
            slice_step=slice_step,
            pack=True,
            view=view,
            windows={name: windows[name] for name in files},
        )
        where = device or best_device()
        builds = _builds(runs, configs, pictures, load_profile(profile, overrides), where, send_images_to)
        dataset = _dataset(study, files, known, view)
        for models, options in builds:
            build_cache(dataset, models, options)
        with Cache(pictures.out) as built:
            how: dict[str, Any] = {"device": device, "probabilities": probabilities, "postprocess": postprocess}
            masks = Path(folder) / "masks"
            masks.mkdir()
            (mask,) = predict_run(runs, built, masks, modalities=tuple(files), **how)
        _keep(mask, out)
    missing = [name for name in inputs.modalities if name not in files]
    if missing:
        say(f"{study} has no {', '.join(missing)}; the mask comes from {', '.join(files)} alone")
    return out


def _builds(
    runs: Sequence[Path],
    configs: Sequence[RunConfig],
    pictures: BuildOptions,
    profile: Profile,
    device: str,
    send_images_to: str | None,
) -> list[tuple[Models, BuildOptions]]:
    """How stage 1 makes all that the runs read of a study: once for every projection and way of asking.

    Layers of one name that are made through different projections get a number; a run knows its own by the recipe.

    Raises:
        UserError: these models cannot write a run's instructions.
    """
    models_by: dict[str, Models] = {}  # digest of the projection that runs carry -> models
    builds: dict[tuple[str, bool, str], tuple[Models, BuildOptions]] = {}
    for run, config in zip(runs, configs):
        carried = profile.projection == "auto" and (run / PROJECTION).is_file()
        digest = sha256_file(run / PROJECTION) if carried else ""
        if digest not in models_by:
            chosen = replace(profile, projection=str(run / PROJECTION)) if carried else profile
            models_by[digest] = load_models(chosen, device, send_images_to=send_images_to)
        models, texts = models_by[digest], _variant(config)
        _check_instructions(run, config, models)
        key = (texts.get("variant", ""), bool(texts.get("per_class")), digest)
        if not texts or key in builds:
            continue
        same_name = sum(variant == key[0] for variant, _, _ in builds)
        if same_name:
            texts["variant"] += f"-{same_name + 1}"
        builds[key] = models, replace(pictures, layers=LAYERS, **texts)
    return list(builds.values()) or [(next(iter(models_by.values())), pictures)]


def _check_instructions(run: Path, config: RunConfig, models: Models) -> None:
    """Raises UserError: nobody can write the instructions that the run reads, or these models would write others."""
    for name in config.inputs.texts_read:
        recipe = config.inputs.instruction_recipes[name]
        _check_has_instructor(name, recipe)
        # The question is asked as the run's was: its terms and instance come from the card.
        question: dict[str, Any] = {part: recipe[part] for part in ("terms", "instance") if part in recipe}
        check_instructions(
            recipe,
            {**question, **models.instruction_recipe()},
            "these --models and --set",
            f"give the --models and --set that build-cache was given for {run}",
        )


def _keep(mask: Path, out: Path) -> None:
    """Puts a mask under the name that the user gave, and what lies beside it under names that begin with it."""
    subject = stem_of(mask)
    for file in sorted(mask.parent.iterdir()):
        if file != mask:
            write_atomically(
                out.with_name(f"{stem_of(out)}.{file.name.removeprefix(f'{subject}.')}"), file.read_bytes()
            )
    content = mask.read_bytes()
    write_atomically(out, content if out.name.endswith(".gz") else gzip.decompress(content))


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
