"""Downloading one large file: goes on where it stopped, and only a whole file gets its name.

pooch, which fetches files for many libraries, begins again after a break; these are up to 2.6 GB.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from zeus_union.cache.atomic import require_space
from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import bytes_bar

BLOCK = 1 << 20
TIMEOUT_S = 60
ATTEMPTS = 5
PAUSE_S = 3.0


def download(url: str, path: Path, size: int, sha256: str | None, say: Callable[[str], None]) -> str:
    """Downloads `url` to `path`, which appears when it is whole; a part that is there already is gone on with.

    For one process at a time: `fetch` holds a lock on the model.

    Args:
        size: expected bytes, 0 if not known.
        sha256: expected; None takes what comes.
    Returns:
        its sha256.
    Raises:
        UserError: no such address; the connection broke again and again (the part is kept); another size or digest than
            expected (nothing is kept); no space.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if size:
        require_space(path.parent, size - (part.stat().st_size if part.exists() else 0), path.name)
    went_on = part.exists()
    _fill(url, part, path, size, say)
    digest, byte_count = sha256_file(part), part.stat().st_size
    if went_on and _differs(digest, byte_count, size, sha256):
        say(f"{path.name}: what was there of it is damaged; downloading all of it again")
        _forget(part)
        _fill(url, part, path, size, say)
        digest, byte_count = sha256_file(part), part.stat().st_size
    if _differs(digest, byte_count, size, sha256):
        _forget(part)
        raise UserError(
            f"{url} gave another file than the pinned one ({byte_count} bytes, sha256 {digest}; expected "
            f"{size or 'any'} bytes, {sha256 or 'any'}); nothing of it was kept"
        )
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    return digest


def _differs(digest: str, byte_count: int, size: int, sha256: str | None) -> bool:
    return bool(size and byte_count != size) or bool(sha256 and digest != sha256)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    """What the server called the version of the file of which `part` is a part."""
    return part.with_name(f"{part.name}.tag")


def _fill(url: str, part: Path, path: Path, size: int, say: Callable[[str], None]) -> None:
    """Brings `part` to the length of the file at `url`, over several connections where they break."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _go_on(url, part, path.name, size)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(
                    f"{url} answers {error.code} {error.reason}; get it by hand and put it at {path}"
                ) from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        if attempt == ATTEMPTS:
            raise UserError(
                f"{url} could not be downloaded ({reason}); check the network and run the same command again: it goes on "
                f"where it stopped; or put the file at {path}"
            )
        say(f"{path.name}: {reason}; trying again ({attempt + 1} of {ATTEMPTS})")
        time.sleep(PAUSE_S)


def _go_on(url: str, part: Path, name: str, size: int) -> None:
    """Appends to `part` what is missing of the file at `url`, which is `size` bytes long where that is known.

    Raises:
        OSError: the connection broke, or `part` is not as long now as the server says the file is; where it is longer,
            it is gone. http.client.IncompleteRead: the connection ended early.
    """
    begun = part.stat().st_size if part.exists() else 0
    tag = _tag(part)
    headers = {"User-Agent": "zeus-union"}
    if begun and tag.exists():
        # The server sends the rest of the very file that was begun, or, where it has changed, all of the new one.
        headers |= {"Range": f"bytes={begun}-", "If-Range": tag.read_text()}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the file has no bytes from there on
            raise
        # "bytes */1234": how long the file is.
        length = (error.headers.get("Content-Range") or f"*/{size or ''}").rpartition("/")[2]
        _require_length(part, int(length) if length.isdigit() else None)
        tag.unlink(missing_ok=True)
        return
    with answer:
        goes_on = answer.status == 206
        if goes_on and not (answer.headers.get("Content-Range") or f"bytes {begun}-").startswith(f"bytes {begun}-"):
            _forget(part)
            raise OSError("the server sent another piece of the file than the one asked for")
        begun = begun if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = begun + int(length) if length else None
        known = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if known and not known.startswith("W/"):
            tag.write_text(known)
        else:
            tag.unlink(missing_ok=True)
        with part.open("ab" if goes_on else "wb") as file, bytes_bar() as bar:
            task = bar.add_task(name, total=total, completed=begun)
            while block := answer.read(BLOCK):
                file.write(block)
                bar.advance(task, len(block))
        if total is not None:
            _require_length(part, total)
    tag.unlink(missing_ok=True)


def _require_length(part: Path, total: int | None) -> None:
    """OSError where `part` is not `total` bytes long; one that is longer, or of no known length, is begun again."""
    arrived = part.stat().st_size
    if total is not None and arrived < total:
        raise OSError(f"the connection ended after {arrived} of {total} bytes")
    if arrived != total:
        _forget(part)
        raise OSError(f"{arrived} bytes are there of a file of {total or 'unknown length'}")
