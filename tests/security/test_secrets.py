"""A secret that reaches a value is refused before it is written anywhere, and is not quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.launch import compose
from grasp_rl.runs.environment import refuse_secrets

TOKEN = "hf_" + "a" * 30


@pytest.mark.parametrize(
    "value",
    [TOKEN, "sk-" + "a" * 20, "0123456789abcdef" * 2 + "01234567", "https://me:word@host/x", f"Bearer {TOKEN}"],
)
def test_what_looks_like_a_secret_is_refused_by_its_key(value: str) -> None:
    for node in ({"tracker": {"tags": ["a", value]}}, {"tracker": {"tags": ["a", f"x {value} y"]}}):
        with pytest.raises(ConfigError, match=r"tracker\.tags\[1\]: looks like a token") as refused:
            refuse_secrets(node)
        assert value not in str(refused.value)


def test_what_does_not_is_not() -> None:
    policy = {"path": "Qwen/Qwen2.5-VL-3B-Instruct", "revision": "0" * 40}
    nodes = (
        {"policy": policy, "url": "http://host:1"},
        {"name": "sk-learn", "seed": 1, "x": [None, 1.5, "the tokens"]},
    )
    assert [node for node in nodes if _refused(node)] == []
    assert _refused({"name": TOKEN})  # the same question, of something that is one


def _refused(node: dict[str, object]) -> bool:
    try:
        refuse_secrets(node)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_a_command_line_with_a_secret_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    composed = compose.sweep if sweep else compose.single
    words = ["command=train", f"name={TOKEN}{',b' if sweep else ''}"]
    with compose.hydra("train") as engine, pytest.raises(ConfigError, match="name: looks like a token") as refused:
        composed(engine, words, ())
    assert TOKEN not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
