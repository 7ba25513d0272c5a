"""Public data sets by name: what sources.yaml says of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zeus_union.cache.terminal import in_words
from zeus_union.stage1_instruct.downloads import Pin


@dataclass(frozen=True)
class Archive:
    """A zip or tar with a public address; the fields are those of sources.yaml."""

    url: str
    size: int
    unpacked: int
    take: str
    into: str
    about: int = 0
    sha256: str | None = None
    md5: str | None = None
    labelled: bool = True

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2].partition("?")[0]

    @property
    def pin(self) -> Pin:
        return Pin(self.size, self.sha256, self.md5)

    @property
    def bytes_to_download(self) -> int:
        """About so many where nobody publishes them."""
        return self.size or self.about


@dataclass(frozen=True)
class PublicData:
    """A public data set; the fields are those of sources.yaml."""

    title: str
    page: str
    licence: str
    archives: tuple[Archive, ...]

    def wanted(self, unlabelled: bool) -> tuple[Archive, ...]:
        """Its archives, those that nobody labelled where they are asked for."""
        return tuple(archive for archive in self.archives if archive.labelled or unlabelled)


def _read(path: Path) -> dict[str, PublicData]:
    return {name: _data_set(values) for name, values in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def _data_set(values: Mapping[str, Any]) -> PublicData:
    archives = tuple(Archive(**archive) for archive in values["archives"])
    return PublicData(values["title"], values["page"], values["licence"], archives)


PUBLIC_DATA = _read(Path(__file__).with_name("sources.yaml"))


def how_to_get(name: str, root: Path | None) -> str | None:
    """The command that fetches a data set into `root` (None: data/NAME), and what it costs; None where none does."""
    if name not in PUBLIC_DATA:
        return None
    data_set = PUBLIC_DATA[name]
    size = sum(archive.bytes_to_download for archive in data_set.wanted(unlabelled=False))
    where = f" --data-root {root}" if root is not None else ""
    return f"zeus-instruct fetch --dataset {name}{where} ({in_words(size)}, {data_set.licence})"
