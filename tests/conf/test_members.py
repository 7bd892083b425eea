"""A new member of each kind is a file, a YAML or both, outside the package; the launcher composes and runs them.

Every image is 112 x 112, the frame of ``policy=tiny``, so a spoken box is a box in pixels of the image.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

from grasp_rl.rehearsal import models as tiny_models

SIDE = 112
QUESTIONS: list[tuple[str, list[list[int]]]] = [
    ("the field", [[10, 20, 50, 60]]),
    ("both fields", [[10, 10, 50, 50], [60, 60, 100, 100]]),
    ("a field that is not there", []),
]
"""Query and true boxes (x0, y0, x1, y1) of each image."""

FILES = {
    "__init__": "",
    "fields": '''
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from grasp_rl.data.annotations import Row
from grasp_rl.data.base import RecordDataset


class FieldsDataset(RecordDataset):
    """Rectangular fields, listed in fields.json; train, val and test are the same questions."""

    def __init__(self, root: str, name: str = "fields", on_bad: str = "raise") -> None:
        super().__init__(name=name, on_bad=on_bad)
        self.root = Path(root)

    def splits(self) -> Sequence[str]:
        return ("train", "val", "test")

    def records(self, split: str) -> Iterator[Row]:
        path = self.root / "fields.json"
        for number, (query, boxes) in enumerate(json.loads(path.read_text())):
            rings = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in boxes]
            yield Row(
                location=f"{path}: question {number}", sample_id=f"field-{number}", image=self.root / f"{number}.png",
                query=query, split=split, reasoning=None, kind="polygons", target=rings,
            )
''',
    "centres": '''
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grasp_rl.rewards.terms.base import AnswerTerm, InstanceTerm, closeness


@dataclass(frozen=True, kw_only=True)
class CentreDistance(InstanceTerm):
    """Closeness of the centres of two boxes."""

    fraction: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (1e-6, 1)}

    def table(self, predicted, reference, size):
        distances = [[math.dist(centre(a.box), centre(b.box)) for b in reference] for a in predicted]
        return np.array([[closeness(d / max(size), "soft", self.fraction) for d in row] for row in distances], float)


@dataclass(frozen=True, kw_only=True)
class FewInstances(AnswerTerm):
    """1 for an answer of no more than ``most`` instances, whatever the target."""

    most: int = 4
    accuracy: ClassVar[bool] = False

    def __call__(self, answer, labels, prediction):
        return float(len(answer.prompts) <= self.most)


def centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
''',
    "lowest_iou": '''
from collections.abc import Sequence
from dataclasses import dataclass

from grasp_rl.evaluation.metrics import SampleScore


@dataclass(frozen=True, kw_only=True)
class LowestIou:
    """The lowest IoU of the samples with a target; the others do not count."""

    name: str = "lowest"
    headline: str = "lowest_iou"

    def iou(self, score: SampleScore) -> float | None:
        return score.intersection / score.union if score.has_target else None

    def summarise(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        found = [iou for iou in map(self.iou, scores) if iou is not None]
        terms = {name: sum(s.terms[name] for s in scores) / len(scores) for name in scores[0].terms}
        return {"lowest_iou": min(found)} | {f"term/{name}": value for name, value in terms.items()}
''',
    "reinforce": '''
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The place of a reward among its siblings, centred: the scale of the reward does not count."""

    scale: float = 1.0

    def __call__(self, rewards):
        places = (rewards[:, :, None] > rewards[:, None]).sum(-1) - (rewards[:, :, None] < rewards[:, None]).sum(-1)
        return self.scale * places.double() / (rewards.shape[1] - 1)


class Reinforce:
    """-A log p: without a trust region, as for one pass over the rollouts."""

    def __call__(self, logp, ratio, advantage):
        return -advantage * logp
''',
    "inner_box": '''
import numpy as np

from grasp_rl.types import MaskPrediction


class InnerBoxSegmenter:
    """The inside of every box, ``margin`` pixels from its edges."""

    def __init__(self, margin: int = 1) -> None:
        self.margin = margin

    def encode(self, image):
        return image.shape[:2]

    def decode(self, embedding, prompts):
        masks = np.zeros((len(prompts), *embedding), dtype=np.bool_)
        for mask, prompt in zip(masks, prompts, strict=True):
            x0, y0, x1, y1 = map(round, prompt.box)
            mask[y0 + self.margin : y1 - self.margin, x0 + self.margin : x1 - self.margin] = True
        return MaskPrediction(masks=masks, iou_predictions=np.ones(len(prompts), dtype=np.float32))
''',
    "scripted": '''
from itertools import cycle

from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.types import Completion, FinishReason


class ScriptedPolicy(TinyPolicy):
    """Gives the listed answers in turn, one a question."""

    def __init__(self, answers: list[str], prompt_template: str = "compact") -> None:
        super().__init__(weights="random", prompt_template=prompt_template)
        self.answers = cycle(answers)

    def generate(self, prompts, uniforms, **wanted):
        return [[said(next(self.answers))] for _ in prompts]


def said(answer):
    text = f"<think>fields</think>\\n<answer>```json\\n{answer}\\n```</answer>"
    return Completion(token_ids=(1, 2), logprobs=(0.0, 0.0), text=text, finish_reason=FinishReason.STOP)
''',
}
"""Modules of the package ``my_lab`` by name."""

OPTIONS = {
    "data/fields": "_target_: my_lab.fields.FieldsDataset\nroot: images\n",
    "segmenter/inner_box": "_target_: my_lab.inner_box.InnerBoxSegmenter\nmargin: 4\n",
    "algorithm/ranked": """
defaults: [dr_grpo, _self_]
name: ranked
own_advantage: {_target_: my_lab.reinforce.Ranks, scale: 2.0}
""",
    "reward/centres": """
defaults: [grasp, _self_]
terms:
  points: null
  points_inside: null
  centres:
    _target_: my_lab.centres.CentreDistance
    weight: 2.0
    fraction: 0.2
  few_instances:
    _target_: my_lab.centres.FewInstances
    weight: 0.25
""",
    "reward/cues_and_mask": """
_target_: grasp_rl.rewards.rubric.Rubric
terms:
  think_format: {_target_: grasp_rl.rewards.terms.format.ThinkFormat, weight: 0.5}
  box_iou: {_target_: grasp_rl.rewards.terms.boxes.BoxIou, weight: 2.0}
  count: {_target_: grasp_rl.rewards.terms.boxes.Count, weight: 1.0}
  mask_iou: {_target_: grasp_rl.rewards.terms.masks.MaskIou, weight: 3.0}
""",
    "evaluation/protocol/empty_scores_zero": """
_target_: grasp_rl.evaluation.protocols.masks.MaskProtocol
name: empty_scores_zero
empty_iou: zero
""",
    "evaluation/protocol/lowest_iou": "_target_: my_lab.lowest_iou.LowestIou\n",
    "policy/scripted": """
_target_: my_lab.scripted.ScriptedPolicy
prompt_template: compact
answers:
  - '[{"bbox_2d":[10,20,50,60]}]'
  - '[{"bbox_2d":[60,60,100,100]}]'
  - '[]'
""",
    "policy/small_llava": """
# A LLaVA of two layers.
defaults: [_base, _self_]
path: ???
dtype: float32
""",
    "experiment/fields": """
# @package _global_
defaults:
  - override /data: fields
  - override /segmenter: inner_box
  - override /reward: centres
  - override /prompt: box
  - override /evaluation/protocol: lowest_iou

name: fields
rollout: {max_new_tokens: 16}
evaluation: {max_new_tokens: 16}
""",
}
"""YAML of the options by group and name."""

Run = Callable[..., subprocess.CompletedProcess[str]]
Record = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path, forked_door: Run) -> Callable[..., Record]:
    """Runs a verb on ``experiment=fields`` and other words in the folder ``r``, and gives its result.json."""
    texts = {f"my_lab/{name}.py": text for name, text in FILES.items()}
    texts |= {f"options/{name}.yaml": text for name, text in OPTIONS.items()}
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    images = tmp_path / "images"
    images.mkdir()
    for number, (_, boxes) in enumerate(QUESTIONS):
        image = np.full((SIDE, SIDE, 3), 60, dtype=np.uint8)
        for x0, y0, x1, y1 in boxes:
            image[y0:y1, x0:x1] = (200, 180, 40)
        Pillow.fromarray(image).save(images / f"{number}.png")
    (images / "fields.json").write_text(json.dumps(QUESTIONS))

    def run(verb: str, *words: str) -> Record:
        outside = ["trusted_modules=[my_lab]", f"hydra.searchpath=[file://{tmp_path}/options]"]
        ended = forked_door(verb, *outside, "experiment=fields", "debug=fast", *words, "run_dir=r", "--json")
        assert ended.returncode == 0, ended.stderr
        result: Record = json.loads(ended.stdout)
        return result

    return run


def _config(folder: Path) -> Any:
    return yaml.safe_load((folder / "r/config.yaml").read_text())


def _rows(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_experiment_with_files_of_its_own_trains_and_is_evaluated(run: Callable[..., Record], tmp_path: Path) -> None:
    result = run("train", "policy=tiny", "policy.weights=random")
    config = _config(tmp_path)
    assert (config["name"], config["algorithm"]["steps"], config["rollout"]["max_new_tokens"]) == ("fields", 2, 16)
    assert config["trusted_modules"] == ["my_lab"]
    assert config["data"] == {"_target_": "my_lab.fields.FieldsDataset", "root": "images"}
    assert config["segmenter"] == {"_target_": "my_lab.inner_box.InnerBoxSegmenter", "margin": 4}
    assert config["evaluation"]["protocol"] == {"_target_": "my_lab.lowest_iou.LowestIou"}
    terms = {name for name, term in config["reward"]["terms"].items() if term is not None}
    assert terms == {"think_format", "answer_format", "box_iou", "box_l1", "count", "centres", "few_instances"}

    rows = _rows(tmp_path / "r/metrics.jsonl")
    trained = [row for row in rows if "reward" in row]
    assert [row["step"] for row in trained] == [1, 2]
    for row in trained:
        assert {name.split("/")[1] for name in row if name.startswith("term/")} == terms
        assert row["term/few_instances/mean"] == 1
        assert row["reward"] >= 0.25
    assert [row["step"] for row in rows if "val/lowest_iou" in row] == [0, 1, 2]
    after = json.loads((tmp_path / "r/eval_after/metrics.json").read_text())
    assert after == result["after"]
    assert set(after) == {"lowest_iou", "seconds_per_image"} | {f"term/{name}" for name in terms}
    predictions = _rows(tmp_path / "r/eval_after/predictions.jsonl")
    assert [(p["dataset"], p["sample_id"], p["query"], p["instances"]) for p in predictions] == [
        ("fields", f"field-{number}", query, len(boxes)) for number, (query, boxes) in enumerate(QUESTIONS)
    ]


def test_an_advantage_and_a_surrogate_of_files_train(run: Callable[..., Record], tmp_path: Path) -> None:
    """At the first pass every ratio is 1, so that the gradient of -A log p is that of PPO's surrogate."""
    words = ["policy=tiny", "data=synthetic", "reward=grasp", "evaluation/protocol=ours", "rollout.max_new_tokens=64"]
    rows = {}
    for name, more in {
        "own": ["algorithm=ranked", "+algorithm.own_surrogate={_target_: my_lab.reinforce.Reinforce}"],
        "clipped": ["algorithm=ranked"],
        "mean": [],
    }.items():
        run("train", *words, *more)
        rows[name] = next(row for row in _rows(tmp_path / "r/metrics.jsonl") if "reward" in row)
        (tmp_path / "r").rename(tmp_path / name)
    assert rows["own"]["grad_norm"] == pytest.approx(rows["clipped"]["grad_norm"], rel=1e-5)
    assert rows["own"]["loss"] != pytest.approx(rows["clipped"]["loss"])
    assert rows["mean"]["grad_norm"] != pytest.approx(rows["clipped"]["grad_norm"], rel=1e-3)
    assert 0 not in {rows["own"]["grad_norm"], rows["mean"]["grad_norm"]}


def test_reward_term_segmenter_and_protocol_of_files_give_their_numbers(
    run: Callable[..., Record], tmp_path: Path
) -> None:
    result = run("evaluate", "policy=scripted")
    assert result["protocol"] == "lowest"
    predictions = _rows(tmp_path / "r/eval/predictions.jsonl")
    assert [p["status"] for p in predictions] == ["ok", "ok", "ok"]
    assert [p["intersection"] for p in predictions] == [32 * 32, 32 * 32, 0]  # boxes of 40, margins of 4
    assert [p["union"] for p in predictions] == [40 * 40, 2 * 40 * 40, 0]
    assert [p["iou"] for p in predictions] == [0.64, 0.32, None]
    assert result["metrics"]["lowest_iou"] == 0.32
    assert [p["terms"]["centres"] for p in predictions] == [1, 0.5, 1]
    assert [p["terms"]["few_instances"] for p in predictions] == [1, 1, 1]
    # formats 2, few instances 0.25, box IoU and L1 1 each, centres 2
    assert [p["reward"] for p in predictions] == pytest.approx([6.25, 2.25 + 4 / 2, 6.25])


def test_reward_and_protocol_of_a_yaml_give_their_numbers(run: Callable[..., Record], tmp_path: Path) -> None:
    words = ["reward=cues_and_mask", "evaluation/protocol=empty_scores_zero"]
    result = run("evaluate", "policy=scripted", *words)
    assert _config(tmp_path)["evaluation"]["protocol"]["name"] == result["protocol"] == "empty_scores_zero"
    predictions = _rows(tmp_path / "r/eval/predictions.jsonl")
    assert [p["terms"] for p in predictions] == [
        {"think_format": 1, "box_iou": 1, "count": 1, "mask_iou": 0.64},
        {"think_format": 1, "box_iou": 0.5, "count": 0.5, "mask_iou": 0.32},
        {"think_format": 1, "box_iou": 1, "count": 1, "mask_iou": 1},
    ]
    assert [p["reward"] for p in predictions] == pytest.approx([5.42, 2.96, 6.5])
    assert [p["iou"] for p in predictions] == [0.64, 0.32, 0]  # the last would be 1 under the packaged protocol
    metrics = result["metrics"]
    assert metrics["giou"] == pytest.approx((0.64 + 0.32) / 3)
    assert metrics["ciou"] == pytest.approx(2 * 32 * 32 / (3 * 40 * 40))
    assert metrics["no_target_accuracy"] == 1
    assert metrics["reward"] == pytest.approx((5.42 + 2.96 + 6.5) / 3)


def test_policy_of_four_lines_loads_a_model_of_a_known_family(run: Callable[..., Record], tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    tiny_models.build("llava", folder)
    result = run("evaluate", "policy=small_llava", "policy.path=llava", "evaluation/protocol=ours")
    policy = _config(tmp_path)["policy"]
    assert policy["_target_"] == "grasp_rl.policies.pretrained.HfVlmPolicy"
    assert (policy["path"], policy["dtype"], policy["coordinates"]) == ("llava", "float32", None)
    assert (result["protocol"], result["metrics"]["samples"]) == ("ours", 3)
    assert [0 < p["tokens"] <= 16 for p in _rows(tmp_path / "r/eval/predictions.jsonl")] == [True] * 3
