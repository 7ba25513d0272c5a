"""A run folder: config.json, metrics.parquet, weights/, and the state that a run goes on from.

Every file is whole under its name or not there: written beside, flushed to the disk, renamed.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from zeus_union.cache.atomic import make_folder, write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.locks import NoLocksError, acquire
from zeus_union.stage2_segment.config import RunConfig

CONFIG, METRICS, STATE = "config.json", "metrics.parquet", "state.pt"
UNPACKED_FROM = "unpacked_from.txt"  # in the folder of a run that is there while a command reads its file
# A state is 12 bytes a parameter: not after every step, and where the disk is slow, for no more than a tenth of the time.
SAVE_EVERY_S, SAVING_SHARE = 20, 0.1


@contextmanager
def only_trainer(run: Path) -> Iterator[None]:
    """Keeps other processes from training the run in that folder for the time of the block, where there are locks.

    Raises:
        UserError: another process trains it.
    """
    path = run.parent / f".{run.name}.lock"
    make_folder(run.parent)
    try:
        held = acquire(path, shared=False, wait=False)
    except NoLocksError:
        yield
        return
    if held is None:
        raise UserError(f"another process is training {run}; wait for it, or choose another --out")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.close()


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row per dict, as Parquet; a column for each name that any of them has, null where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), buffer)
    write_atomically(path, buffer.getvalue())


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """As `write_table`, for a spreadsheet: numbers in all their digits, empty what is not defined."""
    names = dict.fromkeys(name for row in rows for name in row)
    cells = {name: [_defined(row.get(name)) for row in rows] for name in names}
    buffer = io.BytesIO()
    pc.write_csv(pa.table(cells), buffer, pc.WriteOptions(quoting_style="needed"))
    write_atomically(path, buffer.getvalue())


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_table` wrote; none where there is no such file."""
    return pq.read_table(path).to_pylist() if path.is_file() else []


def name_of(run: Path) -> str:
    """What messages and results call a run: its folder, or the file that it was unpacked from for a while."""
    origin = run / UNPACKED_FROM
    return origin.read_text(encoding="utf-8") if origin.is_file() else str(run)


def load_config(run: Path) -> RunConfig:
    """The description of the run in folder `run`.

    Raises:
        UserError: no run there, or one of another version.
    """
    path = run / CONFIG
    if not path.is_file():
        remedy = "zeus import makes one of it" if run.is_file() else "give the folder that zeus-segment train wrote"
        raise UserError(f"{run} is not a run folder: it has no {CONFIG}; {remedy}")
    try:
        return RunConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged or of another version of Zeus ({error}); train again into another --out"
        ) from error


def weights_name(which: str) -> str:
    """Relative to the run's folder."""
    return f"weights/{which}.safetensors"


def weights_path(run: Path, which: str) -> Path:
    return run / weights_name(which)


def save_weights(run: Path, which: str, weights: Mapping[str, Tensor], epoch: int) -> None:
    """Weights with the epoch after which they were taken; `which` is 'last' or 'best'."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(weights_path(run, which), safetensors.torch.save(tensors, {"epoch": str(epoch)}))


def load_weights(run: Path, which: str) -> dict[str, Tensor]:
    """Raises UserError: missing, damaged, or not safetensors."""
    path = weights_path(run, which)
    if not path.is_file():
        raise UserError(f"{path} does not exist: {_why_missing(run, which)}")
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is damaged ({error}); train the run again") from error


def _why_missing(run: Path, which: str) -> str:
    if not weights_path(run, "last").is_file():
        return "the run has not come to its first save; the command that trained it resumes it"
    metrics = run / METRICS
    validated = pq.read_table(metrics).to_pydict().get("validation_dsc", []) if metrics.is_file() else []
    if any(value is not None for value in validated):
        return "no validation subject has a class to be measured by, so no epoch is the best; use --weights last"
    return (
        f"the {which} weights are chosen by validation, and the run was never validated (no validation subjects, "
        "--validate-every 0, or no epoch that was due is over); use --weights last"
    )


def save_state(run: Path, state: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(run / STATE, buffer.getvalue())


def load_state(run: Path) -> dict[str, Any]:
    """The state to go on from; only tensors and plain values are ever unpickled.

    Raises:
        UserError: missing or damaged.
    """
    path = run / STATE
    if not path.is_file():
        raise UserError(f"{run} has no {STATE} to resume from; train again into another --out")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); train again into another --out") from error
