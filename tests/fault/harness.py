"""Runs that are killed, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import torch
from safetensors.torch import load_file

from grasp_rl.utils import memory

STEPS = 8
WORDS = [
    "reward=think2seg", "segmenter=grabcut", f"algorithm.steps={STEPS}", "algorithm.prompts_per_step=4",
    "algorithm.group_size=4", "algorithm.micro_batch_groups=1", "optimizer.lr=1e-3", "checkpoint.every=2",
    "checkpoint.keep_last=2", "evaluation.every=4", "evaluation.val_limit=4", "evaluation.test_limit=4",
    "evaluation.overlays=0", "rollout.max_new_tokens=64", "evaluation.max_new_tokens=64",
]  # fmt: skip
"""A short run with everything in it: real segmenter, validation, checkpoints, pruning."""
ENGINES = {"local": ["engine=local"], "zero3x2": ["engine=zero3", "engine.nproc=2"]}


def start(run_dir: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """The same line begins the run and goes on with it."""
    command = [sys.executable, "-m", "grasp_rl.cli.main", "train", f"run_dir={run_dir}", "resume=auto", *words]
    environment = memory.environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(run_dir: Path, words: Sequence[str]) -> None:
    """Run to the end; nothing is to befall this one, so it need not be a process of its own making."""
    done = forked.grasp_rl("train", f"run_dir={run_dir}", "resume=auto", *words)
    log = run_dir / "log.txt"
    assert done.returncode == 0, done.stderr + (log.read_text()[-3000:] if log.exists() else "")


def family(pid: int) -> list[int]:
    """``pid`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(text.rsplit(")", 1)[1].split()[1]), []).append(int(stat.parent.name))
    found, new = [], [pid]
    while new:
        found += new
        new = [child for parent in new for child in children.get(parent, [])]
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a run and everything that it started, at one instant; then wait until all are gone."""
    everyone = family(process.pid)
    for pid in everyone:
        signal_quietly(pid, signal.SIGSTOP)
    everyone = sorted({*everyone, *family(process.pid)})
    for pid in everyone:
        signal_quietly(pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(lives(pid) for pid in everyone):
        time.sleep(0.01)


def signal_quietly(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def lives(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def rows(run_dir: Path) -> int:
    """Lines of metrics so far, but for the validation before the first step."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return sum(line.endswith(b"\n") and not line.startswith(b'{"step": 0,') for line in lines)


def writing(run_dir: Path) -> bool:
    """Whether a checkpoint is half-built."""
    return any((run_dir / "checkpoints").glob(".step_*.part"))


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether ``condition`` came true while the run was alive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def strike(process: subprocess.Popen[bytes], run_dir: Path, where: str, chance: random.Random) -> str:
    """Kill the run somewhere: inside a checkpoint's writing, inside a rollout, or at any instant of its work."""
    if where == "checkpoint":
        nth = chance.randrange(3)
        for _ in range(nth):
            if wait_for(process, lambda: writing(run_dir)):
                wait_for(process, lambda: not writing(run_dir))
        hit = wait_for(process, lambda: writing(run_dir))
        time.sleep(chance.random() * 0.06)
        inside = writing(run_dir)
    elif where == "rollout":
        step = chance.choice([1, 3, 5, 7])  # after these no checkpoint is due: the next thing is a rollout
        hit = wait_for(process, lambda: rows(run_dir) >= step + (step > 4))
        time.sleep(chance.random() * 0.1)
        inside = hit
    else:
        hit = wait_for(process, (run_dir / "metrics.jsonl").exists)
        time.sleep(chance.random() * 6.0)
        inside = hit and process.poll() is None
    kill(process)
    return where if inside else "elsewhere"


def tensors(run_dir: Path) -> dict[str, bytes]:
    """Weights and optimizer of the last checkpoint, by name, as bytes."""
    last = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    found = {name: _bytes(value) for name, value in load_file(last / "policy" / "model.safetensors").items()}
    for path in sorted((last / "engine").rglob("*.pt")):
        state = torch.load(path, map_location="cpu", weights_only=False)  # shards of the run that this test made
        found |= {f"{path.name}:{key}": value for key, value in _flat(state, "").items()}
    return found


def _flat(value: Any, key: str) -> dict[str, bytes]:
    if isinstance(value, torch.Tensor):
        return {key: _bytes(value)}
    if isinstance(value, dict):
        return {k: v for name in value for k, v in _flat(value[name], f"{key}.{name}").items()}
    if isinstance(value, list | tuple):
        return {k: v for index, item in enumerate(value) for k, v in _flat(item, f"{key}.{index}").items()}
    return {key: repr(value).encode()} if isinstance(value, int | float | str | bool) else {}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def compare(run_dir: Path, expected: Path) -> list[str]:
    """What differs between two finished runs: metrics by file, weights and optimizer by tensor bytes."""
    wrong = [] if (run_dir / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes() else ["metrics"]
    ours, theirs = tensors(run_dir), tensors(expected)
    wrong += sorted(ours.keys() ^ theirs.keys())
    return wrong + [key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]]


def report(path: Path, found: dict[str, Any]) -> None:
    """Append one line to a fault run's record."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
