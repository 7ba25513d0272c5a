"""What an instruction calls a modality, from the channel's name in a data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import yaml

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import choose, warn


@cache
def _table() -> Mapping[str, Mapping[str, list[str]]]:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())


def _words(name: str) -> Iterator[str]:
    """'T1-DUAL-in' -> 't1', 'dual', 'in'; 'X-ray' is one word."""
    yield from re.findall(r"[^\W_]+\*?", re.sub(r"x[-_ ]ray", "xray", name.casefold()))


def term_of(channel: str) -> str | None:
    """'T1w' -> 'MRI-T1w', 'ct' -> 'CT', 'FDG' -> 'PET-FDG'; None for a name that says no modality."""
    words = list(_words(channel))
    for modality, known in _table().items():
        if any(word in (*known["same"], *known["kinds"]) for word in words):
            return modality if len(words) == 1 and words[0] in known["same"] else channel
    for modality, known in _table().items():
        if any(fnmatchcase(word, pattern) for word in words for pattern in known["implied"]):
            return f"{modality}-{channel}"
    return None


def terms_of(channels: Mapping[str, str]) -> dict[str, str]:
    """Modality -> term, from modality -> the channel's name in the data set; says which are taken as they are."""
    terms = {}
    for modality, channel in channels.items():
        term = term_of(channel)
        if term is None:
            warn(
                f"channel {channel} does not name a modality; instructions call it {channel!r}, --term {modality}=TERM otherwise"
            )
        terms[modality] = term or channel
    return terms


def parse_terms(given: Sequence[str], modalities: Sequence[str]) -> dict[str, str]:
    """('T2=MRI-T2',) -> {'T2': 'MRI-T2'}.

    Raises:
        UserError: not NAME=TERM, an unknown modality, or one named twice.
    """
    terms: dict[str, str] = {}
    for entry in given:
        name, equals, term = (part.strip() for part in entry.partition("="))
        if not equals or not name or not term:
            raise UserError(f"--term {entry}: expected NAME=TERM, a modality and what the instruction calls it")
        choose([name], modalities, "modality")
        if name in terms:
            raise UserError(f"--term names {name} twice; give it once")
        terms[name] = term
    return terms
