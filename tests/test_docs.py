"""What README.md and docs/ show works as written: `grasp-rl plan` lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

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


def test_lines_are_found() -> None:
    assert "experiment=think2seg_rs/main_3b --gpu a100_80" in PLANS


@pytest.mark.parametrize("line", PLANS)
def test_every_plan_line_plans(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = plan.main(shlex.split(line))
    said = capsys.readouterr()
    assert code in (0, plan.DOES_NOT_FIT), said.err
    assert "device-hours" in said.out
