"""What the texts of an instruction layer are: how many differ, are empty, were cut or loop; and whether they say anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import say, warn

CUT = "length"  # the stop reason of an answer that was cut at max_new_tokens
PROMPT = "prompt"  # the instructor whose texts are the same on purpose
MOSTLY = 0.9  # share of a modality's slices with one text, from which the texts say next to nothing of the slice
LONGEST_PHRASE = 40  # words of a phrase whose repetition is looked for


@dataclass(frozen=True)
class TextStatistics:
    """What the texts of one layer are.

    Attributes:
        count: texts, one for each slice and modality.
        distinct: different ones among them.
        repeated: those that another slice has too, in the same modality.
        most_common: in how many slices the most frequent text of each modality stands, added up.
        modalities, subjects: how many the layer has.
        per_subject: whether every subject has one text for all its slices, in each modality.
        empty: without a word.
        cut: ended by max_new_tokens.
        looping: with a phrase three times in a row, or a word four times.
        words: fewest, median, most words of a text.
        vocabulary: different words.
    """

    count: int
    distinct: int
    repeated: int
    most_common: int
    modalities: int
    subjects: int
    per_subject: bool
    empty: int
    cut: int
    looping: int
    words: tuple[int, int, int]
    vocabulary: int

    @property
    def warning(self) -> str | None:
        """Why the texts say nothing, or next to nothing, of the image; None where they differ between slices."""
        if self.count <= self.modalities:  # a single slice cannot differ from another
            return None
        beginning = f"{self.count} instructions, {self.distinct} distinct"
        if self.most_common == self.count:
            each = ", one for each modality" if self.distinct > 1 else ""
            return f"{beginning}{each}: the text says nothing of the image"
        if self.most_common >= MOSTLY * self.count:
            return (
                f"{beginning}, {self.most_common} of them the most frequent: the text says next to nothing of the image"
            )
        return None

    def lines(self) -> Iterator[str]:
        """All of it in sentences, the warning left out."""
        yield (
            f"{self.count} instructions, {self.distinct} distinct: {self.repeated} equal to another slice's, {self.empty} empty, "
            f"{self.cut} cut at max_new_tokens, {self.looping} looping"
        )
        fewest, median, most = self.words
        yield f"{fewest} to {most} words, {median} in the median; a vocabulary of {self.vocabulary} words"
        if self.per_subject and self.warning is None:
            yield "one text for all slices of a subject: it says nothing of where in the subject a slice lies"


def text_statistics(table: pa.Table) -> TextStatistics:
    """The statistics of the texts of one layer.

    Args:
        table: its rows, as `Cache.instructions` of a variant gives them.
    """
    rows = table.select(["subject", "slice", "modality", "text", "stop_reason"]).to_pylist()
    texts = Counter(row["text"] for row in rows)
    by_modality: dict[str, Counter[str]] = {}
    by_subject: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        by_modality.setdefault(row["modality"], Counter())[row["text"]] += 1
        by_subject.setdefault((row["subject"], row["modality"]), Counter())[row["text"]] += 1
    words = {text: re.findall(r"\w+", text.lower()) for text in texts}
    lengths = np.array([len(words[text]) for text, count in texts.items() for _ in range(count)] or [0])
    return TextStatistics(
        count=len(rows),
        distinct=len(texts),
        repeated=sum(count for counts in by_modality.values() for count in counts.values() if count > 1),
        most_common=sum(max(counts.values()) for counts in by_modality.values()),
        modalities=len(by_modality),
        subjects=len({row["subject"] for row in rows}),
        per_subject=all(len(counts) == 1 for counts in by_subject.values())
        and any(counts.total() > 1 for counts in by_subject.values()),
        empty=sum(count for text, count in texts.items() if not words[text]),
        cut=sum(row["stop_reason"] == CUT for row in rows),
        looping=sum(count for text, count in texts.items() if is_looping(words[text])),
        words=(int(lengths.min()), int(np.median(lengths)), int(lengths.max())),
        vocabulary=len({word for of_text in words.values() for word in of_text}),
    )


def is_looping(words: list[str]) -> bool:
    """Whether a phrase stands three times in a row, or a word four times.

    >>> is_looping("the liver is bright the liver is bright the liver is bright".split())
    True
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    if len(numbers) == len(words):
        return False
    codes = np.array([numbers[word] for word in words])
    for length in range(1, min(LONGEST_PHRASE, len(codes) // 3) + 1):
        same = np.flatnonzero(np.diff(np.concatenate([[0], codes[length:] == codes[:-length], [0]]).astype(np.int8)))
        runs = same[1::2] - same[::2]
        if len(runs) and runs.max() >= max(2 * length, 3):
            return True
    return False


def say_statistics(cache: Cache, variants: Iterable[str]) -> None:
    """Says what the texts of layers are, each with its warning."""
    for variant in variants:
        statistics = text_statistics(cache.instructions(variant))
        for line in statistics.lines():
            say(f"  {variant}: {line}")
        _say_warning(cache, variant, statistics)


def warn_of_texts(cache: Cache, variants: Iterable[str]) -> None:
    """Says which of these layers have texts that say nothing of the image."""
    for variant in dict.fromkeys(variants):
        _say_warning(cache, variant, text_statistics(cache.instructions(variant)))


def _say_warning(cache: Cache, variant: str, statistics: TextStatistics) -> None:
    if statistics.warning and cache.recipe(f"instructions/{variant}").get("instructor") != PROMPT:
        warn(f"warning: {variant}: {statistics.warning}")
