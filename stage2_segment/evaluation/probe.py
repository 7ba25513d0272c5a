"""Whether a trained run listens to its instructions, and to what in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.table import Table

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import progress
from zeus_union.cache.text_statistics import warn_of_texts
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.choices import TEXTS
from zeus_union.stage2_segment.compatibility import check_cache
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.evaluation.evaluate import results_path, subjects_to_measure
from zeus_union.stage2_segment.evaluation.metrics import dsc, mean_defined, mean_over_subjects, overlap_counts
from zeus_union.stage2_segment.inputs.layers import layer_read, layers_read
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.inputs.texts import read_text, typical_text
from zeus_union.stage2_segment.marks import as_named
from zeus_union.stage2_segment.model.zeus import class_map
from zeus_union.stage2_segment.trained import BATCH, TrainedRun, load_trained, predict_inputs

PROBES = [name for name in TEXTS if name not in ("none", "oracle")]
COLUMNS = ("subject", "slice", "modality", "sentence", "text", "embedding")


def probe_texts(
    run: Path,
    cache: Cache,
    *,
    subjects: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
) -> list[dict[str, Any]]:
    """The same weights with other texts; writes probe.parquet (see `results_path`) into the run's folder.

    Returns:
        A line for each text, subject and class: text, subject, class, dsc_256 (per volume), and changed: the share of
        the two masks, with this text and with the slice's own, that is in one of them only (0: the same; 1: nothing in
        common; NaN: both empty).

    Raises:
        UserError: a run that reads no instruction.
    """
    trained, chosen = _open(run, cache, subjects, which, device)
    config = trained.config
    probes = [*PROBES, "none"] if config.architecture.text_is_a_part else PROBES
    possible = [name for name in probes if name != "shuffled-modalities" or len(cache.modalities) > 1]
    if config.architecture.form == "tokens":
        possible = [name for name in possible if name not in ("constant", "random")]
    lines = []
    for subject in progress(chosen, "probing"):
        rows = cache.rows_of([subject])
        data = SliceData(cache, config.inputs.encoder, config.inputs.modalities, rows, trained.device)
        truth = cache.masks(rows)
        reference: NDArray[np.uint8] | None = None
        for name in possible:
            text = _other_text(cache, config, rows, "instruction" if name == "none" else name)
            predicted = predict_inputs(trained.model, RunInputs(config, data, text=text), data, use_text=name != "none")
            reference = predicted if reference is None else reference
            score = dsc(overlap_counts(predicted, truth, len(config.inputs.classes)))
            kept = dsc(overlap_counts(predicted, reference, len(config.inputs.classes)))
            lines += [
                {
                    "text": name,
                    "subject": subject,
                    "class": label,
                    "dsc_256": float(score[k]),
                    "changed": 1 - float(kept[k]),
                }
                for k, label in enumerate(config.inputs.classes, 1)
            ]
    checkpoint.write_table(results_path(run, [config], cache, "probe.parquet"), lines)
    return lines


@torch.inference_mode()
def probe_sentences(
    run: Path,
    cache: Cache,
    sentences: Path,
    *,
    subjects: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Each instruction without one of its sentences; writes sentences.parquet (see `results_path`) into the run's folder.

    Args:
        sentences: what `zeus-instruct sentences` wrote for the run's variant.

    Returns:
        A line for each sentence: subject, slice, modality, text, changed (as in `probe_texts`, all classes together),
        and dsc_256 and dsc_256_without of its slice; the sentence that changes most first.

    Raises:
        UserError: a run that reads no instruction or one a class; a file of another variant, or none.
    """
    trained, chosen = _open(run, cache, subjects, which, device)
    config = trained.config
    if config.architecture.instructions == "class" or config.architecture.form == "tokens":
        raise UserError(f"sentences are probed in runs with --instructions modality and --form sentence; {run} is none")
    shortened = _read_sentences(sentences, config, cache)
    lines = []
    for subject in progress(chosen, "probing sentences"):
        rows = cache.rows_of([subject])
        data = SliceData(cache, config.inputs.encoder, config.inputs.modalities, rows, trained.device)
        inputs = RunInputs(config, data)
        truth = cache.masks(rows)
        for row_index, row in enumerate(rows):
            shorter = shortened.get((subject, int(cache.rows["number"][row])), [])
            shorter = [sentence for sentence in shorter if sentence["modality"] in config.inputs.modalities]
            if not shorter:
                continue
            batch, position = data.batch(np.array([row_index])), np.array([row_index])
            images, text, present = inputs.of(position, batch)
            texts = text.repeat(len(shorter) + 1, *[1] * (text.dim() - 1))
            for index, sentence in enumerate(shorter, 1):
                vector = torch.tensor(sentence["embedding"], dtype=text.dtype, device=text.device)
                texts[index, config.inputs.modalities.index(sentence["modality"])] = vector
            masks = np.concatenate(
                [
                    class_map(trained.model(images.expand(len(part), *[-1] * 4), part, present)).cpu().numpy()
                    for part in texts.split(BATCH)
                ]
            )
            with_all = _dsc(masks[0], truth[row_index], len(config.inputs.classes))
            for sentence, mask in zip(shorter, masks[1:]):
                lines.append(
                    {
                        **{name: sentence[name] for name in ("subject", "slice", "modality", "text")},
                        "changed": 1 - _dsc(mask, masks[0], len(config.inputs.classes)),
                        "dsc_256": with_all,
                        "dsc_256_without": _dsc(mask, truth[row_index], len(config.inputs.classes)),
                    }
                )
    lines.sort(key=lambda line: -np.nan_to_num(line["changed"], nan=-1.0))
    if not lines:
        raise UserError(f"{sentences} has no sentence of {', '.join(chosen)}; write it with these --subjects")
    checkpoint.write_table(results_path(run, [config], cache, "sentences.parquet"), lines)
    return lines


def _open(
    run: Path, cache: Cache, subjects: Sequence[str] | None, which: str, device: str | None
) -> tuple[TrainedRun, tuple[str, ...]]:
    """The run, and the subjects to probe it on."""
    trained = load_trained(run, which, device)
    text = trained.config.inputs.text
    if text != "instruction":
        raise UserError(f"{run} was trained with --text {text}: it reads no instruction of its own to be probed")
    check_cache(trained.config, cache)
    warn_of_texts(cache, layers_read(trained.config, cache))
    return trained, subjects_to_measure([trained.config], cache, subjects)


def _other_text(cache: Cache, config: RunConfig, rows: NDArray[np.intp], name: str) -> NDArray[np.floating]:
    """The text of rows that a run with `--text name` would read."""
    other = replace(config, inputs=replace(config.inputs, text=name))
    if name != "constant":
        return read_text(cache, other, rows, config.inputs.modalities)
    known = [name for name in as_named(config.split.train, cache.subjects) if name in cache.subjects]
    source = cache.rows_of(known) if known else rows
    typical = typical_text(cache, other, source)
    return np.broadcast_to(typical, (len(rows), *typical.shape)).copy()


def _read_sentences(path: Path, config: RunConfig, cache: Cache) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Sentences by subject and slice; the whole texts (sentence -1) are left out."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; zeus-instruct sentences writes it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet table ({error}); zeus-instruct sentences writes it") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; zeus-instruct sentences writes it")
    facts = {
        key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items() if key != b"ARROW:schema"
    }
    variant = layer_read(config, cache, config.inputs.variants[0])
    layer = f"instructions/{variant}"
    if facts.get("variant") != variant or facts.get("fingerprint") != cache.fingerprint(layer):
        raise UserError(
            f"{path} was written for {json.dumps(facts.get('variant'))} of another cache or layer; write it again: "
            f"zeus-instruct sentences {cache.path} --variant {variant}"
        )
    by_slice: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in table.to_pylist():
        if line["sentence"] >= 0:
            by_slice.setdefault((line["subject"], line["slice"]), []).append(line)
    return by_slice


def _dsc(mask: NDArray[np.uint8], other: NDArray[np.uint8], classes: int) -> float:
    """Mean over the classes that either shows; 1 where both are empty."""
    values = dsc(overlap_counts(mask, other, classes))[1:]
    return 1.0 if np.isnan(values).all() else mean_defined(values)


def text_table(lines: Sequence[dict[str, Any]]) -> Table:
    """One line per text: mean DSC over subjects and classes, and how much of the mask moved."""
    table = Table(title="the same weights with other texts")
    table.add_column("what each slice is given")
    for name in ("DSC 256", "less than with its own", "mask changed"):
        table.add_column(name, justify="right")
    means = {
        name: [
            mean_over_subjects((line["subject"], line[key]) for line in lines if line["text"] == name)
            for key in ("dsc_256", "changed")
        ]
        for name in dict.fromkeys(line["text"] for line in lines)
    }
    reference = means["instruction"][0]
    for name, (score, changed) in means.items():
        table.add_row(TEXTS[name], f"{score:.3f}", f"{reference - score:.3f}", f"{changed:.3f}")
    return table


def sentence_table(lines: Sequence[dict[str, Any]], top: int) -> Table:
    """The sentences whose removal changes the mask most."""
    table = Table(title="sentences whose removal changes the mask most")
    for name in ("slice", "sentence"):
        table.add_column(name)
    for name in ("mask changed", "DSC 256", "without it"):
        table.add_column(name, justify="right")
    for line in lines[:top]:
        where = f"{line['subject']} {line['slice']} {line['modality']}"
        numbers = (line["changed"], line["dsc_256"], line["dsc_256_without"])
        table.add_row(where, line["text"], *(f"{value:.3f}" for value in numbers))
    return table
