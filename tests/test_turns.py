"""Several turns and several tasks: what is shown, what is drawn, what is learned, what is scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rubrics import rubric
from scripted import Paying

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ParsingConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    TurnConfig,
)
from grasp_rl.data.candidates import candidate_grid, with_candidates
from grasp_rl.data.readers.cross_view import CrossView
from grasp_rl.data.sampler import PromptSampler
from grasp_rl.data.synthetic.cross_view import SyntheticCrossView
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.evaluation.evaluate import evaluate
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.evaluation.stored import Rescored
from grasp_rl.interfaces import Components, CoordinateFrame
from grasp_rl.launch.compose import option
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prediction.predictor import Predictor
from grasp_rl.prompts.parse import parse
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.stages import StageRubrics
from grasp_rl.rewards.terms.boxes import BoxIou
from grasp_rl.rewards.terms.format import KeptBoxes, ThinkFormat
from grasp_rl.rewards.terms.points import PointLabels
from grasp_rl.rewards.terms.text import Choice, Novelty
from grasp_rl.rollouts.collect import RolloutBatch, collect_rollouts
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.metrics import advantage_shares, step_statistics
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.rollouts.turns import shown, stages_of, turns_of
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.training.train import make_trainer
from grasp_rl.training.update import PolicyUpdater
from grasp_rl.types import (
    Answer,
    Completion,
    FinishReason,
    GroupOutcome,
    ParseStatus,
    RewardBreakdown,
    Rollout,
    Sample,
    SpatialPrompt,
)

BOX = PromptConfig(scheme="box", template="compact", positive_points=0)
SEEN = np.full((40, 60, 3), 100, dtype=np.uint8)


def turn(feedback: str = "overlay", **more: Any) -> TurnConfig:
    return TurnConfig(prompt=BOX, feedback=feedback, **more)


def config_of(turns: dict[str, TurnConfig], **more: Any) -> RunConfig:
    rollout = RolloutConfig(max_new_tokens=24, turns=turns, **more)
    return RunConfig(prompt=BOX, algorithm=AlgorithmConfig(group_size=3, prompts_per_step=2), rollout=rollout)


def collect(policy: TinyPolicy, samples: Sequence[Sample], config: RunConfig, reward: Any = None) -> RolloutBatch:
    pipeline = RewardPipeline(
        segmenter=BoxFillSegmenter(), reward=reward or rubric("grasp"), prompt=BOX, parsing=ParsingConfig()
    )
    worker = RewardWorker(pipeline, "inline", stages_of(config, pipeline))
    return collect_rollouts(policy, InProcess(), worker, lambda _: samples, config, 0)


@pytest.fixture(scope="module")
def speaking() -> TinyPolicy:
    """The shipped policy, which gives well-formed answers."""
    return TinyPolicy()


# --- what is shown


def said(*boxes: tuple[float, float, float, float]) -> Answer:
    return Answer(prompts=tuple(SpatialPrompt(box=box) for box in boxes), status=ParseStatus.OK)


def test_an_overlay_outlines_boxes_in_blue_and_tints_the_mask_red() -> None:
    mask = np.zeros((40, 60), dtype=np.bool_)
    mask[10:20, 10:20] = True
    seen = shown(SEEN, said((5, 5, 30, 30)), mask, turn())
    assert seen.window == (0, 0, 60, 40)
    assert seen.image[5, 15].tolist() == [0, 0, 255]
    assert seen.image[15, 15].tolist() == [162, 60, 60]  # 0.6 x 100 + 0.4 x (255, 0, 0)
    assert seen.image[35, 50].tolist() == [100, 100, 100]
    assert (SEEN == 100).all()


def test_a_crop_is_the_window_around_the_boxes_and_a_zoom_the_same_enlarged() -> None:
    mask = np.zeros((40, 60), dtype=np.bool_)
    seen = shown(SEEN, said((20, 10, 30, 18), (36, 12, 40, 20)), mask, turn("crop", margin=0.25))
    assert seen.window == (15, 5, 45, 25)  # 20 pixels long, 5 on every side
    assert seen.image.shape == (20, 30, 3)
    zoomed = shown(SEEN, said((20, 10, 30, 18), (36, 12, 40, 20)), mask, turn("zoom", margin=0.25))
    assert zoomed.window == seen.window
    assert zoomed.image.shape == (40, 60, 3)
    edge = shown(SEEN, said((0, 0, 10, 10)), mask, turn("crop", margin=1.0))
    assert edge.window == (0, 0, 20, 20)
    assert shown(SEEN, said(), mask, turn("crop")).window == (0, 0, 60, 40)  # nothing was found: all of it
    point = Answer(prompts=(SpatialPrompt(point_coords=((30, 20),), point_labels=(1,)),), status=ParseStatus.OK)
    assert shown(SEEN, point, mask, turn("crop")).window == (29, 19, 31, 21)


def test_coordinates_of_a_window_become_those_of_the_image() -> None:
    frame = CoordinateFrame(width=100, height=50, image_width=20, image_height=10, left=7, top=3)
    scheme = PromptConfig(positive_points=1)
    text = '<answer>[{"bbox_2d":[10,10,50,40],"positive_points":[[20,20]]}]</answer>'
    (item,) = parse(text, scheme, frame, ParsingConfig()).prompts
    assert item.box == (9, 5, 17, 11)
    assert item.point_coords[0] == pytest.approx((7 + 4.1, 3 + 4.1))


# --- what is drawn and learned


def test_every_turn_is_a_group_and_begins_with_the_question(speaking: TinyPolicy, samples: list[Sample]) -> None:
    batch = collect(speaking, samples[:2], config_of({"second": turn("zoom")}))
    groups = batch.groups
    assert [(g.turn, g.sample.sample_id) for g in groups] == [(t, s.sample_id) for t in (0, 1) for s in samples[:2]]
    for first, second in zip(groups[:2], groups[2:], strict=True):
        assert first.continuations is None
        assert second.prompt is first.prompt
        assert second.continuations is not None
        assert sum(first.advantages) == pytest.approx(0, abs=1e-6)
        assert sum(second.advantages) == pytest.approx(0, abs=1e-6)
        start = len(first.prompt.input_ids)
        texts = set()
        for before, after, asked in zip(first.rollouts, second.rollouts, second.continuations, strict=True):
            assert asked.shared == start
            assert asked.input_ids[:start].tolist() == first.prompt.input_ids.tolist()
            own = [token for token in before.completion.token_ids if token not in speaking.ends]
            assert asked.input_ids[start : start + len(own)].tolist() == own
            assert after.answer.previous == before.answer
            window = asked.frame
            for item in after.answer.prompts:
                assert item.box is not None
                assert window.left <= item.box[0] < item.box[2] <= window.left + window.image_width
            texts.add(after.completion.text)
        assert len(texts) > 1  # siblings draw apart
    again = collect(speaking, samples[:2], config_of({"second": turn("zoom")}, batch_rows=2)).groups
    assert [r.completion.token_ids for g in again for r in g.rollouts] == [
        r.completion.token_ids for g in groups for r in g.rollouts
    ]
    row = step_statistics(groups)
    assert row["turn1/reward"] == pytest.approx(np.mean([r.reward.reward for g in groups[:2] for r in g.rollouts]))
    assert row["reward"] == pytest.approx(np.mean([r.reward.reward for g in groups[2:] for r in g.rollouts]))


def test_the_update_is_that_of_every_conversation_alone(speaking: TinyPolicy, samples: list[Sample]) -> None:
    """-sum(advantage * log-probability) / (completions * longest), conversation by conversation, one row each."""
    config = config_of({"second": turn()})
    batch = collect(speaking, samples[:2], config, Paying(0.0, 1.0, 0.5, 2.0, 0.1))
    policy = TinyPolicy()
    engine = LocalEngine(policy, OptimizerConfig(lr=1e-9, max_grad_norm=1e9), 1)
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any, **__: Any) -> Any:
        found.update({n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None})
        return replace(step())

    step, engine.step = engine.step, keep  # type: ignore[method-assign]
    updater = PolicyUpdater(policy, engine, None, algorithm=config.algorithm, rollout=config.rollout)
    row = updater(batch, batch.size(24))
    assert row["mismatch"] < 1e-5
    policy.zero_grad()
    loss, count = torch.zeros(()), 0
    for group in batch.groups:
        prompts = group.continuations or [group.prompt] * len(group.rollouts)
        for prompt, rollout, gain in zip(prompts, group.rollouts, group.advantages, strict=True):
            logp = policy.logprobs(policy.embed([prompt]), [[rollout.completion.token_ids]]).logp
            loss, count = loss - gain * logp.sum(), count + 1
    (loss / (count * 24)).backward()
    assert count == 12
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().clamp(min=1e-6)
            assert (found[name] - parameter.grad).abs().max() < 1e-4 * scale, name


def trainer_of(folder: Path, steps: int, **more: Any) -> Any:
    config = RunConfig(
        run_dir=str(folder),
        prompt=BOX,
        algorithm=AlgorithmConfig(steps=steps, prompts_per_step=2, group_size=3),
        optimizer=OptimizerConfig(lr=1e-4),
        rollout=RolloutConfig(max_new_tokens=20, reward_worker="inline", turns={"second": turn()}),
        evaluation=EvaluationConfig(every=0, test_limit=2, overlays=0, bootstrap_samples=5, max_new_tokens=20),
        checkpoint=CheckpointConfig(every=0),
        **more,
    )
    components = Components(
        policy=TinyPolicy(), segmenter=BoxFillSegmenter(), reward=rubric("grasp"),
        data=SyntheticSource(train_size=8, test_size=4), tracker=NullTracker(), generator=InProcess(), protocol=OURS,
    )  # fmt: skip
    return make_trainer(config, components)


def test_a_run_of_two_turns_goes_on_to_the_bit(tmp_path: Path) -> None:
    def finish(trainer: Any) -> list[dict[str, float]]:
        trainer.log.start({})
        trainer.run()
        trainer.close()
        lines = (Path(trainer.log.run_dir) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    whole = finish(trainer_of(tmp_path / "whole", 3))
    finish(trainer_of(tmp_path / "parts", 2))
    parts = finish(trainer_of(tmp_path / "parts", 3, resume=str(tmp_path / "parts")))
    keys = [key for key in whole[-1] if not key.startswith("time/") and not key.endswith("_s")]
    assert "turn1/reward" in keys
    assert {key: parts[-1][key] for key in keys} == {key: whole[-1][key] for key in keys}


def test_terms_of_a_batch_compare_the_answers_to_all_questions(speaking: TinyPolicy, samples: list[Sample]) -> None:
    reward = Rubric({"think": ThinkFormat(), "new": Novelty(scope="batch", weight=0.5, min_characters=1)})
    groups = collect(speaking, samples[:2], config_of({}), reward).groups
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    values = Novelty(min_characters=1).values([r.answer for r in rollouts], [True] * len(rollouts))
    assert [r.reward.terms["new"] for r in rollouts] == pytest.approx(values)
    assert max(values) > 0.5
    for group in groups:
        rewards = [r.reward.terms["think"] + 0.5 * r.reward.terms["new"] for r in group.rollouts]
        assert [r.reward.reward for r in group.rollouts] == pytest.approx(rewards)
        gains = [reward - float(np.mean(rewards)) for reward in rewards]
        assert group.advantages == pytest.approx(gains, abs=1e-5)


# --- rewards of stages


def test_a_reward_of_stages_pays_each_turn_by_its_own_rubric(speaking: TinyPolicy, samples: list[Sample]) -> None:
    first, second = Rubric({"iou": BoxIou()}), Rubric({"kept": KeptBoxes(), "think": ThinkFormat()})
    reward = StageRubrics({"first": first, "second": second})
    groups = collect(speaking, samples[:1], config_of({"second": turn()}), reward).groups
    assert set(groups[0].rollouts[0].reward.terms) == {"iou"}
    assert set(groups[1].rollouts[0].reward.terms) == {"kept", "think"}
    for before, after in zip(groups[0].rollouts, groups[1].rollouts, strict=True):
        same = after.answer.prompts == before.answer.prompts and bool(after.answer.prompts)
        assert after.reward.terms["kept"] in ((1.0,) if same else (0.0, 0.5, 1 / 3, 2 / 3))


def test_stages_that_do_not_fit_are_named(samples: list[Sample]) -> None:
    rubrics = {name: Rubric({"iou": BoxIou()}) for name in ("first", "second")}
    pipeline = RewardPipeline(
        segmenter=BoxFillSegmenter(), reward=StageRubrics(rubrics), prompt=BOX, parsing=ParsingConfig()
    )
    with pytest.raises(ConfigError, match="has first, second; this run's rollout has first"):
        stages_of(config_of({}), pipeline)
    batch = Rubric({"iou": BoxIou(), "new": Novelty(scope="batch")})
    odd = replace(pipeline, reward=StageRubrics(rubrics | {"second": batch}))
    with pytest.raises(ConfigError, match=r"reward\.stages\.second: a term with scope=batch"):
        stages_of(config_of({"second": turn()}), odd)
    with pytest.raises(ConfigError, match="must name one stage"):
        StageRubrics({})
    with pytest.raises(ConfigError, match=r"reward\.stages\.first=3"):
        StageRubrics({"first": 3})
    with pytest.raises(ConfigError, match="sampling_rounds"):
        RunConfig(algorithm=AlgorithmConfig(sampling_rounds=2), rollout=RolloutConfig(turns={"second": turn()}))
    with pytest.raises(ConfigError, match=r"rollout\.turns\.\*\.feedback"):
        turn("mirror")


# --- tasks


def test_candidate_points_are_a_grid_in_the_box_and_know_whether_they_are_on_the_target(samples: list[Sample]) -> None:
    """alpha 16 in an image of 160 x 80: a box 35 high and 20 wide has 7 -> 6 rows and 2 columns."""
    points = candidate_grid((10, 20, 30, 55), (80, 160))
    assert len(points) == 12
    assert points[0] == pytest.approx((15, 20 + 35 / 12))
    assert points[6] == pytest.approx((25, 20 + 35 / 12))
    assert candidate_grid((0, 0, 1, 1), (100, 100)) == [(0.5, 0.5)]
    sample = next(s for s in samples if s.weak_labels)
    asked = with_candidates(sample).candidates
    assert asked is not None
    assert sample.target_mask is not None
    for (x, y), label in zip(asked.point_coords, asked.point_labels, strict=True):
        assert bool(sample.target_mask[int(y), int(x)]) == bool(label)
    with pytest.raises(ConfigError, match="has no mask or no box"):
        with_candidates(sample.without_mask())


LABELS = PromptConfig(scheme="labels", template="compact", answer="labels", box=False, positive_points=0)


def test_labels_are_asked_for_in_a_task_alone() -> None:
    """Elsewhere the question would list no candidate points, and every answer would earn 0."""
    with pytest.raises(ConfigError, match=r"^prompt\.answer='labels'.*rollout=resap"):
        RunConfig(prompt=LABELS)
    with pytest.raises(ConfigError, match=r"^rollout\.turns\.second\.prompt\.answer='labels'"):
        RunConfig(rollout=RolloutConfig(turns={"second": TurnConfig(prompt=LABELS)}))


def test_a_share_of_the_questions_is_asked_for_labels(source: SyntheticSource) -> None:
    tasks = {"labels": TaskConfig(share=0.25, prompt=LABELS)}
    config = RunConfig(algorithm=AlgorithmConfig(prompts_per_step=40), rollout=RolloutConfig(tasks=tasks), prompt=BOX)
    drawn = [s for step in range(3) for s in PromptSampler(source.split("train"), config, masks=False)(step)]
    share = np.mean([s.task == "labels" for s in drawn])
    assert 0.12 < share < 0.38
    assert all((s.candidates is not None) == (s.task == "labels") for s in drawn)
    assert all(s.target_mask is None for s in drawn)  # the labels are all that a mask-free reward gets
    again = [s for step in range(3) for s in PromptSampler(source.split("train"), config, masks=False)(step)]
    assert [s.task for s in again] == [s.task for s in drawn]


def test_tasks_have_prompts_rewards_and_statistics_of_their_own(
    random_policy: TinyPolicy, samples: list[Sample]
) -> None:
    tasks = {"labels": TaskConfig(share=0.5, prompt=LABELS)}
    config = RunConfig(
        prompt=BOX, algorithm=AlgorithmConfig(group_size=2), rollout=RolloutConfig(max_new_tokens=4, tasks=tasks)
    )
    target = next(s for s in samples if s.weak_labels)
    asked = [samples[0], replace(with_candidates(target), task="labels")]
    reward = StageRubrics({"first": Rubric({"iou": BoxIou()}), "labels": Rubric({"labels": PointLabels()})})
    groups = collect(random_policy, asked, config, reward).groups
    assert [set(g.rollouts[0].reward.terms) for g in groups] == [{"iou"}, {"labels"}]
    text = random_policy.tokenizer.decode(groups[1].prompt.input_ids)
    candidates = asked[1].candidates
    assert candidates is not None
    x, y = (int(value) for value in candidates.point_coords[0])
    assert f"[[{x},{y}]" in text.replace(" ", "")
    row = step_statistics(groups)
    assert {"reward", "task/labels/reward", "task/labels/term/labels/mean"} <= set(row)
    pipeline = RewardPipeline(segmenter=BoxFillSegmenter(), reward=reward, prompt=BOX, parsing=ParsingConfig())
    first, later = turns_of(config, pipeline)
    assert (first.reward, later) == (reward.stages["first"], [])  # an evaluation asks the first task
    completion = Completion(
        token_ids=(1,), logprobs=(0.0,), text="<answer>[1,0,1]</answer>", finish_reason=FinishReason.STOP
    )
    frame = groups[1].prompt.frame
    paid = stages_of(config, pipeline)["labels"].run(asked[1], frame, [completion])[0].reward
    right = [a == b for a, b in zip((1, 0, 1), candidates.point_labels, strict=False)]
    assert paid.reward == pytest.approx(sum(right) / len(candidates.point_labels))


# --- what is scored


def test_an_evaluation_asks_all_turns_and_can_be_rescored(speaking: TinyPolicy, source: SyntheticSource) -> None:
    config = config_of({"second": turn("zoom")})
    pipeline = RewardPipeline(
        segmenter=BoxFillSegmenter(), reward=rubric("grasp"), prompt=BOX, parsing=ParsingConfig(), always_segment=True
    )
    first, later = turns_of(config, pipeline)
    settings = EvaluationConfig(max_new_tokens=24, bootstrap_samples=5, batch_size=3)
    split = source.split("test")
    scored = evaluate(speaking, first, split, config=settings, limit=5, later=later)
    once = evaluate(speaking, first, split, config=settings, limit=5)
    assert [r["earlier_turns"][0]["text"] for r in scored.records] == [r["text"] for r in once.records]
    assert any(r.get("window") for r in scored.records)
    records = {str(r["sample_id"]): json.loads(json.dumps(r)) for r in scored.records}
    again = Rescored(records, later[-1].pipeline)([split[index] for index in range(5)])
    for (sample, frame, rollout), record in zip(again, scored.records, strict=True):
        assert [list(p.box or ()) for p in rollout.answer.prompts] == [list(p["box"]) for p in record["prompts"]]
        assert rollout.reward.reward == record["reward"]
        assert (frame.width, frame.height) == tuple(record["frame"])
        assert sample.sample_id == record["sample_id"]


def test_predict_asks_all_turns(speaking: TinyPolicy, samples: list[Sample]) -> None:
    config = replace(
        config_of({"second": turn("crop")}), policy=option("policy/tiny"), segmenter=option("segmenter/box_fill")
    )
    predictor = Predictor(config)
    found = predictor.predict(samples[0].image, samples[0].query)
    assert found.mask.shape == samples[0].size
    assert found.answer.previous is not None
    assert found.answer.previous.text.startswith("<think>")


# --- shares of the advantage's variance


def outcome(*pays: tuple[float, float]) -> GroupOutcome:
    rollouts = []
    for a, b in pays:
        completion = Completion(token_ids=(1,), logprobs=(0.0,), text="", finish_reason=FinishReason.STOP)
        reward = RewardBreakdown(reward=a + b, terms={"a": a, "b": b}, paid={"a": a, "b": b})
        rollouts.append(
            Rollout(
                completion=completion, answer=said(), reward=reward, segmented_prompts=0, failed_prompts=0,
                segmenter_error=None,
            )
        )  # fmt: skip
    mean = float(np.mean([a + b for a, b in pays]))
    return GroupOutcome(question=0, rollouts=tuple(rollouts), advantages=tuple(a + b - mean for a, b in pays))


def test_shares_of_the_variance_add_up_and_can_be_negative() -> None:
    """Pays (0, 0), (3, -1): rewards -1, +1 about their mean, of which a brings -1.5, +1.5 and b 0.5, -0.5."""
    group = outcome((0.0, 0.0), (3.0, -1.0))
    rewards = torch.tensor([[0.0, 2.0]])
    row = advantage_shares([group], rewards)
    assert row["term/a/advantage_share"] == pytest.approx(1.5)
    assert row["term/b/advantage_share"] == pytest.approx(-0.5)
    flat = outcome((1.0, 1.0), (2.0, 0.0))
    assert advantage_shares([flat], torch.tensor([[2.0, 2.0]])) == {}
    both = advantage_shares([group, flat], torch.tensor([[0.0, 2.0], [2.0, 2.0]]))
    assert sum(both.values()) == pytest.approx(1.0)
    assert both["term/a/advantage_share"] == pytest.approx(
        1.5
    )  # the flat group has no advantage and counts for nothing


# --- several images, and a choice among them


def pairs_in(folder: Path, **changes: Any) -> Path:
    draw = np.random.default_rng(0)
    for name in ("street", "a", "b", "c"):
        cv2.imwrite(str(folder / f"{name}.png"), draw.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    entry = {
        "id": "one", "image": "street.png", "question": "Where is it?", "images": ["a.png", "b.png", "c.png"],
        "answer": "B",
    }  # fmt: skip
    for split in ("train", "val", "test"):
        (folder / f"{split}.json").write_text(json.dumps([entry | changes]))
    return folder


def test_pairs_of_ones_own_are_read(tmp_path: Path) -> None:
    sample = CrossView(root=str(pairs_in(tmp_path)), name="cross_view").split("test")[0]
    assert (sample.query, sample.choice, len(sample.more_images)) == ("Where is it?", "B", 3)
    assert (sample.target_mask, sample.weak_labels) == (None, ())
    np.testing.assert_array_equal(sample.more_images[1], cv2.imread(str(tmp_path / "b.png"))[..., ::-1])
    split = CrossView(root=str(tmp_path), name="cross_view").split("test")
    assert [path.name for path in split.files()] == ["test.json", "street.png", "a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"answer": "D"}, "answer='D': must be one of A, B, C"),
        ({"answer": 2}, "answer"),
        ({"images": ["a.png"]}, "a choice is between two or more"),
        ({"images": ["../a.png", "b.png"]}, r"\.\./a\.png"),
    ],
)
def test_pairs_that_cannot_be_asked_are_named(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        CrossView(root=str(pairs_in(tmp_path, **changes)), name="cross_view").split("train")


def test_a_choice_is_asked_rewarded_and_scored(random_policy: TinyPolicy) -> None:
    split = SyntheticCrossView(choices=3, test_size=4).split("test")
    samples = [split[index] for index in range(4)]
    assert {s.choice for s in samples} <= {"A", "B", "C"}
    assert len({s.choice for s in samples}) > 1
    right = [s.more_images["ABC".index(s.choice or "")] for s in samples]
    for sample, scene in zip(samples, right, strict=True):  # the first image is a turned part of the right scene
        part = np.rot90(np.asarray(sample.image), -1)[::2, ::2].astype(int)
        found = cv2.matchTemplate(scene, np.ascontiguousarray(part.astype(np.uint8)), cv2.TM_SQDIFF_NORMED)
        assert found.min() < 0.02
    scheme = PromptConfig(scheme="choice", template="compact", answer="choice", box=False, positive_points=0)
    reward = Rubric({"choice": Choice()})
    prompt = random_policy.encode(samples[0].image, samples[0].query, scheme, samples[0].more_images)
    assert int((prompt.input_ids == random_policy.image_token_id).sum()) == 4 * 64
    pipeline = RewardPipeline(segmenter=BoxFillSegmenter(), reward=reward, prompt=scheme, parsing=ParsingConfig())
    answers = [f"<answer>{letter}</answer>" for letter in "ABC"]
    completions = [
        Completion(token_ids=(1,), logprobs=(0.0,), text=text, finish_reason=FinishReason.STOP) for text in answers
    ]
    paid = [r.reward.reward for r in pipeline.run(samples[0], prompt.frame, completions)]
    assert paid == [float(letter == samples[0].choice) for letter in "ABC"]
    settings = EvaluationConfig(max_new_tokens=4, bootstrap_samples=5)
    scored = evaluate(random_policy, pipeline, split, config=settings, limit=4)
    assert scored.metrics["samples"] == 4
    assert {"giou", "no_target_accuracy", "box_iou", "share/no_target"}.isdisjoint(
        {name for name, value in scored.metrics.items() if value}
    )
