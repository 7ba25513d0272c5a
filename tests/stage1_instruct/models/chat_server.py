"""A server of chat completions on this machine that keeps what it was sent, and misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Handler = http.server.BaseHTTPRequestHandler
Fault = Callable[[Handler], None]


@dataclass
class ChatServer:
    """What it was sent, and how it answers.

    Attributes:
        faults: what becomes of the next completions, one each; afterwards they are answered properly.
        always: what becomes of every completion.
        sees: a picture counts 10 tokens of the prompt.
        counts: answers say how many tokens there were.
        received: request line, headers and body of every request, as bytes.
        most: so many requests were under way at a time.
    """

    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    sees: bool = True
    counts: bool = True
    delay_s: float = 0.0
    received: list[bytes] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most: int = 0

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The questions, without those that only try the server out."""
        return [body for body in self.bodies if body["max_tokens"] > 1]

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        parts = body["messages"][0]["content"]
        text = next(part["text"] for part in parts if part["type"] == "text")
        pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        tokens = len(text.split()) + (10 * len(pictures) if self.sees else 0)
        choice = {"message": {"role": "assistant", "content": said(text, pictures)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": tokens, "completion_tokens": 7}
        return {"model": body["model"], "choices": [choice], **({"usage": usage} if self.counts else {})}


def said(question: str, pictures: list[str]) -> str:
    """What the server answers: it depends on the question and on every byte of the picture."""
    return f"The  picture is\n{hashlib.sha256((question + ''.join(pictures)).encode()).hexdigest()[:8]}."


def picture_of(body: dict[str, Any]) -> bytes:
    """The PNG in a request."""
    url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
    return base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)


def reply(handler: Handler, data: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def serving() -> Iterator[ChatServer]:
    state, lock = ChatServer(), threading.Lock()

    class ChatHandler(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.received.append(f"{self.requestline}\r\n{self.headers}".encode())
            reply(self, json.dumps({"data": [{"id": "tiny-vlm"}]}).encode())

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(data)
            with lock:
                state.received.append(f"{self.requestline}\r\n{self.headers}".encode() + data)
                state.bodies.append(body)
                state.under_way += 1
                state.most = max(state.most, state.under_way)
                probing = body["max_tokens"] == 1
                fault = state.faults.pop(0) if state.faults and not probing else None if probing else state.always
            time.sleep(state.delay_s)
            with lock:
                state.under_way -= 1
            self.body = body
            (fault or ChatHandler.answer_properly)(self)

        def answer_properly(self) -> None:
            reply(self, json.dumps(state.answer(self.body)).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ChatHandler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
