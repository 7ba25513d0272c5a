"""A model server's chat completions (OpenAI's protocol: vLLM, SGLang, llama.cpp, transformers serve), by urllib3.

urllib3 and not requests: its pool may be shared by threads, and of its own accord it follows no proxy of the environment
and reads no ~/.netrc, so that a picture goes to the address that was given and nowhere else.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.util import Retry, parse_url

from zeus_union.cache.errors import ServerError, UserError, first_line

NONE = "none"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0
LARGEST_ANSWER = 1 << 24  # bytes; 300 tokens are about 2 kB
# Request timeout, too early, too many requests; beside these every 5xx may be gone at the next try.
_PASSING = (408, 425, 429)


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: as it came.
        prompt_tokens: with those of the picture; None where the server does not count.
        output_tokens: likewise.
        stop_reason: the server's: 'stop', 'length', ...
    """

    text: str
    prompt_tokens: int | None
    output_tokens: int | None
    stop_reason: str


class _Passing(Exception):
    """A fault that may be gone at the next try.

    Attributes:
        pause_s: how long the server asks to wait, if it does.
    """

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Empty(_Passing):
    """An answer without a word."""


def host_of(address: str) -> str:
    """The host that a request to this address goes to, as urllib3 reads it; lower case, without brackets.

    Raises:
        UserError: no address of a server.
    """
    try:
        url = parse_url(address)
    except urllib3.exceptions.LocationParseError as error:
        raise _no_address(address) from error
    # A backslash or a user makes an address of two hosts, of which two parsers may choose one each.
    if not re.fullmatch(r"(?i:https?)://[^\s\\@?#]+", address) or not url.host:
        raise _no_address(address)
    return url.host.lower().strip("[]")


def _no_address(address: str) -> UserError:
    return UserError(
        f"address = {address}, expected http://HOST:PORT/v1 or https://..., without user, password, ? or # "
        "(a key comes from the environment: key_variable=NAME)"
    )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Endpoint:
    """The chat completions of one model on one server; may be asked by several threads at once."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        key_variable: str = NONE,
        parallel: int = 1,
        retries: int = 5,
        timeout_s: float = 120.0,
    ) -> None:
        """Args:
        address: up to and including /v1.
        model: what the server calls it.
        key_variable: the environment variable with the server's key; 'none': it wants none.
        parallel: how many requests may be under way.
        retries: tries after the first, with pauses of 1, 2, 4, ... s or what the server asks for.
        timeout_s: for a whole answer.

        Raises:
            UserError: no address of a server; an environment variable that is not set.
        """
        host_of(address)
        self.address = address.rstrip("/")
        self.model = model
        self._retries = retries
        self._timeout_s = timeout_s
        self._pool = urllib3.PoolManager(maxsize=parallel, block=False, retries=False)
        self._headers = {"User-Agent": "zeus-union", "Accept": "application/json"}
        if key_variable != NONE:
            if not os.environ.get(key_variable):
                raise UserError(f"key_variable = {key_variable}, but no environment variable of that name is set")
            self._headers["Authorization"] = f"Bearer {os.environ[key_variable]}"

    def complete(
        self,
        content: list[dict[str, Any]],
        settings: Mapping[str, Any],
        *,
        allow_empty: bool = False,
        given_up: threading.Event | None = None,
    ) -> Completion:
        """The model's answer to one message.

        Args:
            content: of the message, parts of text and pictures in OpenAI's form.
            settings: max_tokens, temperature, ...
            allow_empty: an answer without a word is one.
            given_up: set when a request fails for good; there is no further try then, of this one or of others with it.

        Raises:
            ServerError: the server refuses, or cannot be reached, is too slow, in error or answers garbage at every try.
            UserError: the answer is empty at every try.
        """
        given_up = given_up or threading.Event()
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "stream": False, **settings}
        attempt = 0
        while True:
            if given_up.is_set():
                raise ServerError(f"{self.address}: another request failed")
            attempt += 1
            try:
                completion = self._completion(self._json("POST", "/chat/completions", body))
                if completion.text.strip() or allow_empty:
                    return completion
                raise _Empty(f"{self.model} answers without a word (finish_reason {completion.stop_reason})")
            except _Passing as fault:
                if attempt > self._retries or given_up.is_set():
                    given_up.set()
                    raise self._last(fault, attempt) from fault
                pause = fault.pause_s
            except ServerError:
                given_up.set()
                raise
            if pause is None:
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            given_up.wait(min(pause, LONGEST_PAUSE_S))

    def _last(self, fault: _Passing, attempts: int) -> UserError:
        """What is said after the last try."""
        if isinstance(fault, _Empty):
            return UserError(
                f"{self.address}: {fault} ({attempts} tries); where that is 'length', a model that thinks before it answers "
                "needs more max_new_tokens"
            )
        return ServerError(
            f"{self.address}: {fault} ({attempts} tries); see to the server (or to timeout_s, retries, parallel) and run the "
            "same command again: finished subjects stay finished"
        )

    def models(self) -> list[str]:
        """What the server says it serves; none where it does not say."""
        try:
            listed = self._json("GET", "/models", None)["data"]
            return [str(entry["id"]) for entry in listed]
        except (_Passing, ServerError, LookupError, TypeError):
            return []

    def _json(self, method: str, path: str, body: Any) -> Any:
        status, headers, data = self._request(method, path, body)
        if 300 <= status < 400:
            raise ServerError(
                f"{self.address} answers {status} and points to {headers.get('Location', 'another address')}: a picture is "
                "sent to the address that was given and to no other; give the right one with --set address=..."
            )
        if status >= 500 or status in _PASSING:
            raise _Passing(f"answers {status}: {_said(data)}", _retry_after(headers))
        if status >= 400:
            advice = "; the address ends in /v1 with most servers" if status == 404 else ""
            raise ServerError(f"{self.address} refuses with {status}: {_said(data)}{advice}")
        try:
            return json.loads(data)
        except ValueError as error:
            raise _Passing(f"answers what is not JSON: {_said(data)}") from error

    def _request(self, method: str, path: str, body: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the response, all of it within the time limit."""
        deadline = time.monotonic() + self._timeout_s
        try:
            response = self._pool.request(
                method,
                self.address + path,
                json=body,
                headers=self._headers | ({} if body is None else {"Content-Type": "application/json"}),
                timeout=self._timeout_s,
                redirect=False,
                preload_content=False,
            )
            data = bytearray()
            try:
                # A read's own time limit is no limit on a server that sends a byte now and then.
                for block in response.stream(1 << 16):
                    data += block
                    if time.monotonic() > deadline or len(data) > LARGEST_ANSWER:
                        raise urllib3.exceptions.TimeoutError
            finally:
                response.close()
        except urllib3.exceptions.NewConnectionError as error:  # a kind of timeout by its class
            raise _Passing(f"cannot be reached ({first_line(error)})") from error
        except urllib3.exceptions.TimeoutError as error:
            raise _Passing(f"no whole answer within timeout_s = {self._timeout_s:g}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Passing(f"the connection failed ({first_line(error)})") from error
        return response.status, response.headers, bytes(data)

    @staticmethod
    def _completion(answer: Any) -> Completion:
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text, reason = choice["message"]["content"], choice.get("finish_reason")
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (LookupError, TypeError, AttributeError) as error:
            raise _Passing(f"answers what is no completion: {_said(json.dumps(answer).encode())}") from error
        if text is not None and not isinstance(text, str):
            raise _Passing(f"answers what is no text: {_said(json.dumps(text).encode())}")
        prompt_tokens, output_tokens = (count if isinstance(count, int) else None for count in counts)
        return Completion(text or "", prompt_tokens, output_tokens, str(reason or "stop"))


def _said(data: bytes) -> str:
    """What a server says in a response, in a message's space."""
    text = data.decode("utf-8", "replace")
    try:
        answer = json.loads(text)
        error = answer.get("error", answer.get("detail", answer.get("message", answer)))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "(nothing)"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date."""
    value = headers.get("Retry-After")
    try:
        return None if value is None else Retry().parse_retry_after(value)
    except urllib3.exceptions.InvalidHeader:
        return None
