"""Real images through the launcher: both rewards, once with GrabCut and once with a Sam2Model of the real class."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
from PIL import Image as Pillow

from grasp_rl.policies.tiny.policy import WARM_START
from grasp_rl.utils.files import Record

AERIAL = Path(__file__).parents[1] / "data/aerial"
WARM = (WARM_START / "config.json").is_file()
STEPS = 5
WORDS = [
    "data=jsonl",
    f"data.root={AERIAL}",
    f"policy.weights={'warm_start' if WARM else 'random'}",
    "debug=fast",
    f"algorithm.steps={STEPS}",
    "algorithm.group_size=3",
    f"evaluation.every={STEPS}",
    "evaluation.overlays=3",
    "checkpoint.every=0",
    "rollout.max_new_tokens=48",
    "evaluation.max_new_tokens=48",
]


@pytest.mark.parametrize(
    ("reward", "segmenter"),
    [
        ("grasp", "sam2"),
        ("think2seg", "grabcut"),
        pytest.param("grasp", "grabcut", marks=pytest.mark.long),
        pytest.param("think2seg", "sam2", marks=pytest.mark.long),
    ],
)
def test_five_steps_on_real_images(tmp_path: Path, tiny_sam2: Path, segmenter: str, reward: str) -> None:
    words = ["train", *WORDS, f"reward={reward}", f"segmenter={segmenter}", "run_dir=r", "--json"]
    words += [f"segmenter.path={tiny_sam2}"] if segmenter == "sam2" else []
    ended = forked.grasp_rl(*words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["before"]["samples"] == result["after"]["samples"] == 3
    rows = _rows(tmp_path / "r/metrics.jsonl")
    trained = [row for row in rows if "reward" in row]
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    term = "mask_iou" if reward == "think2seg" else "box_iou"
    for row in trained:
        assert isinstance(row["reward"], float)
        assert any(term in key for key in row), sorted(row)
    assert [row["step"] for row in rows if "val/reward" in row] == [0, STEPS]
    for when in ("eval_before", "eval_after"):
        predictions = _rows(tmp_path / "r" / when / "predictions.jsonl")
        assert [p["sample_id"] for p in predictions] == ["meadow-2", "islands-2", "islands-3"]
        assert all(p["segmenter_error"] is None for p in predictions)
        overlays = sorted((tmp_path / "r" / when / "overlays").glob("*.png"))
        assert [path.stem[4:] for path in overlays] == [p["sample_id"] for p in predictions]
        for path in overlays:
            assert Pillow.open(path).convert("RGB").getextrema() != ((0, 0), (0, 0), (0, 0))
    if WARM:  # trained on drawings alone: greedy answers may all be empty, sampled ones are not
        assert max(row["instances"] for row in trained) > 0
        assert max(row["parse/ok"] for row in trained) > 0.5
        assert max(row["reward"] for row in trained) > 0


def _rows(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]
