"""`grasp-rl data prepare`: whatever a server or an archive does, the folder is whole and right, or is not there."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import stat
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grasp_rl.cli import data as data_cli
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.data import transfers
from grasp_rl.data.archives import ArchiveError, Limits, unpack
from grasp_rl.data.download import DownloadError, _Redirects, download
from grasp_rl.data.prepare import MANIFEST, prepare
from grasp_rl.data.transfers import NoSpaceError
from grasp_rl.policies.describe import terms_of
from grasp_rl.runs import data_record
from grasp_rl.runs.model_card import write_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BODY = bytes(range(256)) * 2000
TOKEN = "hf_secret"


@dataclass
class Server:
    """A local server: what it does with the n-th request is the n-th of ``script``, then of the last."""

    files: dict[str, bytes]
    script: list[str] = field(default_factory=lambda: ["serve"])
    etag: str = '"one"'
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    state: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        what = state.script[min(len(state.requests), len(state.script) - 1)]
        state.requests.append((self.path, dict(self.headers.items())))
        path = self.path.partition("?")[0]
        if path in state.redirects:
            self.send_response(302)
            self.send_header("Location", state.redirects[path])
            self.end_headers()
            return
        if path not in state.files or what.isdigit():
            self.send_error(int(what) if what.isdigit() else 404)
            return
        body, start = state.files[path], 0
        if what == "change":
            state.etag, state.files[path] = '"two"', body[::-1]
            body = state.files[path]
        ranged, same = self.headers.get("Range", ""), self.headers.get("If-Range") in (None, state.etag)
        if ranged and what != "ignore range" and (same or what == "lie"):
            start = int(ranged.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        if what != "no etag":
            self.send_header("ETag", '"three"' if what == "lie" else state.etag)
        self.end_headers()
        rest = body[start:]
        if what == "wrong":
            rest = rest[:-1] + b"?"
        self.wfile.write(rest[: len(rest) // 2] if what in ("cut", "stall", "no etag") else rest)
        if what == "stall":
            self.wfile.flush()
            time.sleep(1.5)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[ThreadingHTTPServer] = []

    def start(files: dict[str, bytes], *script: str, redirects: dict[str, str] | None = None) -> Server:
        state = Server(files, list(script) or ["serve"], redirects=redirects or {})
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        state.address = f"http://127.0.0.1:{server.server_port}"
        running.append(server)
        return state

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def get(server: Server, path: Path, **more: Any) -> Any:
    waits: list[float] = []
    return download(f"{server.address}/a.bin?sig=SECRET", path, wait=waits.append, **{"timeout": 0.4} | more)


def ranges(server: Server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.requests]


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        (["serve"], [None]),
        (["cut", "serve"], [None, "bytes=256000-"]),
        (["stall", "serve"], [None, "bytes=256000-"]),
        (["503", "429", "serve"], [None, None, None]),
        (["cut", "cut", "serve"], [None, "bytes=256000-", "bytes=384000-"]),
        (["cut", "ignore range"], [None, "bytes=256000-"]),
        (["no etag", "serve"], [None, None]),
        (["cut", "lie", "serve"], [None, "bytes=256000-", None]),
    ],
)
def test_a_download_goes_on_where_it_stopped(
    serve: Callable[..., Server], tmp_path: Path, script: list[str], asked: list[str | None]
) -> None:
    server = serve({"/a.bin": BODY}, *script)
    fetched = get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert fetched.sha256 == hashlib.sha256(BODY).hexdigest()
    assert ranges(server) == asked
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_that_changed_between_two_parts_is_taken_anew(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve({"/a.bin": BODY}, "cut", "change")
    get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]
    assert server.requests[1][1]["If-Range"] == '"one"'


def test_the_next_call_goes_on_too(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve({"/a.bin": BODY}, "cut", *["500"] * 5, "serve")
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path / "a.bin")
    address = f"{server.address}/a.bin"
    assert str(caught.value) == (
        f"{address}: the server answers 500 after 256000 of 512000 bytes; run the command again to go on there"
    )
    assert "SECRET" not in (tmp_path / "a.bin.part.json").read_text()
    get(server, tmp_path / "a.bin")
    assert ranges(server)[-1] == "bytes=256000-"
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("script", "more", "said"),
    [
        (["403"], {}, "the server answers 403; accept the terms on its page"),
        (["401"], {}, "the server answers 401; set a token"),
        (["404"], {}, "the server answers 404; see that the address"),
        (["wrong"], {"sha256": hashlib.sha256(BODY).hexdigest()}, "other bytes than were asked for (sha256 "),
        (["serve"], {"size": 5}, "(512000 bytes, expected 5); they were removed"),
    ],
)
def test_what_a_server_refuses_or_gets_wrong(
    serve: Callable[..., Server], tmp_path: Path, script: list[str], more: dict[str, Any], said: str
) -> None:
    server = serve({"/a.bin": BODY}, *script)
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path / "a.bin", **more)
    assert str(caught.value).startswith(f"{server.address}/a.bin: ")
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert not (tmp_path / "a.bin").exists()
    assert len(server.requests) == 1


def test_nobody_listens(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/x: connection refused after 0 bytes"):
        download("http://127.0.0.1:9/x", tmp_path / "x", wait=waits.append)
    assert waits == [2.0, 4.0, 8.0, 16.0]
    for url in ("ftp://a/b", "file:///etc/passwd", "http:///x", "http://user:pw@host/x"):
        with pytest.raises(ConfigError) as caught:
            download(url, tmp_path / "x")
        assert "pw" not in str(caught.value)


def test_a_token_goes_to_its_own_host_alone(serve: Callable[..., Server], tmp_path: Path) -> None:
    other = serve({"/a.bin": BODY})
    server = serve({}, redirects={"/a.bin": "/b.bin", "/b.bin": f"{other.address}/a.bin"})
    get(server, tmp_path / "a.bin", token=TOKEN)
    assert [headers.get("Authorization") for _, headers in server.requests] == [f"Bearer {TOKEN}"] * 2
    assert [headers.get("Authorization") for _, headers in other.requests] == [None]
    for place in ("file:///etc/passwd", "ftp://127.0.0.1:9/x"):
        server.requests, server.redirects = [], {"/a.bin": place}
        with pytest.raises(DownloadError) as caught:
            get(server, tmp_path / "b.bin", token=TOKEN)
        assert TOKEN not in str(caught.value)
        assert len(server.requests) == 1


def test_no_redirect_leads_away_from_https() -> None:
    request, headers = urllib.request.Request("https://a/x"), http.client.HTTPMessage()
    follow = _Redirects().redirect_request
    with pytest.raises(urllib.error.HTTPError, match="leads away from https"):
        follow(request, io.BytesIO(), 302, "", headers, "http://a/x")
    assert follow(request, io.BytesIO(), 302, "", headers, "https://a/y") is not None


def run(source: str, to: Path, **more: Any) -> tuple[str, list[str]]:
    said: list[str] = []
    return prepare("refsegrs", source, to, tell=said.append, environment={}, **more), said


FILES = {"images/1.tif": b"image", "masks/1.tif": b"mask", "output_phrase_val.txt": b"1 a road"}


def test_a_url_is_prepared_and_then_verified(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve({"/set.zip": zipped(FILES)}, "cut", "serve")
    url, to = f"{server.address}/set.zip?token=SECRET", tmp_path / "data"
    told, said = run(url, to)
    assert said[0] == "RefSegRS: licence: CC BY 4.0"
    assert "3 files" not in told
    assert {name: (to / name).read_bytes() for name in FILES} == FILES
    manifest = json.loads((to / MANIFEST).read_text())
    assert set(manifest["files"]) == {*FILES, data_record.LICENCE}
    assert manifest["files"]["masks/1.tif"]["sha256"] == hashlib.sha256(b"mask").hexdigest()
    assert manifest["source"]["sha256"] == hashlib.sha256(server.files["/set.zip"]).hexdigest()
    assert json.loads((to / data_record.LICENCE).read_text())["licence"] == "CC BY 4.0"
    assert not any("SECRET" in path.read_text() for path in to.rglob("*.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    asked = len(server.requests)
    assert run(url, to)[0].endswith("prepared before, 4 files verified")
    assert len(server.requests) == asked
    with pytest.raises(ConfigError, match=r"holds refsegrs from http.*/set.zip; give another folder"):
        run(f"{server.address}/other.zip", to)
    (to / "masks/1.tif").write_bytes(b"mosk")
    with pytest.raises(ConfigError, match=r"masks/1.tif: changed, added or gone since"):
        run(url, to)
    (to / "masks/1.tif").write_bytes(b"mask")
    (to / "more.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"more\.txt: changed, added or gone"):
        run(url, to)


def test_a_download_is_kept_when_the_folder_is_not(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve({"/set.zip": zipped(FILES)}, "cut", *["500"] * 5, "serve")
    monkeypatch.setitem(download.__kwdefaults__, "wait", lambda _: None)
    with pytest.raises(DownloadError):
        run(f"{server.address}/set.zip", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    run(f"{server.address}/set.zip", tmp_path / "data")
    assert ranges(server)[-1] is not None


def test_a_page_in_place_of_an_archive(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve({"/set.zip": b"<html>log in</html>"})
    for _ in range(2):
        with pytest.raises(ArchiveError, match="is no zip or tar file, but perhaps a page"):
            run(f"{server.address}/set.zip", tmp_path / "data")
    assert len(server.requests) == 2  # the wrong bytes were not kept
    with pytest.raises(DownloadError, match="expected " + "0" * 64):
        run(f"{server.address}/set.zip", tmp_path / "data", sha256="0" * 64)
    assert not (tmp_path / "data").exists()


def hub_files(**more: Any) -> dict[str, bytes]:
    archive = zipped(FILES)
    lfs = {"sha256": hashlib.sha256(archive).hexdigest(), "size": len(archive)}
    siblings = [{"rfilename": "README.md", "size": 4}, {"rfilename": "sub/set.zip", "size": len(archive), "lfs": lfs}]
    listing = {"sha": COMMIT, "siblings": siblings} | more
    base = "/datasets/who/what/resolve/" + COMMIT
    refs = {"tags": [{"name": "v1", "targetCommit": COMMIT}], "branches": [{"name": "main", "targetCommit": COMMIT}]}
    return {
        f"/api/datasets/who/what/revision/{COMMIT}": json.dumps(listing).encode(),
        "/api/datasets/who/what/refs": json.dumps(refs).encode(),
        f"{base}/README.md": b"read",
        f"{base}/sub/set.zip": archive,
    }


@pytest.mark.parametrize("revision", [COMMIT, "v1"])
def test_a_hub_revision_is_pinned(serve: Callable[..., Server], tmp_path: Path, revision: str) -> None:
    server = serve(hub_files())
    said: list[str] = []
    environment = {"HF_TOKEN": TOKEN}
    prepare(
        "refsegrs", f"hub:who/what@{revision}", tmp_path / "data",
        tell=said.append, environment=environment, hub=server.address,
    )  # fmt: skip
    assert (tmp_path / "data/README.md").read_bytes() == b"read"
    assert (tmp_path / "data/sub/images/1.tif").read_bytes() == b"image"
    assert not (tmp_path / "data/sub/set.zip").exists()
    source = json.loads((tmp_path / "data" / MANIFEST).read_text())["source"]
    assert (source["commit"], source["revision"]) == (COMMIT, revision)
    assert {headers["Authorization"] for _, headers in server.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(said) + "".join(path.read_text() for path in (tmp_path / "data").glob("*.json"))


@pytest.mark.parametrize(
    ("source", "files", "said"),
    [
        ("hub:who/what@main", {}, "no tag and no full commit"),
        ("hub:who/what@0123456", {}, "no tag and no full commit"),
        ("hub:who/what", {}, "must be hub:OWNER/NAME@REVISION"),
        (f"hub:who/what@{COMMIT}", {"siblings": [{"rfilename": "../x"}]}, "a path that leads out of its folder"),
        (f"hub:who/what@{COMMIT}", {"sha": "f" * 40}, "lists no files of this commit"),
        (f"hub:who/what@{'f' * 40}", {}, "the server answers 404"),
    ],
)
def test_what_a_hub_cannot_give(
    serve: Callable[..., Server], tmp_path: Path, source: str, files: dict[str, Any], said: str
) -> None:
    server = serve(hub_files(**files))
    with pytest.raises((ConfigError, DownloadError)) as caught:
        run(source, tmp_path / "data", hub=server.address)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_file_with_wrong_bytes(serve: Callable[..., Server], tmp_path: Path) -> None:
    files = hub_files()
    path = next(name for name in files if name.endswith("set.zip"))
    files[path] = files[path][:-1] + b"?"
    with pytest.raises(DownloadError, match=r"set\.zip: other bytes than were asked for \(sha256"):
        run(f"hub:who/what@{COMMIT}", tmp_path / "data", hub=serve(files).address)


def test_files_that_are_whole_are_not_asked_for_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    files = hub_files()
    path = next(name for name in files if name.endswith("set.zip"))
    archive, server = files.pop(path), serve(files)
    for damage in (None, b"raed"):
        with pytest.raises(DownloadError, match="answers 404"):
            run(f"hub:who/what@{COMMIT}", tmp_path / "data", hub=server.address)
        readme = tmp_path / ".data.part/downloads/README.md"
        assert readme.read_bytes() == b"read"
        if damage:
            readme.write_bytes(damage)
    assert [name.endswith("README.md") for name, _ in server.requests].count(True) == 1
    files[path] = archive
    run(f"hub:who/what@{COMMIT}", tmp_path / "data", hub=server.address)
    assert (tmp_path / "data/README.md").read_bytes() == b"read"
    assert [name.endswith("README.md") for name, _ in server.requests].count(True) == 2


def test_archives_and_folders(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(zipped(FILES))
    run(str(archive), tmp_path / "a", sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    (tmp_path / "b").mkdir()  # an empty folder is taken
    (tmp_path / ".b.part/files").mkdir(parents=True)
    (tmp_path / ".b.part/files/half").write_text("of a call that was killed")
    run(str(tmp_path / "a"), tmp_path / "b")
    assert {name: (tmp_path / "b" / name).read_bytes() for name in FILES} == FILES
    assert not (tmp_path / "b/half").exists()
    for source, to, said in (
        (archive, "c", "--sha256"),
        (tmp_path / "none", "c", "no such file or folder"),
        (archive, "set.zip", "must be a new or an empty folder"),
        (tmp_path, "c", "lies in"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(str(source), tmp_path / to, **({"sha256": "0" * 64} if said == "--sha256" else {}))
    (tmp_path / "a/link").symlink_to(archive)
    with pytest.raises(ConfigError, match="a link or a special file"):
        run(str(tmp_path / "a"), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def tarred(*members: tarfile.TarInfo, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 1, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size if kind == tarfile.REGTYPE else 0, link
    return info


def zip_link() -> bytes:
    buffer = io.BytesIO()
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    """A zip file whose directory says that its member is encrypted."""
    data = bytearray(zipped({"a": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


UNSAFE: dict[str, tuple[bytes, str]] = {
    "tar ..": (tarred(member("good"), member("a/../../evil")), "leads out of its folder"),
    "tar absolute": (tarred(member("/tmp/evil")), "an absolute path"),
    "tar symlink": (tarred(member("l", tarfile.SYMTYPE, link="/"), member("l/evil")), "a link"),
    "tar hard link": (tarred(member("l", tarfile.LNKTYPE, link="/etc/passwd")), "a link"),
    "tar device": (tarred(member("d", tarfile.CHRTYPE)), "a device"),
    "tar fifo": (tarred(member("d", tarfile.FIFOTYPE)), "a device"),
    "tar twice": (tarred(member("a"), member("a")), "that another one has"),
    "tar by case": (tarred(member("a"), member("A")), "that another one has"),
    "tar file as folder": (tarred(member("a"), member("a/b")), "that another one has"),
    "tar folder as file": (tarred(member("a/b"), member("a")), "that another one has"),
    "zip ..": (zipped({"good": b"", "../evil": b"x"}), "leads out of its folder"),
    "zip absolute": (zipped({"/evil": b"x"}), "an absolute path"),
    "zip backslash": (zipped({"..\\evil": b"x"}), "no name of a file"),
    "zip drive": (zipped({"C:/evil": b"x"}), "an absolute path"),
    "zip link": (zip_link(), "a link"),
    "zip encrypted": (encrypted(), "encrypted"),
    "zip long name": (zipped({"a" * 300: b"x"}), "a name of more than 255 bytes"),
    "zip bomb": (zipped({"bomb": b"\0" * (65 << 20)}), "more than 67108864 bytes"),
    "tar bomb": (tarred(member("bomb", size=65 << 20), mode="w:gz"), "more than 67108864 bytes"),
    "zip cut": (zipped(FILES)[:-40], "damaged"),
    "tar cut": (tarred(member("a", size=50_000), mode="w:gz")[:60], "damaged"),
    "text": (b"hello", "damaged"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_archives_write_nothing(tmp_path: Path, name: str) -> None:
    data, said = UNSAFE[name]
    path, inside = tmp_path / "archive", tmp_path / "in"
    path.write_bytes(data)
    with pytest.raises(ArchiveError) as caught:
        unpack(path, inside)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert ";" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir() if p != inside) == ["archive"]
    assert not [p for p in inside.rglob("*") if p.is_file() and p.stat().st_size > (64 << 20)]


def test_limits_and_a_zip_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(zipped({"a": b"1", "b": b"2"}))
    with pytest.raises(ArchiveError, match="more than 1 members"):
        unpack(path, tmp_path / "x", Limits(members=1))
    with pytest.raises(ArchiveError, match="more than 1 bytes"):
        unpack(path, tmp_path / "y", Limits(total=1))
    honest = zipped({"a": b"\0" * 100_000})
    size = (100_000).to_bytes(4, "little")
    assert honest.count(size) == 2
    path.write_bytes(honest.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match=r"damaged|more than"):
        unpack(path, tmp_path / "z", Limits(free=1000, ratio=1))
    assert sum(p.stat().st_size for p in (tmp_path / "z").rglob("*")) < 100_000
    good = tarred(member("./d", tarfile.DIRTYPE), member("./d/a", size=3), mode="w:xz")
    path.write_bytes(good)
    assert unpack(path, tmp_path / "good") == [tmp_path / "good/d/a"]


def test_a_download_without_room_is_kept_where_it_is(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(3 << 20)
    server, path = serve({"/a.bin": body}, "cut", "serve"), tmp_path / "a.bin"
    free = iter([1 << 30, 1 << 20])
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    told: list[tuple[int, int | None]] = []
    with pytest.raises(
        NoSpaceError, match=r"the rest of http://127\.0\.0\.1:\d+/a\.bin needs 1\.5 MiB there, 1\.0 MiB"
    ):
        get(server, path, moved=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(body) // 2, len(body))
    monkeypatch.undo()
    assert get(server, path).size == len(body)
    assert ranges(server) == [None, f"bytes={len(body) // 2}-", f"bytes={len(body) // 2}-"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, to = tmp_path / "set.zip", tmp_path / "data"
    archive.write_bytes(zipped(FILES))
    words = ["prepare", "refsegrs", "--from", str(archive), "--to", str(to)]
    assert data_cli.main(words) == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[0] == "RefSegRS: licence: CC BY 4.0"
    assert f"grasp-rl data validate data=refsegrs data.root={to}" in told.out
    with pytest.raises(SystemExit):
        data_cli.main([*words, "more"])
    assert "unrecognized arguments: more" in capsys.readouterr().err
    assert data_cli.main(["prepare", "nothing", "--from", str(archive), "--to", str(to)]) == 2
    assert data_cli.main(["prepare", "refsegrs", "--from", "http://127.0.0.1:9/x", "--to", str(to)]) == 2
    assert "give another folder" in capsys.readouterr().err


def test_an_interruption_keeps_what_was_downloaded(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    server = serve({"/set.zip": zipped(FILES)}, "cut", "serve")
    monkeypatch.setitem(download.__kwdefaults__, "wait", interrupt)
    words = ["prepare", "refsegrs", "--from", f"{server.address}/set.zip", "--to", str(tmp_path / "data")]
    assert data_cli.main(words) == 130
    assert "grasp-rl data prepare: interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".data.part"]
    assert data_cli.main(words) == 0
    assert ranges(server)[1] is not None
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_run_records_the_licence(tmp_path: Path) -> None:
    archive, to = tmp_path / "set.zip", tmp_path / "data"
    archive.write_bytes(zipped(FILES))
    run(str(archive), to)
    data_record.write(tmp_path / "run", [to / "images/1.tif"])
    record = json.loads((tmp_path / "run" / data_record.DATA).read_text())
    assert record["licences"][str(to)]["licence"] == "CC BY 4.0"
    config = RunConfig(run_dir=str(tmp_path / "run"), data={"_target_": "x.Y", "name": "mine"})
    (about,) = terms_of(config)
    assert about == (
        "RefSegRS: licence: CC BY 4.0; may be passed on: under CC BY 4.0, with attribution (as recorded when it was "
        "prepared)."
    )
    write_card(tmp_path, config, step=1, scores={}, terms=[about])
    assert f"## Data\n\n- {about}\n\n## Scores" in (tmp_path / "README.md").read_text()
    data_record.write(tmp_path / "run", [archive])
    assert list(json.loads((tmp_path / "run" / data_record.DATA).read_text())["licences"]) == [str(to)]
    data_record.write(tmp_path / "other", [archive])
    assert list(json.loads((tmp_path / "other" / data_record.DATA).read_text())) == ["files"]


def test_the_card_names_the_licence_of_data_that_others_prepared(tmp_path: Path) -> None:
    def told(data: dict[str, object]) -> list[str]:
        return terms_of(RunConfig(run_dir=str(tmp_path), data={"_target_": "x.Y", **data}))

    (one,) = told({"name": "risbench_arrow"})
    assert one.startswith("RISBench (CroBIM): licence: its page says CC BY 4.0 and links to CC BY-NC")
    assert "images of DOTA-v2 (academic use only)" in one
    assert one.endswith("(by the catalog of grasp_rl, the data being named risbench_arrow).")
    sets = {"a": {"name": "rrsis_d"}, "b": {"name": "fields"}, "c": {"train_size": 4}}
    first, second = told({"name": "mixture", "sets": sets})
    assert first.startswith("RRSIS-D (RMSIN): licence: none stated by its authors; images of DIOR")
    assert second == "fields: its licence is not known here."
    assert told({"train_size": 4}) == []
