"""Every option of ``data``: two steps of training, a score, and what `grasp-rl data` says of it, in one process."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from test_published import BOXES, WORDS, composed
from test_readers import CONF

from grasp_rl.cli import data as data_cli
from grasp_rl.cli import data_source
from grasp_rl.evaluation import evaluate
from grasp_rl.launch import worker
from grasp_rl.rehearsal.layouts import WRITERS
from grasp_rl.training import train

AERIAL = Path(__file__).parent / "data/aerial"
SETS = ("folder", "dior_rsvg")
"""What the mixture is of: one with masks, one without."""
OTHERS = ("jsonl", "mixture", "synthetic")
"""Options that read no published layout."""


def words_of(name: str, root: Path) -> list[str]:
    """What a command line says of a small dataset in the layout of ``name``, which is written to ``root``."""
    if name == "synthetic":
        return ["data=synthetic", "data.train_size=4", "data.val_size=2", "data.test_size=2"]
    if name == "jsonl":
        return ["data=jsonl", f"data.root={AERIAL}"]
    if name == "mixture":
        for part in SETS:
            WRITERS[part](root / part)
        roots = [f"data.sets.{part}.root={root / part}" for part in SETS]
        return ["data=mixture", *(f"+data@data.sets.{part}={part}" for part in SETS), *roots]
    WRITERS[name](root)
    return [f"data={name}", f"data.root={root}"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `grasp-rl data` prints, having found nothing wrong."""
    code = data_cli.main(words)
    told = capsys.readouterr()
    assert code == 0, told
    return told.out


def lines_of(path: Path) -> Sequence[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_option_is_tried() -> None:
    choices = {"cross_view", "synthetic_cross_view"}  # tests/test_turns.py
    assert {path.stem for path in CONF.glob("*.yaml")} == {*WRITERS, *OTHERS, *choices}


@pytest.mark.parametrize("name", [*WRITERS, *OTHERS])
def test_every_dataset_is_trained_on_scored_and_looked_at(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(name, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    node = functools.cache(data_source.node_of)
    monkeypatch.setattr(data_source, "node_of", lambda words: node(tuple(words)))  # composed once, for all commands
    dataset = data_source.dataset_of(words)
    scored = "test" if "test" in dataset.splits() else list(dataset.splits())[-1]
    split = dataset.split(scored)
    run = [word for word in WORDS if not word.startswith(("data.", "policy.weights"))]
    run += [*words, "rollout.temperature=2", "rollout.max_new_tokens=40", "rollout.reward_worker=inline"]
    run += ["evaluation.max_new_tokens=4", "evaluation.every=0", "checkpoint.every=0", "evaluation.test_limit=1"]
    run += [f"evaluation.test_split={scored}", *(["reward=grasp", "prompt=box"] if name in (*BOXES, "mixture") else [])]
    config = composed(run)
    parts = worker.build(config)

    assert train.run(config, parts)["steps"] == 2
    steps = lines_of(Path("r/metrics.jsonl"))
    assert [row["step"] for row in steps] == [1, 2]
    assert any(row["grad_norm"] > 0 for row in steps)
    assert all(math.isfinite(value) for row in steps for value in row.values() if isinstance(value, float))

    whole = replace(config.evaluation, test_limit=None)
    told = evaluate.run(replace(config, command="evaluate", run_dir="e", init_from="r", evaluation=whole), parts)
    records = lines_of(Path("e/eval/predictions.jsonl"))
    assert [record["sample_id"] for record in records] == [split[index].sample_id for index in range(len(split))]
    assert {record["dataset"] for record in records} <= {name, *SETS}
    assert told["metrics"]["samples"] == len(split)
    assert 0 <= told["metrics"]["box_iou" if name in BOXES else "giou"] <= 1

    if name == "synthetic":
        assert data_cli.main(["validate", *words]) == 2
        assert "drawn scenes have no annotations to check" in capsys.readouterr().err
    else:
        report = json.loads(said(capsys, "validate", *words, "--json"))
        assert (report["ok"], report["bad"]) == (True, 0)
        assert report["splits"].keys() == set(dataset.splits())
    stats = json.loads(said(capsys, "stats", *words, "--split", scored, "--json"))
    assert stats["splits"][scored]["samples"] == len(split)

    told_of = said(capsys, "show", *words, "--split", scored, "--count", "1", "--out", "look").rstrip("\n")
    sample, (picture,) = split[0], list(Path("look").iterdir())
    assert told_of == f"{picture}  {sample.query}"
    drawn = np.asarray(Pillow.open(picture))
    np.testing.assert_array_equal(drawn, split.plot(sample))
    assert not np.array_equal(drawn, split.plot(replace(sample, query="Another?")))
