"""Language models that the decode loop cannot serve are answered by transformers' own `generate`: slower, the same text.

The loop keeps keys and values, and nothing else, for rows that come and go. Models with another memory (the states of
Mamba, of short convolutions, of linear attention) lose it there; which those are is seen from the model, and whatever is
not seen shows in a few tokens that both ways have to agree on.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from zeus_union.cache.errors import UserError, first_line
from zeus_union.stage1_instruct.models.batching import is_out_of_memory
from zeus_union.stage1_instruct.models.language.decoding import (
    Answer,
    Decoder,
    Decoding,
    Prompt,
    Prompts,
    Row,
    out_of_memory,
)

# Two prompts of different lengths with a common beginning, as the loop meets them.
_LENGTHS, _SHARED, _NEW_TOKENS = (7, 12), 3, 6
# Rounding may decide between two tokens whose scores differ by less than this share of the scores' spread.
_TIE = 0.05


@dataclass(frozen=True)
class Serving:
    """How a language model's answers are generated.

    Attributes:
        by_library: by transformers' `generate`, one prompt at a time; else by the decode loop.
        report: what was seen, for a person.
    """

    by_library: bool
    report: str


def serving(model: Any) -> Serving:
    """Which of the two ways is right for a causal LM of transformers; runs a few tokens through both.

    Raises:
        UserError: memory runs out.
    """
    reason = other_memory(model)
    if reason is not None:
        return Serving(True, reason)
    weight = model.get_input_embeddings().weight
    ids = torch.randint(len(weight), (max(_LENGTHS),), generator=torch.Generator().manual_seed(0))
    rows = [torch.cat([ids[:_SHARED], ids.roll(length)[_SHARED:length]]).to(weight.device) for length in _LENGTHS]
    prompts = Prompts(_LENGTHS, lambda i: model.get_input_embeddings()(rows[i]), _SHARED)
    decoding = Decoding(max_new_tokens=_NEW_TOKENS)
    library = _Recording(model, decoding, 1, _never, _nothing)
    try:
        expected = library.run(prompts, [0] * len(rows))
    except UserError as error:
        return Serving(False, f"could not be compared with transformers' generate: {error}")
    try:
        answers = Decoder(model, decoding, len(rows), _never, _nothing).run(prompts, [0] * len(rows))
    except UserError:
        raise
    except Exception as error:  # whatever a model does with a cache that is not its own
        return Serving(True, f"the decode loop does not serve it ({type(error).__name__}: {first_line(error)})")
    scores = [library.scores[at * _NEW_TOKENS : (at + 1) * _NEW_TOKENS] for at in range(len(rows))]
    for answer, wanted, of_row in zip(answers, expected, scores):
        if not _agree(answer.tokens, wanted.tokens, of_row):
            return Serving(True, "the decode loop's tokens are not those of transformers' generate")
    return Serving(False, f"{_NEW_TOKENS} tokens of {len(rows)} prompts are those of transformers' generate")


def other_memory(model: Any) -> str | None:
    """What a model remembers beside keys and values; None where that is all."""
    name = type(model).__name__
    if getattr(model, "_is_stateful", False):
        return f"{name} keeps a state beside keys and values"
    takes = inspect.signature(type(model).forward).parameters
    default = getattr(model, "_supports_default_dynamic_cache", None)
    if not {"cache", "past_key_values"} & takes.keys() or (default is not None and not default()):
        return f"{name} has a cache of its own kind"
    others = {type(layer) for layer in DynamicCache(config=model.config).layers} - {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }
    if others:
        return f"{name} keeps a state beside keys and values ({', '.join(sorted(kind.__name__ for kind in others))})"
    return None


class LibraryDecoder(Decoder):
    """Answers prompts through `generate`; tokens are chosen, and answers ended, as in the decode loop."""

    def stream(
        self, prompts: Iterator[Prompt], longest: int, shared: int = 0, most: int | None = None
    ) -> Iterator[tuple[Hashable, Answer]]:
        """As `Decoder.stream`, one prompt at a time."""
        for prompt in prompts:
            answers: dict[Hashable, Answer] = {}
            try:
                self._answer(prompt, answers)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise out_of_memory(longest, self.decoding) from error
            yield from answers.items()

    @torch.inference_mode()
    def _answer(self, prompt: Prompt, answers: dict[Hashable, Answer]) -> None:
        row = Row(prompt.key, prompt.length, torch.Generator().manual_seed(prompt.seed))
        embeds = prompt.embed()[None]
        mask = embeds.new_ones(embeds.shape[:2], dtype=torch.long)
        self.generate([row], {"inputs_embeds": embeds, "attention_mask": mask}, answers)

    def generate(self, rows: Sequence[Row], inputs: Mapping[str, Any], answers: dict[Hashable, Answer]) -> None:
        """Adds the answers of rows whose prompts are equally long: none is padded, so none is read otherwise than alone.

        Args:
            inputs: what `generate` takes, a row each.

        Raises:
            UserError: the model cannot answer from such inputs.
        """
        states: list[Tensor] = []
        hook = None
        if self.decoding.keep_states:
            head = self.model.get_output_embeddings()
            if head is None:
                raise UserError(
                    f"keep_states = yes, but {type(self.model).__name__} shows no states; give keep_states=no"
                )
            hook = head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0][:, -1]))
        under_way = list(range(len(rows)))

        def choose(scores: Tensor) -> Tensor:
            self._choose([rows[at] for at in under_way], scores[under_way], states[-1][under_way] if states else None)
            chosen = torch.full_like(scores, -torch.inf)
            chosen[range(len(rows)), [row.tokens[-1] for row in rows]] = 0
            return chosen

        def ended(device: torch.device) -> Tensor:
            under_way[:] = [at for at in under_way if not self._ended(rows[at], answers)]
            return torch.tensor([at not in under_way for at in range(len(rows))], device=device)

        settings = transformers.GenerationConfig(
            max_new_tokens=self.decoding.max_new_tokens, do_sample=False, num_beams=1, pad_token_id=0
        )
        try:
            with _only_these(self.model, settings):
                self.model.generate(
                    **inputs,
                    generation_config=settings,
                    logits_processor=transformers.LogitsProcessorList([_Choice(choose)]),
                    stopping_criteria=transformers.StoppingCriteriaList([_End(ended)]),
                )
        except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            given = "embeddings, as image tokens are" if "inputs_embeds" in inputs else "a picture and its question"
            raise UserError(
                f"transformers' generate cannot answer with {type(self.model).__name__} from {given} ({first_line(error)}); "
                "choose another language model"
            ) from error
        finally:
            if hook is not None:
                hook.remove()


class _Recording(LibraryDecoder):
    """Keeps the scores (V,) of every token, prompt after prompt."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scores: list[Tensor] = []

    def _choose(self, rows: list[Row], logits: Tensor, states: Tensor | None) -> None:
        self.scores.append(logits[0].float().cpu())
        super()._choose(rows, logits, states)


class _Choice(transformers.LogitsProcessor):
    """Leaves one token to choose."""

    def __init__(self, choose: Any) -> None:
        self._choose = choose

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self._choose(scores)


class _End(transformers.StoppingCriteria):
    """Ends rows."""

    def __init__(self, ended: Any) -> None:
        self._ended = ended

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return self._ended(input_ids.device)


@contextmanager
def _only_these(model: Any, settings: transformers.GenerationConfig) -> Iterator[None]:
    """Without what the checkpoint's own generation settings would add: they fill whatever is not set."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before


def _agree(tokens: Sequence[int], expected: Sequence[int], scores: Sequence[Tensor]) -> bool:
    """Whether two greedy answers are equal, up to the first token at which rounding may have decided."""
    for token, wanted, of_token in zip(tokens, expected, scores):
        if token != wanted:
            return bool(of_token[wanted] - of_token[token] <= _TIE * of_token.std())
    return True


def _never(tokens: Sequence[int]) -> None:
    return None


def _nothing(message: str) -> None:
    """What the comparison says on its way."""
