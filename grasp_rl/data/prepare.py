"""A published dataset in a folder, with its licence, its source and the checksums of its files.

The folder appears whole or not at all: downloads and unpacked files lie in ``.NAME.part`` beside it until then, and a
download that broke goes on from there. Archives are unpacked where they lie; the archives themselves are not kept.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError, one_of, require
from grasp_rl.data.archives import ArchiveError, is_archive, is_packed, safe_name, unpack
from grasp_rl.data.catalog import CATALOG, Entry
from grasp_rl.data.download import TIMEOUT, Fetched, download, read_answer, shown
from grasp_rl.data.transfers import Moved, copied, demand_space, held
from grasp_rl.runs.data_record import LICENCE
from grasp_rl.utils.files import Record, read_json, sha256_of, write_json

MANIFEST = "grasp_rl_manifest.json"
"""Source and checksums, in the prepared folder."""
HUB = "https://huggingface.co"
TOKENS = {"hub": "HF_TOKEN", "url": "GRASP_RL_DATA_TOKEN"}
"""Variables of the environment that a bearer token is read from, by the kind of source."""
_COMMIT = r"[0-9a-f]{40}"


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One preparation."""

    entry: Entry
    source: str
    kind: str
    """hub, url, archive or folder."""
    to: Path
    sha256: str | None
    token: str | None
    hub: str
    timeout: float
    tell: Callable[[str], None]
    moved: Callable[[str, int, int | None], None]

    def moving(self, what: str) -> Moved:
        """Tells the caller how far ``what`` is."""
        return lambda done, total: self.moved(what, done, total)

    @property
    def files(self) -> Path:
        """Where the files of the dataset are until all are there."""
        return self.work / "files"

    @property
    def downloads(self) -> Path:
        return self.work / "downloads"

    @property
    def work(self) -> Path:
        return self.to.with_name(f".{self.to.name}.part")


def prepare(
    name: str,
    source: str,
    to: Path,
    *,
    tell: Callable[[str], None],
    sha256: str | None = None,
    environment: Mapping[str, str] | None = None,
    hub: str = HUB,
    timeout: float = TIMEOUT,
    moved: Callable[[str, int, int | None], None] = lambda _what, _done, _total: None,
) -> str:
    """Prepare the dataset ``name`` in ``to``, or verify that it lies there as it was prepared; returns what was done.

    Args:
        name: of an entry of the catalog.
        source: ``hub:OWNER/NAME@REVISION``, an http or https address, an archive or a folder.
        to: a folder that is not there or is empty, or one that was prepared.
        tell: is told the licence first, then each file.
        sha256: that the download or the archive must have.
        environment: of the process; a token is read from it (:data:`TOKENS`).
        hub: address of the hub.
        timeout: seconds without a byte after which a connection counts as broken.
        moved: is told what is being downloaded, unpacked or copied, its bytes so far, and their number where known.

    Raises:
        ConfigError: an argument does not fit, the archive is refused, the disk has no room, another process prepares
            the same folder, or a prepared file is another now.
        OSError: a file cannot be had or written.
    """
    one_of("grasp-rl data prepare", name, tuple(CATALOG))
    require(sha256 is None or re.fullmatch(r"[0-9a-f]{64}", sha256) is not None, "--sha256", sha256, "64 hex digits")
    kind, environment = _kind(source), os.environ if environment is None else environment
    to = Path(os.path.abspath(to))
    job = _Job(
        entry=CATALOG[name], source=source, kind=kind, to=to, sha256=sha256,
        token=environment.get(TOKENS.get(kind, "")) or None, hub=hub, timeout=timeout, tell=tell,
        moved=moved,
    )  # fmt: skip
    if sha256 is not None and kind not in ("url", "archive"):
        raise ConfigError("--sha256: goes with an address or an archive")
    for line in licence_lines(job.entry):
        tell(line)
    if (to / MANIFEST).is_file():
        return _verified(job)
    with held(to.with_name(f".{to.name}.lock"), str(to)):
        if (to / MANIFEST).is_file():  # prepared by another process just now
            return _verified(job)
        return _prepared(job)


def _prepared(job: _Job) -> str:
    """Prepare the folder of ``job``, which this process holds; returns what was done."""
    to, name, source, kind = job.to, job.entry.name, job.source, job.kind
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to}: must be a new or an empty folder, or one that this command has prepared")
    job.work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(job.files, ignore_errors=True)  # of an interrupted unpacking; downloads are kept
    job.files.mkdir()
    try:
        made = {"hub": _from_hub, "url": _from_url, "archive": _from_archive, "folder": _from_folder}[kind](job)
        write_json(job.files / LICENCE, _licence(job.entry, made))
        manifest = {"name": name, "asked": _asked(source), "source": made, "files": _checksums(job.files)}
        write_json(job.files / MANIFEST, manifest)
        if to.is_dir():
            to.rmdir()
        job.files.rename(to)
        shutil.rmtree(job.downloads, ignore_errors=True)
    finally:
        shutil.rmtree(job.files, ignore_errors=True)
        with suppress(OSError):  # downloads are kept for the next call
            job.work.rmdir()
    return f"{to}: {len(_listed(to))} files of {name}; check it: grasp-rl data validate data={name} data.root={to}"


def licence_lines(entry: Entry) -> list[str]:
    """What a user must know before the download."""
    lines = [f"{entry.title}: licence: {entry.licence}"]
    lines += [f"images of {entry.upstream}"] if entry.upstream else []
    return [*lines, f"may be passed on: {entry.redistribution}"]


def _kind(source: str) -> str:
    if source.startswith("hub:"):
        return "hub"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        return "url"
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"{source}: no such file or folder; give hub:OWNER/NAME@REVISION, an address, or a path")
    return "folder" if path.is_dir() else "archive"


def _asked(source: str) -> str:
    """``source`` for comparison and the record, without what may be secret in an address."""
    return shown(source) if "://" in source else source


def _from_hub(job: _Job) -> Record:
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)@([\w./-]+)", job.source)
    if match is None:
        raise ConfigError(f"{job.source}: must be hub:OWNER/NAME@REVISION, with a commit or a tag as revision")
    repo, revision = match.groups()
    api = f"{job.hub}/api/datasets/{repo}"
    commit = revision if re.fullmatch(_COMMIT, revision) else _commit_of_tag(job, api, repo, revision)
    listing = read_answer(f"{api}/revision/{commit}?blobs=True", token=job.token, timeout=job.timeout)
    siblings = listing.get("siblings") if isinstance(listing, dict) else None
    if not isinstance(siblings, list) or listing.get("sha") != commit:
        raise ConfigError(f"hub:{repo}@{commit}: the hub lists no files of this commit; see that the revision is right")
    downloaded: dict[str, str] = {}
    listed = [_listed_file(repo, item) for item in siblings]
    job.downloads.mkdir(parents=True, exist_ok=True)
    missing = sum(max(0, (size or 0) - _there(job.downloads / name)) for name, size, _ in listed)
    demand_space(job.downloads, missing, f"the download of {repo}")
    for name, size, lfs in listed:
        address = f"{job.hub}/datasets/{repo}/resolve/{commit}/{urllib.parse.quote(name)}"
        downloaded[name] = _fetch(job, address, name, lfs, size).sha256
    for name in downloaded:
        _place(job, job.downloads / name, job.files / name)
    return {"kind": "hub", "repository": repo, "revision": revision, "commit": commit, "downloaded": downloaded}


def _there(path: Path) -> int:
    """Bytes of a download that are there already, whole or in part."""
    part = path.with_name(f"{path.name}.part")
    return next((file.stat().st_size for file in (path, part) if file.is_file()), 0)


def _commit_of_tag(job: _Job, api: str, repo: str, revision: str) -> str:
    refs = read_answer(f"{api}/refs", token=job.token, timeout=job.timeout)
    tags = refs.get("tags") if isinstance(refs, dict) else None
    for tag in tags if isinstance(tags, list) else []:
        if isinstance(tag, dict) and tag.get("name") == revision:
            commit = str(tag.get("targetCommit"))
            if re.fullmatch(_COMMIT, commit):
                return commit
    raise ConfigError(
        f"hub:{repo}@{revision}: no tag and no full commit (40 hex digits); a branch moves, so name one of these"
    )


def _listed_file(repo: str, item: Any) -> tuple[str, int | None, str | None]:
    """(name, bytes, SHA-256) of an entry of the hub's list; None for what it does not say."""
    name = item.get("rfilename") if isinstance(item, dict) else None
    problem = safe_name(name) if isinstance(name, str) else "no name of a file"
    if problem is not None or name in (LICENCE, MANIFEST):
        raise ConfigError(
            f"hub:{repo}: lists {str(name)[:200]!r}, {problem or 'a name of our own'}; download it by hand"
        )
    lfs = item.get("lfs") or {}
    return str(name), item.get("size"), lfs.get("sha256")


def _fetch(job: _Job, address: str, name: str, sha256: str | None, size: int | None) -> Fetched:
    """The file at ``address`` as ``downloads/name``; one that is whole there already is not asked for again."""
    path = job.downloads / name
    note = path.with_name(f"{path.name}.whole.json")
    known = read_json(note) or {}
    digest = sha256_of(path) if known.get("url") == shown(address) and path.is_file() else None
    if digest is not None and digest == known.get("sha256") and sha256 in (None, digest):
        return Fetched(sha256=digest, size=path.stat().st_size, etag=known.get("etag"))
    job.tell(f"{shown(address)}: downloading")
    fetched = download(
        address, path, token=job.token, sha256=sha256, size=size, timeout=job.timeout, moved=job.moving(name)
    )
    record = {"url": shown(address), "sha256": fetched.sha256, "etag": fetched.etag}
    write_json(note, record)
    job.tell(f"{shown(address)}: {fetched.size} bytes, sha256 {fetched.sha256}")
    return fetched


def _from_url(job: _Job) -> Record:
    name = urllib.parse.unquote(urllib.parse.urlsplit(job.source).path.rpartition("/")[2])
    name = "download" if safe_name(name) else name
    fetched = _fetch(job, job.source, name, job.sha256, None)
    path = job.downloads / name
    if not is_packed(path):
        path.unlink()
        raise ArchiveError(
            f"{shown(job.source)}: is no zip or tar file, but perhaps a page that asks for something; download it by "
            "hand and give the file"
        )
    _unpack_download(job, path, job.files)
    return {"kind": "url", "url": shown(job.source), "sha256": fetched.sha256, "etag": fetched.etag}


def _from_archive(job: _Job) -> Record:
    path = Path(job.source)
    digest = sha256_of(path)
    require(job.sha256 in (None, digest), f"--sha256 of {path}", digest, f"{job.sha256}; download it again")
    if not is_packed(path):
        raise ArchiveError(f"{path}: is no zip or tar file; unpack it yourself and give the folder")
    unpack(path, job.files, moved=job.moving(f"unpacking {path.name}"))
    return {"kind": "archive", "file": path.name, "sha256": digest}


def _from_folder(job: _Job) -> Record:
    folder = Path(job.source)
    if job.work.is_relative_to(folder.resolve()):
        raise ConfigError(f"{job.to}: lies in {folder}; give a folder outside of it")
    paths, done = list(_walked(folder)), 0
    total = sum(path.stat().st_size for path in paths)
    demand_space(job.files, total, f"copying {folder.name}")
    for path in paths:
        target = job.files / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file, target.open("xb") as copy:
            done = copied(file, copy, done, total, job.moving(f"copying {folder.name}"))
    return {"kind": "folder", "folder": folder.name}


def _place(job: _Job, path: Path, target: Path) -> None:
    """Unpack an archive into the folder of ``target``; copy any other file to it, by a hard link where there can be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_archive(path):
        _unpack_download(job, path, target.parent)
        return
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, target)


def _unpack_download(job: _Job, path: Path, folder: Path) -> None:
    """Unpack a download; one that is refused is removed, to be downloaded anew."""
    try:
        unpack(path, folder, moved=job.moving(f"unpacking {path.name}"))
    except ArchiveError:
        path.unlink()
        raise


def _licence(entry: Entry, source: Record) -> Record:
    return {
        "name": entry.name,
        "title": entry.title,
        "licence": entry.licence,
        "upstream": entry.upstream,
        "redistribution": entry.redistribution,
        "source": {key: value for key, value in source.items() if key != "downloaded"},
    }


def _walked(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, in order.

    Raises:
        ConfigError: there is a link or a special file.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ConfigError(f"{path}: a link or a special file; put a plain file in its place")
        if path.is_file():
            yield path


def _listed(folder: Path) -> list[Path]:
    return [path for path in _walked(folder) if path.name != MANIFEST]


def _checksums(folder: Path) -> Record:
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in _listed(folder)
    }


def _verified(job: _Job) -> str:
    """Say that the prepared folder is as it was.

    Raises:
        ConfigError: it was prepared from elsewhere, or a file is another now or gone.
    """
    manifest = read_json(job.to / MANIFEST) or {}
    if (manifest.get("name"), manifest.get("asked")) != (job.entry.name, _asked(job.source)):
        raise ConfigError(
            f"{job.to}: holds {manifest.get('name')} from {manifest.get('asked')}; give another folder for this one"
        )
    recorded, now = manifest.get("files") or {}, _checksums(job.to)
    wrong = sorted({*recorded, *now} - {name for name, about in now.items() if recorded.get(name) == about})
    if wrong:
        more = f" and {len(wrong) - 1} more files" if len(wrong) > 1 else ""
        raise ConfigError(
            f"{job.to / wrong[0]}{more}: changed, added or gone since it was prepared; remove the folder and "
            "prepare it anew"
        )
    return f"{job.to}: prepared before, {len(now)} files verified"
