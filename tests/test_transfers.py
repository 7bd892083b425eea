"""`grasp-rl data prepare` beside the bytes themselves: how far it is, room on the disk, two at once in one folder."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from grasp_rl.cli import data as data_cli
from grasp_rl.cli.data_progress import TransferLines
from grasp_rl.config.errors import ConfigError
from grasp_rl.data import transfers
from grasp_rl.data.archives import unpack
from grasp_rl.data.prepare import prepare
from grasp_rl.data.transfers import NoSpaceError, demand_space, held, size_text

MIB = 1 << 20
Usage = namedtuple("Usage", "total used free")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def moved(stream: io.StringIO, seconds: float, steps: int) -> str:
    """What is shown of 100 MiB in ``steps``, one each ``seconds``, 10 MiB of them there before; and a line behind."""
    clock = Clock()
    lines = TransferLines(stream, clock)
    lines.tell("a.zip: downloading")
    for step in range(steps + 1):
        lines.moved("a.zip", 10 * MIB + 90 * MIB * step // steps, 100 * MIB)
        clock.now += seconds
    lines.tell("a.zip: done")
    lines.end()
    return stream.getvalue()


def test_one_line_on_a_terminal() -> None:
    first, *rest = moved(Terminal(), 0.1, 90).split("\r\x1b[K")
    assert first == "a.zip: downloading\na.zip: 12.0 MiB of 100.0 MiB (12 %), 10.0 MiB/s"
    assert rest[-2] == "a.zip: 100.0 MiB of 100.0 MiB (100 %), 10.0 MiB/s"
    assert rest[-1] == "a.zip: done\n"
    assert 30 <= len(rest) <= 45  # not each of the 90
    assert not any("\n" in text for text in rest[:-1])


def test_a_line_each_ten_seconds_elsewhere() -> None:
    assert moved(io.StringIO(), 1.0, 30).splitlines() == [
        "a.zip: downloading",
        "a.zip: 40.0 MiB of 100.0 MiB (40 %), 3.0 MiB/s",
        "a.zip: 70.0 MiB of 100.0 MiB (70 %), 3.0 MiB/s",
        "a.zip: 100.0 MiB of 100.0 MiB (100 %), 3.0 MiB/s",
        "a.zip: done",
    ]
    assert moved(io.StringIO(), 0.01, 90).splitlines() == ["a.zip: downloading", "a.zip: done"]


def test_a_number_of_bytes_that_is_not_known() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = TransferLines(stream, clock)
    for clock.now in (0, 20):
        lines.moved("a.zip", int(clock.now) * 1024, None)
    assert stream.getvalue() == "a.zip: 20.0 KiB, 1.0 KiB/s\n"
    assert [size_text(n) for n in (1, 1023, 1024, 3 << 30, 5000 << 30)] == [
        "1 bytes", "1023 bytes", "1.0 KiB", "3.0 GiB", "5000.0 GiB",
    ]  # fmt: skip


def archive_in(folder: Path, size: int) -> Path:
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/1.tif", bytes(size))
        archive.writestr("output_phrase_train.txt", "1 a road\n")
    return path


def test_every_byte_that_is_unpacked_or_copied_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    unpack(archive_in(tmp_path, 3 * MIB), tmp_path / "a", moved=lambda done, total: told.append((done, total)))
    total = 3 * MIB + 9
    assert [done for done, _ in told] == [MIB, 2 * MIB, 3 * MIB, total]
    assert {of for _, of in told} == {total}
    copied: list[tuple[str, int, int | None]] = []
    prepare(
        "refsegrs", str(tmp_path / "a"), tmp_path / "b", tell=lambda _: None, moved=lambda *step: copied.append(step)
    )
    assert copied[-1] == ("copying a", total, total)


def test_a_disk_without_room_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = archive_in(tmp_path, 3 * MIB)
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda _: Usage(0, 0, MIB))
    words = ["prepare", "refsegrs", "--from", str(archive), "--to", str(tmp_path / "data")]
    assert data_cli.main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"grasp-rl data prepare: {tmp_path}/.data.part/files: unpacking set.zip needs 3.0 MiB there, 1.0 MiB are free; "
        "free 2.0 MiB, or name a folder on another disk"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]
    with pytest.raises(NoSpaceError):
        demand_space(tmp_path, MIB + 1, "it")
    demand_space(tmp_path, MIB, "it")


def test_two_at_once_in_one_folder(tmp_path: Path) -> None:
    archive, to = archive_in(tmp_path, MIB), tmp_path / "data"
    at_work, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        at_work.set()
        go_on.wait(10)

    first = threading.Thread(target=lambda: prepare("refsegrs", str(archive), to, tell=lambda _: None, moved=wait))
    first.start()
    assert at_work.wait(10)
    with pytest.raises(ConfigError) as refused:
        prepare("refsegrs", str(archive), to, tell=lambda _: None)
    go_on.set()
    first.join(10)
    said = str(refused.value)
    assert said.startswith(f"{to}: process {os.getpid()} on {os.uname().nodename} since 2")
    assert said.endswith("is at work there; wait for its end, or give another folder")
    assert "files verified" in prepare("refsegrs", str(archive), to, tell=lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "set.zip"]


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".data.lock"
    if (child := os.fork()) == 0:
        with held(path, "x"):
            os._exit(0)  # nothing is cleaned up
    os.waitpid(child, 0)
    assert path.read_text().startswith(f"process {child} on ")
    with held(path, "x"):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert not path.exists()
