"""A template that is a file has an end, a size and one line, whatever is in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts import sandbox
from grasp_rl.prompts.render import build_messages

FRAME = CoordinateFrame(width=64, height=64, image_width=64, image_height=64)
HOSTILE = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a macro that doubles": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "a range that is too long": "{% for a in range(10**9) %}{% endfor %}",
    "a width of 10^9": "{{ '%1000000000d' % 1 }}",
    "a filter's width": "{{ query | center(10**9) }}",
    "a product": "{{ 'x' * 10**12 }}",
    "a power": "{{ 10 ** (10 ** 8) }}",
    "doubled": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "too much text": "{% for a in range(99999) %}{{ query }}{% endfor %}",
    "division by zero": "{{ 1 / 0 }}",
    "no such name": "{{ nothing }}",
    "no template": "{{ query",
    "another file": "{% include '/etc/hostname' %}",
    "a way out": "{{ cycler.__init__.__globals__.os }}",
    "control characters": "{{ nothing['\x1b[2J\n'] }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMIT_S", 1.0)
    path = tmp_path / "t.jinja"
    path.write_text("{{ query }}" + HOSTILE[name])
    began = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        build_messages("where?", FRAME, PromptConfig(template=str(path)))
    assert time.monotonic() - began < 6
    said = str(refused.value)
    assert said.startswith(f"prompt.template={str(path)!r}: ")
    assert said.isprintable()


def test_a_good_one_renders_as_ever_and_knows_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{% block system %}S{% endblock %}{% block user %}{{ query }} {{ width }}{% endblock %}")
    system, user = build_messages("\U0001f680 where?", FRAME, PromptConfig(template=str(path)))
    assert (system["content"][0]["text"], user["content"][-1]["text"]) == ("S", "\U0001f680 where? 64")
    monkeypatch.setenv("CANARY_TOKEN", "canary")
    made = sandbox.Sandbox("t", "{{ query }}")
    assert made._process is not None
    assert b"canary" not in Path(f"/proc/{made._process.pid}/environ").read_bytes()
    assert made.render(None, {"query": "a"}) == "a"
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)  # as after a fork
    assert made.render(None, {"query": "b"}) == "b"


@pytest.mark.parametrize("kind", ["fifo", "large", "missing", "folder", "binary"])
def test_a_template_is_a_regular_text_of_bounded_size(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_text("{{ query }}" + "x" * 70_000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="the path to a readable template file"):
        build_messages("where?", FRAME, PromptConfig(template=str(path)))
