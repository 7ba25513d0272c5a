"""Profiles: which frozen models make a cache, as data files, and how a part of one is replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import nearest
from zeus_union.stage1_instruct.models.image.encoders import ENCODERS
from zeus_union.stage1_instruct.models.language.prompts import TEMPLATES
from zeus_union.stage1_instruct.profiles.named_yaml import read_named_yaml
from zeus_union.stage1_instruct.weights.sources import source_of
from zeus_union.stage1_instruct.weights.store import existing_path

FOLDER = Path(__file__).parent
NONE = "none"  # a part that is left out
AUTO = "auto"  # a number that is chosen when it is first used
PROMPT = "prompt"  # the instructor that answers with the question itself
VLM = "vlm"  # any image-text-to-text model of transformers
SERVER = "server"  # a model behind an OpenAI-compatible server
UNTRAINED = "untrained"
# Lines that may name a file or folder of the user's own.
FILES = (
    "encoder_weights",
    "blip2",
    "vision_weights",
    "projection",
    "lora",
    "llm",
    "text_encoder",
    "text_tokenizer",
    "model",
)
_NO_FILES = (NONE, AUTO, UNTRAINED)
Sees = Literal["pictures", "embeddings", "nothing"]
# Part -> its values; tables of other modules are these tables, so that a new entry is known here.
CHOICES: dict[str, Collection[str]] = {
    "encoder": ENCODERS,
    "encoder_precision": ("fp32", "bf16", "fp16"),
    "instructor": ("llm", "blip2", VLM, SERVER, PROMPT),
    "vision": ("regions", "pooled", "medclip_vit", "medclip_resnet"),
    "vision_feature": ("pooled", "projected", "tokens"),
    "connector": ("mlp", "linear", "qformer"),
    "llm_precision": ("fp32", "bf16", "fp16"),
    "llm_quantize": (NONE, "8bit", "4bit"),
    "llm_device_map": (NONE, "auto"),
    "template": TEMPLATES,
    "text_kind": ("bert", "medclip", "clip"),
    "text_window": ("truncate", "extended", "mean"),
}


@dataclass(frozen=True)
class Needs:
    """Weights to fetch, as `weights.HasNeeds`."""

    name: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """The frozen models of stage 1 and how the LLM decodes; profiles/lite.yaml says what each line may be.

    None is 'auto': chosen when it is first used.
    """

    name: str
    encoder: str
    encoder_weights: str
    encoder_precision: str
    instructor: str
    blip2: str
    vision: str
    vision_grid: int
    vision_weights: str
    vision_feature: str
    connector: str
    projection: str
    projection_hidden: int
    lora: str
    llm: str
    llm_precision: str
    llm_quantize: str
    llm_device_map: str
    template: str
    max_new_tokens: int | None
    temperature: float
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    llm_batch: int | None
    keep_states: bool
    text_kind: str
    text_encoder: str
    text_tokenizer: str
    text_window: str
    model: str = NONE
    address: str = NONE
    key_variable: str = NONE
    parallel: int = 4
    retries: int = 5
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        for part, values in CHOICES.items():
            if getattr(self, part) not in values:
                value = getattr(self, part)
                raise UserError(
                    f"{part} = {value!r} is unknown; there are: {', '.join(values)}{nearest(str(value), values)}"
                )
        for part in ("vision_grid", "projection_hidden", "max_new_tokens", "llm_batch", "parallel"):
            value = getattr(self, part)
            if value is not None and value < 1:
                raise UserError(f"{part} = {getattr(self, part)}, expected 1 or more")
        if self.vision == "regions" and 64 % self.vision_grid:
            raise UserError(f"vision_grid = {self.vision_grid}, expected a divisor of 64 (the embedding's side)")
        if self.repetition_penalty < 1 or self.no_repeat_ngram_size < 0:
            raise UserError("repetition_penalty is 1 (off) or more, no_repeat_ngram_size 0 (off) or more")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError("temperature is 0 (greedy) or more, top_p above 0 and at most 1")
        if self.text_window != "truncate" and self.text_kind != "medclip":
            raise UserError(
                f"text_window = {self.text_window} is for MedCLIP's text encoder and text_kind is {self.text_kind}; "
                "give text_window=truncate or text_kind=medclip"
            )
        if self.encoder_precision != "fp32" and self.encoder == "litemedsam":
            raise UserError(
                f"encoder_precision = {self.encoder_precision}, but litemedsam computes in fp32 only; "
                "give encoder_precision=fp32 or another encoder"
            )
        if self.retries < 0 or self.timeout_s <= 0:
            raise UserError("retries is 0 or more, timeout_s above 0")
        if self.keep_states and self.instructor in (PROMPT, SERVER):
            raise UserError(
                f"keep_states = yes, but with instructor = {self.instructor} no language model has states; give keep_states=no"
            )
        if self.lora != NONE and self.instructor not in ("llm", "blip2"):
            raise UserError(f"lora = {self.lora} is for instructor = llm and this is {self.instructor}; give lora=none")
        for part, wanted_by in {**self._wanted, **self._settings_wanted}.items():
            if getattr(self, part) == NONE:
                raise UserError(f"{wanted_by} needs {part}; give it with --set {part}=... (zeus-instruct fetch -h)")

    @property
    def _wanted(self) -> dict[str, str]:
        """The parts that have to be there, beside encoder_weights -> what wants them."""
        wanted = {"text_encoder": f"text_kind = {self.text_kind}"}
        if self.instructor == "blip2":
            wanted["blip2"] = "instructor = blip2"
        elif self.instructor == VLM:
            wanted["model"] = "instructor = vlm"
        elif self.instructor == "llm":
            wanted["llm"] = "instructor = llm"
            if self.sees == "pictures":
                wanted["vision_weights"] = f"vision = {self.vision}"
        if self.text_kind == "medclip":
            wanted["text_tokenizer"] = "text_kind = medclip"
        return wanted

    @property
    def _settings_wanted(self) -> dict[str, str]:
        """As `_wanted`, of what is no file."""
        return dict.fromkeys(("address", "model"), "instructor = server") if self.instructor == SERVER else {}

    def to_json(self) -> dict[str, Any]:
        """The lines of the profile as `profile_from` reads them; files that are there with their whole paths."""
        values = {name: AUTO if value is None else value for name, value in dataclasses.asdict(self).items()}
        for part in FILES:
            if part == "model" and self.instructor == SERVER:  # the name that the server calls it by
                continue
            path = Path(values[part]).expanduser()
            if values[part] not in _NO_FILES and source_of(values[part]) is None and path.exists():
                values[part] = str(path.resolve())
        return values

    @property
    def sees(self) -> Sees:
        """What the instructor sees: the picture itself, the image encoder's embedding of it, or nothing."""
        if self.instructor == PROMPT:
            return "nothing"
        return (
            "pictures"
            if self.instructor in ("blip2", VLM, SERVER) or self.vision.startswith("medclip")
            else "embeddings"
        )

    @property
    def samples(self) -> bool:
        """Whether the text depends on a seed."""
        return self.temperature > 0 and self.instructor != PROMPT

    @property
    def parts(self) -> tuple[str, ...]:
        """What is loaded: names that `fetch` knows, hf:OWNER/NAME, or paths, each once."""
        return tuple(dict.fromkeys((self.encoder_weights, *(getattr(self, part) for part in self._wanted))))

    @property
    def needs(self) -> tuple[str, ...]:
        """The weights that `fetch` has to provide; parts given as paths are not among them.

        Raises:
            UserError: a part that is neither known nor a path that exists.
        """
        return _known(self.parts)

    @property
    def text_needs(self) -> Needs:
        """As `needs`, for the text encoder alone."""
        of_text = {part: getattr(self, part) for part in self._wanted if part.startswith("text_")}
        return Needs(f"the text encoder of {self.name}", _known(of_text.values()))

    @property
    def image_needs(self) -> Needs:
        """As `needs`, for the image encoder alone."""
        return Needs(f"the image encoder of {self.name}", _known((self.encoder_weights,)))


def _known(parts: Iterable[str]) -> tuple[str, ...]:
    """Those that `fetch` knows.

    Raises:
        UserError: one that is neither known nor a path that exists.
    """
    known = []
    for part in parts:
        if source_of(part) is not None:
            known.append(part)
        else:
            existing_path(part)
    return tuple(known)


def parse_overrides(assignments: tuple[str, ...]) -> dict[str, str]:
    """('llm=PATH', ...) -> {'llm': 'PATH'}, as `--set` gives them.

    Raises:
        UserError: an assignment without '='.
    """
    overrides = {}
    for assignment in assignments:
        part, equals, value = assignment.partition("=")
        if not equals or not part.strip() or not value.strip():
            raise UserError(f"--set {assignment!r}: expected part=value, e.g. --set llm=PATH")
        overrides[part.strip()] = value.strip()
    return overrides


def load_profile(name_or_yaml: str, overrides: Mapping[str, str] | None = None) -> Profile:
    """The profile of that name or in that YAML file, with parts replaced.

    A line 'like: NAME' takes from that profile (or file) whatever the file does not say itself.

    Args:
        overrides: part -> value as typed, e.g. {'llm': '/models/vicuna'}.

    Raises:
        UserError: no such profile; a key or part that does not exist, or is missing; a value of the wrong type.
    """
    path, values = _lines(name_or_yaml)
    return profile_from(values, str(path), overrides)


def profile_from(values: Mapping[str, Any], where: str, overrides: Mapping[str, str] | None = None) -> Profile:
    """A profile from its lines, as `Profile.to_json` gives them.

    Args:
        where: they come from, for messages.
        overrides: as for `load_profile`.

    Raises:
        UserError: as `load_profile`.
    """
    return _profile({**values, **(overrides or {})}, where)


def _lines(name_or_yaml: str, *before: str) -> tuple[Path, dict[Any, Any]]:
    """The lines of a profile, on top of those of the profile it is 'like'; `before`: the profiles that lead here."""
    path, values = read_named_yaml(FOLDER, name_or_yaml, "profile")
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of parts to values; found a {type(values).__name__}")
    like = values.pop("like", None)
    if like is None:
        return path, values
    if name_or_yaml in before:
        raise UserError(f"{path} is like itself ({' -> '.join((*before, name_or_yaml))}); take out one 'like'")
    return path, {**_lines(str(like), *before, name_or_yaml)[1], **values}


def _profile(values: Mapping[Any, Any], where: str) -> Profile:
    fields = {field.name: str(field.type) for field in dataclasses.fields(Profile)}
    unknown = [str(key) for key in values if key not in fields]
    if unknown:
        raise UserError(
            f"unknown part {', '.join(unknown)} in {where} or --set; there are: {', '.join(fields)}"
            f"{nearest(unknown[0], fields)}"
        )
    required = [field.name for field in dataclasses.fields(Profile) if field.default is dataclasses.MISSING]
    missing = [key for key in required if key not in values]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; profiles/lite.yaml shows every line")
    return Profile(**{key: _typed(key, values[key], kind) for key, kind in fields.items() if key in values})


def _typed(part: str, value: Any, kind: str) -> Any:
    if kind == "bool":
        if str(value).lower() not in ("yes", "no", "true", "false"):
            raise UserError(f"{part} = {value!r}, expected yes or no")
        return str(value).lower() in ("yes", "true")
    if kind == "int | None":
        if str(value) == AUTO:
            return None
        kind = "int"
    convert = {"int": int, "float": float, "str": str}[kind]
    try:
        converted = convert(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{part} = {value!r}, expected a number") from error
    if kind == "int" and str(converted) != str(value):
        raise UserError(f"{part} = {value!r}, expected a whole number")
    return converted
