"""Decoding many prompts at once: a fixed number of slots, each given to the next prompt as soon as its row has ended.

`generate` of transformers keeps a batch together until its longest row ends, concatenates its cache at every token and
computes what all prompts begin with again for each. Here the keys and values lie in buffers of a fixed size, the shared
beginning is computed once, and a row's tokens are the same whatever shares the batch with it.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from zeus_union.cache.devices import release_memory
from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.batching import is_out_of_memory
from zeus_union.stage1_instruct.models.language.slot_cache import SlotCache, tensors


@dataclass(frozen=True)
class Decoding:
    """How the answer is chosen: greedy by default, so that a cache is reproducible.

    Attributes:
        max_new_tokens: at most this many.
        repetition_penalty: 1 is off; counts the answer only, not the prompt.
        no_repeat_ngram_size: no run of this many tokens twice in an answer; 0 is off.
        batch_size: rows decoded together, None: as many as fit; does not change the text.
        temperature: 0 is greedy; above it, the answer is sampled with a seed of its own for each prompt.
        top_p: sampled from the fewest tokens whose probabilities reach this sum; 1 is all of them.
        keep_states: the last layer's states are kept with the answer (Zeus's embedding form).
    """

    max_new_tokens: int = 300
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    batch_size: int | None = 16
    temperature: float = 0.0
    top_p: float = 1.0
    keep_states: bool = False


@dataclass(frozen=True)
class Prompts:
    """Prompts as embeddings, made when their turn comes.

    Attributes:
        lengths: L of each.
        embed: i -> (L_i, H), in the model's precision and on its device.
        shared: so many embeddings at the beginning are the same in all of them; less than the shortest is long.
    """

    lengths: Sequence[int]
    embed: Callable[[int], Tensor]
    shared: int = 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt of a stream.

    Attributes:
        key: names it in its answer; no other has the same.
        length: tokens.
        embed: -> (length, H), in the model's precision and on its device.
        seed: where it is sampled.
    """

    key: Hashable
    length: int
    embed: Callable[[], Tensor]
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """Token ids with the one that ended them; why they ended; fp16 (tokens, H) on the CPU: what each was chosen from."""

    tokens: list[int]
    stop_reason: str
    states: Tensor | None


@dataclass
class Row:
    """An answer in the making: of which prompt, its columns in the cache, and what was chosen up to now.

    `followers` is kept with every token, where n-grams are banned: n - 1 tokens -> those that have come after them.
    """

    prompt: Hashable
    length: int
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    followers: dict[tuple[int, ...], set[int]] = field(default_factory=dict)

    def append(self, token: int, n: int) -> None:
        """Args: n: size of the n-grams that are banned, 0 for none."""
        self.tokens.append(token)
        if n and len(self.tokens) >= n:
            self.followers.setdefault(tuple(self.tokens[-n:-1]), set()).add(token)

    def repeating(self, n: int) -> set[int]:
        """The tokens that would make the last n - 1 ones a run of n that is there already."""
        return self.followers.get(tuple(self.tokens[len(self.tokens) - n + 1 :]), set())


class Decoder:
    """Answers prompts with a causal LM of transformers that takes inputs_embeds, position_ids and a cache."""

    def __init__(
        self,
        model: Any,
        decoding: Decoding,
        slots: int,
        stop: Callable[[Sequence[int]], str | None],
        say: Callable[[str], None],
    ) -> None:
        """Args:
        slots: rows decoded together; halved, for good, where memory runs out.
        stop: an answer's tokens up to now -> why it ends with them, or None.
        say: told of each halving.
        """
        self.model = model
        self.decoding = decoding
        self.slots = slots
        self._stop = stop
        self._say = say
        # transformers 5.0 calls the argument past_key_values, 5.24 calls it cache and refuses the old name from 5.40 on.
        takes = inspect.signature(type(model).forward).parameters
        self._cache_argument = "cache" if "cache" in takes else "past_key_values"

    def run(self, prompts: Prompts, seeds: Sequence[int]) -> list[Answer]:
        """One answer a prompt, in order; equal, up to the rounding of the device, to asking one by one.

        Raises:
            UserError: memory runs out with a single row.
        """
        count = len(prompts.lengths)
        asked = (Prompt(i, prompts.lengths[i], partial(prompts.embed, i), seeds[i]) for i in range(count))
        answers = dict(self.stream(asked, max(prompts.lengths), prompts.shared, count))
        return [answers[i] for i in range(count)]

    def stream(
        self, prompts: Iterator[Prompt], longest: int, shared: int = 0, most: int | None = None
    ) -> Iterator[tuple[Hashable, Answer]]:
        """(key, answer) of each prompt, whichever ends first; the next prompt is taken as soon as a slot is free.

        Args:
            prompts: each is made when its turn comes; what that raises passes through.
            longest: no prompt has more tokens.
            shared: as in `Prompts`.
            most: there are no more prompts than that.

        Raises:
            UserError: memory runs out with a single row.
        """
        waiting: deque[Prompt] = deque()
        table: _Table | None = None
        left = True
        while True:
            rows = 0 if table is None else len(table.rows)
            # Outside of the block that catches: the memory for making a prompt is none of this model's.
            while left and rows + len(waiting) < self.slots:
                prompt = next(prompts, None)
                left = prompt is not None
                if prompt is not None:
                    waiting.append(prompt)
            if not waiting and not rows:
                return
            try:
                if table is None:
                    slots = self.slots if most is None else min(self.slots, most)
                    table = _Table(self, slots, longest, self._beginning(waiting[0], shared), shared)
                taken = min(len(waiting), self.slots - rows)
                ended = table.add([waiting[at] for at in range(taken)]) if taken else table.step()
                for _ in range(taken):
                    waiting.popleft()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.slots == 1:
                    raise out_of_memory(longest, self.decoding) from error
            else:
                yield from ended
                continue
            # Only here, after the except block, is the traceback gone that kept the cache alive.
            if table is not None:
                # Rows that were under way begin again: same seed, same text.
                waiting.extendleft(reversed(table.prompts))
            table = None
            self.slots = min(self.slots, len(waiting)) // 2 or 1
            self._say(f"the language model ran out of memory; going on with {self.slots} prompts at a time")
            release_memory()

    @torch.inference_mode()
    def _beginning(self, prompt: Prompt, shared: int) -> Cache | None:
        """What all prompts begin with, one row."""
        if not shared:
            return None
        cache = DynamicCache()
        self._forward(cache, inputs_embeds=prompt.embed()[None, :shared], logits_to_keep=1)
        return cache

    def _read(self, rows: list[Row], embeddings: Sequence[Tensor], beginning: Cache | None, shared: int) -> Cache:
        """Runs the rows' prompts, chooses their first tokens; the cache has them from column 0 on, padded behind.

        Padding behind the prompt needs no mask: no token looks ahead.
        """
        cache = DynamicCache()
        if beginning is not None:
            for number, (keys, values) in enumerate(tensors(beginning)):
                cache.update(keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1), number)
        pieces = [embedding[shared:] for embedding in embeddings]
        embeds = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        ends = sorted({len(piece) - 1 for piece in pieces})
        positions = torch.arange(shared, shared + embeds.shape[1], device=embeds.device)
        logits, states = self._forward(
            cache,
            inputs_embeds=embeds,
            position_ids=positions.expand(len(rows), -1),
            logits_to_keep=torch.tensor(ends, device=embeds.device),
        )
        last = [ends.index(len(piece) - 1) for piece in pieces]
        every = range(len(rows))
        self._choose(rows, logits[every, last], None if states is None else states[every, last])
        return cache

    def _step(self, rows: list[Row], cache: SlotCache) -> None:
        """One more token for every row."""
        lengths = [row.length for row in rows]
        cache.begin_step(max(lengths))
        for row in rows:
            row.length += 1
        device = self.model.get_input_embeddings().weight.device
        width = max(lengths) + 1
        mask = torch.arange(width, 0, -1) <= torch.tensor(lengths)[:, None] + 1
        logits, states = self._forward(
            cache,
            input_ids=torch.tensor([row.tokens[-1:] for row in rows]).to(device),
            attention_mask=mask.to(device, torch.long),
            position_ids=torch.tensor(lengths)[:, None].to(device),
            logits_to_keep=1,
        )
        cache.end_step()
        self._choose(rows, logits[:, -1], None if states is None else states[:, -1])

    def _forward(self, cache: Cache, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Logits (B, n, V) and, where they are kept, what they were computed from: the last layer's states (B, n, H)."""
        states: list[Tensor] = []
        hook = None
        if self.decoding.keep_states:
            # output_hidden_states would keep every layer's; the last one is what goes into the output embedding.
            head = self.model.get_output_embeddings()
            hook = head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0]))
        try:
            logits = self.model(use_cache=True, **{self._cache_argument: cache}, **inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits, states[0] if states else None

    def _choose(self, rows: list[Row], logits: Tensor, states: Tensor | None) -> None:
        """The next token of each row from its logits (B, V), and the state (B, H) behind it."""
        scores = self._against_loops(rows, logits.float())
        if self.decoding.temperature:
            chosen = _sample(scores / self.decoding.temperature, self.decoding.top_p, [row.generator for row in rows])
        else:
            chosen = scores.argmax(-1)
        for row, token in zip(rows, chosen.tolist()):
            row.append(token, self.decoding.no_repeat_ngram_size)
        if states is not None:
            for row, state in zip(rows, states.to("cpu", torch.float16)):
                row.states.append(state)

    def _against_loops(self, rows: list[Row], scores: Tensor) -> Tensor:
        """transformers' repetition penalty, then its ban of n-grams, both over the answers only; in place.

        The scores of all rows are written at once: a write for each row takes longer than a small model's step on a GPU.
        """
        penalty, n = self.decoding.repetition_penalty, self.decoding.no_repeat_ngram_size
        if penalty != 1 and rows[0].tokens:
            longest = max(len(row.tokens) for row in rows)
            # A token counts once however often it stands there, so a row's own first token can fill it up.
            ids = torch.tensor([row.tokens + row.tokens[:1] * (longest - len(row.tokens)) for row in rows])
            ids = ids.to(scores.device)
            chosen = scores.gather(1, ids)
            scores.scatter_(1, ids, torch.where(chosen < 0, chosen * penalty, chosen / penalty))
        if n:
            banned = [(at, token) for at, row in enumerate(rows) for token in row.repeating(n)]
            if banned:
                at, tokens = torch.tensor(banned).T.to(scores.device)
                scores[at, tokens] = -torch.inf
        return scores

    def _ended(self, row: Row, answers: dict[Hashable, Answer]) -> bool:
        reason = self._stop(row.tokens)
        if reason is None and len(row.tokens) == self.decoding.max_new_tokens:
            reason = "length"
        if reason is None:
            return False
        states = torch.stack(row.states) if self.decoding.keep_states else None
        answers[row.prompt] = Answer(row.tokens, reason, states)
        return True


class _Table:
    """The rows under way and their slots.

    Attributes:
        rows: one a slot.
        prompts: theirs.
    """

    def __init__(self, decoder: Decoder, slots: int, longest: int, beginning: Cache | None, shared: int) -> None:
        """Args: beginning: of `shared` tokens, which all prompts have in common."""
        self.rows: list[Row] = []
        self.prompts: list[Prompt] = []
        self._decoder = decoder
        self._slots = slots
        self._longest = longest
        self._beginning = beginning
        self._shared = shared
        self._cache: SlotCache | None = None

    @torch.inference_mode()
    def add(self, prompts: Sequence[Prompt]) -> list[tuple[Hashable, Answer]]:
        """Reads prompts into free slots; the answers that ended with their first token."""
        decoder, ended = self._decoder, dict[Hashable, Answer]()
        fresh = [Row(prompt.key, prompt.length, torch.Generator().manual_seed(prompt.seed)) for prompt in prompts]
        filled = decoder._read(fresh, [prompt.embed() for prompt in prompts], self._beginning, self._shared)
        if self._cache is None:
            self._cache = SlotCache(filled, self._slots, self._longest, decoder.decoding.max_new_tokens)
        for at, (row, prompt) in enumerate(zip(fresh, prompts)):
            if not decoder._ended(row, ended):
                self._cache.add(filled, at, row.length)
                self.rows.append(row)
                self.prompts.append(prompt)
        return list(ended.items())

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Answer]]:
        """One more token for every row; the answers that ended with it."""
        assert self._cache is not None
        ended: dict[Hashable, Answer] = {}
        self._decoder._step(self.rows, self._cache)
        for at in reversed(range(len(self.rows))):
            if self._decoder._ended(self.rows[at], ended):
                self._cache.drop(at)
                # As the cache does: the last one moves into the place.
                self.rows[at], self.prompts[at] = self.rows[-1], self.prompts[-1]
                self.rows.pop()
                self.prompts.pop()
        return list(ended.items())


def out_of_memory(longest: int, decoding: Decoding) -> UserError:
    """What to say where not even one row fits."""
    return UserError(
        f"the language model ran out of memory with a single prompt of up to {longest} tokens and "
        f"{decoding.max_new_tokens} new ones; free memory on the device, or choose a lower precision (llm_precision=bf16, "
        "llm_quantize=4bit)"
    )


def _sample(scores: Tensor, top_p: float, generators: Sequence[torch.Generator]) -> Tensor:
    """A token a row (B,), drawn from the likeliest ones of (B, V) with one number from the row's own generator.

    The numbers come from the CPU, so that a seed means the same on every device.
    """
    sorted_scores, tokens = scores.sort(dim=-1, descending=True, stable=True)
    # Apple's GPUs have no float64.
    exact = sorted_scores.cpu() if scores.device.type == "mps" else sorted_scores
    probabilities = exact.double().softmax(-1)
    reached = probabilities.cumsum(-1)
    kept = ((reached - probabilities) < top_p).sum(-1, keepdim=True)
    drawn = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    wanted = drawn.to(reached.device) * reached.gather(-1, kept - 1)
    rank = torch.searchsorted(reached, wanted, right=True).clamp(max=kept - 1)
    return tokens.gather(-1, rank.to(tokens.device))[:, 0]
