"""Downloading one large file: goes on where it stopped, and only a whole file gets its name.

pooch, which fetches files for many libraries, begins again after a break; these are up to 7.6 GB.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from zeus_union.cache.atomic import require_space
from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.system_errors import is_full
from zeus_union.cache.terminal import bytes_bar

BLOCK = 1 << 20
TIMEOUT_S = 60
ATTEMPTS = 5
PAUSE_S = 3.0
SLOW_TO_CHECK = 1 << 30  # bytes; a digest of more takes seconds

Say = Callable[[str], None]


@dataclass(frozen=True)
class Digests:
    """What a file is known by: its length in bytes, sha256 and md5."""

    size: int
    sha256: str
    md5: str


def digests_of(path: Path) -> Digests:
    """A file's length and digests, in one pass over it."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return Digests(size, sha256.hexdigest(), md5.hexdigest())


@dataclass(frozen=True)
class Pin:
    """What is known beforehand of a file.

    Attributes:
        size: bytes; 0 where nobody publishes it.
        sha256, md5: None where nobody publishes it.
    """

    size: int = 0
    sha256: str | None = None
    md5: str | None = None

    @property
    def has_digest(self) -> bool:
        return bool(self.sha256 or self.md5)

    def fits(self, digests: Digests) -> bool:
        pairs = ((self.size, digests.size), (self.sha256, digests.sha256), (self.md5, digests.md5))
        return all(not expected or expected == actual for expected, actual in pairs)

    def described(self) -> str:
        parts = [f"{self.size or 'any'} bytes"]
        parts += [f"{name} {digest}" for name, digest in (("sha256", self.sha256), ("md5", self.md5)) if digest]
        return ", ".join(parts)


def download(url: str, path: Path, pin: Pin, say: Say) -> Digests:
    """Downloads `url` to `path`, which appears when it is whole; a part that is there already is gone on with.

    For one process at a time: callers hold `only_here`.

    Args:
        pin: what the file must be; what is not known takes what comes.
    Raises:
        UserError: no such address; the connection broke again and again (the part is kept); another size or digest than
            expected (nothing is kept).
        NoSpaceError: no space, before or on the way; the part is kept.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if pin.size:
        require_space(path.parent, pin.size - (part.stat().st_size if part.exists() else 0), path.name)
    went_on = part.exists()
    digests = _fill_and_check(url, part, path, pin, say)
    if went_on and not pin.fits(digests):
        say(f"{path.name}: the partial download is damaged; downloading all of it again")
        _forget(part)
        digests = _fill_and_check(url, part, path, pin, say)
    if not pin.fits(digests):
        _forget(part)
        raise UserError(
            f"{url} gave another file than the pinned one ({digests.size} bytes, sha256 {digests.sha256}, md5 {digests.md5}; "
            f"expected {pin.described()}); nothing of it was kept"
        )
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    return digests


@contextmanager
def only_here(lock: Path, what: str, say: Say) -> Iterator[None]:
    """Keeps other processes from fetching the same `what` meanwhile; waits for one that is at it already."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            say(f"another process is downloading {what}; waiting for it")
            held.acquire()
    except PermissionError:
        raise
    except (NotImplementedError, OSError) as error:
        # ENOSYS, ENOLCK, EOPNOTSUPP: some network file systems.
        say(f"{lock.parent} is on a file system without locks ({error}): download with one process at a time")
    try:
        yield
    finally:
        held.release()


def _fill_and_check(url: str, part: Path, path: Path, pin: Pin, say: Say) -> Digests:
    _fill(url, part, path, pin, say)
    if part.stat().st_size > SLOW_TO_CHECK:
        say(f"{path.name}: fully downloaded; checking it")
    return digests_of(part)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    """What the server called the version of the file of which `part` is a part."""
    return part.with_name(f"{part.name}.tag")


def _fill(url: str, part: Path, path: Path, pin: Pin, say: Say) -> None:
    """Brings `part` to the length of the file at `url`, over several connections where they break."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _go_on(url, part, path.name, pin)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(
                    f"{url} answers {error.code} {error.reason}; download it manually and put it at {path}"
                ) from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            _raise_if_local(error, part)
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        if attempt == ATTEMPTS:
            raise UserError(
                f"{url} could not be downloaded ({reason}); check the network and run the same command again: it "
                f"resumes; or put the file at {path}"
            )
        say(f"{path.name}: {reason}; trying again ({attempt + 1} of {ATTEMPTS})")
        time.sleep(PAUSE_S)


def _raise_if_local(error: Exception, part: Path) -> None:
    """Raises what no other attempt can mend: the disk is full, or `part` may not be written.

    What the network raises has other numbers, or none (urllib's URLError).
    """
    if not isinstance(error, OSError):
        return
    if is_full(error):
        raise NoSpaceError(
            f"no space left for {part} after {part.stat().st_size / 1e6:.0f} MB; free some and run the same command again: it "
            "resumes"
        ) from error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR):
        raise OSError(error.errno, os.strerror(error.errno), str(part)) from error


def _go_on(url: str, part: Path, name: str, pin: Pin) -> None:
    """Appends to `part` what is missing of the file at `url`.

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
    elif begun and pin.has_digest:
        # It names no version of the file; whether the rest belongs to what was begun, the digest of the whole will say.
        headers |= {"Range": f"bytes={begun}-"}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the file has no bytes from there on
            raise
        # "bytes */1234": how long the file is.
        length = (error.headers.get("Content-Range") or f"*/{pin.size or ''}").rpartition("/")[2]
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
