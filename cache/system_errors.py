"""What the system refuses, in one line that says what it means and what to do."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from zeus_union.cache.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A FUSE, NFS, SMB or object-store mount that was lost. Some are missing on Windows.
_LOST_NAMES = [
    "ETIMEDOUT",
    "ENOTCONN",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "ENODEV",
    "ENXIO",
    "EREMOTEIO",
    "ESHUTDOWN",
]
_LOST = tuple(getattr(errno, name) for name in _LOST_NAMES if hasattr(errno, name))
# What the system answered -> what it means and what to do. {file}: which file, where the system says so.
_SYSTEM_ERRORS: Mapping[int, str] = {
    **dict.fromkeys(
        FULL,
        "no space left on the device{file}; free some and run the same command again: it resumes",
    ),
    errno.EROFS: "the file system is read-only{file}; choose another folder",
    errno.ENOLCK: "the file system has no locks to give{file}; choose a folder on another one",
    **dict.fromkeys(
        (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP),
        "the file system cannot do what is needed{file}; choose a folder on another one, e.g. a local disk",
    ),
    errno.EEXIST: "something of that name exists already{file}; choose another name or remove it",
    errno.ENOENT: "no such file or folder{file}; check the name",
    errno.ENOTDIR: "a file is where a folder is expected{file}; choose another folder or remove the file",
    errno.EISDIR: "a folder is where a file is expected{file}; give the name of a file",
    errno.ENOTEMPTY: "the folder is not empty{file}; choose another or empty it",
    errno.ENAMETOOLONG: "the name is too long for the file system{file}; choose shorter names",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "no permission{file}; choose another folder or change its permissions"
    ),
    errno.EMFILE: "too many open files{file}; raise the limit (ulimit -n)",
    errno.EIO: "the disk or network share does not answer properly{file}; check it, then run the same command again",
    errno.ESTALE: "the network share has changed under the command{file}; run the same command again",
    **dict.fromkeys(_LOST, "the disk or network share is gone{file}; mount it again, then run the same command again"),
    errno.EPIPE: "whatever read the output has ended before all was written (broken pipe)",
}


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota is."""
    return error.errno in FULL


def one_line(error: BaseException) -> str | None:
    """The line to print for `error`, or None where it is a fault of ours and the traceback should be seen."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, UnicodeEncodeError):
        return (
            f"the system's encoding {error.encoding} cannot hold {error.object[error.start : error.end]!a}; "
            "set PYTHONUTF8=1 (or LANG=C.UTF-8) and run the same command again"
        )
    if isinstance(error, UnicodeDecodeError):
        return f"a text file is not in {error.encoding} (byte {error.start}); save it as UTF-8, or set PYTHONUTF8=1"
    if isinstance(error, OSError) and error.errno is not None and error.errno in _SYSTEM_ERRORS:
        names = [str(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, Path))]
        return _SYSTEM_ERRORS[error.errno].format(file=f": {' -> '.join(names)}" if names else "")
    return None
