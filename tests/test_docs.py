"""What README.md and docs/ show works as written: `grasp-rl plan` lines, YAML, files of one's own.

A block whose first line is a comment with a path is that file.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import forked
import pytest
import yaml

from grasp_rl.cli import plan

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
        if name == page and (first := re.match(r"# (\S+/\S+\.\w+)\n", text)):
            path = folder / first[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def test_lines_and_blocks_are_found() -> None:
    assert "experiment=think2seg_rs/main_3b --gpu a100_80" in PLANS
    assert ("docs/datasets.md", "data", "fields") in OPTIONS
    assert len(YAML) >= 4


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
