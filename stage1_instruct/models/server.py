"""A vision-language model behind an OpenAI-compatible server, asked over HTTP."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.endpoint import Completion, Endpoint, host_of, is_loopback
from zeus_union.stage1_instruct.models.language.llm import Generation
from zeus_union.stage1_instruct.models.language.prompts import QUESTION
from zeus_union.stage1_instruct.profiles.profile import SERVER, Profile, Sees

SEEDS = 1 << 31  # llama.cpp reads a seed as 32 bits


class ServedModel:
    """The instructor 'server' of a profile. Nothing but pictures and questions is ever sent."""

    sees: Sees = "pictures"

    def __init__(
        self,
        profile: Profile,
        max_new_tokens: Callable[[], int],
        say: Callable[[str], None],
        send_images_to: str | None = None,
    ) -> None:
        """Args:
        max_new_tokens: of an answer.
        say: told where pictures leave this machine.
        send_images_to: the host, where that is not this machine.
        """
        self._profile = profile
        self._max_new_tokens = max_new_tokens
        self._say = say
        self._send_images_to = send_images_to

    @property
    def samples(self) -> bool:
        return self._profile.samples

    @cached_property
    def endpoint(self) -> Endpoint:
        """The server, which may be sent pictures.

        Raises:
            UserError: it is not this machine, and nobody has said that pictures may go there.
        """
        profile = self._profile
        check_destination(profile.address, self._send_images_to, self._say)
        return Endpoint(
            profile.address,
            profile.model,
            key_variable=profile.key_variable,
            parallel=profile.parallel,
            retries=profile.retries,
            timeout_s=profile.timeout_s,
        )

    def recipe(self) -> dict[str, Any]:
        """What decides the text; where the model is served, and how fast, does not."""
        profile = self._profile
        sampled = {"method": "sampled", "temperature": profile.temperature, "top_p": profile.top_p}
        return {
            "instructor": SERVER,
            "model": profile.model,
            "message": f"picture as grey PNG, then: {QUESTION}",
            "decoding": {
                **(sampled if self.samples else {"method": "greedy"}),
                "max_new_tokens": self._max_new_tokens(),
            },
        }

    def load(self) -> None:
        """Asks the server once, with a picture of grey values, so that what is wrong is known before the first subject.

        Raises:
            UserError: the server cannot be asked, or its model does not look at pictures.
        """
        endpoint = self.endpoint
        served = endpoint.models()
        if served and endpoint.model not in served:
            self._say(f"{endpoint.address} lists {', '.join(served[:8])} and not {endpoint.model}")
        picture = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
        text = {"type": "text", "text": "What is this?"}
        settings = {"max_tokens": 1, "temperature": 0}
        with_picture = endpoint.complete([picture_part(picture), text], settings, allow_empty=True).prompt_tokens
        without = endpoint.complete([text], settings, allow_empty=True).prompt_tokens
        if with_picture is None or without is None:
            self._say(f"{endpoint.address} counts no tokens: whether {endpoint.model} looks at pictures is not known")
        elif with_picture <= without:
            raise UserError(
                f"{endpoint.model} at {endpoint.address} accepts no images: a question has {without} tokens with and without "
                "one; serve a vision-language model (llama.cpp needs its --mmproj)"
            )

    def prompt(self, question: str) -> str:
        return f"<image>{question}"

    def answer(
        self, questions: Sequence[str], images: Tensor | None, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """One instruction per question and picture uint8 (B, H, W), in order; several requests at a time.

        Raises:
            UserError: as `Endpoint.complete`; no further request is begun then.
        """
        if images is None:
            raise ValueError("images = None, expected one for each question")
        endpoint, pictures, given_up = self.endpoint, images.cpu().numpy(), threading.Event()
        settings: dict[str, Any] = {"max_tokens": self._max_new_tokens(), "temperature": self._profile.temperature}
        if self.samples:
            settings["top_p"] = self._profile.top_p

        def ask(row: int) -> Completion:
            seed = {"seed": (seeds[row] if seeds else 0) % SEEDS} if self.samples else {}
            content = [picture_part(pictures[row]), {"type": "text", "text": questions[row]}]
            return endpoint.complete(content, {**settings, **seed}, given_up=given_up)

        with ThreadPoolExecutor(self._profile.parallel) as threads:
            try:
                completions = list(threads.map(ask, range(len(questions))))
            except BaseException:
                given_up.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [_generation(completion) for completion in completions]


def check_destination(address: str, send_images_to: str | None, say: Callable[[str], None]) -> None:
    """Says where pictures go, where that is not this machine.

    Raises:
        UserError: nobody has said that they may go there, or another host was named.
    """
    host = host_of(address)
    if send_images_to is not None and send_images_to.lower().strip("[]") != host:
        raise UserError(
            f"--send-images-to {send_images_to}, but the profile's address is {address}; give --send-images-to {host} if "
            "images may be sent there"
        )
    if is_loopback(host):
        return
    if send_images_to is None:
        raise UserError(
            f"the address {address} is not this machine: every image would be sent to {host}; give --send-images-to {host} if "
            "they may be"
        )
    open_line = "" if address.lower().startswith("https:") else ", not encrypted (http)"
    say(f"images are sent to {host}{open_line}, as --send-images-to {host} allows")


def picture_part(picture: NDArray[np.uint8]) -> dict[str, Any]:
    """A picture (H, W), grey, as the part of a message: a PNG without any metadata in a data URL."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _generation(completion: Completion) -> Generation:
    return Generation(
        " ".join(completion.text.split()),
        prompt_tokens=completion.prompt_tokens or 0,
        output_tokens=completion.output_tokens or 0,
        stop_reason=completion.stop_reason,
    )
