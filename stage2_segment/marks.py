"""Subjects of a shared run: salted digests that stand for their names and pictures, and by which they are recognised.

A mark carries its salt: 'salted:SALT:DIGEST'. No subject's name and no digest of a file looks like one, so that marks
stand wherever those do.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache

from zeus_union.cache.terminal import some_of

_MARK = re.compile(r"salted:([0-9a-f]{32}):[0-9a-f]{32}")
# Names are short, and whoever holds a mark may try them all: 6 ms each, while a thousand patients are looked up in seconds.
ROUNDS = 20_000


def new_salt() -> str:
    """32 hexadecimal digits, random."""
    return secrets.token_hex(16)


def salt_of(text: str) -> str | None:
    """The salt of a mark; None of anything else."""
    mark = _MARK.fullmatch(text)
    return None if mark is None else mark[1]


def mark_name(name: str, salt: str) -> str:
    """The mark of a subject's name; a mark stays as it is."""
    return name if salt_of(name) else _mark_name(name, salt)


@lru_cache(maxsize=1 << 16)
def _mark_name(name: str, salt: str) -> str:
    digest = hashlib.pbkdf2_hmac("sha256", name.encode(), bytes.fromhex(salt), ROUNDS, dklen=16)
    return f"salted:{salt}:{digest.hex()}"


def mark_picture(sha256: str, salt: str) -> str:
    """The mark of a file by its digest, which nobody can guess without the file; a mark stays as it is."""
    if salt_of(sha256):
        return sha256
    return f"salted:{salt}:{hashlib.sha256(f'{salt} {sha256}'.encode()).hexdigest()[:32]}"


def salts_in(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(salt for text in texts if (salt := salt_of(text)) is not None)


def as_named(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """`names` with those of `known` in place of their marks; marks of nobody among them stay."""
    names = tuple(names)
    salts = salts_in(names)
    by_mark = {mark_name(name, salt): name for salt in salts for name in known}
    return tuple(by_mark.get(name, name) for name in names)


def spoken(names: Sequence[str]) -> str:
    """For a sentence: 'A, B', where marks are only counted."""
    plain = [name for name in names if salt_of(name) is None]
    marked = len(names) - len(plain)
    counted = [f"{marked} subject{'s' if marked > 1 else ''} whose names were not shared"] if marked else []
    return " and ".join(([some_of(plain, len(plain))] if plain else []) + counted)
