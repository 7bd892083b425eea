"""Mutations of run folders, configs and datasets: what somebody could send, drawn from a seed."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import yaml

NOT_TEXT = (".safetensors", ".pt", ".png")
DEEP: Any = "x"
for _ in range(80):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**70, 1e308, -1e308, 1e-320, float("nan"), float("inf"), "", "x", "=1+1",
    "\x1b]0;T\x07\u202e", "\ud800", "x" * 50_000, "a\nb", "../outside/file", "outside/file", "/etc/hostname", "/dev/zero",
    "http://127.0.0.1:9", "hf_" + "a" * 30, [], {}, [None], ["x"], [1, 2], [[1, 2], [3, 4]], {"a": 1}, {"_target_": "os.system"},
    {"_target_": "pathlib.Path.touch", "_args_": ["canary"]}, {"_target_": "grasp_rl.tracking.mirror.Mirror"}, DEEP,
)  # fmt: skip
TEXTS = ("", "{", "[" * 5000, "\x00", "a: &a [*a]", "x: !!python/object/apply:os.system ['touch canary']", "\xff" * 10,
         '{"a": ' + "9" * 5000 + "}")  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of nested mappings and lists are."""
    below: list[tuple[Any, ...]] = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        below += places(item, (*path, key))
    return below


def changed(value: Any, draw: random.Random) -> Any:
    """``value`` with one, two or three of its values replaced, removed or added to."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 3))):
        found = places(value)
        if not found:
            return draw.choice(VALUES)
        *parents, last = draw.choice(found)
        node = value
        for key in parents:
            node = node[key]
        how = draw.random()
        if how < 0.1:
            del node[last]
        elif how < 0.2 and isinstance(node, dict):
            node[draw.choice(("x", "_target_", "_partial_", "path", "=", "\x1b"))] = draw.choice(VALUES)
        else:
            node[last] = draw.choice(VALUES)
    return value


def mutate_file(path: Path, draw: random.Random) -> None:
    """Change one file: its values where it is JSON or YAML, else its bytes, or what it is."""
    how = draw.random()
    if how < 0.06:
        path.unlink()
        path.symlink_to(draw.choice(("../outside/file", "../../outside/file", "/dev/zero", path.name, "nowhere")))
    elif how < 0.09:
        path.unlink()
        os.mkfifo(path)
    elif how < 0.12:
        path.unlink()
        path.mkdir()
    elif how < 0.16:
        path.unlink()
    elif how < 0.24:
        path.write_text(draw.choice(TEXTS), encoding="utf-8", errors="surrogatepass")
    elif how < 0.34 or path.suffix in NOT_TEXT:
        data = bytearray(path.read_bytes())
        if draw.random() < 0.3:
            data = data[: draw.randrange(len(data) + 1)]
        for _ in range(draw.randrange(1, 8)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(changed(yaml.safe_load(path.read_text()), draw)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()), draw)))
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        place = draw.randrange(len(lines))
        lines[place] = changed(lines[place], draw)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text(path.read_text(errors="replace") + draw.choice(TEXTS), encoding="utf-8", errors="surrogatepass")


def mutate_folder(folder: Path, draw: random.Random) -> str:
    """Change one or two files of ``folder``; returns which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    weighted = [path for path in files for _ in range(6 if path.name in ("config.yaml", "predictions.jsonl") else 2)]
    chosen = [draw.choice(weighted) for _ in range(draw.choice((1, 1, 2)))]
    for path in dict.fromkeys(chosen):
        mutate_file(path, draw)
    return ", ".join(str(path.relative_to(folder)) for path in chosen)
