"""Unpacking of zip and tar files from strangers: nothing outside the folder, no links, no devices, no bombs."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import MAX_NAME
from grasp_rl.data.transfers import Moved, copied, demand_space, nothing_told
from grasp_rl.utils.text import printable

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    LZMAError,
    EOFError,
    BadGzipFile,
    NotImplementedError,
)
"""What reading a damaged archive raises."""
_SPECIAL = "a device or another special file"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Beyond these an archive is refused."""

    members: int = 2_000_000
    total: int = 500 << 30
    """Bytes of all files together."""
    ratio: float = 200.0
    """Bytes of all files for one of the archive, from :attr:`free` bytes on."""
    free: int = 64 << 20


class ArchiveError(ConfigError):
    """An archive that is not unpacked: which one, what is wrong with it, remedy."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    folder: bool
    size: int
    """Bytes, as the archive says."""
    forbidden: str | None
    """What it is, where it is neither a file nor a folder."""
    content: zipfile.ZipInfo | tarfile.TarInfo


def is_packed(path: Path) -> bool:
    """Whether ``path`` is a zip or tar file, plain or compressed, by its content."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a zip or tar file by its name and its content."""
    names = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
    return path.name.lower().endswith(names) and is_packed(path)


def safe_name(name: str) -> str | None:
    """Why ``name`` cannot be the name of a file in a folder; None where it can."""
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or "\\" in name or any(ord(character) < 32 for character in name):
        return "no name of a file"
    if name.startswith("/") or PureWindowsPath(name).drive:
        return "an absolute path"
    if ".." in parts:
        return "a path that leads out of its folder"
    if max(len(part.encode("utf-8", "surrogateescape")) for part in parts) > MAX_NAME:
        return f"a name of more than {MAX_NAME} bytes"
    return None


def unpack(path: Path, folder: Path, limits: Limits | None = None, moved: Moved = nothing_told) -> list[Path]:
    """Unpack ``path`` into ``folder`` and return the files, in the archive's order.

    Every name, and the room on the disk, is checked before the first file is written; the caller removes ``folder``
    where unpacking fails. ``moved`` is told the bytes that are written and their number.

    Raises:
        NoSpaceError: the disk has less room than the files need.
        ArchiveError: a member is no plain file or folder, has an unsafe name or the name of another, there is more
            than ``limits`` allow, or the archive is damaged.
        OSError: a file cannot be written.
    """
    limits = limits or Limits()
    try:
        with _opened(path) as archive:
            members = _checked(path, archive, limits)
            total = sum(member.size for member in members)
            folder.mkdir(parents=True, exist_ok=True)
            demand_space(folder, total, f"unpacking {path.name}")
            return _written(archive, members, folder, total, moved)
    except _DAMAGE as error:
        raise ArchiveError(
            f"{path}: damaged, cut short or of an unknown kind ({printable(str(error)) or type(error).__name__}); "
            "download it again"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as archive:
        yield archive


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(archive, zipfile.ZipFile):
        for zipped in archive.infolist():
            mode = stat.S_IFMT(zipped.external_attr >> 16)
            forbidden = None if mode in (0, stat.S_IFREG, stat.S_IFDIR) else _SPECIAL
            forbidden = "a link" if mode == stat.S_IFLNK else forbidden
            forbidden = "encrypted" if zipped.flag_bits & 1 else forbidden
            yield _Member(
                name=zipped.filename, folder=zipped.is_dir(), size=zipped.file_size, forbidden=forbidden, content=zipped
            )
        return
    for taped in archive:
        plain = taped.isdir() or (taped.isreg() and not taped.issparse())
        forbidden = None if plain else "a link" if taped.issym() or taped.islnk() else _SPECIAL
        yield _Member(name=taped.name, folder=taped.isdir(), size=taped.size, forbidden=forbidden, content=taped)


def _checked(path: Path, archive: zipfile.ZipFile | tarfile.TarFile, limits: Limits) -> list[_Member]:
    """The members, each with a name of its own that is safe."""
    members, files, folders = list[_Member](), set[str](), set[str]()
    total, most = 0, min(limits.total, max(limits.free, int(limits.ratio * path.stat().st_size)))
    for member in _members(archive):
        if member.name in (".", "./") and member.folder:
            continue
        problem = member.forbidden or safe_name(member.name)
        parts = PurePosixPath(member.name).parts
        place = "/".join(parts).casefold()
        above = ["/".join(parts[:depth]).casefold() for depth in range(1, len(parts))]
        if problem is None and (files & {place, *above} or (place in folders and not member.folder)):
            problem = "a name that another one has, too"
        if problem is not None:
            raise ArchiveError(
                f"{path}: its member {printable(member.name)[:200]!r} is {problem}, so nothing was unpacked; see that "
                "it is the authors' archive, or unpack it yourself and give the folder"
            )
        folders.update([*above, place] if member.folder else above)
        if not member.folder:
            files.add(place)
        members.append(member)
        if len(members) > limits.members:
            raise _too_much(path, f"more than {limits.members} members")
        total += member.size
        if total > most:  # before the next one is looked for, which would decompress this one
            raise _too_much(path, f"more than {most} bytes in {path.stat().st_size}")
    return members


def _written(
    archive: zipfile.ZipFile | tarfile.TarFile, members: list[_Member], folder: Path, total: int, moved: Moved
) -> list[Path]:
    written, done = list[Path](), 0
    for member in members:
        target = folder.joinpath(*PurePosixPath(member.name).parts)
        if member.folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with _content(archive, member) as source, target.open("xb") as file:
            done = copied(source, file, done, total, moved)  # no more than was checked: both formats end there
        written.append(target)
    return written


def _content(archive: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    if isinstance(archive, zipfile.ZipFile):
        assert isinstance(member.content, zipfile.ZipInfo)
        return archive.open(member.content)
    assert isinstance(member.content, tarfile.TarInfo)
    content = archive.extractfile(member.content)
    assert content is not None  # it is a regular file
    return content


def _too_much(path: Path, what: str) -> ArchiveError:
    remedy = "unpack it yourself if you trust it, and give the folder"
    return ArchiveError(f"{path}: holds {what}, so nothing of it is kept; {remedy}")
