"""card.json and MODEL_CARD.md: what a shared run is, for whoever gets it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from typing import Any

from zeus_union.cache.terminal import counted
from zeus_union.stage2_segment.carried import PROFILE, TO_GIVE
from zeus_union.stage2_segment.checkpoint import weights_name
from zeus_union.stage2_segment.chosen_postprocessing import WEIGHTS
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.measured import MEASURED

NO_DEVICE = "Research code, not a medical device: no mask of it may decide about a patient."
NO_LICENCE = "none was given: ask whoever shared it before you use it"
# Lines of a profile that say which frozen models there are, and not how fast they run.
_MODELS = (
    "encoder",
    "encoder_weights",
    "instructor",
    "vision",
    "vision_weights",
    "connector",
    "blip2",
    "model",
    "lora",
)
_MODELS_OF_TEXT = ("llm", "text_kind", "text_encoder", "text_tokenizer")


def card_of(members: Sequence[tuple[RunConfig, Mapping[str, Any]]], licence: str | None, day: date) -> dict[str, Any]:
    """card.json of shared runs.

    Args:
        members: of each run its shared description and its files, see `export`.
    """
    first = members[0][0].inputs
    trained_on = {subject for config, _ in members for subject in config.split.train}
    return {
        "zeus": version("zeus-union"),
        "date": day.isoformat(),
        "dataset": first.card.name,
        "modalities": {name: first.card.terms.get(name, name) for name in first.modalities},
        "classes": list(first.classes),
        "training_subjects": len(trained_on),
        "licence": licence,
        "medical_device": NO_DEVICE,
        "members": [_member(config, files) for config, files in members],
    }


def _member(config: RunConfig, files: Mapping[str, Any]) -> dict[str, Any]:
    architecture, recipe = config.architecture, config.recipe
    profile = json.loads(files[PROFILE]) if PROFILE in files else {}
    return {
        "model": architecture.model,
        "fusion": architecture.fusion,
        "text": config.inputs.text,
        "image_encoder": config.inputs.encoder,
        "fold": config.split.fold,
        "seed": config.seed,
        "training_subjects": len(config.split.train),
        "held_out_subjects": len(config.split.test),
        "validation_subjects": len(config.split.validation),
        "recipe": {"name": recipe.name, "epochs": recipe.epochs, "batch_size": recipe.batch_size},
        "weights": [which for which in WEIGHTS if weights_name(which) in files],
        "frozen_models": {
            part: profile[part] for part in (*_MODELS, *_MODELS_OF_TEXT) if profile.get(part) not in (None, "none")
        },
        "to_give": profile.get(TO_GIVE, {}),
        "measured": json.loads(files[MEASURED]) if MEASURED in files else None,
    }


def markdown_of(card: Mapping[str, Any], name: str) -> str:
    """MODEL_CARD.md.

    Args:
        name: of the file.
    """
    members = card["members"]
    several = f"An ensemble of {len(members)} runs" if len(members) > 1 else "One run"
    modalities = ", ".join(
        modality if modality == term else f"{modality} ({term})" for modality, term in card["modalities"].items()
    )
    lines = [
        f"# {name}",
        "",
        f"**{NO_DEVICE}**",
        "",
        f"{several} of Zeus {card['zeus']}, exported on {card['date']}.",
        "",
        f"- Data: {card['dataset']}, {card['training_subjects']} training subjects",
        f"- Modalities: {modalities}",
        f"- Classes: {', '.join(f'{label} {name}' for label, name in enumerate(card['classes'], 1))}",
        f"- Licence of these weights: {card['licence'] or NO_LICENCE}; those of the frozen models they stand on are their own",
        "",
        "## Use",
        "",
        "    pip install zeus-union",
        f"    zeus segment STUDY --run {name} --out DIR{_to_give(members)}",
        f"    zeus import {name}",
        "",
        "A study is a folder of DICOM, a zip of it, or NIfTI files. Grey values, slices and instructions are made as they "
        "were for the training subjects; pictures of another kind (another sequence, organ or scanner) were never seen.",
        "",
        "## Runs",
        "",
    ]
    for number, member in enumerate(members):
        lines += _lines_of(number, member)
    lines += [
        "## Whose data",
        "",
        "No picture, name or path of a training subject is in this file. Names and pictures are there as salted digests, so "
        "that a training subject is recognised and not measured as a new one. Whoever has the file and guesses a name, or "
        "has a picture, can find out whether it was trained on; nothing else follows from them.",
        "",
    ]
    return "\n".join(lines)


def _to_give(members: Sequence[Mapping[str, Any]]) -> str:
    parts = {part: name for member in members for part, name in member["to_give"].items()}
    return "".join(f" --set {part}={(name or part).upper()}" for part, name in parts.items())


def _lines_of(number: int, member: Mapping[str, Any]) -> list[str]:
    fold = "named subjects held out" if member["fold"] is None else f"fold {member['fold']} held out"
    recipe = member["recipe"]
    models = ", ".join(f"{part} {value}" for part, value in member["frozen_models"].items())
    lines = [
        f"### Run {number}",
        "",
        f"- {member['model']}, {member['fusion']} fusion, text: {member['text']}; seed {member['seed']}",
        f"- {fold}: trained on {counted(member['training_subjects'], 'subject')}, validated on {member['validation_subjects']}, "
        f"tested on {member['held_out_subjects']}; recipe {recipe['name']}, {counted(recipe['epochs'], 'epoch')}",
        f"- Frozen models: {models or 'none are named; give the --models that made its cache'}",
        "",
    ]
    measured = member["measured"]
    if measured is None or not measured["dsc"]:
        return [*lines, "Not measured on its held-out subjects before it was exported.", ""]
    subjects = sorted({subject for scores in measured["dsc"].values() for subject in scores}, key=int)
    lines += [
        f"DSC of its held-out subjects, which are numbered anew here ({measured['weights']} weights):",
        "",
        f"| class | {' | '.join(subjects)} | mean |",
        f"|---|{'---|' * (len(subjects) + 1)}",
    ]
    for name, scores in measured["dsc"].items():
        cells = [f"{scores[subject]:.3f}" if subject in scores else "-" for subject in subjects]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(scores.values()) / len(scores):.3f} |")
    if measured["of_modalities"]:
        lines += ["", "Mean DSC from some of the modalities:", ""]
        lines += [f"- {names}: {value:.3f}" for names, value in measured["of_modalities"].items()]
    return [*lines, ""]
