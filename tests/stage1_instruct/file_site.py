"""A server of large files on this machine, which can be told to misbehave."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CONTENT = bytes(range(256)) * 4096


@dataclass
class Site:
    """A server of one file, and how it misbehaves."""

    content: bytes = CONTENT
    tag: str | None = '"one"'
    ranges: bool = True
    cut_after: int | None = None
    stall_after: int | None = None  # bytes, after which the next answer waits for `released`
    released: threading.Event = field(default_factory=threading.Event)
    status: int = 200
    shift: int = 0
    delay: float = 0.0
    requested: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving() -> Iterator[Site]:
    """A running `Site`, on this machine."""
    state = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requested.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            begin = 0
            time.sleep(state.delay)
            if wanted and state.ranges and self.headers.get("If-Range") == state.tag:
                begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                if begin >= len(state.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(state.content)}")
                    self.end_headers()
                    return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(state.content) - begin))
            if begin:
                first = begin + state.shift
                self.send_header("Content-Range", f"bytes {first}-{len(state.content) - 1}/{len(state.content)}")
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            end = len(state.content)
            if state.cut_after is not None:
                end, state.cut_after = min(end, begin + state.cut_after), None
            if state.stall_after is not None:
                middle, state.stall_after = begin + state.stall_after, None
                self.wfile.write(state.content[begin:middle])
                self.wfile.flush()
                state.released.wait(60)
                return
            self.wfile.write(state.content[begin:end])

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # By default the server looks every half second whether it is to end, for which every test would wait.
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/model.pth?download=1"
    yield state
    server.shutdown()
    server.server_close()
