"""Which files a run's data were read from, and whether they are still the same: ``data.json`` in the run folder.

Beside them stands the licence of each prepared dataset (`grasp-rl data prepare`) that one of them lies in.
A file counts as the same while its size and time of change are, or else its SHA-256. One that is not there (a run
folder read on another machine) says nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from grasp_rl.utils.files import Record, read_json, sha256_of, write_json

DATA = "data.json"
LICENCE = "grasp_rl_licence.json"
"""The record of its licence in the folder of a prepared dataset."""


def write(run_dir: Path, files: Iterable[Path]) -> None:
    """Record ``files`` beside those that the run has recorded before; a file that changed is recorded anew.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
    """
    known = _known(run_dir)
    paths = list(dict.fromkeys(Path(os.path.abspath(path)) for path in files))
    for path in paths:
        if not _same(path, known.get(str(path))):
            about = path.stat()
            known[str(path)] = {"sha256": sha256_of(path), "size": about.st_size, "mtime_ns": about.st_mtime_ns}
    folders = {folder for path in paths for folder in path.parents}
    records = {str(folder): read_json(folder / LICENCE) for folder in folders if os.path.isfile(folder / LICENCE)}
    licences = _mapping(run_dir, "licences") | records
    write_json(run_dir / DATA, {"files": known} | ({"licences": licences} if licences else {}))


def files(run_dir: Path) -> list[Path]:
    """The files in the record in ``run_dir``, absolute."""
    return [Path(path) for path in _known(run_dir)]


def licences(run_dir: Path) -> list[Record]:
    """The licences of prepared datasets in the record in ``run_dir``, as `grasp-rl data prepare` wrote each down."""
    return [about for about in _mapping(run_dir, "licences").values() if isinstance(about, dict)]


def changed(run_dir: Path) -> list[Path]:
    """Files of the record in ``run_dir`` whose content is another now."""
    return [Path(path) for path, about in _known(run_dir).items() if not _same(Path(path), about, absent=True)]


def sentence(run_dir: Path) -> str | None:
    """What :func:`changed` found, for a person; None where nothing changed."""
    paths = changed(run_dir)
    if not paths:
        return None
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return f"the data changed since: {paths[0].name}{more}"


def _known(run_dir: Path) -> dict[str, Record]:
    return {path: about for path, about in _mapping(run_dir, "files").items() if isinstance(about, dict)}


def _mapping(run_dir: Path, key: str) -> Record:
    """The mapping ``key`` of the record in ``run_dir``; an empty one where there is none."""
    value = (read_json(run_dir / DATA) or {}).get(key)
    return value if isinstance(value, dict) else {}


def _same(path: Path, about: Record | None, *, absent: bool = False) -> bool:
    """Whether ``path`` has the recorded content; ``absent`` where it is no regular file."""
    if about is None:
        return False
    try:
        now = path.stat()
        if not stat.S_ISREG(now.st_mode):
            return absent
        if now.st_size != about.get("size"):
            return False
        if now.st_mtime_ns == about.get("mtime_ns"):
            return True
        return sha256_of(path) == about.get("sha256")
    except OSError:
        return absent
