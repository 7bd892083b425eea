"""Strangers' words where they come out: one function a format, and every output goes through it."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from grasp_rl.cli import data_page
from grasp_rl.config.messages import of_system
from grasp_rl.config.schema import PromptConfig, RunConfig
from grasp_rl.reporting import render, table
from grasp_rl.reporting.formats import as_csv
from grasp_rl.reporting.load import read_study
from grasp_rl.runs.model_card import Asking, write_card
from grasp_rl.utils import text
from grasp_rl.utils.console import PlainConsole, PlainTable

CONTROLS = "\x00\x07\x08\x1b]0;TITLE\x07\x1b[2J\x7f\x9b2J\u202e\u2066\u2028\ud800\r"
MARKUP = (
    "`\n\n# Injected\n\n![](http://tracker.invalid/x.png) [a](http://b) <img src=x onerror=alert(1)> ``` *b* $x$ | c"
)
LINK = re.compile(r"(?<!\\)\]\(")


def _raw(shown: str) -> list[str]:
    return [c for c in CONTROLS if not c.isprintable() and c in shown]


def test_terminal() -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, markup=False, highlight=False, soft_wrap=True)
    console.print(f"a {CONTROLS}\nb")
    rows = PlainTable(CONTROLS, "")
    rows.add_row(CONTROLS, "x")
    console.print(rows)
    assert _raw(stream.getvalue()) == []
    assert "\nb" in stream.getvalue()
    plain = io.StringIO()
    Console(file=plain, markup=False, soft_wrap=True).print(CONTROLS.replace("\ud800", ""))
    assert _raw(plain.getvalue())  # which is why there is one of ours
    assert _raw(of_system(OSError(2, "No such file", f"a{CONTROLS}"))) == []
    assert _raw(of_system(ValueError(CONTROLS))) == []


@pytest.mark.parametrize("word", ["=1+1", "+1+cmd", "-2+3", "@SUM(1)", "\t=1", " =1", "\uff1dcmd|x", "=", "\r\n=1"])
def test_csv(word: str) -> None:
    rows = list(csv.reader(io.StringIO(as_csv([{word: word, "n": -0.5, "m": "-1e-3", "text": "a-b"}]))))
    head, row = rows
    assert head[0][0] == row[0][0] == "'"
    assert row[1:] == ["-0.5", "-1e-3", "a-b"]


def test_markdown() -> None:
    line = text.markdown_text(MARKUP)
    assert "\n" not in line
    assert all(f"\\{mark}" in line for mark in "`*|$"), line
    assert not LINK.search(line)
    assert "<img" not in line
    for begin in ("# a", "> a", "- a", "+ a", "1. a", "12) a", "=== a", "--- a", ": a"):
        assert text.markdown_line(begin) != begin
        assert text.markdown_line(begin).replace("\\", "") == begin
    assert text.markdown_text("pr_no_target_ -0.5 [0.1, 0.2]") == "pr_no_target\\_ -0.5 [0.1, 0.2]"
    span = text.markdown_code(MARKUP)
    assert span.startswith("```` ")
    assert span.endswith(" c ````")
    assert "\n" not in span
    block = text.markdown_block("a\n````\nb", "yaml")
    assert block.splitlines()[0] == "`````yaml"
    assert block.splitlines()[-1] == "`````"


def test_latex() -> None:
    assert text.latex_text("\\input{x} 50 % $y$ \x1b_#&~^") == (
        r"\textbackslash{}input\{x\} 50 \% \$y\$ "
        r"\textbackslash{}x1b\_\#\&\textasciitilde{}\textasciicircum{}"
    )


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two failed runs whose every word is a stranger's."""
    for name, word in (("=1+1", f"reward==cmd|{MARKUP}"), ("-2+3", f"reward=@SUM(1)\\input{{x}}{CONTROLS}")):
        run = tmp_path / "study" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("command: train\n")
        status = {"state": "failed", "started": None, "ended": None, "exit_code": 1, "pid": 1, "config_hash": name}
        (run / "status.json").write_text(json.dumps(status))
        (run / "error.json").write_text(json.dumps({"type": "x", "message": f"+1+cmd {MARKUP}{CONTROLS}"}))
        (run / "environment.json").write_text(json.dumps({"command": [MARKUP], "overrides": [word]}))
    return tmp_path / "study"


def test_reports(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main([str(study)]) == 0
    assert _raw(capsys.readouterr().out.replace("\r", "")) == []
    cells = [cell for row in csv.reader(io.StringIO((study / "results.csv").read_text())) for cell in row]
    assert [cell for cell in cells if cell[:1] in tuple("=+-@")] == []
    markdown = (study / "report.md").read_text()
    assert "\n# Injected" not in markdown
    assert not LINK.search(re.sub(r"`{4}.*?`{4}", "", markdown))  # in the command's code span it is only text
    assert _raw(markdown) == []
    page = (study / "report.html").read_text()
    assert "<img src=x" not in page
    assert r"\input" not in (study / "breakdowns.tex").read_text()


def test_tables_say_the_same_way(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([str(study)]) == 2
    assert _raw(capsys.readouterr().err) == []
    assert read_study(study)[0].error is not None


def test_model_card(tmp_path: Path) -> None:
    policy = {"_target_": "a.B`", "path": '"; import os; os.system("x") #', "lora_rank": "$(touch canary)"}
    prompt = PromptConfig(scheme="`x`\n# Injected")
    config = RunConfig(
        policy=policy, segmenter={}, reward={"_target_": "a.C"}, data={"_target_": "a.D"}, prompt=prompt,
        name="a\n# Injected", run_dir=str(tmp_path),
    )  # fmt: skip
    asking = Asking(turns=(("user", "a\n```\n# Injected\n~~~"),), canvas="1 x 1", coordinates="absolute")
    (tmp_path / "adapter_config.json").write_text("{}")
    scores = {"test | x": {"giou": 0.5, "x": "bad"}}
    write_card(tmp_path, config, step=1, scores=scores, asking=asking, terms=["# Injected"])  # type: ignore[dict-item]
    card = (tmp_path / "README.md").read_text()
    outside, fence = [], None
    for line in card.split("---\n", 2)[2].splitlines():
        ticks = line[: len(line) - len(line.lstrip("`"))]
        if len(ticks) >= 3 and (fence is None or (line == ticks and len(ticks) >= len(fence))):
            fence = ticks if fence is None else None
        elif fence is None:
            outside.append(line)
    assert "# Injected" not in outside
    (python,) = [part.split("\n```")[0] for part in card.split("```python\n")[1:]]
    values = [node.value for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Assign)]
    assert ast.literal_eval(values[0]) == policy["path"]
    (line,) = [line for line in card.splitlines() if line.startswith("grasp-rl predict")]
    assert "policy.lora_rank=$(touch canary)" in shlex.split(line)
    assert f"policy.path={policy['path']}" in shlex.split(line)


def test_dataset_page_escapes_its_words() -> None:
    assert _raw(text.printable(CONTROLS)) == []
    assert data_page.printable is text.printable
    assert replace(RunConfig(), name=CONTROLS).name == CONTROLS  # what is stored stays what it is
