"""Inference options: every stage by hand, then the way through evaluate, rescore, predict and the report."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from rubrics import rubric

from grasp_rl.cli import predict
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import (
    CandidatesConfig,
    EvaluationConfig,
    InferenceConfig,
    ParsingConfig,
    PromptConfig,
    RefineConfig,
    RoutesConfig,
    RunConfig,
    SamplesConfig,
    ScaleConfig,
)
from grasp_rl.data.candidates import candidate_grid
from grasp_rl.data.image_io import write_image
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.distributed.process_group import ALONE, ProcessGroup
from grasp_rl.evaluation import diagnose
from grasp_rl.evaluation import evaluate as evaluation
from grasp_rl.evaluation.calibration import fit_on, inference_again, inference_for, stored_fit
from grasp_rl.evaluation.evaluate import Evaluation, evaluate, measure, pipeline_for
from grasp_rl.evaluation.predictions import decode_mask, read_predictions, record_of
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.evaluation.stored import Rescored, completions_of
from grasp_rl.geometry import clipped
from grasp_rl.inference import refine
from grasp_rl.inference.candidates import LabelledPoint, confidences, with_points
from grasp_rl.inference.candidates import Labelling as Answered
from grasp_rl.inference.pipeline import Inference
from grasp_rl.inference.refine import Affine
from grasp_rl.inference.rollout import InferredRollout
from grasp_rl.inference.segmenting import (
    ClippedSegmenter,
    RoutedSegmenter,
    ScaledSegmenter,
    best_of_three,
    merge,
    moved,
    seen,
    segmenter_of,
    view_of,
)
from grasp_rl.inference.voting import vote_on_boxes, vote_on_masks
from grasp_rl.interfaces import Components, CoordinateFrame
from grasp_rl.launch import compose
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prediction.config import read_config
from grasp_rl.reporting.breakdowns import inference_of
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.segmenters.sam2 import Sam2Segmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.types import (
    Answer,
    Box,
    Completion,
    FinishReason,
    MaskPrediction,
    ParseStatus,
    RewardBreakdown,
    SpatialPrompt,
)

OLD_RUN = Path(__file__).parent / "data/run_of_aa9e728"
IMAGE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def boxed(*box: float, points: Sequence[tuple[float, float]] = (), labels: Sequence[int] = ()) -> SpatialPrompt:
    x0, y0, x1, y1 = box
    return SpatialPrompt(
        box=(x0, y0, x1, y1), point_coords=tuple(points), point_labels=tuple(labels) or (1,) * len(points)
    )


def said(*prompts: SpatialPrompt, status: ParseStatus = ParseStatus.OK) -> Answer:
    return Answer(prompts=prompts, status=status)


def area(*box: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((20, 30), dtype=np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


# refinement


def test_a_fit_is_the_median_and_outliers_do_not_move_it() -> None:
    true: list[Box] = [(10.0 * i, 5.0, 10.0 * i + 8.0, 9.0) for i in range(9)]
    # said: shifted by (2, -1), 8 x 4 said as 4 x 8: width factor 2, height factor 1/2
    said_boxes: list[Box] = [(x0 + 4, 2.0, x0 + 8, 10.0) for x0, _, _, _ in true]
    said_boxes[0] = (-500.0, -500.0, 900.0, 900.0)
    affine = refine.fit(list(zip(said_boxes, true, strict=True)))
    assert (affine.sx, affine.sy, affine.pairs) == (2.0, 0.5, 9)
    assert (affine.dx, affine.dy) == (-0.5, 0.125)  # -2 of 4 pixels, +1 of 8
    assert affine.box(said_boxes[3]) == true[3]
    assert refine.mean_iou(list(zip(said_boxes[1:], true[1:], strict=True)), affine) == 1
    with pytest.raises(ConfigError, match=r"7 predicted boxes.*at least 8"):
        refine.fit(list(zip(said_boxes, true, strict=True))[:7])


def test_points_move_with_their_box_and_nothing_leaves_the_image() -> None:
    affine = Affine(sx=2.0, sy=1.0, dx=0.5, dy=0.0, pairs=8)
    prompt = boxed(10, 5, 14, 9, points=[(10, 5), (12, 6), (13, 9)], labels=[1, 1, 0])
    changed = affine.prompt(prompt)
    assert changed.box == (10, 5, 18, 9)  # centre 12 -> 14, width 4 -> 8
    assert changed.point_coords == ((10, 5), (14, 6), (16, 9))
    assert changed.point_labels == (1, 1, 0)
    point = SpatialPrompt(point_coords=((1, 1),), point_labels=(1,))
    assert affine.prompt(point) is point
    (clipped,) = affine.answer(said(boxed(24, 5, 29, 9)), (20, 30)).prompts
    assert clipped.box == (24, 5, 30, 9)


def test_pairs_are_the_best_matching_above_the_least_overlap() -> None:
    pairs = refine.pairs_of([boxed(0, 0, 4, 4), boxed(20, 0, 24, 4)], [boxed(10, 10, 14, 14), boxed(1, 0, 5, 4)])
    assert pairs == [((0, 0, 4, 4), (1, 0, 5, 4))]


def test_a_fit_is_found_again(tmp_path: Path) -> None:
    affine = Affine(sx=1.5, sy=1.0, dx=0.0, dy=0.25, pairs=8)
    affine.write(tmp_path, {"split": "val"})
    assert refine.read(tmp_path) == refine.read(tmp_path / refine.FILE) == affine
    config = RunConfig(command="evaluate", inference=InferenceConfig(refine=RefineConfig(fit_split="val")))
    assert stored_fit(config, tmp_path) == inference_again(config, tmp_path).affine == affine
    assert stored_fit(RunConfig(), tmp_path) is None
    with pytest.raises(ConfigError, match=r"only evaluate fits; give inference\.refine\.path"):
        stored_fit(config, None)
    with pytest.raises(ConfigError, match="holds no fit"):
        refine.read(tmp_path / "nowhere")


# segmenters around a segmenter


@dataclass
class Everything:
    """Fills the image; its estimate is the number of the prompt's points over ten."""

    multimask: bool = False

    def encode(self, image: Any) -> tuple[int, int]:
        return image.shape[:2]

    def decode(self, embedding: tuple[int, int], prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        scores = np.array([len(prompt.point_coords) / 10 for prompt in prompts], dtype=np.float32)
        return MaskPrediction(masks=np.ones((len(prompts), *embedding), dtype=np.bool_), iou_predictions=scores)


def through(segmenter: Any, *prompts: SpatialPrompt) -> MaskPrediction:
    found: MaskPrediction = segmenter.decode(segmenter.encode(IMAGE), prompts)
    return found


def test_masks_are_cut_to_their_boxes() -> None:
    point = SpatialPrompt(point_coords=((1, 1),), point_labels=(1,))
    masks = through(ClippedSegmenter(inner=Everything()), boxed(2.5, 3, 6, 7.5), point).masks
    np.testing.assert_array_equal(masks[0], area(2, 3, 6, 7))
    assert masks[1].all()
    assert through(ClippedSegmenter(inner=Everything())).masks.shape == (0, 20, 30)


@pytest.mark.parametrize(
    ("rule", "least", "scores", "expected"),
    [
        ("and", 0.5, (0.9, 0.1), area(4, 0, 8, 10)),
        ("or", 0.5, (0.9, 0.1), area(0, 0, 12, 10)),
        ("agreement", 1 / 3, (0.9, 0.1), area(4, 0, 8, 10)),  # IoU 40 / 120
        ("agreement", 0.34, (0.9, 0.1), area(0, 0, 8, 10)),
        ("agreement", 0.34, (0.5, 0.5), area(4, 0, 12, 10)),
    ],
)
def test_two_routes_are_merged(rule: str, least: float, scores: tuple[float, float], expected: Any) -> None:
    masks = np.stack([area(0, 0, 8, 10), area(4, 0, 12, 10)])
    mask, _ = merge(masks, np.array(scores, dtype=np.float32), RoutesConfig(merge=rule, min_iou=least))
    np.testing.assert_array_equal(mask, expected)


def test_routes_are_points_alone_and_the_box() -> None:
    asked: list[SpatialPrompt] = []

    class Noting(BoxFillSegmenter):
        def decode(self, embedding: Any, prompts: Any) -> MaskPrediction:
            asked.extend(prompts)
            return super().decode(embedding, prompts)

    both, lone = boxed(0, 0, 10, 10, points=[(5, 5)]), boxed(0, 0, 4, 4)
    routed = RoutedSegmenter(inner=Noting(0.1), options=RoutesConfig(merge="and"))
    masks = through(routed, both, lone).masks
    assert asked == [replace(both, box=None), boxed(0, 0, 10, 10), lone]
    assert 0 < masks[0].sum() < 100  # the disc
    np.testing.assert_array_equal(masks[1], area(0, 0, 4, 4))
    asked.clear()
    through(RoutedSegmenter(inner=Noting(), options=RoutesConfig(merge="or", box_route="box_points")), both)
    assert asked == [replace(both, box=None), both]


def test_a_crop_is_what_the_segmenter_sees() -> None:
    options = ScaleConfig(mode="crop", margin=0.5)
    prompt = boxed(10, 8, 14, 12, points=[(12.5, 9.5), (20.5, 9.5), (2, 2), (11, 11)], labels=[1, 1, 0, 0])
    view = view_of(prompt, (20, 30), options)
    assert (view.region, view.size) == ((8, 6, 21, 14), (8, 13))  # the far foreground point is held, too
    inside = moved(prompt, view)
    assert inside.box == (2, 2, 6, 6)
    assert (inside.point_coords, inside.point_labels) == (((4.5, 3.5), (12.5, 3.5), (3, 5)), (1, 1, 0))
    np.testing.assert_array_equal(seen(IMAGE, view), IMAGE[6:14, 8:21])
    edge = view_of(boxed(28, 0, 30, 2), (20, 30), options)
    assert edge.region == (27, 0, 30, 3)
    point = SpatialPrompt(point_coords=((1, 1),), point_labels=(1,))
    assert view_of(point, (20, 30), options).region == (0, 0, 30, 20)
    masks = through(ScaledSegmenter(inner=Everything(), options=options), prompt, boxed(28, 0, 30, 2)).masks
    np.testing.assert_array_equal(masks[0], area(8, 6, 21, 14))
    np.testing.assert_array_equal(masks[1], area(27, 0, 30, 3))


@pytest.mark.parametrize("side", [60, 16])
def test_a_resized_image_gives_masks_of_the_original_size(side: int) -> None:
    sizes: list[tuple[int, int]] = []

    class Noting(BoxFillSegmenter):
        def encode(self, image: Any) -> tuple[int, int]:
            sizes.append(image.shape[:2])
            return super().encode(image)

    scaled = ScaledSegmenter(inner=Noting(), options=ScaleConfig(mode="side", side=side))
    embedding = scaled.encode(IMAGE)
    scaled.decode(embedding, [boxed(0, 0, 4, 4)])
    masks = scaled.decode(embedding, [boxed(0, 0, 15, 10), boxed(15, 10, 30, 20)]).masks
    assert sizes == [(round(20 * side / 30), side)]  # once for all prompts
    for mask, expected in zip(masks, (area(0, 0, 15, 10), area(15, 10, 30, 20)), strict=True):
        assert (mask ^ expected).sum() <= (0 if side == 60 else 25)


def test_best_of_three_is_a_copy_and_needs_a_segmenter_that_has_three() -> None:
    one = Everything()
    assert best_of_three(one).multimask  # type: ignore[attr-defined]
    assert not one.multimask
    with pytest.raises(ConfigError, match=r"inference\.multimask=true: BoxFillSegmenter"):
        segmenter_of(InferenceConfig(multimask=True), BoxFillSegmenter())
    assert segmenter_of(InferenceConfig(), one) is one


def test_all_of_it_around_a_segmenter_of_the_sam_family(tiny_sam2: Path) -> None:
    options = InferenceConfig(
        clip_to_box=True, multimask=True, routes=RoutesConfig(merge="or"), scale=ScaleConfig(mode="side", side=64)
    )
    three = Sam2Segmenter(str(tiny_sam2), device="cpu", multimask=True)
    prompt = boxed(3, 4, 20, 15, points=[(8, 8)])
    view = view_of(prompt, (20, 30), options.scale)
    small = moved(prompt, view)
    parts = three.decode(three.encode(seen(IMAGE, view)), [replace(small, box=None), SpatialPrompt(box=small.box)])
    alone = Sam2Segmenter(str(tiny_sam2), device="cpu")
    found = through(segmenter_of(options, alone), prompt)
    either = cv2.resize(parts.union.astype(np.float32), (30, 20), interpolation=cv2.INTER_AREA) > 0.5
    np.testing.assert_array_equal(found.masks[0], clipped(either, prompt.box))
    assert found.masks.any()
    assert found.iou_predictions[0] == pytest.approx(parts.iou_predictions.mean())
    assert not alone.multimask


# votes


def masked(*areas: Any, score: float = 1.0) -> MaskPrediction:
    masks = np.stack(areas) if areas else np.zeros((0, 20, 30), dtype=np.bool_)
    return MaskPrediction(masks=masks, iou_predictions=np.full(len(areas), score, dtype=np.float32))


A, B = boxed(0, 0, 10, 10), boxed(4, 0, 14, 10)


def test_pixels_that_half_of_the_answers_have() -> None:
    answers = [said(A), said(B), said(status=ParseStatus.BAD_JSON), said()]
    masks = [masked(area(0, 0, 10, 10)), masked(area(4, 0, 14, 10)), masked(), masked()]
    vote = vote_on_masks(answers, masks, SamplesConfig(count=3, threshold=0.5))
    assert vote.details["ballots"] == 3
    assert vote.details["pairwise_iou"] == pytest.approx((60 / 140) / 3)  # silence has nothing with either
    assert vote.details["confidence"] == pytest.approx(2 / 3)
    assert vote.masks is not None
    assert vote.masks.whole
    np.testing.assert_array_equal(vote.masks.union, area(4, 0, 10, 10))
    assert (vote.chosen, vote.answer) == (0, answers[0])  # of equals the first
    vote = vote_on_masks(answers[:2], masks[:2], SamplesConfig(count=1, threshold=0.4))
    assert vote.masks is not None
    np.testing.assert_array_equal(vote.masks.union, area(0, 0, 14, 10))
    assert vote.details["confidence"] == pytest.approx((60 + 80 * 0.5) / 140)


def test_silence_needs_most_votes_too() -> None:
    options = SamplesConfig(count=4, threshold=0.8)
    apart = [
        (said(A), masked(area(0, 0, 5, 5))),
        (said(A), masked(area(0, 0, 6, 5))),
        (said(B), masked(area(20, 0, 25, 5))),
    ]
    quiet = (said(), masked())
    answers, masks = zip(*[quiet, quiet, *apart], strict=True)
    vote = vote_on_masks(answers, masks, options)
    assert vote.chosen == 2  # nearest to the others of those that speak, although the silent agree with each other
    answers, masks = zip(*[apart[0], quiet, quiet], strict=True)
    vote = vote_on_masks(answers, masks, options)
    assert (vote.chosen, vote.answer.prompts) == (1, ())
    assert vote.details["confidence"] == pytest.approx(2 / 3)


def test_nothing_was_read_or_segmented() -> None:
    failed = replace(masked(), error="out of memory", failed=1)
    unread = said(status=ParseStatus.NO_ANSWER)
    vote = vote_on_masks([said(A), unread], [failed, masked()], SamplesConfig(count=1))
    assert vote.masks is failed
    assert vote.segmented == (1, 1, "out of memory")
    vote = vote_on_masks(
        [said(A), said(A, B), said(B)], [failed, masked(area(0, 0, 9, 9)), masked()], SamplesConfig(count=2)
    )
    assert vote.details["ballots"] == 2
    rollout = InferredRollout(
        completion=Completion(token_ids=(), logprobs=(), text="", finish_reason=FinishReason.STOP), answer=vote.answer,
        masks=vote.masks, reward=RewardBreakdown(reward=0.0, terms={}), record=vote.details, segmented=vote.segmented,
    )  # fmt: skip
    kept = rollout.without_masks()
    assert (kept.segmented_prompts, kept.failed_prompts, kept.segmenter_error) == (4, 1, "out of memory")
    vote = vote_on_masks([said(A), unread], [failed, masked()], SamplesConfig(count=1))
    assert vote.details == {"ballots": 0, "confidence": 0.0}
    assert vote_on_boxes([unread, unread], SamplesConfig(count=1)).answer is unread


def test_the_best_of_several() -> None:
    answers = [said(A), said(B), said(B), said()]
    masks = [
        masked(area(0, 0, 8, 8), score=0.2),
        masked(area(10, 0, 18, 8), score=0.6),
        masked(area(10, 0, 18, 9), score=0.7),
        masked(),
    ]
    options = SamplesConfig(count=3, pick="best_of_n")
    vote = vote_on_masks(answers, masks, options)
    assert vote.chosen == 1
    assert vote.details["confidence"] == pytest.approx(64 / 72 / 3)
    assert vote_on_masks(answers, masks, replace(options, score="predicted_iou")).chosen == 2
    silent = [said(A), said(), said()]
    vote = vote_on_masks(silent, [masks[0], masked(), masked()], replace(options, score="predicted_iou"))
    assert vote.chosen == 1


def test_boxes_that_half_of_the_answers_have() -> None:
    answers = [
        said(boxed(0, 0, 10, 10, points=[(1, 1)]), boxed(0, 12, 10, 20)),
        said(boxed(20, 0, 30, 10), boxed(1, 0.5, 11, 10.5, points=[(2, 2)])),
        said(boxed(2, 0, 12, 10, points=[(3, 3)])),
        said(status=ParseStatus.BAD_NUMBER),
    ]
    vote = vote_on_boxes(answers, SamplesConfig(count=3, pick="majority", box_iou=0.6))
    first = boxed(1, 0, 11, 10, points=[(2, 2)])  # medians of 0, 1, 2 and of 0, 0.5, 0; the nearest member's points
    assert vote.answer.prompts == (first,)
    assert vote.details == {"ballots": 3, "confidence": 1.0}
    assert (vote.masks, vote.chosen) == (None, 2)
    vote = vote_on_boxes(answers, SamplesConfig(count=3, threshold=0.3, box_iou=0.6))
    assert [prompt.box for prompt in vote.answer.prompts] == [(1, 0, 11, 10), (0, 12, 10, 20), (20, 0, 30, 10)]
    twice = vote_on_boxes([said(A, boxed(1, 0, 11, 10)), said(A)], SamplesConfig(count=1))
    assert len(twice.answer.prompts) == 2  # two of one answer are two instances
    apart = vote_on_boxes([said(A), said(boxed(20, 0, 30, 10)), said(boxed(0, 12, 9, 20))], SamplesConfig(count=2))
    assert apart.answer.prompts == (A,)  # most speak, none alike: the first of most votes
    silent = vote_on_boxes([said(A), said(), said()], SamplesConfig(count=2))
    assert (silent.answer.prompts, silent.details["confidence"]) == ((), pytest.approx(2 / 3))
    point = SpatialPrompt(point_coords=((1, 1),), point_labels=(1,))
    with pytest.raises(ConfigError, match="scheme with boxes"):
        vote_on_boxes([said(point)], SamplesConfig(count=1))


# the way through the commands

PROMPT = PromptConfig(template="compact")
SETTINGS = EvaluationConfig(batch_size=2, bootstrap_samples=10, overlays=0)
SPLIT = SyntheticSource().split("test")
EVERYTHING = InferenceConfig(
    name="mine",
    clip_to_box=True,
    routes=RoutesConfig(merge="or"),
    scale=ScaleConfig(mode="crop"),
    samples=SamplesConfig(count=2, temperature=1.2, pick="best_of_n"),
)
AFFINE = Affine(sx=1.2, sy=1.2, dx=-0.2, dy=-0.2, pairs=9)


@lru_cache
def policy(number: int = 0) -> TinyPolicy:
    return TinyPolicy(weights="warm_start")


def pipeline(options: InferenceConfig) -> RewardPipeline:
    return RewardPipeline(
        segmenter=segmenter_of(options, BoxFillSegmenter()), reward=rubric("grasp"), prompt=PROMPT,
        parsing=ParsingConfig(), always_segment=True,
    )  # fmt: skip


def evaluated(inference: Inference, folder: Path, group: ProcessGroup = ALONE, count: int = 4) -> Evaluation:
    return evaluate(
        policy(group.rank), pipeline(inference.options), SPLIT, config=SETTINGS, limit=count, folder=folder,
        process_group=group, inference=inference,
    )  # fmt: skip


def test_the_default_changes_nothing(tmp_path: Path) -> None:
    found = evaluated(Inference(), tmp_path)
    plain = pipeline(InferenceConfig())
    for index, record in enumerate(found.records):
        sample = SPLIT[index]
        encoded = policy().encode(sample.image, sample.query, PROMPT)
        group = policy().generate(policy().embed([encoded]), None, group_size=1, max_new_tokens=SETTINGS.max_new_tokens)
        rollout = pipeline_for(sample, plain).run(sample, encoded.frame, group[0])[0]
        expected = record_of(sample, rollout, boxes=True, protocol=OURS, frame=encoded.frame)
        assert json.dumps(record) == json.dumps(expected)
    assert "inference" not in found.records[0]
    again = tmp_path / "again"
    records = {record["sample_id"]: record for record in found.records}
    measure(Rescored(records, plain), SPLIT, boxes=True, config=SETTINGS, limit=4, folder=again)
    assert (again / "predictions.jsonl").read_bytes() == (tmp_path / "predictions.jsonl").read_bytes()


def test_rescored_by_the_same_options_it_is_the_same_to_the_byte(tmp_path: Path) -> None:
    inference = Inference(options=EVERYTHING, affine=AFFINE, seed=3)
    found = evaluated(inference, tmp_path / "one")
    told = found.records[0]["inference"]
    assert told["name"] == "mine"
    assert told["settings"] == EVERYTHING.changed
    assert told["refine"] == asdict(AFFINE)
    assert len(told["answers"]) == 3
    assert len({answer["text"] for record in found.records for answer in record["inference"]["answers"]}) > 4
    of_records = [(record["text"], record["inference"]) for record in found.records]
    assert [text for text, one in of_records] == [one["answers"][one["chosen"]]["text"] for _, one in of_records]
    assert any(one["chosen"] for _, one in of_records)
    assert len(told["seen"]) == len(found.records[0]["prompts"])
    stored = {record["sample_id"]: record for record in read_predictions(tmp_path / "one" / "predictions.jsonl")}

    def rescored(name: str, inference: Inference) -> bytes:
        answers = Rescored(stored, pipeline(inference.options), inference)
        measure(answers, SPLIT, boxes=True, config=SETTINGS, limit=4, folder=tmp_path / name)
        return (tmp_path / name / "predictions.jsonl").read_bytes()

    assert rescored("two", inference) == (tmp_path / "one" / "predictions.jsonl").read_bytes()
    evaluated(Inference(), tmp_path / "plain")
    assert rescored("three", Inference()) == (tmp_path / "plain" / "predictions.jsonl").read_bytes()
    voting = replace(EVERYTHING, samples=replace(EVERYTHING.samples, count=1, pick="majority"))
    fewer = Inference(options=voting, affine=AFFINE, seed=3)
    evaluated(fewer, tmp_path / "fewer")
    assert rescored("four", fewer) == (tmp_path / "fewer" / "predictions.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"count=5: .* has 2 drawn answers"):
        completions_of(stored[SPLIT[0].sample_id], SamplesConfig(count=5, temperature=1.2))
    with pytest.raises(ConfigError, match=r"temperature=1\.0: the stored answers were drawn with 1\.2"):
        completions_of(stored[SPLIT[0].sample_id], SamplesConfig(count=2))


def test_the_command_follows_its_options(tmp_path: Path) -> None:
    AFFINE.write(tmp_path, {})
    options = InferenceConfig(clip_to_box=True, refine=RefineConfig(path=str(tmp_path)))
    config = RunConfig(
        command="evaluate", run_dir=str(tmp_path / "run"), prompt=PROMPT, inference=options,
        evaluation=replace(SETTINGS, test_limit=3),
    )  # fmt: skip
    components = Components(
        policy=policy(), segmenter=Everything(), reward=rubric("grasp"), data=SyntheticSource(),
        tracker=NullTracker(), protocol=OURS, generator=InProcess(),
    )  # fmt: skip
    result = evaluation.run(config, components)
    assert result["inference"] == options.label
    assert refine.read(tmp_path / "run") == AFFINE
    for record in read_predictions(Path(result["predictions"])):
        assert record["inference"]["refine"] == asdict(AFFINE)
        mask, inside = decode_mask(record["predicted"]), np.zeros(record["size"], dtype=np.bool_)
        for prompt in record["prompts"]:
            inside |= clipped(np.ones_like(inside), prompt["box"])
        np.testing.assert_array_equal(mask, inside)


class Threads(ProcessGroup):
    """One of two ranks that are threads of this process."""

    def __init__(self, rank: int, shares: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self.shares, self.barrier_of_threads = rank, 2, shares, barrier

    def all_gather(self, value: Any) -> list[Any]:
        self.shares[self.rank] = value
        self.barrier_of_threads.wait()
        result = list(self.shares)
        self.barrier_of_threads.wait()
        return result


def test_two_ranks_give_what_one_gives(tmp_path: Path) -> None:
    config = RunConfig(
        command="evaluate", run_dir=str(tmp_path), evaluation=SETTINGS, prompt=PROMPT,
        inference=replace(EVERYTHING, refine=RefineConfig(fit_split="val", limit=20)),
    )  # fmt: skip
    data = SyntheticSource()
    alone = inference_for(config, policy(), data, ALONE)
    assert refine.read(tmp_path) == alone.affine
    barrier, shares, fits, errors = threading.Barrier(2, timeout=60), [None, None], {}, []

    def rank(number: int) -> None:
        try:
            group = Threads(number, shares, barrier)
            fits[number] = fit_on(policy(number), data.split("val"), config, group)[0]
            evaluated(alone, tmp_path / "two", group)
        except BaseException as error:  # noqa: BLE001 - a thread's error is the test's
            errors.append(error)
            barrier.abort()

    policy(1)
    rubric("grasp")  # composed before the threads: Hydra is one for all of them
    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert fits == {0: alone.affine, 1: alone.affine}
    evaluated(alone, tmp_path / "one")
    one, two = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    config.inference.refine.fit_split = "test"
    with pytest.raises(ConfigError, match="is the split that is scored"):
        inference_for(config, policy(), data, ALONE)


def test_draws_do_not_depend_on_what_is_decoded_beside_them() -> None:
    inference = Inference(options=EVERYTHING)
    samples = [SPLIT[index] for index in range(3)]
    prompts = policy().embed([policy().encode(s.image, s.query, PROMPT) for s in samples])
    names = [sample.sample_id for sample in samples]
    together, apart = (
        inference.completions(policy(), prompts, names, max_new_tokens=24, rows=rows) for rows in (64, 1)
    )
    texts = [[completion.text for completion in group] for group in together]
    assert texts == [[completion.text for completion in group] for group in apart]
    assert [len(group) for group in texts] == [3, 3, 3]
    for other, names in ((Inference(options=EVERYTHING, seed=1), ["a"]), (inference, ["b"])):
        ((_, *drawn),) = other.completions(policy(), prompts[:1], names, max_new_tokens=24, rows=64)
        assert [completion.text for completion in drawn] != texts[0][1:]


@pytest.mark.parametrize("command", ["train", "sft", "score"])
def test_training_refuses_it(command: str) -> None:
    with pytest.raises(ConfigError, match="inference='default': must be default with"):
        RunConfig(
            command=command, predictions="x" if command == "score" else None,
            inference=InferenceConfig(clip_to_box=True),
        )  # fmt: skip


def test_a_rescored_run_brings_its_options(tmp_path: Path) -> None:
    run = OmegaConf.to_container(OmegaConf.load(OLD_RUN / "config.yaml"))
    assert isinstance(run, dict)
    assert "inference" not in run
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml({**run, "inference": {"name": "x", "clip_to_box": True}}))

    def composed(source: Path, *overrides: str) -> Any:
        words = ["command=rescore", f"predictions={source}", "run_dir=x", *overrides]
        with compose.hydra("rescore") as engine:
            return compose.single(engine, words, ()).config["inference"]

    assert composed(OLD_RUN) == asdict(InferenceConfig())
    assert composed(tmp_path) == asdict(InferenceConfig(name="x", clip_to_box=True))
    assert composed(tmp_path, "inference=default") == asdict(InferenceConfig())


def test_an_agreement_is_not_diagnosed() -> None:
    config = RunConfig(
        command="diagnose", predictions="x", inference=InferenceConfig(samples=SamplesConfig(count=2)),
    )  # fmt: skip
    components = Components(
        policy=None, segmenter=BoxFillSegmenter(), reward=rubric("grasp"), data=SyntheticSource(),  # type: ignore[arg-type]
        tracker=NullTracker(), protocol=OURS, generator=InProcess(),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no prompts of its own"):
        diagnose.run(config, components)


def test_predict_says_what_was_done(tmp_path: Path) -> None:
    sample = SPLIT[0]
    write_image(tmp_path / "scene.png", sample.image)
    AFFINE.write(tmp_path, {})
    words = [
        "segmenter=box_fill",
        "inference=agreement",
        "inference.samples.count=2",
        f"inference.refine.path={tmp_path}",
    ]
    for name in ("one", "two"):
        out = ["--out", str(tmp_path / name), "--json"]
        assert predict.main([str(tmp_path / "scene.png"), "--query", sample.query, *out, *words]) == 0
    one, two = (json.loads((tmp_path / name / "scene.json").read_text()) for name in ("one", "two"))
    told = one["inference"]
    assert told == two["inference"]
    assert (told["name"], told["refine"], len(told["answers"])) == ("agreement", asdict(AFFINE), 3)
    assert 0 <= told["confidence"] <= 1
    config = read_config(OLD_RUN, None, None, ["inference=geo_r1", "inference.scale.mode=crop"])
    assert config.inference.changed == {"clip_to_box": True, "scale.mode": "crop"}
    assert read_config(OLD_RUN, None, None, []).inference == InferenceConfig()


def test_the_report_names_the_options() -> None:
    def named(inference: dict[str, Any]) -> str:
        run: Any = type("Run", (), {"config": {"inference": inference}})
        return inference_of(run)

    assert named({}) == named(asdict(InferenceConfig())) == "default"
    assert named(asdict(EVERYTHING)) == "mine"
    config = InferenceConfig(clip_to_box=True, scale=ScaleConfig(mode="crop"))
    assert named(asdict(config)) == config.label == "default with scale.mode=crop, clip_to_box=True"


# candidate points

LABELS = PromptConfig(scheme="labels", answer="labels", box=False, positive_points=0, template="compact")


@dataclass
class Labelling:
    """A question for labels, as an encoded prompt."""

    points: Sequence[tuple[float, float]]
    frame: CoordinateFrame


class Labels:
    """The tiny policy, but what it says of candidate points is scripted: left of the middle is on the target, surely."""

    def __init__(self) -> None:
        self.inner = policy()
        self.asked: list[Labelling] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode(self, image: Any, query: str, prompt: PromptConfig, more: Any = (), candidates: Any = ()) -> Any:
        if prompt.answer != "labels":
            return self.inner.encode(image, query, prompt)
        side = image.shape[1]
        frame = CoordinateFrame(width=side, height=side, image_width=side, image_height=side)
        self.asked.append(Labelling(candidates, frame))
        return self.asked[-1]

    def embed(self, prompts: Sequence[Any]) -> Any:
        return prompts if isinstance(prompts[0], Labelling) else self.inner.embed(prompts)

    def generate(self, prompts: Sequence[Any], uniforms: Any, **kwargs: Any) -> Any:
        if not isinstance(prompts[0], Labelling):
            return self.inner.generate(prompts, uniforms, **kwargs)
        return [[self.answer(prompt)] for prompt in prompts]

    def answer(self, prompt: Labelling) -> Completion:
        labels = [int(x < prompt.frame.image_width / 2) for x, _ in prompt.points]
        tokens = self.tokenizer(f"<answer>{json.dumps(labels)}</answer>", add_special_tokens=False)["input_ids"]
        pieces = [self.tokenizer.decode([token]) for token in tokens]
        logprobs = [math.log(0.95) if "1" in piece else math.log(0.5) if "0" in piece else 0.0 for piece in pieces]
        return Completion(
            token_ids=tuple(tokens), logprobs=tuple(logprobs), text="".join(pieces), finish_reason=FinishReason.STOP
        )


def test_confidences_are_those_of_the_labels_tokens() -> None:
    point = Labelling([(10, 1), (90, 1), (20, 1)], CoordinateFrame(width=1, height=1, image_width=100, image_height=1))
    completion = Labels().answer(point)
    assert json.loads(completion.text[8:-9]) == [1, 0, 1]
    assert confidences(completion, policy().tokenizer) == pytest.approx([0.95, 0.5, 0.95])
    assert confidences(replace(completion, token_ids=(), logprobs=()), policy().tokenizer) == []


def test_sure_labels_become_points_of_every_box() -> None:
    answer = said(boxed(0, 0, 9, 9, points=[(1, 1)]), boxed(10, 10, 20, 20))
    three = [((1.0, 2.0), 1, 0.95), ((3.0, 4.0), 0, 0.9), ((5.0, 6.0), 1, 0.89)]
    points = tuple(LabelledPoint(point=p, label=label, confidence=c) for p, label, c in three)
    sure = with_points(answer, Answered(points=points, text="t"), 0.9)
    assert [p.point_coords for p in sure.prompts] == [((1, 2), (3, 4))] * 2
    assert [p.point_labels for p in sure.prompts] == [(1, 0)] * 2
    assert with_points(answer, Answered(points=points, text="t"), 0.96) is answer
    assert Answered.of(json.loads(json.dumps(Answered(points=points, text="t").record))).points == points


def test_a_second_question_about_candidate_points(tmp_path: Path) -> None:
    options = InferenceConfig(name="resap", candidates=CandidatesConfig(alpha=16.0, prompt=LABELS))
    inference, labels = Inference(options=options), Labels()
    found = evaluate(
        labels, pipeline(options), SPLIT, config=SETTINGS, limit=4, folder=tmp_path / "one", inference=inference
    )  # type: ignore[arg-type]
    boxes = [[p["box"] for p in record["prompts"]] for record in found.records]
    size = SPLIT[0].size
    grids = [[q for box in its for q in candidate_grid(tuple(box), size)] for its in boxes if its]
    assert [list(asked.points) for asked in labels.asked] == grids
    for record in found.records:
        told = record["inference"]["candidates"]["points"]
        sure = [(x, y) for x, y, label, confidence in told if confidence >= 0.9]
        assert all(x < size[1] / 2 for x, _ in sure)
        assert all([tuple(q) for q in p["point_coords"]] == sure for p in record["prompts"] if sure)
    stored = {str(r["sample_id"]): r for r in read_predictions(tmp_path / "one" / "predictions.jsonl")}
    answers = Rescored(stored, pipeline(options), inference)
    measure(answers, SPLIT, boxes=True, config=SETTINGS, limit=4, folder=tmp_path / "two")
    assert (tmp_path / "two/predictions.jsonl").read_bytes() == (tmp_path / "one/predictions.jsonl").read_bytes()
    coarse = Inference(options=replace(options, candidates=replace(options.candidates, most=2)))
    with pytest.raises(ConfigError, match="has no labels of these candidate points"):
        list(Rescored(stored, pipeline(coarse.options), coarse)([SPLIT[0]]))
    with pytest.raises(ConfigError, match=r"inference\.candidates\.prompt"):
        CandidatesConfig(alpha=16.0)
    with pytest.raises(ConfigError, match=r"inference\.samples\.count=2"):
        replace(options, samples=SamplesConfig(count=2))
