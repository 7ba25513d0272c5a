"""Instructions without one of their sentences, embedded: what `zeus-segment probe --sentences` reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zeus_union.cache.atomic import AtomicFile
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import parquet_path
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import describe, differences
from zeus_union.stage1_instruct.models.text.bert import InstructionEncoder, encode_under_bar

WHOLE = -1  # the sentence number of a whole text
SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("slice", pa.int32()),
        ("modality", pa.string()),
        ("sentence", pa.int32()),
        ("text", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)

# A stop with white space behind it, a semicolon, or the end of a line.
_ENDS = re.compile(r"(?P<stop>[.!?]+[\"')\]]*)\s+|;\s*|[\r\n]\s*")
# A full stop behind these ends nothing, ...
_ABBREVIATIONS = {"e.g.", "i.e.", "vs.", "cf.", "dr.", "prof."}
# ... behind these only where a capital follows.
_SOMETIMES = {"approx.", "ca.", "etc.", "fig.", "incl.", "max.", "min.", "no.", "resp."}


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, each with the white space behind it, so that joined they are the text; none of a blank one.

    They end at '.', '!' or '?' before white space (not behind 'e.g.' and the like), at ';' and at line ends. A piece
    without a letter (the number of a list, '...') belongs to the sentence behind it, the last to the one before.
    """
    if not text.strip():
        return []
    cuts = [match.end() for match in _ENDS.finditer(text) if not _is_abbreviated(text, match)]
    sentences, start = [], 0
    for end in (*cuts, len(text)):
        if any(letter.isalpha() for letter in text[start:end]):
            sentences.append(text[start:end])
            start = end
    if not sentences:
        return [text]
    sentences[-1] += text[start:]
    return sentences


def _is_abbreviated(text: str, match: re.Match[str]) -> bool:
    """Whether the stop of `match` belongs to an abbreviation."""
    if match["stop"] != "." or match[0].strip(" \t") != ".":
        return False
    word = text[: match.start() + 1].split()[-1].lstrip("\"'([").lower()
    return word in _ABBREVIATIONS or (word in _SOMETIMES and not text[match.end() : match.end() + 1].isupper())


def write_sentences(cache: Cache, variant: str, encoder: InstructionEncoder, out: Path, subjects: Sequence[str]) -> int:
    """Writes `SCHEMA` to `out`, whole or not at all: each instruction as a whole and without each of its sentences.

    Column `text` is the sentence, `embedding` that of the instruction without it; the sentence -1 is the whole
    instruction. Instructions without a word are left out. The schema's metadata names the variant and its layer's
    fingerprint.

    Args:
        subjects: of the cache.

    Returns:
        How many sentences, the whole texts not counted.

    Raises:
        UserError: another text encoder than the variant was made with; no text; `out` is a file of the cache.
    """
    layer = f"instructions/{variant}"
    _check_encoder(cache, layer, encoder)
    if out.resolve() in (cache.path.resolve(), parquet_path(cache.path).resolve()):
        raise UserError(f"{out} is a file of the cache; give another --out")
    lines = {subject: list[dict[str, Any]]() for subject in subjects}
    encoded: dict[str, int] = {}  # text to encode -> its row of the vectors
    for row in cache.instructions(variant).select(["subject", "slice", "modality", "text"]).to_pylist():
        if row["subject"] in lines and row["text"].strip():
            lines[row["subject"]] += _lines(row, encoded)
    if not encoded:
        raise UserError(f"{layer} of {cache.path} has no text of {', '.join(subjects)}")
    vectors = encode_under_bar(encoder, list(encoded))
    facts = {"variant": variant, "fingerprint": cache.fingerprint(layer)}
    file = AtomicFile(out, mode=0o644)
    try:
        with pq.ParquetWriter(file, SCHEMA.with_metadata(facts), compression="zstd") as writer:
            for subject_lines in lines.values():
                columns = {name: [line[name] for line in subject_lines] for name in SCHEMA.names if name != "embedding"}
                columns["embedding"] = list(vectors[[line["encoded"] for line in subject_lines]])
                writer.write_table(pa.table(columns, schema=SCHEMA.with_metadata(facts)))
                file.check()
        file.commit()
    finally:
        file.discard()
    return sum(line["sentence"] != WHOLE for subject_lines in lines.values() for line in subject_lines)


def _check_encoder(cache: Cache, layer: str, encoder: InstructionEncoder) -> None:
    changed = differences(cache.recipe(layer).get("text_encoder", {}), encoder.recipe())
    if changed:
        raise UserError(
            f"{layer} of {cache.path} was made with another text encoder ({describe(changed)}); "
            "give the --models and --set that build-cache was given for it"
        )


def _lines(row: dict[str, Any], encoded: dict[str, int]) -> list[dict[str, Any]]:
    """The lines of one instruction; `encoded` gains the texts that are not in it yet."""
    sentences = split_sentences(row["text"])
    without = ["".join(sentences[:number] + sentences[number + 1 :]).strip() for number in range(len(sentences))]
    lines = [(WHOLE, row["text"], row["text"])]
    lines += [(number, sentence.strip(), rest) for number, (sentence, rest) in enumerate(zip(sentences, without))]
    return [
        {**row, "sentence": number, "text": text, "encoded": encoded.setdefault(rest, len(encoded))}
        for number, text, rest in lines
    ]
