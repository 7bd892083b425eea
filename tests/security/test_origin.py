"""Whose a file of a run is: signed by a key outside the run, void once it is changed, silent where there is no key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grasp_rl.runs import origin


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/grasp_rl/origin.key"


@pytest.fixture
def signed(tmp_path: Path, state: Path) -> Path:
    file = tmp_path / "run/config.yaml"
    file.parent.mkdir()
    file.write_text("seed: 1\n")
    origin.sign(file)
    return file


def test_what_was_signed_is_own_and_may_be_moved(signed: Path, state: Path, tmp_path: Path) -> None:
    assert origin.is_own(signed)
    assert state.stat().st_mode & 0o777 == 0o600
    moved = signed.parent.rename(tmp_path / "elsewhere") / signed.name
    assert origin.is_own(moved)


def test_what_was_changed_or_renamed_is_not(signed: Path) -> None:
    twin = signed.with_name("manifest.json")
    shutil.copy(signed, twin)
    shutil.copy(origin.mark_of(signed), origin.mark_of(twin))
    assert not origin.is_own(twin)
    signed.write_text("seed: 2\n")
    assert not origin.is_own(signed)


@pytest.mark.parametrize("mark", ["", "0" * 64, "\u00e9" * 64, "\0"])
def test_another_mark_is_none(signed: Path, mark: str) -> None:
    origin.mark_of(signed).write_text(mark, encoding="utf-8")
    assert not origin.is_own(signed)
    origin.mark_of(signed).unlink()
    assert not origin.is_own(signed)


def test_another_users_key_is_another(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert not origin.is_own(signed)
    origin.sign(signed)
    assert origin.is_own(signed)


def test_a_key_that_others_can_write_is_none(signed: Path, state: Path) -> None:
    state.chmod(0o666)
    assert not origin.is_own(signed)


def test_without_a_folder_for_the_key_nothing_is_signed_or_own(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))  # no folder can be made there, not even by root
    origin.sign(signed)
    assert not origin.mark_of(signed).exists()
    assert not origin.is_own(signed)


def test_starts_at_the_same_time_make_one_key(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from grasp_rl.runs import origin; origin.sign(Path(sys.argv[1]))"
    files = [tmp_path / f"{number}/config.yaml" for number in range(6)]
    for file in files:
        file.parent.mkdir()
        file.write_text("seed: 1\n")
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    started = [subprocess.Popen([sys.executable, "-c", code, str(file)], env=environment) for file in files]
    assert [process.wait(60) for process in started] == [0] * 6
    assert len({origin.mark_of(file).read_text() for file in files}) == 1
    assert [path.name for path in (tmp_path / "state/grasp_rl").iterdir()] == ["origin.key"]
