"""Getting a public data set: downloaded, checked, unpacked beside its folder, and put there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zeus_union.cache.atomic import RESUMES, make_folder, require_space
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import choose, counted, in_words
from zeus_union.cache.terminal import say as say_to_terminal
from zeus_union.stage1_instruct.archives import Limits, Remedies, Unpacked, unpack
from zeus_union.stage1_instruct.datasets import default_root, open_dataset
from zeus_union.stage1_instruct.downloads import Digests, Say, digests_of, download, only_here
from zeus_union.stage1_instruct.public_data.sources import PUBLIC_DATA, Archive, PublicData

RECORD = "source.json"
# An archive that unpacks to so many times what sources.yaml says (it says 'about') is not the published one.
MARGIN = 10
_ANOTHER = "it is not the archive that it should be, delete it"
REMEDIES = Remedies(
    unsound=_ANOTHER,
    encrypted=_ANOTHER,
    too_large=_ANOTHER,
    damaged="delete it and run the same command again",
    no_space=RESUMES,
)


def fetch_dataset(
    name: str,
    root: Path | None = None,
    *,
    unlabelled: bool = False,
    keep_archive: bool = False,
    say: Say = say_to_terminal,
) -> Path:
    """Gets a public data set that is not there yet; says first from where, how much, and under which licence.

    The archives are downloaded beside the data set's folder, which then appears when all of it is unpacked and can be read;
    `RECORD` in it says what it was unpacked from. Nothing is fetched twice: a download that was stopped goes on, an archive
    that lies beside the folder is used, and what is there already is left as it is.

    Args:
        name: a key of `PUBLIC_DATA`.
        root: its folder; data/NAME if not given.
        unlabelled: also archives of subjects without labels (CHAOS's test set; the Decathlon's lie in its only archive).
        keep_archive: leave what was downloaded beside the folder.
    Returns:
        the folder.
    Raises:
        UserError: an unknown name; something else in `root`; as `download` and `unpack`.
        NoSpaceError: no space for archive and data together.
    """
    choose([name], tuple(PUBLIC_DATA), "public data set")
    data_set = PUBLIC_DATA[name]
    root = default_root(name) if root is None else root
    folder = root.resolve()  # of a link what it leads to: there is the disk on which all of it is renamed
    wanted = data_set.wanted(unlabelled)
    missing = [archive for archive in wanted if not _is_present(archive, folder)]
    ours = any(_is_present(archive, folder) for archive in data_set.archives)
    if not missing or (not ours and _was_put_there(name, root, say)):
        say(f"{name} is already in {root}; nothing was downloaded")
        return root
    _say_what(name, data_set, missing, root, say)
    make_folder(folder.parent)
    with only_here(folder.with_name(f".{folder.name}.lock"), name, say):
        # Another process may have fetched it in the meantime.
        missing = [archive for archive in missing if not _is_present(archive, folder)]
        _require_free([folder / archive.into for archive in missing])
        _require_space(name, missing, folder.parent)
        for archive in missing:
            _install(name, data_set, archive, folder, keep_archive, say)
    return root


def _say_what(name: str, data_set: PublicData, archives: Sequence[Archive], root: Path, say: Say) -> None:
    say(f"{name}: {data_set.title}")
    say(f"licence {data_set.licence}; cite: {data_set.page}")
    for archive in archives:
        about = "" if archive.size else "about "
        say(
            f"fetching {archive.url}, {about}{in_words(archive.bytes_to_download)}; about {in_words(archive.unpacked)} of it "
            f"unpacked into {root / archive.into}"
        )


def _is_present(archive: Archive, folder: Path) -> bool:
    """Whether an archive was unpacked into the data set's folder.

    Raises:
        UserError: it was, and some of its files are no longer there.
    """
    unpacked = folder / archive.into
    try:
        record = json.loads((unpacked / RECORD).read_text(encoding="utf-8"))
        files, count = record["files"], record["unpacked_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    present = [path for path in unpacked.rglob("*") if path.is_file() and path.name != RECORD]
    if len(present) < files or sum(path.stat().st_size for path in present) < count:
        raise UserError(
            f"{unpacked} lacks some of the {files} files that were unpacked from {archive.name} ({len(present)} are there); "
            "move it away and run the same command again"
        )
    return True


def _was_put_there(name: str, root: Path, say: Say) -> bool:
    """Whether the user has put the data set there; False where nothing is.

    Raises:
        UserError: there is something, and the reader of the data set cannot read it.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; give another folder with --data-root")
    if not root.exists() or not any(root.iterdir()):
        return False
    try:
        dataset = open_dataset(name, root)
    except UserError as error:
        raise UserError(
            f"{root} is not empty and holds no {name} ({error}); move it away, or give another folder with --data-root"
        ) from error
    say(
        f"{root} holds {counted(len(dataset.card.subjects), 'subject')} that this command did not download; nothing is changed"
    )
    return True


def _require_free(targets: Sequence[Path]) -> None:
    """Raises a UserError where something else lies in a folder that an archive is to be unpacked into."""
    for target in targets:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"{target} exists already and was not downloaded by this command; move it away")


def _require_space(name: str, archives: Sequence[Archive], parent: Path) -> None:
    """For the archives, as far as they are not there, and for what is unpacked from them.

    Raises:
        NoSpaceError
    """
    needed = 0
    for archive in archives:
        parts = [parent / archive.name, parent / f"{archive.name}.part"]
        arrived = sum(path.stat().st_size for path in parts if path.is_file())
        needed += max(archive.bytes_to_download - arrived, 0) + archive.unpacked
    require_space(parent, needed, f"{name}, archive and unpacked,")


def _install(name: str, data_set: PublicData, archive: Archive, folder: Path, keep_archive: bool, say: Say) -> None:
    """One archive, unpacked beside the data set's folder and renamed into it: a kill leaves nothing of it or all."""
    path = folder.with_name(archive.name)
    was_there = path.exists()
    digests = _checked(archive, path, say) if was_there else download(archive.url, path, archive.pin, say)
    work = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    try:
        unpacked = unpack(path, work / archive.into, Limits(MARGIN * archive.unpacked), REMEDIES, take=archive.take)
        subjects = open_dataset(name, work).card.subjects
        record = _record(name, data_set, archive, digests, unpacked)
        (work / archive.into / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if hasattr(os, "sync"):
            os.sync()  # once; to flush thousands of files one by one takes minutes
        _rename(work / archive.into, folder / archive.into)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"{counted(len(subjects), 'subject')} in {folder / archive.into}")
    if was_there:
        say(f"{path} existed before and is kept")
    elif not keep_archive:
        path.unlink()


def _checked(archive: Archive, path: Path, say: Say) -> Digests:
    """The digests of an archive that lies there already.

    Raises:
        UserError: it is another file than the published one.
    """
    say(f"{path} exists already; checking it")
    digests = digests_of(path)
    if not archive.pin.fits(digests):
        raise UserError(
            f"{path} is another file than {archive.url} ({digests.size} bytes, sha256 {digests.sha256}, md5 {digests.md5}; "
            f"expected {archive.pin.described()}); move it away and run the same command again"
        )
    return digests


def _record(name: str, data_set: PublicData, archive: Archive, digests: Digests, unpacked: Unpacked) -> dict[str, Any]:
    return {
        "dataset": name,
        "title": data_set.title,
        "page": data_set.page,
        "licence": data_set.licence,
        "url": archive.url,
        "bytes": digests.size,
        "sha256": digests.sha256,
        "md5": digests.md5,
        "files": unpacked.files,
        "unpacked_bytes": unpacked.bytes,
    }


def _rename(unpacked: Path, final: Path) -> None:
    """Gives what was unpacked its name; an empty folder of that name gives way.

    Raises:
        UserError: there is something by now, or `final` is another disk.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        if final.is_dir():
            final.rmdir()
        unpacked.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV, errno.EBUSY):
            raise
        why = "is not empty" if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else "is the root of a disk"
        raise UserError(f"{final} {why}; give a folder of its own with --data-root") from error
