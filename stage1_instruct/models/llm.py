"""The language model that writes the instructions: any Hugging Face causal LM folder, image tokens by inputs_embeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from stage1_instruct.models.pretrained import load_pretrained
from stage1_instruct.prompts import Template
from stage1_instruct.weights import digest_of


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: up to the template's marker, with white space collapsed.
        prompt_tokens: including the image tokens.
        output_tokens: generated, including the marker or end-of-text token.
        stop_reason: 'stop' (the template's marker), 'eos' (the model's end of text) or 'length'.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    stop_reason: str


@dataclass(frozen=True)
class Decoding:
    """How the answer is chosen: greedy, so that a cache is reproducible.

    Attributes:
        max_new_tokens: at most this many.
        repetition_penalty: 1 is off; counts the answer only, not the prompt.
        no_repeat_ngram_size: no run of this many tokens twice in an answer; 0 is off.
        batch_size: rows decoded together; does not change the text.
    """

    max_new_tokens: int = 300
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    batch_size: int = 16


class InstructionLLM:
    """A frozen causal LM that answers a question about an image given as token embeddings."""

    def __init__(self, llm: str, template: Template, decoding: Decoding, device: str | torch.device = "cpu") -> None:
        """Args: llm: a name that `fetch` knows, or a folder with config, weights and tokenizer."""
        self.tokenizer, self.model = load_pretrained(transformers.AutoModelForCausalLM, llm, "language model")
        self.model.to(device)
        self.template = template
        self.decoding = decoding
        self.digest = digest_of(llm)
        self._device = torch.device(device)

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """Width of the token embeddings."""
        return self.embedding.embedding_dim

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a piece of a prompt, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def embed_prompt(self, question: str, image_tokens: Tensor) -> Tensor:
        """(T, H) image tokens inside the template -> (L, H) embeddings.

        The two pieces of text are tokenised on their own, as XrayGPT and MiniGPT-4 do; a beginning-of-text token is put
        in front once, where the tokenizer itself would (LLaMA's does, SmolLM2's does not).
        """
        before, after = (self.token_ids(piece) for piece in self.template.pieces(question))
        return torch.cat([self._embed(self._beginning() + before), image_tokens.to(self._device), self._embed(after)])

    def _beginning(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a").input_ids[0] == bos else []

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return self.embedding(torch.tensor(list(ids), dtype=torch.long, device=self._device))

    @torch.inference_mode()
    def generate(
        self, questions: Sequence[str], image_tokens: Tensor, max_new_tokens: int | None = None
    ) -> list[Generation]:
        """Answers, in order; equal to asking one by one.

        Args:
            questions: B of them.
            image_tokens: float32 (B, T, H), projected to the model's width.
            max_new_tokens: in place of the profile's.
        """
        if len(questions) != len(image_tokens) or image_tokens.shape[-1] != self.width:
            raise ValueError(
                f"{len(questions)} questions, image tokens {tuple(image_tokens.shape)}, width {self.width}"
            )
        answers: list[Generation] = []
        size = self.decoding.batch_size
        for start in range(0, len(questions), size):
            prompts = [self.embed_prompt(q, t) for q, t in zip(questions[start : start + size], image_tokens[start:])]
            answers += self._generate_batch(prompts, max_new_tokens or self.decoding.max_new_tokens)
        return answers

    def _generate_batch(self, prompts: Sequence[Tensor], max_new_tokens: int) -> list[Generation]:
        longest = max(len(prompt) for prompt in prompts)
        # Padding stands on the left, so that every row goes on from its own last token; it is masked.
        embeds = torch.zeros(len(prompts), longest, self.width, device=self._device)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=self._device)
        for row, prompt in enumerate(prompts):
            embeds[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        ends = self._ends()
        config = transformers.GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,  # what a model's own configuration asks for does not count, only the profile
            no_repeat_ngram_size=0,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
        marker = _MarkerSeen(self.tokenizer, self.template.marker)
        ids = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            generation_config=config,
            logits_processor=self._against_loops(),
            stopping_criteria=transformers.StoppingCriteriaList([marker]),
        )
        return [self._answer(row, len(prompt), ends) for row, prompt in zip(ids.tolist(), prompts)]

    def _against_loops(self) -> transformers.LogitsProcessorList:
        chosen = transformers.LogitsProcessorList()
        if self.decoding.repetition_penalty != 1:
            chosen.append(transformers.RepetitionPenaltyLogitsProcessor(self.decoding.repetition_penalty))
        if self.decoding.no_repeat_ngram_size:
            chosen.append(transformers.NoRepeatNGramLogitsProcessor(self.decoding.no_repeat_ngram_size))
        return chosen

    def _ends(self) -> list[int]:
        """The model's end-of-text ids."""
        configured = self.model.generation_config.eos_token_id
        if configured is None:
            configured = self.tokenizer.eos_token_id
        if configured is None:
            return []
        return list(configured) if isinstance(configured, (list, tuple)) else [configured]

    def _answer(self, ids: list[int], prompt_tokens: int, ends: list[int]) -> Generation:
        reason, count = "length", len(ids)
        for position, token in enumerate(ids):
            if token in ends:
                reason, count = "eos", position + 1
                break
            if self.template.marker in self.tokenizer.decode(ids[max(0, position - 7) : position + 1]):
                reason, count = "stop", position + 1
                break
        text = self.tokenizer.decode(ids[:count], skip_special_tokens=True).split(self.template.marker)[0]
        return Generation(" ".join(text.split()), prompt_tokens, count, reason)

    def recipe(self) -> dict[str, Any]:
        """What decides the text, without the image; batch size does not."""
        return {
            "weights_sha256": self.digest,
            "template": {"name": self.template.name, "text": self.template.text, "marker": self.template.marker},
            "decoding": {
                "method": "greedy",
                "max_new_tokens": self.decoding.max_new_tokens,
                "repetition_penalty": self.decoding.repetition_penalty,
                "no_repeat_ngram_size": self.decoding.no_repeat_ngram_size,
            },
            "precision": "fp32",
        }


class _MarkerSeen(transformers.StoppingCriteria):
    """Stops each row on its own once its last tokens spell the marker, however they are cut into tokens."""

    def __init__(self, tokenizer: Any, marker: str) -> None:
        self._tokenizer = tokenizer
        self._marker = marker

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tails = self._tokenizer.batch_decode(input_ids[:, -8:])
        return torch.tensor([self._marker in tail for tail in tails], device=input_ids.device)
