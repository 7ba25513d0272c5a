"""The objective of the projection: the frozen language model has to give the caption when it is shown the image.

In text form the instruction is discrete, so the mask loss of stage 2 sends the projection no gradient; it has this
objective of its own instead, as in LLaVA's and XrayGPT's first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeus_union.stage1_instruct.models.bridge.connectors import Connector
from zeus_union.stage1_instruct.models.language.llm import InstructionLLM


@dataclass(frozen=True, eq=False)
class Captioning:
    """Images with what was asked and what should be said of them.

    Attributes:
        connector: what is trained.
        llm: frozen, but for a LoRA where it has one that requires gradients.
        features: float32 (N, T, C), the frozen vision features; questions and captions alike.
        caption_tokens: captions are cut to this many, with the end marker.
        autocast: compute in bf16 or fp16 where weights are fp32; None: in the precision of the weights.
    """

    connector: Connector
    llm: InstructionLLM
    features: Tensor
    questions: Sequence[str]
    captions: Sequence[str]
    caption_tokens: int = 64
    autocast: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        return self.llm.embedding.weight.device

    def trainable(self) -> list[nn.Parameter]:
        """The connector's parameters, and the LoRA's that require gradients."""
        of_lora = [parameter for parameter in self.llm.model.parameters() if parameter.requires_grad]
        return [*self.connector.parameters(), *of_lora]

    def target(self, row: int) -> list[int]:
        """Token ids of a caption, cut, with the template's end, so that the model learns to stop."""
        end = self.llm.token_ids(self.llm.template.answer_end)
        return self.llm.token_ids(f" {self.captions[row]}")[: self.caption_tokens - len(end)] + end

    def tokens(self, rows: Sequence[int]) -> int:
        """How many caption tokens some rows have."""
        return sum(len(self.target(row)) for row in rows)

    def loss(self, rows: Sequence[int], over: int | None = None) -> Tensor:
        """Cross-entropy of the rows' caption tokens after their prompts, summed and divided by `over` tokens.

        Args:
            over: the rows' own number of tokens by default; that of a whole batch where these rows are a part of it.
        """
        targets = [self.target(row) for row in rows]
        with self._precision():
            image_tokens = self.connector(self.features[list(rows)].to(self.device))
        prompts = [self.llm.embed_prompt(self.questions[row], tokens) for row, tokens in zip(rows, image_tokens)]
        # Padding stands on the right, after all that counts: with causal attention it needs no mask.
        longest = max(len(prompt) + len(target) for prompt, target in zip(prompts, targets))
        numbers: list[int] = []
        positions: list[int] = []
        wanted, embeds = [], []
        for number, (prompt, target) in enumerate(zip(prompts, targets)):
            ids = torch.tensor(target, device=self.device)
            sequence = torch.cat([prompt, self.llm.embedding(ids)])
            embeds.append(F.pad(sequence, (0, 0, 0, longest - len(sequence))))
            numbers += [number] * len(target)
            positions += range(len(prompt) - 1, len(prompt) - 1 + len(target))
            wanted.append(ids)
        with self._precision():
            # The causal LM's own inner model, on which a LoRA lies too; the output layer comes below.
            states = self.llm.model.base_model(inputs_embeds=torch.stack(embeds), use_cache=False).last_hidden_state
            # Only where a caption token is predicted: the output layer over the whole vocabulary is a fifth of the model.
            logits = self.llm.model.get_output_embeddings()(states[numbers, positions])
        summed = F.cross_entropy(logits.float(), torch.cat(wanted), reduction="sum")
        return summed / (over or len(positions))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    @property
    def in_fp16(self) -> bool:
        """Whether gradients pass through fp16, where small ones vanish unless the loss is scaled."""
        return torch.float16 in (self.autocast, self.llm.embedding.weight.dtype)

    @torch.no_grad()
    def mean_loss(self, rows: Sequence[int], batch_size: int) -> float | None:
        """Mean loss a caption token over some rows; None for none."""
        if not rows:
            return None
        total = self.tokens(rows)
        batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        return sum(self.loss(batch, total).item() for batch in batches)

    @torch.no_grad()
    def say(self, row: int) -> str:
        """What the language model now says of a row's image."""
        image_tokens = self.connector(self.features[row][None].to(self.device))
        return self.llm.generate([self.questions[row]], image_tokens)[0].text
