"""Any vision-language model of transformers that answers a question about an image, with its own processor and template."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from zeus_union.cache.errors import UserError, first_line
from zeus_union.stage1_instruct.models.batching import rows_that_fit, run_in_chosen_batches
from zeus_union.stage1_instruct.models.language.decoding import Answer, Decoding, Row
from zeus_union.stage1_instruct.models.language.library import LibraryDecoder
from zeus_union.stage1_instruct.models.language.llm import Generation, check_context, decoding_recipe, end_ids
from zeus_union.stage1_instruct.models.language.prompts import QUESTION
from zeus_union.stage1_instruct.models.pretrained import Loading, load_pretrained, load_processor
from zeus_union.stage1_instruct.models.text.clip import of_equal_length
from zeus_union.stage1_instruct.profiles.profile import VLM, Profile, Sees
from zeus_union.stage1_instruct.weights.store import digest_of

WHAT = "vision-language model"


class VisionLanguageModel:
    """The instructor 'vlm' of a profile; loaded when it is first used."""

    sees: Sees = "pictures"

    def __init__(
        self, profile: Profile, decoding: Callable[[], Decoding], device: torch.device, say: Callable[[str], None]
    ) -> None:
        """Args:
        decoding: how an answer is chosen.
        say: told where fewer rows go together because memory ran out.
        """
        self._profile = profile
        self._new_decoding = decoding
        self._device = device
        self._say = say
        self._loading = Loading(profile.llm_precision, profile.llm_quantize, profile.llm_device_map)
        self._batch_size: int | None = None

    @property
    def samples(self) -> bool:
        return self._profile.samples

    @cached_property
    def _decoding(self) -> Decoding:
        return self._new_decoding()

    @cached_property
    def _processor(self) -> Any:
        """Its tokenizer, image processor and chat template.

        Raises:
            UserError: as `load_processor`.
        """
        return load_processor(self._profile.model, WHAT)

    @cached_property
    def _model(self) -> Any:
        """Raises UserError: as `load_pretrained`."""
        auto_class = transformers.AutoModelForImageTextToText
        _, model = load_pretrained(auto_class, self._profile.model, WHAT, self._loading, self._device)
        return model

    @cached_property
    def _decoder(self) -> LibraryDecoder:
        ends = frozenset(end_ids(self._model, self._processor.tokenizer))
        return LibraryDecoder(
            self._model, self._decoding, 1, lambda tokens: "eos" if tokens[-1] in ends else None, self._say
        )

    def recipe(self) -> dict[str, Any]:
        """What decides the text, JSON-able, without paths; loads the processor and no model.

        The image processor has a name there since those by torchvision and by PIL round differently.
        """
        return {
            "instructor": VLM,
            "weights_sha256": digest_of(self._profile.model),
            "prompt": self.prompt(QUESTION),
            "image_processor": type(self._processor.image_processor).__name__,
            **decoding_recipe(self._decoding, self._loading),
        }

    def load(self) -> None:
        """Loads processor and model.

        Raises:
            UserError: one of them cannot be loaded, or the chat template has no place for a picture.
        """
        picture = Image.new("RGB", (256, 256))
        tokens, without = (self._tokens([QUESTION], pictures)["input_ids"].shape[1] for pictures in ([picture], [None]))
        if tokens <= without:
            raise UserError(
                f"the chat template of the {WHAT} {self._profile.model} has no place for a picture: a question has {without} "
                "tokens with and without one; take the template of the model's publisher"
            )
        _ = self._model

    def prompt(self, question: str) -> str:
        """The whole prompt as its chat template makes it, with the model's own mark where the image tokens go."""
        return str(self._apply_template(_message(question, [{"type": "image"}]), tokenize=False))

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[str], images: Tensor | None, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """One instruction per question and picture uint8 (B, H, W), in order; equal to asking one by one.

        Prompts of one length go together and none is padded. In half precision a near tie between two tokens may fall
        the other way in a batch, as with any model.

        Raises:
            UserError: prompt and answer do not fit the model's context; not even one prompt fits the memory.
        """
        if images is None:
            raise ValueError("images = None, expected one for each question")
        if not questions:
            return []
        pictures = [Image.fromarray(picture).convert("RGB") for picture in images.cpu().numpy()]
        # The pictures are of one size: the length depends on the question alone.
        lengths = {question: self._length(question, pictures[0]) for question in dict.fromkeys(questions)}
        check_context(self._model, max(lengths.values()), self._decoding.max_new_tokens)
        answers: dict[Hashable, Answer] = {}

        def generate(chosen: list[int]) -> None:
            rows = [
                Row(at, lengths[questions[at]], torch.Generator().manual_seed(seeds[at] if seeds else 0))
                for at in chosen
            ]
            inputs = self._inputs([questions[at] for at in chosen], [pictures[at] for at in chosen])
            self._decoder.generate(rows, inputs, answers)

        size = self._batch_size or self._decoding.batch_size
        if size is None:
            longest = max(range(len(questions)), key=lambda at: lengths[questions[at]])
            devices = {parameter.device for parameter in self._model.parameters()}
            size = rows_that_fit(lambda count: generate([longest] * count), devices)
        for alike in of_equal_length([range(lengths[question]) for question in questions]):
            _, size = run_in_chosen_batches(generate, alike, size, self._say, f"the {WHAT}")
        self._batch_size = size
        return [self._generation(answers[at], lengths[question]) for at, question in enumerate(questions)]

    def _length(self, question: str, picture: Image.Image) -> int:
        """Tokens of a prompt, with those of the picture."""
        return int(self._inputs([question], [picture])["input_ids"].shape[1])

    def _inputs(self, questions: Sequence[str], pictures: Sequence[Image.Image]) -> Any:
        """What the model reads, on its first device and in its precision."""
        weight = self._model.get_input_embeddings().weight
        return self._tokens(questions, pictures).to(weight.device, weight.dtype)

    def _tokens(self, questions: Sequence[str], pictures: Sequence[Image.Image | None]) -> Any:
        """What the processor makes of conversations of equal length; no picture where that is None."""
        conversations = [
            _message(question, [] if picture is None else [{"type": "image", "image": picture}])
            for question, picture in zip(questions, pictures)
        ]
        return self._apply_template(conversations, tokenize=True, return_dict=True, return_tensors="pt")

    def _apply_template(self, conversations: list[Any], **form: Any) -> Any:
        """Raises UserError: the template, or the processor behind it, cannot take a picture with a question."""
        try:
            return self._processor.apply_chat_template(conversations, add_generation_prompt=True, **form)
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(
                f"the {WHAT} {self._profile.model} cannot read a picture with a question by its chat template "
                f"({first_line(error)}); check chat_template.jinja, or choose another model"
            ) from error

    def _generation(self, answer: Answer, prompt_tokens: int) -> Generation:
        text = self._processor.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        return Generation(" ".join(text.split()), prompt_tokens, len(answer.tokens), answer.stop_reason, answer.states)


def _message(question: str, image: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation of one turn: the image, if any, then the question."""
    return [{"role": "user", "content": [*image, {"type": "text", "text": question}]}]
