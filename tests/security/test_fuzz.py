"""Mutated run folders, configs and datasets: no traceback, no wait, nothing outside changed.

A few of each with the other tests; five hundred of each with ``make fuzz``.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import forked
import pytest
import yaml
from strange_mutations import changed, mutate_file, mutate_folder
from strangers import mask, picture

from grasp_rl.cli import data as data_command
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import load_raw, to_config
from grasp_rl.launch import compose
from grasp_rl.launch.paths import check_paths

MOST_S = 10.0
QUICK = ("debug=fast", "algorithm.steps=1", "evaluation.every=0", "evaluation.test_limit=1", "policy.weights=random")
COMMANDS = (
    ("report", "run", "--out", "out"), ("table", "run"), ("train", "resume=run", "algorithm.steps=1"),
    ("export", "run", "--out", "exported"), ("predict", "a.png", "--query", "where?", "--run", "run", "--out", "out"),
    ("rescore", "run", "run_dir=again"), ("diagnose", "run", "run_dir=again"),
    ("evaluate", "init_from=run", "debug=fast", "evaluation.test_limit=1", "run_dir=again"), ("report", "run", "--out", "out"),
)  # fmt: skip
SIZES = [pytest.param(6, id="few"), pytest.param(500, id="many", marks=pytest.mark.long)]
MORE = [pytest.param(30, id="few"), pytest.param(500, id="many", marks=pytest.mark.long)]


def _state(folder: Path) -> str:
    """Names and contents of all that lies in ``folder``."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)}\0".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A failure where the block takes longer."""

    def late(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, with its checkpoint and its evaluations."""
    folder = tmp_path_factory.mktemp("base")
    ended = forked.grasp_rl("train", *QUICK, "run_dir=run", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "run"


@pytest.mark.parametrize("count", SIZES)
def test_run_folders(base: Path, tmp_path: Path, count: int) -> None:
    slowest, codes, failures = 0.0, Counter[int](), list[str]()
    for number in range(count):
        draw, place = random.Random(number), tmp_path / str(number)
        (place / "outside").mkdir(parents=True)
        (place / "outside/file").write_text("mine\n")
        picture(place / "a.png")
        shutil.copytree(base, place / "run")
        (place / "run/config.yaml.origin").unlink()
        touched = mutate_folder(place / "run", draw)
        command = COMMANDS[number % len(COMMANDS)]
        before, began = _state(place / "outside"), time.monotonic()
        ended = forked.grasp_rl(*command, cwd=place, timeout=60)
        slowest = max(slowest, time.monotonic() - began)
        codes[ended.returncode] += 1
        logs = [path for path in place.rglob("log.txt") if path.is_file() and path.stat().st_size < 10**6]
        known = {"outside", "a.png", "run", "out", "again", "exported", "outputs"}
        wrong = {
            "traceback": "Traceback" in ended.stderr + ended.stdout,
            "traceback in the log": any("| Traceback" in path.read_text(errors="replace") for path in logs),
            f"took {time.monotonic() - began:.1f} s": time.monotonic() - began > MOST_S,
            "changed a file outside": _state(place / "outside") != before,
            "made a file outside": not {path.name for path in place.iterdir()} <= known,
        }
        if found := [name for name, is_so in wrong.items() if is_so]:
            failures.append(f"{number}: {found} of {command[0]} after {touched}: {ended.stderr[-1500:]}")
        shutil.rmtree(place)
    print(f"run folders: {count}, exit codes {dict(codes)}, slowest {slowest:.1f} s")  # noqa: T201
    assert failures == [], f"{len(failures)} of {count}:\n" + "\n".join(failures)


@pytest.mark.parametrize("count", MORE)
def test_configs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Experiments in a folder of configs, and configs of a run that are read back."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/experiment").mkdir(parents=True)
    resolved = load_raw(base / "config.yaml")
    part = {key: resolved[key] for key in ("policy", "segmenter", "data", "reward", "prompt", "generator", "tracker")}
    part |= {
        "hydra": {"launcher": {"x": 1}, "sweeper": {"params": {"seed": "1,2"}}, "callbacks": {}},
        "engine": {"nproc": 1},
    }
    slowest, codes = 0.0, Counter[str]()
    for number in range(count):
        draw = random.Random(number)
        began, outcome = time.monotonic(), "composed"
        with within(MOST_S):
            try:
                if number % 2:
                    text = yaml.safe_dump(changed(part, draw))
                    (tmp_path / "conf/experiment/theirs.yaml").write_text(f"# @package _global_\n{text}")
                    words = ["command=train", f"hydra.searchpath=[file://{tmp_path}/conf]", "experiment=theirs"]
                    with compose.hydra("train") as engine:
                        check_paths(to_config(compose.single(engine, words, ()).config))
                else:
                    (tmp_path / "config.yaml").write_text(yaml.safe_dump(resolved))
                    mutate_file(tmp_path / "config.yaml", draw)
                    to_config(load_raw(tmp_path / "config.yaml"))
            except (ConfigError, OSError) as error:
                outcome = type(error).__name__ if str(error) else "no word"
        codes[outcome] += 1
        slowest = max(slowest, time.monotonic() - began)
        if (tmp_path / "config.yaml").is_dir():
            (tmp_path / "config.yaml").rmdir()
        (tmp_path / "config.yaml").unlink(missing_ok=True)
    assert "no word" not in codes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]
    print(f"configs: {count}, {dict(codes)}, slowest {slowest:.1f} s")  # noqa: T201


@pytest.mark.parametrize("count", MORE)
def test_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    rle = {"size": [48, 64], "counts": [0, 100, 2972]}
    rows = [
        {
            "id": "a",
            "image": "a.png",
            "query": "where?",
            "split": "train",
            "polygons": [[[10, 10], [30, 10], [30, 30]]],
        },
        {"id": "b", "image": "b.png", "query": "and?", "split": "val", "mask": "m.png", "reasoning": "so"},
        {"id": "c", "image": "a.png", "query": "or?", "split": "test", "rle": rle},
        {"id": "d", "image": "b.png", "query": "if?", "split": "test", "boxes": [[1, 2, 30, 40]]},
    ]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}], "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 9, 1, 9, 9]]}],
    }  # fmt: skip
    slowest, codes = 0.0, Counter[int]()
    for number in range(count):
        draw, place = random.Random(number), tmp_path / str(number)
        (place / "outside").mkdir(parents=True)
        (place / "outside/file").write_text("mine\n")
        data = place / "data"
        data.mkdir()
        for name in ("a.png", "b.png"):
            picture(data / name)
        mask(data / "m.png")
        (data / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (data / "coco.json").write_text(json.dumps(coco))
        mutate_file(
            data / ("coco.json" if number % 3 == 2 else draw.choice(("annotations.jsonl",) * 4 + ("a.png",))), draw
        )
        command = {
            0: ["validate", str(data)],
            1: ["show", str(data), "--count", "1", "--out", str(place / "out")],
            2: ["import", "coco", str(data / "coco.json"), "--images", str(data), "--out", str(place / "out")],
        }[number % 3]
        before, began = _state(place / "outside"), time.monotonic()
        with within(MOST_S):
            codes[data_command.main(command)] += 1
        slowest = max(slowest, time.monotonic() - began)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        assert not {"\x1b", "\x07", "\u202e"} & set(shown.out + shown.err), number
        assert _state(place / "outside") == before
        assert {path.name for path in place.iterdir()} <= {"outside", "data", "out"}
        shutil.rmtree(place)
    with capsys.disabled():
        print(f"datasets: {count}, exit codes {dict(codes)}, slowest {slowest:.1f} s")  # noqa: T201
