"""zeus export: runs into one file that has all that a prediction needs, and nobody's name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.carried import PROFILE, PROJECTION
from zeus_union.stage2_segment.checkpoint import CONFIG, load_config, load_weights, weights_name, weights_path
from zeus_union.stage2_segment.chosen_postprocessing import FILE as POSTPROCESSING
from zeus_union.stage2_segment.chosen_postprocessing import WEIGHTS, read_record
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.ensemble import check_members, check_other_weights
from zeus_union.stage2_segment.marks import mark_name, new_salt
from zeus_union.stage2_segment.measured import MEASURED, numbered, read_measured
from zeus_union.stage2_segment.sharing.anonymous import (
    metadata_of,
    shared_config,
    shared_profile,
    shared_projection,
    shared_value,
)
from zeus_union.stage2_segment.sharing.archive import CARD, ENDING, MODEL_CARD, write_archive
from zeus_union.stage2_segment.sharing.model_card import card_of, markdown_of


def export_runs(
    runs: Sequence[Path], out: Path, *, licence: str | None = None, salt: str | None = None, day: date | None = None
) -> dict[str, Any]:
    """Writes runs, the members of an ensemble where there are several, into one .zeus.zip; returns its card.json.

    Args:
        licence: of the weights; None: the card says that nobody gave one.
        salt: 32 hexadecimal digits, for the subjects' marks; None: random.
        day: of the export; None: today.

    Raises:
        UserError: no run there; runs that cannot predict together; weights that are missing or damaged; `out` exists or is
            not called .zeus.zip. Nothing is written then.
    """
    salt, day = salt or new_salt(), day or date.today()
    if not out.name.endswith(ENDING) or out.name == ENDING:
        raise UserError(f"{out}: a shared run is called NAME{ENDING}; give such a name, after the runs")
    if out.exists():
        raise UserError(f"{out} exists; choose another name or remove it")
    configs = [load_config(run) for run in runs]
    check_members(runs, configs)
    check_other_weights(runs, "last")
    files: dict[str, bytes | Path] = {}
    members = []
    for number, (run, config) in enumerate(zip(runs, configs)):
        shared = shared_config(config, salt)
        of_run = _files_of(run, config, shared, salt)
        files |= {f"runs/{number}/{name}": content for name, content in of_run.items()}
        members.append((shared, of_run))
    card = card_of(members, licence, day)
    files[CARD] = as_json(card)
    files[MODEL_CARD] = markdown_of(card, out.name).encode()
    write_archive(out, files)
    return card


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _files_of(run: Path, config: RunConfig, shared: RunConfig, salt: str) -> dict[str, bytes | Path]:
    """What is shared of a run: name in its folder -> content, or the file as it is."""
    files: dict[str, bytes | Path] = {CONFIG: as_json(shared.to_json())}
    for which in WEIGHTS:
        path = weights_path(run, which)
        if which == "last" or path.is_file():
            load_weights(run, which)  # refuses what is missing or damaged
            _check_plain(path)
            files[weights_name(which)] = path
    if (run / PROFILE).is_file():
        files[PROFILE] = as_json(shared_profile(_read(run / PROFILE)))
    if (run / PROJECTION).is_file():
        content = (run / PROJECTION).read_bytes()
        files[PROJECTION] = shared_projection(content, salt, str(run / PROJECTION))
    record = read_record(run, config.inputs.classes)
    if record is not None:
        files[POSTPROCESSING] = as_json(shared_value(record, salt))
    measured = read_measured(run)
    if measured is not None:
        subjects = {name for scores in measured.dsc.values() for name in scores}
        is_numbered = (run / MEASURED).is_file()
        order = {name: f"{int(name):9}" if is_numbered else mark_name(name, salt) for name in subjects}
        files[MEASURED] = as_json(numbered(measured, order).to_json())
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); copy the run again") from error


def _check_plain(path: Path) -> None:
    """Raises UserError: weights that say more than the epoch they are of, which may be anything."""
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    more = {name: text for name, text in metadata_of(length + header).items() if name != "epoch" or not text.isdigit()}
    if more:
        raise UserError(
            f"{path} says more than its epoch ({', '.join(more)}); Zeus did not write it, train the run again"
        )
