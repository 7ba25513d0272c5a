"""The options of training, each declared once: from here come the command line, a grid's keys, what a model refuses, and
where a value goes in a run's config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import (
    BASELINES_ONLY,
    DATA,
    MODEL,
    OPTIMISATION,
    ZEUS_ONLY,
    choose,
    nearest,
    split_names,
)
from zeus_union.stage2_segment.choices import (
    ALIGNERS,
    BASELINES,
    CLASS_WEIGHTS,
    COMBINES,
    FORMS,
    FUSIONS,
    INSTRUCTIONS,
    MERGES,
    MODELS,
    PRECISIONS,
    PRESETS,
    TEXTS,
    WITH_PRETRAINED,
    ZEUS,
)
from zeus_union.stage2_segment.recipe import RECIPES

F = TypeVar("F", bound=Callable[..., Any])
NAMES = "names"  # a type: names separated by commas
OF_ZEUS, OF_BASELINES, OF_PRETRAINED = (ZEUS,), tuple(BASELINES), WITH_PRETRAINED


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: in code and in a grid ('batch_size' and 'batch-size' are one there); --batch-size on the command line.
        place: where its value, or what is found for it, stands in `RunConfig`, e.g. 'recipe.batch_size'.
        type: of click, `NAMES`, or the values there are.
        default: where it is not given; None: what the help says in brackets.
        panel: heading of --help it stands under.
        of: the models that have it, where not all do: `OF_ZEUS`, `OF_BASELINES` or `OF_PRETRAINED`.
        without: the value, beside the default, that says what leaving it out says, for the models that do not have it.
        instead: for messages, what a model that does not have it has in its place.
        in_grid: whether a grid's row may set it; the others say which of a row's runs it is.
    """

    name: str
    place: str
    panel: str
    type: Any
    help: str
    default: Any = None
    of: tuple[str, ...] | None = None
    without: Any = None
    instead: str = ""
    in_grid: bool = True

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def click_type(self) -> Any:
        if self.type is NAMES:
            return click.STRING
        return self.type if isinstance(self.type, click.ParamType) else click.Choice(list(self.type))

    def as_click(self) -> Callable[[F], F]:
        """The decorator of a command that has it."""
        is_switch = self.type is click.BOOL
        return click.option(
            f"{self.flag}/--no-{self.flag[2:]}" if is_switch else self.flag,
            self.name,
            type=None if is_switch else self.click_type,
            default=self.default,
            show_default=self.default is not None,
            help=self.help,
        )

    def read(self, value: Any, where: str) -> Any:
        """A value as a grid or the command line gives it, checked as the command line's are.

        Raises:
            UserError: one that the command line would refuse.
        """
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        try:
            read = self.click_type.convert(str(value) if self.click_type is click.STRING else value, None, None)
        except click.BadParameter as error:
            raise UserError(f"{where}: {self.name.replace('_', '-')} = {value!r}: {error.message}") from error
        return split_names(read) if self.type is NAMES else read

    def is_given(self, value: Any) -> bool:
        """Whether a value says something else than leaving the option out."""
        return value is not None and value not in (self.default, self.without) and value != ()


OPTIONS: tuple[Option, ...] = (
    Option(
        "model",
        "architecture.model",
        MODEL,
        MODELS,
        "zeus, or a baseline of the paper's Table 2, which sees the cache's pictures.",
        default=ZEUS,
    ),
    Option(
        "fusion",
        "architecture.fusion",
        MODEL,
        FUSIONS,
        "late: a decoder and an aligner per modality; hybrid: one of each for all, one by one. Baselines: late, a network "
        "per modality; hybrid, an encoder per modality and one decoder; early, modalities as channels.",
        default="late",
    ),
    Option(
        "text",
        "inputs.text",
        ZEUS_ONLY,
        TEXTS,
        "none: a learned token, the row that text has to beat. The others are controls: another slice's or modality's "
        "instruction, one for all slices, a random vector. oracle: captions from the true labels (zeus-instruct make-oracle), "
        "the upper bound.  [default: instruction; none for a baseline]",
        of=OF_ZEUS,
        without="none",
    ),
    Option(
        "variant",
        "inputs.variants",
        ZEUS_ONLY,
        NAMES,
        "Which instructions; with --instructions class one layer a class, separated by commas.  [default: the only ones]",
        of=OF_ZEUS,
    ),
    Option(
        "encoder",
        "inputs.encoder",
        ZEUS_ONLY,
        click.STRING,
        "Which embeddings.  [default: the only ones]",
        of=OF_ZEUS,
    ),
    Option(
        "views",
        "recipe.views",
        ZEUS_ONLY,
        click.IntRange(0),
        "Augmented copies of every training slice, of those that zeus-instruct build-cache --views made: each step draws the "
        "slice or one of them. 0: none.  [default: all the cache has; 0 with --recipe paper]",
        of=OF_ZEUS,
        without=0,
    ),
    Option(
        "combine",
        "architecture.combine",
        ZEUS_ONLY,
        COMBINES,
        "How the modalities' logits become one mask: "
        + "; ".join(f"{name}, {what}" for name, what in COMBINES.items())
        + ".",
        default="mean",
        of=OF_ZEUS,
    ),
    Option(
        "instructions",
        "architecture.instructions",
        ZEUS_ONLY,
        INSTRUCTIONS,
        "modality: one instruction for all classes; class: one for each, which the decoder answers with a binary mask.",
        default="modality",
        of=OF_ZEUS,
    ),
    Option(
        "form",
        "architecture.form",
        ZEUS_ONLY,
        FORMS,
        "sentence: one embedding of the text; tokens: the LLM's states at its tokens (a variant with keep_states=yes).",
        default="sentence",
        of=OF_ZEUS,
    ),
    Option(
        "aligner",
        "architecture.aligner",
        ZEUS_ONLY,
        ALIGNERS,
        "residual: a learned token, to which the text adds a part that is nothing at the start; mlp: the paper's, the text "
        "alone makes the token.  [default: residual; mlp with --recipe paper]",
        of=OF_ZEUS,
    ),
    Option(
        "aligner_depth",
        "architecture.aligner_depth",
        ZEUS_ONLY,
        click.IntRange(1, 2),
        "Layers of f_tt.",
        default=2,
        of=OF_ZEUS,
    ),
    Option(
        "iou_token",
        "architecture.iou_token",
        ZEUS_ONLY,
        click.BOOL,
        "Keep SAM's IoU token among the tokens.",
        default=False,
        of=OF_ZEUS,
    ),
    Option(
        "merge",
        "architecture.merge",
        BASELINES_ONLY,
        MERGES,
        "Hybrid fusion: feature maps side by side and a 1 x 1 convolution, or their mean.",
        default="concat",
        of=OF_BASELINES,
    ),
    Option(
        "preset",
        "architecture.preset",
        BASELINES_ONLY,
        PRESETS,
        "Widths: the published network's, those that give Table 2's parameter counts, or a quarter of the published for a "
        "computer without a GPU.",
        default="published",
        of=OF_BASELINES,
    ),
    Option(
        "pretrained",
        "inputs.pretrained",
        BASELINES_ONLY,
        click.Path(dir_okay=False, path_type=Path),
        "Weights for the encoders of transunet (torchvision's ResNet-50, timm's or Google's R50 + ViT-B/16) or "
        "pretrained_unet (an EfficientNet-b0 of efficientnet-pytorch, torchvision or timm). A grid's row whose file is not "
        "there is marked as not run.",
        of=OF_PRETRAINED,
        instead="there are published weights for the encoders of " + ", ".join(WITH_PRETRAINED),
    ),
    Option(
        "augment",
        "recipe.augment",
        BASELINES_ONLY,
        click.BOOL,
        "Change every training slice at random before each step, as nnU-Net does (rotation, zoom, shift, deformation, grey "
        "values; never mirrored).  [default: paper no; stable yes]",
        of=OF_BASELINES,
        without=False,
        instead="zeus trains on cached embeddings, its way are cached views",
    ),
    Option(
        "modalities",
        "inputs.modalities",
        DATA,
        NAMES,
        "Only these, separated by commas.  [default: all]",
    ),
    Option(
        "fold",
        "split.fold",
        DATA,
        click.IntRange(0),
        "The fold to hold out. An eighth of the others was drawn with it to validate on, where there are five or more.  "
        "[default: 0]",
        in_grid=False,
    ),
    Option(
        "train_subjects",
        "split.train",
        DATA,
        NAMES,
        "Names instead of a fold.  [default: all labelled but the test subjects]",
    ),
    Option(
        "test_subjects",
        "split.test",
        DATA,
        NAMES,
        "Names instead of a fold.  [default: all labelled but the train subjects]",
    ),
    Option(
        "validation_subjects",
        "split.validation",
        DATA,
        NAMES,
        "Names to choose the best weights on, beside named training or test subjects; they are trained on by nothing.  "
        "[default: none; of a fold those drawn with it]",
    ),
    Option(
        "allow_seen",
        "inputs.seen",
        DATA,
        click.BOOL,
        "Test also on subjects that the instructions' projection was trained on; every table then says so.",
        default=False,
    ),
    Option(
        "allow_leak",
        "inputs.leaks",
        DATA,
        click.BOOL,
        "Train on instructions that were made from the true labels; every table then says so.",
        default=False,
    ),
    Option(
        "recipe",
        "recipe.name",
        OPTIMISATION,
        RECIPES,
        "paper: Zeus, section 4.1; on few slices it ends in empty masks. stable: AdamW with warm-up and clipping, Dice "
        "over the batch, two thirds of each batch with foreground.",
        default="stable",
    ),
    Option(
        "epochs",
        "recipe.epochs",
        OPTIMISATION,
        click.IntRange(1),
        "Passes over the slices. With --resume more than before: the learning rate goes on as if so many had been planned, "
        "and rises with that.  [default: paper 300; stable 15, a baseline 30, more for few slices]",
    ),
    Option(
        "batch_size",
        "recipe.batch_size",
        OPTIMISATION,
        click.IntRange(1),
        "Slices, each with all modalities.  [default: paper 10; stable 4]",
    ),
    Option(
        "lr",
        "recipe.lr_pretrained",
        OPTIMISATION,
        click.FloatRange(0, min_open=True),
        "Highest learning rate: of Zeus's pretrained decoder, of all of a baseline.  "
        "[default: paper 1e-3; stable 4e-4, a baseline 1e-3]",
    ),
    Option(
        "lr_new",
        "recipe.lr_new",
        ZEUS_ONLY,
        click.FloatRange(0, min_open=True),
        "Highest learning rate of what starts from nothing in Zeus: the aligner.  [default: as --lr]",
        of=OF_ZEUS,
    ),
    Option(
        "foreground_share",
        "recipe.foreground_share",
        OPTIMISATION,
        click.FloatRange(0, 1),
        "Smallest share of slices with foreground in a batch; 1: no others.  [default: paper 0; stable 0.67]",
    ),
    Option(
        "class_weights",
        "recipe.class_weights",
        OPTIMISATION,
        CLASS_WEIGHTS,
        "inverse: classes weigh as 1 / sqrt(their pixels in the training slices).  [default: equal]",
    ),
    Option(
        "accumulate",
        "recipe.accumulate",
        OPTIMISATION,
        click.IntRange(1),
        "Batches that make one optimiser step.  [default: 1]",
    ),
    Option(
        "ema",
        "recipe.ema",
        OPTIMISATION,
        click.FloatRange(0, 1, max_open=True),
        "Keep the running mean of the weights with this decay, e.g. 0.99, which warms up: at step t it is (1 + t) / (10 + t) "
        "at most; 0: the weights themselves.  [default: 0]",
    ),
    Option(
        "modality_drop",
        "recipe.modality_drop",
        OPTIMISATION,
        click.FloatRange(0, 1, max_open=True),
        "Chance of each modality to be left out of a step, for studies that lack one.  [default: 0]",
    ),
    Option(
        "text_drop",
        "recipe.text_drop",
        ZEUS_ONLY,
        click.FloatRange(0, 1, max_open=True),
        "Chance of each slice to be answered without its text in a step, so that the learned token stays good alone; with "
        "the residual aligner.  [default: paper 0; stable 0.1]",
        of=OF_ZEUS,
    ),
    Option(
        "precision",
        "recipe.precision",
        OPTIMISATION,
        PRECISIONS,
        "bf16: forward passes under autocast, weights and losses in fp32.  [default: fp32]",
    ),
    Option(
        "seed",
        "seed",
        OPTIMISATION,
        click.IntRange(0),
        "Of the weights that start from nothing and of the order of slices.",
        default=0,
        in_grid=False,
    ),
)
BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}


def panels() -> dict[str, str]:
    """As `PanelCommand` takes them."""
    headings = dict.fromkeys(option.panel for option in OPTIONS)
    return {heading: " ".join(option.name for option in OPTIONS if option.panel == heading) for heading in headings}


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """All options by name, those that are not given at their defaults.

    Raises:
        UserError: one that does not exist; a value that is none of the option's choices.
    """
    unknown = sorted(set(given) - set(BY_NAME))
    if unknown:
        raise UserError(
            f"unknown option {', '.join(unknown)}; there are: {', '.join(BY_NAME)}{nearest(unknown[0], BY_NAME)}"
        )
    options = {}
    for option in OPTIONS:
        value = given.get(option.name)
        options[option.name] = option.default if value is None else value
        if isinstance(option.click_type, click.Choice) and options[option.name] is not None:
            choose([options[option.name]], option.click_type.choices, option.name)
    return options


def check_model_has(options: Mapping[str, Any]) -> None:
    """Raises UserError: an option is given that the chosen model does not have."""
    model = options["model"]
    foreign = [BY_NAME[name] for name in foreign_options(model, options)]
    foreign = [option for option in foreign if option.is_given(options[option.name])]
    if foreign:
        flags = ", ".join(option.flag for option in foreign)
        apply = "applies" if len(foreign) == 1 else "apply"
        having = {name for option in foreign for name in option.of or MODELS}
        whose = (
            ZEUS
            if having == set(OF_ZEUS)
            else "baselines"
            if having == set(OF_BASELINES)
            else ", ".join(sorted(having))
        )
        instead = "".join(f"; {option.instead}" for option in foreign if option.instead)
        raise UserError(f"{flags} {apply} to {whose} only and this is {model}{instead}; leave out {flags}")


def foreign_options(model: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that a model does not have."""
    return [name for name in names if model not in (BY_NAME[name].of or MODELS)]


def placed(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The options that stand in one part of `RunConfig`, by the names of its fields, those without a value left out."""
    fields = {option.place.partition(".")[2]: options[option.name] for option in OPTIONS if _part(option) == part}
    return {name: value for name, value in fields.items() if value is not None}


def _part(option: Option) -> str:
    return option.place.partition(".")[0]


def read_row(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options as a grid's YAML has them -> options of `plan_run`, checked as the command line's are.

    Args:
        values: e.g. {'batch-size': 4, 'modalities': ['T1', 'T2']}; dashes and underscores are one.
        where: names the row in messages.

    Raises:
        UserError: an option that a row cannot set, or a value that the command line would refuse.
    """
    options = {}
    for name, value in values.items():
        option = BY_NAME.get(str(name).replace("-", "_"))
        if option is None or not option.in_grid:
            names = ", ".join(sorted(known.flag[2:] for known in OPTIONS if known.in_grid))
            raise UserError(
                f"{where}: unknown option {name}; there are: {names}{nearest(str(name), names.split(', '))}"
            )
        options[option.name] = option.read(value, where)
    return options


def with_options(command: F) -> F:
    """Gives a command all of `OPTIONS`."""
    for option in reversed(OPTIONS):
        command = option.as_click()(command)
    return command


def read_command_line(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as click gives them -> options of `plan_run`."""
    return {name: split_names(value) if BY_NAME[name].type is NAMES else value for name, value in values.items()}
