"""The language model that writes the instructions: any Hugging Face causal LM folder, image tokens by inputs_embeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.models.batching import rows_that_fit
from zeus_union.stage1_instruct.models.language.decoding import Answer, Decoder, Decoding, Prompt, Prompts
from zeus_union.stage1_instruct.models.language.library import LibraryDecoder, Serving, serving
from zeus_union.stage1_instruct.models.language.prompts import Template
from zeus_union.stage1_instruct.models.pretrained import Loading, check_ids, load_pretrained
from zeus_union.stage1_instruct.weights.store import digest_of

__all__ = ["Decoding", "Generation", "InstructionLLM", "LoadedLLM", "Loading", "llm_recipe"]


class LoadedLLM(NamedTuple):
    """A frozen causal LM, its tokenizer, and the digest that stands for it in a recipe."""

    tokenizer: Any
    model: Any
    digest: str


def load_llm(llm: str, loading: Loading, device: str | torch.device) -> LoadedLLM:
    """Args: llm: a name that `fetch` knows, or a folder with config, weights and tokenizer.

    Raises:
        UserError: as `load_pretrained`.
    """
    auto_class = transformers.AutoModelForCausalLM
    return LoadedLLM(*load_pretrained(auto_class, llm, "language model", loading, device), digest_of(llm))


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: up to the template's marker, with white space collapsed.
        prompt_tokens: including the image tokens.
        output_tokens: generated, including the marker or end-of-text token.
        stop_reason: 'stop' (the template's marker), 'eos' (the model's end of text) or 'length'.
        states: fp16 (output_tokens, width) on the CPU where they are kept: the last layer's states after the final norm,
            each the one its token was chosen from.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    stop_reason: str
    states: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Asked:
    """A question about an image.

    Attributes:
        key: names it in its answer; no other of a stream has the same.
        image_tokens: float32 (T, H), projected to the model's width.
        seed: used where it samples.
    """

    key: Hashable
    question: str
    image_tokens: Tensor
    seed: int = 0


class InstructionLLM:
    """A frozen causal LM that answers a question about an image given as token embeddings."""

    def __init__(
        self,
        llm: str | LoadedLLM,
        template: Template,
        decoding: Decoding,
        device: str | torch.device = "cpu",
        loading: Loading | None = None,
    ) -> None:
        """Args: llm: loaded already, or as for `load_llm`."""
        self.loading = loading or Loading()
        loaded = load_llm(llm, self.loading, device) if isinstance(llm, str) else llm
        self.tokenizer, self.model, self.digest = loaded
        self.template = template
        self.decoding = decoding
        self._slots = decoding.batch_size  # None: not known yet
        self._ends: frozenset[int] = frozenset()
        self._closing: dict[int, bool] = {}  # token -> whether the marker's last letter is in it

    @cached_property
    def serving(self) -> Serving:
        """Whether the decode loop or transformers' generate answers; said where it is the slower one.

        Raises:
            UserError: memory runs out.
        """
        chosen = serving(self.model)
        if chosen.by_library:
            say(f"{chosen.report}: its answers come from transformers' generate, one prompt at a time, which is slower")
        return chosen

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """Width of the token embeddings."""
        return self.embedding.embedding_dim

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a piece of a prompt, without special tokens.

        Raises:
            UserError: it names a special token for which the model has no embedding.
        """
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        check_ids(self.tokenizer, ids, self.embedding.num_embeddings)
        return ids

    def embed_prompt(self, question: str, image_tokens: Tensor) -> Tensor:
        """(T, H) image tokens inside the template -> (L, H) embeddings, in the model's precision.

        The two pieces of text are tokenised on their own, as XrayGPT and MiniGPT-4 do; a beginning-of-text token is put
        in front once, where the tokenizer itself would (LLaMA's does, SmolLM2's does not).
        """
        return self._embed_around(image_tokens, *self._prompt_ids(question))

    def _prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        before, after = (self.token_ids(piece) for piece in self.template.pieces(question))
        if self.template.image_first:
            return before, self._beginning() + after
        return self._beginning() + before, after

    def _beginning(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if bos is None or self.tokenizer("a").input_ids[0] != bos:
            return []
        check_ids(self.tokenizer, [bos], self.embedding.num_embeddings)
        return [bos]

    def _embed_around(self, image_tokens: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
        weight = self.embedding.weight
        return torch.cat([self._embed(before), image_tokens.to(weight.device, weight.dtype), self._embed(after)])

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return self.embedding(torch.tensor(list(ids), dtype=torch.long, device=self.embedding.weight.device))

    def generate(
        self,
        questions: Sequence[str],
        image_tokens: Tensor,
        seeds: Sequence[int] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Generation]:
        """Answers, in order; equal to asking one by one.

        In fp32 equal token for token; in half precision, rounding differs with the number of rows computed together, so
        that a near tie between two tokens may fall the other way.

        Args:
            questions: B of them.
            image_tokens: float32 (B, T, H), projected to the model's width.
            seeds: one a question, used where it samples; 0 by default.
            max_new_tokens: in place of the profile's.
        Raises:
            UserError: prompt and answer do not fit the model's context; not even one prompt fits the memory.
        """
        if len(questions) != len(image_tokens) or image_tokens.shape[-1] != self.width:
            raise ValueError(
                f"{len(questions)} questions, image tokens {tuple(image_tokens.shape)}, width {self.width}"
            )
        seeds = [0] * len(questions) if seeds is None else seeds
        if len(seeds) != len(questions):
            raise ValueError(f"{len(questions)} questions, {len(seeds)} seeds")
        asked = (Asked(i, questions[i], image_tokens[i], seeds[i]) for i in range(len(questions)))
        generations = dict(self.stream(asked, {*questions}, image_tokens.shape[1], max_new_tokens, most=len(questions)))
        return [generations[i] for i in range(len(questions))]

    def stream(
        self,
        asked: Iterator[Asked],
        questions: Collection[str],
        image_tokens: int,
        max_new_tokens: int | None = None,
        most: int | None = None,
    ) -> Iterator[tuple[Hashable, Generation]]:
        """(key, answer) of each that is asked, whichever ends first, equal to asking one by one as `generate` says.

        Args:
            asked: each is taken when the answer before it in its slot has ended; what it raises passes through.
            questions: all that may be asked.
            image_tokens: of each image.
            max_new_tokens: in place of the profile's.
            most: no more are asked than that.

        Raises:
            UserError: as `generate`.
        """
        if not questions:
            return
        # Before the model's own settings are replaced, as they are while transformers' generate answers.
        self._ends, self._closing = frozenset(end_ids(self.model, self.tokenizer)), {}
        decoding = replace(self.decoding, max_new_tokens=max_new_tokens or self.decoding.max_new_tokens)
        ids = {question: self._prompt_ids(question) for question in sorted(questions)}
        lengths = {question: len(before) + image_tokens + len(after) for question, (before, after) in ids.items()}
        longest = max(lengths.values())
        check_context(self.model, longest, decoding.max_new_tokens)
        shared = min(_common_beginning([before for before, _ in ids.values()]), min(lengths.values()) - 1)
        first = next(asked, None)
        if first is None:
            return
        kind = LibraryDecoder if self.serving.by_library else Decoder
        if self._slots is None:
            widest = max(lengths, key=lengths.__getitem__)
            embed = partial(self._embed_around, first.image_tokens, *ids[widest])
            self._slots = 1 if kind is LibraryDecoder else self._rows_that_fit(embed, longest, shared, decoding)
        decoder = kind(self.model, decoding, self._slots, self._why_it_ends, say)
        prompts = (
            Prompt(
                part.key,
                lengths[part.question],
                partial(self._embed_around, part.image_tokens, *ids[part.question]),
                part.seed,
            )
            for part in chain([first], asked)
        )
        prompt_tokens: dict[Hashable, int] = {}

        def noted() -> Iterator[Prompt]:
            for prompt in prompts:
                prompt_tokens[prompt.key] = prompt.length
                yield prompt

        for key, answer in decoder.stream(noted(), longest, shared, most):
            self._slots = decoder.slots
            yield key, self._generation(answer, prompt_tokens.pop(key))

    def _rows_that_fit(self, embed: Callable[[], Tensor], length: int, shared: int, decoding: Decoding) -> int:
        """How many of the longest prompt fit together, by two tokens of each: the cache has its full size from the first."""

        def run(rows: int) -> None:
            decoder = Decoder(self.model, decoding, rows, lambda tokens: "stop" if len(tokens) > 1 else None, say)
            decoder.run(Prompts([length] * rows, lambda _: embed(), shared), [0] * rows)
            if decoder.slots < rows:
                raise MemoryError

        return rows_that_fit(run, {parameter.device for parameter in self.model.parameters()})

    def _why_it_ends(self, tokens: Sequence[int]) -> str | None:
        """'eos' or 'stop' where the last token ends the answer; the marker counts however it is cut into tokens."""
        if tokens[-1] in self._ends:
            return "eos"
        marker = self.template.marker
        if tokens[-1] not in self._closing:
            # Decoding eight tokens of each row takes as long as a small model's step; most tokens cannot end a marker.
            self._closing[tokens[-1]] = marker[-1] in self.tokenizer.decode(tokens[-1:])
        closes = self._closing[tokens[-1]] and marker in self.tokenizer.decode(tokens[-8:])
        return "stop" if closes else None

    def _generation(self, answer: Answer, prompt_tokens: int) -> Generation:
        text = self.tokenizer.decode(answer.tokens, skip_special_tokens=True).split(self.template.marker)[0]
        return Generation(" ".join(text.split()), prompt_tokens, len(answer.tokens), answer.stop_reason, answer.states)

    def recipe(self) -> dict[str, Any]:
        """What decides the text, without the image."""
        return llm_recipe(self.digest, self.template, self.decoding, self.loading)


def llm_recipe(digest: str, template: Template, decoding: Decoding, loading: Loading) -> dict[str, Any]:
    """What decides a language model's text, without the image; batch size and the device do not.

    Args:
        digest: of its weights, which need not be loaded.
    """
    return {
        "weights_sha256": digest,
        "template": {"name": template.name, "text": template.text, "marker": template.marker},
        **decoding_recipe(decoding, loading),
    }


def decoding_recipe(decoding: Decoding, loading: Loading) -> dict[str, Any]:
    """What decides an answer beside model, prompt and image."""
    sampled = {"method": "sampled", "temperature": decoding.temperature, "top_p": decoding.top_p}
    recipe: dict[str, Any] = {
        "decoding": {
            **(sampled if decoding.temperature else {"method": "greedy"}),
            "max_new_tokens": decoding.max_new_tokens,
            "repetition_penalty": decoding.repetition_penalty,
            "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
        },
        "precision": loading.precision,
        "quantize": loading.quantize,
    }
    if decoding.keep_states:
        recipe["states"] = "last layer after the final norm, fp16"
    return recipe


def check_context(model: Any, longest: int, max_new_tokens: int) -> None:
    """Raises UserError: a prompt of so many tokens and its answer do not fit the model's context."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest + max_new_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit the language model's "
            f"context of {context}; lower max_new_tokens or the number of image tokens"
        )


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The model's end-of-text ids."""
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = tokenizer.eos_token_id
    if configured is None:
        return []
    return list(configured) if isinstance(configured, (list, tuple)) else [configured]


def _common_beginning(rows: Sequence[list[int]]) -> int:
    """How many leading ids are the same in all rows."""
    length = min(len(row) for row in rows)
    return next((i for i in range(length) if len({row[i] for row in rows}) > 1), length)
