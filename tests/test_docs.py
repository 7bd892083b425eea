"""What README.md and docs/ show works as written: `grasp-rl plan` lines, YAML, Python, files of one's own.

A block whose first line is a comment with a path is that file.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path

import forked
import pytest
import yaml

from grasp_rl.cli import plan
from grasp_rl.config.errors import ConfigError
from grasp_rl.data.synthetic.questions import PREFERENCES, TRAIN_PHRASES
from grasp_rl.interfaces import WeakLabels
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.types import Answer, ParseStatus, SpatialPrompt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
PLANS = sorted(
    {
        line.strip().replace("experiment=NAME", "experiment=think2seg_rs/main_3b")
        for text in TEXTS.values()
        for line in re.findall(r"grasp-rl plan( [^`#\n]*=[^`#\n]*)", text)
    }
)
BLOCKS = [
    (name, *match) for name, text in TEXTS.items() for match in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
]
"""Page, language and text of every fenced block."""
YAML = [(name, text) for name, language, text in BLOCKS if language == "yaml"]
YAML += [(name, text) for name, page in TEXTS.items() for text in re.findall(r"`(\{_target_:[^`]*\})`", page)]
OPTIONS = [(name, *match) for name, text in YAML for match in re.findall(r"\A# my_conf/([\w/]+)/(\w+)\.yaml\n", text)]
"""Page, group and name of every option of one's own."""


def files_of(page: str, folder: Path) -> None:
    """Write the files that ``page`` shows."""
    for name, _, text in BLOCKS:
        if name == page and (first := re.match(r"# (\S+\.(?:py|yaml))\n", text)):
            path = folder / first[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def test_lines_and_blocks_are_found() -> None:
    assert "experiment=think2seg_rs/main_3b --gpu a100_80" in PLANS
    assert ("docs/datasets.md", "data", "fields") in OPTIONS
    assert len(YAML) >= 4


def test_every_question_that_the_tiny_policy_was_taught_is_listed() -> None:
    said = [phrase for phrases in TRAIN_PHRASES.values() for phrase in phrases] + [text for _, text, _ in PREFERENCES]
    assert [phrase for phrase in said if phrase not in TEXTS["docs/datasets.md"]] == []


@pytest.mark.parametrize(("page", "text"), YAML)
def test_every_block_of_yaml_is_yaml(page: str, text: str) -> None:
    assert isinstance(yaml.safe_load(text), dict), page


@pytest.mark.parametrize(("page", "group", "name"), OPTIONS)
def test_every_option_of_ones_own_composes(page: str, group: str, name: str, tmp_path: Path) -> None:
    """`plan` composes and checks every component against its class."""
    files_of(page, tmp_path)
    outside = ["trusted_modules=[my_lab]", "hydra.searchpath=[file://my_conf]"]
    ended = forked.grasp_rl("plan", *outside, f"{group}={name}", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("line", PLANS)
def test_every_plan_line_plans(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = plan.main(shlex.split(line))
    said = capsys.readouterr()
    assert code in (0, plan.DOES_NOT_FIT), said.err
    assert "device-hours" in said.out


def test_terms_of_ones_own_are_paid(tmp_path: Path) -> None:
    """The class and the YAML of docs/rewards.md, in a process that rewards."""
    files_of("docs/rewards.md", tmp_path)
    words = ["trusted_modules=[my_lab]", "hydra.searchpath=[file://my_conf]", "reward=size_and_brevity"]
    ended = forked.grasp_rl("train", *words, "debug=fast", "run_dir=r", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "reward" in row]
    assert len(steps) == 2
    for row in steps:
        assert 0 < row["term/size_ratio/mean"] <= 1
        assert row["term/brevity/mean"] == 1
        assert "term/points/mean" not in row


def test_values_of_terms_of_ones_own(tmp_path: Path) -> None:
    files_of("docs/rewards.md", tmp_path)
    found = runpy.run_path(str(tmp_path / "my_lab/terms.py"))
    small, large = SpatialPrompt(box=(0, 0, 10, 10)), SpatialPrompt(box=(0, 0, 20, 20))
    point, empty = SpatialPrompt(point_coords=((1, 1),), point_labels=(1,)), SpatialPrompt(box=(5, 5, 5, 9))
    table = found["SizeRatio"]().table([small, large, point, empty], [large, small], (20, 20))
    assert table.tolist() == [[0.25, 1], [1, 0.25], [0, 0], [0, 0]]
    labels = WeakLabels(instances=(large,), image_size=(20, 20))
    for words, value in ((0, 1), (60, 1), (90, 0.5), (120, 0), (500, 0)):
        answer = Answer(prompts=(), status=ParseStatus.OK, thinking="word " * words)
        assert found["Brevity"]()(answer, labels, None) == value
    with pytest.raises(ConfigError, match=r"reward\.terms\.brevity\.weight=-0\.2: .* a penalty"):
        Rubric({"brevity": found["Brevity"](weight=-0.2)})


PYTHON = [text for name, language, text in BLOCKS if (name, language) == ("docs/python.md", "python")]


def test_the_script_trains(tmp_path: Path) -> None:
    """In a process of its own, since a second one imports it."""
    files_of("docs/python.md", tmp_path)
    line = [sys.executable, "-P", "train_here.py"]
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.match(r"gIoU 0\.\d{3} -> 0\.\d{3}\n", ended.stdout)
    assert (tmp_path / "outputs/from_python/checkpoints/step_000002/policy/config.json").exists()


def test_the_cells_of_a_notebook_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks that are not files, one after the other."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("__main__")  # a dataclass looks its module up
    monkeypatch.setitem(sys.modules, "__main__", module)
    for text in PYTHON:
        if not text.startswith("# "):
            exec(compile(text, "docs/python.md", "exec"), vars(module))
    assert "'few': " in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "outputs/notebook/metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["term/few/mean"] <= 1 for row in rows if "reward" in row)
