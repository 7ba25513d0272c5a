"""The table of docs/scale.md, what a data set takes: `python tests/benchmarks/scale_table.py`.

Bytes are those of `build-cache --dry-run`. Seconds are sums of the parts below, one after the other, of one process; each says
whether it was measured, and where.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zeus_union.cache.terminal import in_words, time_in_words
from zeus_union.stage1_instruct.building.forecast import StudySize, layer_bytes
from zeus_union.stage1_instruct.building.job import BuildOptions

FP32_FLOPS, FP16_FLOPS, MEMORY_BYTES = 15e12, 150e12, 1.5e12  # a second, sustained: assumed of an A100 without TF32
TOKENS = 64 * 64  # of SAM at 1024 x 1024
LLAMA_7B = 6.74e9  # parameters
ANSWER, PROMPT, LLM_ROWS = 77, 100, 64  # tokens generated (what MedCLIP reads) and read, rows decoded together


@dataclass(frozen=True)
class DataSet:
    """Subjects, slices of each (a mean where they differ), modalities, pixels of a native slice, masks of every modality."""

    name: str
    subjects: int
    slices: int
    modalities: int
    native: int
    modality_labels: bool = False


# CHAOS: 26 to 50 slices, 32 on average over the 20 with labels; Prostate: 15 to 24; both means are about. Brain is exact.
DATA_SETS = (
    DataSet("CHAOS", 20, 32, 3, 256 * 256, modality_labels=True),
    DataSet("MSD-Prostate", 32, 19, 2, 320 * 320),
    DataSet("MSD-Brain", 484, 155, 4, 240 * 240),
)


def vit_flops(depth: int, width: int, windowed: int, window: int = 14) -> float:
    """Of SAM's encoder, one picture: `depth` blocks, of which `windowed` pad the 64 x 64 tokens to whole windows."""
    padded = (-(-64 // window) * window) ** 2
    blocks = 12 * width**2 * (depth * TOKENS) + 4 * width**2 * windowed * (padded - TOKENS)
    attention = 2 * width * ((depth - windowed) * TOKENS**2 + windowed * padded * window**2)
    return 2.0 * (blocks + attention)


def llm_seconds() -> float:
    """Of a row: its share of reading the weights for every token, and the arithmetic of its prompt."""
    decoding = ANSWER * 2 * LLAMA_7B / MEMORY_BYTES / LLM_ROWS
    return decoding + (PROMPT + ANSWER) * 2 * LLAMA_7B / FP16_FLOPS


# Seconds a slice-modality, by part. Host: reading 9, slicing 6, resizing to 1024 12, quantising 6 ms, writing 5 ms, measured here.
LITE = {"host": 0.026, "image encoder": 0.946, "LLM": 0.5, "text encoder": 0.003}  # docs/benchmarks.md: measured
MEDSAM = {"host": 0.038, "image encoder": vit_flops(12, 768, 8) / FP32_FLOPS, "LLM": llm_seconds()}
PAPER = {"host": 0.038, "image encoder": vit_flops(32, 1280, 28) / FP32_FLOPS, "LLM": llm_seconds()}
PROFILES = {"lite": LITE, "medsam": MEDSAM, "paper": PAPER}


def row(data: DataSet) -> str:
    count = data.subjects * data.slices * data.modalities
    size = StudySize(data.slices, data.native, True, data.modality_labels)
    store = BuildOptions(Path()).store
    layers = {
        layer: data.subjects * layer_bytes(layer, size, data.modalities, store, 0)
        for layer in ("slices", "embeddings/any", "instructions/any")
    }
    times = [time_in_words(count * sum(parts.values())) for parts in PROFILES.values()]
    slices, embeddings, texts = (in_words(written) for written in layers.values())
    return f"| {data.name} | {count:,} | {slices} | {embeddings} | {texts} | {' | '.join(times)} |"


def table() -> str:
    lines = [
        "| data set | slice-modalities, at most | pictures | embeddings | texts | lite, 2 CPU cores | medsam, one GPU "
        "| paper, one GPU |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *map(row, DATA_SETS),
    ]
    return "\n".join(lines)


def parts_table() -> str:
    names = dict.fromkeys(part for parts in PROFILES.values() for part in parts)
    rows = [
        f"| {part} | " + " | ".join(f"{parts[part]:.3f}" if part in parts else "" for parts in PROFILES.values()) + " |"
        for part in names
    ]
    return "\n".join(["| seconds a slice-modality | lite | medsam | paper |", "|---|---:|---:|---:|", *rows])


if __name__ == "__main__":
    print(table(), parts_table(), sep="\n\n")
