"""Whoever writes the instructions, as the build sees them; and the one that needs no model: the bare question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from zeus_union.stage1_instruct.models.language.llm import Generation
from zeus_union.stage1_instruct.models.language.prompts import QUESTION
from zeus_union.stage1_instruct.profiles.profile import PROMPT, Sees


class Instructor(Protocol):
    """Answers a question about an image with an instruction (Zeus, Eq. 3).

    Attributes:
        sees: 'pictures' uint8 (B, H, W), the image encoder's 'embeddings' float32 (B, 256, 64, 64), or 'nothing'.
        samples: whether the text depends on a seed.
    """

    @property
    def sees(self) -> Sees: ...

    @property
    def samples(self) -> bool: ...

    def recipe(self) -> dict[str, Any]:
        """What decides the text, JSON-able, without paths; loads no model."""

    def load(self) -> None:
        """Loads everything that `answer` needs, so that what is wrong is known before the first subject.

        Raises:
            UserError: a model that cannot be loaded, or parts that do not belong together.
        """

    def prompt(self, question: str) -> str:
        """The whole prompt as a person reads it."""

    def answer(
        self, questions: Sequence[str], images: Tensor | None, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """One instruction per question and image, in order.

        Args:
            images: B of what it `sees`; None where that is nothing.
            seeds: one a question, used where it `samples`; 0 by default.
        """


class BareQuestion:
    """The control without a model: the instruction is the question itself."""

    sees: Sees = "nothing"
    samples = False

    def recipe(self) -> dict[str, Any]:
        return {"instructor": PROMPT, "question": QUESTION}

    def load(self) -> None:
        """Nothing to load."""

    def prompt(self, question: str) -> str:
        return question

    def answer(
        self, questions: Sequence[str], images: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """The questions."""
        return [Generation(question, prompt_tokens=0, output_tokens=0, stop_reason=PROMPT) for question in questions]
