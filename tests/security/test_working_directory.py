"""Nothing in the folder one stands in is run, unless the command line names it, and then only that."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from grasp_rl.config import modules
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import instantiate
from grasp_rl.launch import compose

PLANTED = ("hydra_plugins/planted.py", "hydra_plugins/__init__.py", "olefile.py", "org/__init__.py", "msvcrt.py")


def _plant(folder: Path) -> Path:
    canary = folder / "canary"
    for name in PLANTED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\nraise ImportError\n")
    return canary


@pytest.mark.parametrize("words", [["train", "--cfg", "job"], ["data", "validate", "."]], ids=lambda words: words[0])
def test_a_command_runs_no_module_of_the_working_directory(tmp_path: Path, words: list[str]) -> None:
    canary = _plant(tmp_path)
    row = '{"id": "a", "image": "a.tif", "query": "q", "split": "train", "polygons": []}\n'
    (tmp_path / "annotations.jsonl").write_text(row)
    (tmp_path / "a.tif").write_bytes(b"no image")  # every plugin of Pillow is asked
    python = [sys.executable, "-P", "-c", "import sys; from grasp_rl.cli.main import main; sys.exit(main())"]
    ended = subprocess.run([*python, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in ended.stderr
    assert not canary.exists()


def test_only_what_is_named_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = _plant(tmp_path)
    (tmp_path / "named_lab").mkdir()
    (tmp_path / "named_lab/__init__.py").write_text(
        "import importlib\ntry:\n    import olefile\nexcept ImportError:\n    pass\n"
    )
    (tmp_path / "named_lab/part.py").write_text("class Part:\n    pass\n")
    (tmp_path / "named_conf").mkdir()
    (tmp_path / "named_conf/__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("named_lab.part", "named_conf"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    assert compose.trusted_on(["trusted_modules=[named_lab.part]", "hydra.searchpath=[pkg://named_conf]"]) == (
        "named_lab.part",
    )
    assert importlib.import_module("named_lab.part").Part
    assert importlib.import_module("named_conf")
    assert modules.admitted()["named_lab"] == str(tmp_path)
    assert not canary.exists()


def test_a_trusted_module_that_imports_an_unnamed_one_is_told_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_of_two.py").write_text("import its_helper\n\n\nclass Part:\n    pass\n")
    (tmp_path / "its_helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    node, trusted = {"_target_": "lab_of_two.Part"}, ("lab_of_two",)
    modules.admit(trusted)
    with pytest.raises(ConfigError, match=r"lab_of_two imports its_helper, which .* was not named"):
        instantiate(node, trusted)
    modules.admit(["its_helper"])
    assert type(instantiate(node, trusted)).__name__ == "Part"
