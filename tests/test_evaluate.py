"""Evaluation on the real pipeline: a random tiny policy, GrabCut and drawn scenes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image as Pillow
from rubrics import rubric

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EvaluationConfig, ParsingConfig, PromptConfig, RunConfig
from grasp_rl.config.targets import to_config
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation import evaluate as evaluation
from grasp_rl.evaluation.evaluate import evaluate, recompute
from grasp_rl.evaluation.metrics import score_of
from grasp_rl.evaluation.of_run import remarks
from grasp_rl.evaluation.predictions import decode_mask, encode_mask, overlay_name, read_predictions, record_of
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.interfaces import Components, CoordinateFrame
from grasp_rl.launch import compose
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prompts.render import format_answer
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.types import Completion, FinishReason, Sample
from grasp_rl.utils.files import read_json, to_json

PROMPT = PromptConfig(template="compact")
CONFIG = EvaluationConfig(batch_size=4, max_new_tokens=24, bootstrap_samples=50, overlays=2)
SOURCE = SyntheticSource()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy() -> TinyPolicy:
    return TinyPolicy(weights="random")


def pipeline(reward: Any = None) -> RewardPipeline:
    return RewardPipeline(
        segmenter=GrabCutSegmenter(), reward=reward or rubric("grasp"), prompt=PROMPT, parsing=ParsingConfig()
    )


class Changed:
    """A dataset with fields of its samples replaced."""

    def __init__(self, **changes: Any) -> None:
        self.inner, self.changes = SOURCE.split("val"), changes
        self.name, self.split = self.inner.name, self.inner.split

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.inner[index], **self.changes)


def test_two_runs_write_equal_bytes_and_the_numbers_come_back(policy: TinyPolicy, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    results = [
        evaluate(
            policy,
            pipeline(),
            SOURCE.split("val"),
            config=CONFIG,
            limit=6,
            folder=tmp_path / name,
            on_progress=lambda done, total: told.append((done, total)),
        )
        for name in ("one", "two")
    ]
    assert told == [(4, 6), (6, 6)] * 2
    one, two = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(one.splitlines()) == 6
    numbers = dict(results[0].metrics)
    assert numbers.pop("seconds_per_image") > 0
    assert recompute(tmp_path / "one" / "predictions.jsonl", bootstrap_samples=CONFIG.bootstrap_samples) == numbers
    written = read_json(tmp_path / "one" / "metrics.json")
    assert written is not None
    assert written["giou"] == numbers["giou"]
    assert "seconds_per_image" in written
    assert [r["sample_id"] for r in results[0].records] == [f"val-0-{i}" for i in range(6)]
    overlays = sorted(path.name for path in (tmp_path / "one" / "overlays").iterdir())
    assert overlays == ["000_val-0-0.png", "001_val-0-1.png"]
    with Pillow.open(tmp_path / "one" / "overlays" / overlays[0]) as image:
        assert image.size[0] == 336


def follow(text: str | None, sample: Sample, reward: Any = None) -> dict[str, Any]:
    """The record of one sample answered by ``text``, or by its own weak labels."""
    height, width = sample.size
    frame = CoordinateFrame(width=width, height=height, image_width=width, image_height=height)
    spoken = text if text is not None else format_answer(sample.weak_labels or (), "", frame, PROMPT)
    completion = Completion(token_ids=(1,), logprobs=(0.0,), text=spoken, finish_reason=FinishReason.STOP)
    asked = evaluation.pipeline_for(sample, pipeline(reward))
    return record_of(sample, asked.run(sample, frame, [completion])[0], boxes=True, protocol=OURS)


def test_the_right_answer_scores_high() -> None:
    scene = next(
        s for s in map(SOURCE.split("val").__getitem__, range(50)) if s.weak_labels and len(s.weak_labels) == 1
    )
    record = follow(None, scene)
    assert record["status"] == "ok"
    assert record["instances"] == 1
    assert record["has_target"]
    assert record["box_iou"] > 0.8
    assert record["iou"] > 0.6
    assert record["reward"] > 3
    assert record["iou"] == record["intersection"] / record["union"]
    assert record["terms"]["answer_format"] == 1
    assert scene.target_mask is not None
    np.testing.assert_array_equal(decode_mask(record["target"]), scene.target_mask)


def test_no_target() -> None:
    scene = next(s for s in map(SOURCE.split("val").__getitem__, range(80)) if s.weak_labels == ())
    silent, talking, broken = (follow(text, scene) for text in ("<answer>[]</answer>", ANSWER, "nonsense"))
    assert (silent["empty"], silent["iou"], silent["union"]) == (True, 1.0, 0)
    assert (talking["empty"], talking["iou"]) == (False, 0.0)
    assert talking["union"] > 0
    assert (broken["empty"], broken["iou"], broken["status"]) == (False, 0.0, "no_answer")
    assert silent["box_iou"] is None
    assert score_of(silent).group == "no_target"


ANSWER = '<answer>[{"bbox_2d":[10,10,60,60],"positive_points":[[30,30],[40,40]]}]</answer>'


@pytest.mark.parametrize(
    ("removed", "reward", "rewarded"),
    [
        ({"weak_labels": None}, rubric("grasp"), False),
        ({"target_mask": None}, rubric("grasp"), True),
        ({"target_mask": None}, rubric("think2seg"), False),
        ({"weak_labels": None}, rubric("think2seg"), True),
    ],
)
def test_what_a_sample_lacks_is_left_out(policy: TinyPolicy, removed: Any, reward: Any, rewarded: bool) -> None:
    scored = evaluate(policy, pipeline(reward), Changed(**removed), config=CONFIG, limit=3)
    assert ("reward" in scored.metrics) == rewarded == any(name.startswith("term/") for name in scored.metrics)
    assert ("giou" in scored.metrics) == ("weak_labels" in removed)
    assert ("box_iou" in scored.metrics) == ("target_mask" in removed)
    assert scored.metrics["samples"] == 3
    assert all((record["reward"] is not None) == rewarded for record in scored.records)


def test_nothing_to_score_by(policy: TinyPolicy) -> None:
    with pytest.raises(ConfigError, match="val-0-0 of synthetic has neither a mask nor boxes and points to score by"):
        evaluate(policy, pipeline(), Changed(weak_labels=None, target_mask=None), config=CONFIG, limit=1)


def test_the_policy_is_left_as_it_was(policy: TinyPolicy) -> None:
    policy.train()
    policy.core.visual.eval()
    modes = [module.training for module in policy.modules()]
    gradients = [parameter.requires_grad for parameter in policy.parameters()]
    seen: list[bool] = []
    handle = policy.core.language_model.register_forward_hook(lambda m, *_: seen.append(m.training))
    evaluate(policy, pipeline(), SOURCE.split("val"), config=CONFIG, limit=1)
    handle.remove()
    assert seen
    assert not any(seen)
    assert modes == [module.training for module in policy.modules()]
    assert gradients == [parameter.requires_grad for parameter in policy.parameters()]


def test_attributes_are_recorded_where_there_are_any() -> None:
    scene = SOURCE.split("val")[0]
    assert "attributes" not in follow(None, scene)
    attributes = {"category": "ship", "no_target": 0}
    assert follow(None, replace(scene, attributes=attributes)) == follow(None, scene) | {"attributes": attributes}


def test_a_failed_segmenter_is_an_empty_mask() -> None:
    class Failing(GrabCutSegmenter):
        def decode(self, embedding: Any, prompts: Any) -> Any:
            return replace(super().decode(embedding, prompts), error="out of memory")

    scene = next(s for s in map(SOURCE.split("val").__getitem__, range(50)) if s.weak_labels)
    completion = Completion(token_ids=(1,), logprobs=(0.0,), text=ANSWER, finish_reason=FinishReason.STOP)
    frame = CoordinateFrame(width=112, height=112, image_width=112, image_height=112)
    asked = replace(pipeline(), segmenter=Failing(), always_segment=True)
    record = record_of(scene, asked.run(scene, frame, [completion])[0], boxes=True, protocol=OURS)
    assert record["segmenter_error"] == "out of memory"
    assert record["iou"] == 0
    assert record["empty"] is False


def test_overlay_names_are_harmless() -> None:
    assert overlay_name(7, "../../etc/passwd") == "007_etc_passwd.png"
    assert overlay_name(0, "<script>ä\0") == "000_script.png"
    assert len(overlay_name(0, "x" * 500)) < 100


def test_masks_survive_run_lengths() -> None:
    mask = np.random.default_rng(0).random((17, 31)) > 0.5
    encoded = json.loads(json.dumps(encode_mask(mask)))
    np.testing.assert_array_equal(decode_mask(encoded), mask)


@pytest.mark.parametrize("content", [None, "{]", '{"a": 1}\n', "[1]\n"])
def test_unreadable_predictions(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "predictions.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="evaluate again"):
        read_predictions(path)


@pytest.mark.parametrize("kind", ["run", "policy"])
def test_the_verb(policy: TinyPolicy, tmp_path: Path, kind: Literal["run", "policy"]) -> None:
    other = TinyPolicy(weights="random", seed=5)
    saved = tmp_path / "old" / "checkpoints" / "step_000007" / "policy"
    other.save(saved)
    source = tmp_path / "old" if kind == "run" else saved
    settings = replace(CONFIG, test_limit=3)
    config = RunConfig(run_dir=str(tmp_path / "run"), init_from=str(source), prompt=PROMPT, evaluation=settings)
    components = Components(
        policy=TinyPolicy(weights="random"),
        segmenter=GrabCutSegmenter(),
        reward=rubric("grasp"),
        data=SyntheticSource(),
        tracker=NullTracker(),
        protocol=OURS,
        generator=InProcess(),
    )
    result = evaluation.run(config, components)
    expected = evaluate(other, pipeline(), SOURCE.split("test"), config=settings, limit=3)
    assert result["split"] == "test"
    assert result["samples"] == 3
    assert result["metrics"]["giou"] == expected.metrics["giou"]
    written = read_predictions(Path(result["predictions"]))
    assert written == json.loads(json.dumps(expected.records))
    progress = read_json(tmp_path / "run" / "progress.json")
    assert progress is not None
    assert (progress["phase"], progress["step"], progress["total_steps"]) == ("evaluate", 3, 3)
    json.dumps(to_json(result), allow_nan=False)


def test_an_evaluation_of_a_runs_weights_says_what_it_does_otherwise(tmp_path: Path) -> None:
    def composed(*words: str) -> RunConfig:
        with compose.hydra("evaluate") as engine:
            return to_config(compose.single(engine, ["command=evaluate", *words], ()).config)

    theirs = composed("segmenter=box_fill", "data.level=hard", "reward=think2seg", "evaluation/protocol=think2seg")
    OmegaConf.save(OmegaConf.create(asdict(theirs)), tmp_path / "config.yaml")
    weights = tmp_path / "checkpoints" / "step_000001" / "policy"
    for source in (tmp_path, weights):
        ours = composed(f"init_from={source}", "evaluation.test_limit=3")
        (remark,) = remarks(ours)
        assert "data.level=easy (hard there)" in remark
        assert "segmenter=GrabCutSegmenter (BoxFillSegmenter there)" in remark
        assert "reward.terms=" in remark
        assert "policy" not in remark.partition("takes")[2]
    alike = composed(
        f"init_from={tmp_path}", "segmenter=box_fill", "data.level=hard", "reward=think2seg",
        "evaluation/protocol=think2seg",
    )  # fmt: skip
    assert remarks(alike) == remarks(composed()) == []


def test_records_are_plain_json(policy: TinyPolicy) -> None:
    scored = evaluate(policy, pipeline(), SOURCE.split("val"), config=CONFIG, limit=2)
    assert json.loads(json.dumps(scored.records[0])).keys() == scored.records[0].keys()
