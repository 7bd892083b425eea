"""Rewards against hand-computed values, a golden file, and a table of ways to cheat them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rubrics import THRESHOLDS, rubric

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame, Labels, WeakLabels
from grasp_rl.prompts.parse import parse
from grasp_rl.rewards.matching import repeats
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.base import Term
from grasp_rl.rewards.terms.boxes import BoxIou, BoxL1, Count, count_ratio
from grasp_rl.rewards.terms.format import AnswerFormat, ThinkFormat
from grasp_rl.rewards.terms.masks import MaskIou
from grasp_rl.rewards.terms.points import PointDistance, PointsInside, point_distance, points_inside
from grasp_rl.rewards.terms.text import Overlong
from grasp_rl.types import Answer, BoolMask, Box, MaskPrediction, ParseStatus, Point, SpatialPrompt

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_rewards.json").read_text())
SIZE = (400, 420)


REWARDS: dict[str, Rubric] = {
    "grasp": rubric("grasp"),
    "visionreasoner": rubric("grasp", *THRESHOLDS),  # its released form: tests/test_released.py
    "think2seg": rubric("think2seg"),
}
GRASP, THINK2SEG = REWARDS["grasp"], REWARDS["think2seg"]
SOFT = rubric("grasp", "box_l1.mode=soft", "points_inside.weight=1.0", "count.weight=1.0")


def instance(box: Box | None, *points: Point) -> SpatialPrompt:
    return SpatialPrompt(box=box, point_coords=points, point_labels=(1,) * len(points))


def said(*prompts: SpatialPrompt, status: ParseStatus = ParseStatus.OK) -> Answer:
    return Answer(prompts=prompts, status=status, thinking="", think_layout=True, fenced=True)


def weak(*prompts: SpatialPrompt, size: tuple[int, int] = SIZE) -> WeakLabels:
    return WeakLabels(instances=prompts, image_size=size)


def fill(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> BoolMask:
    """The union of rectangles as a mask."""
    mask = np.zeros(size, bool)
    for x0, y0, x1, y1 in boxes:
        mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    return mask


def segment(prompts: Sequence[SpatialPrompt], size: tuple[int, int]) -> MaskPrediction:
    """A stand-in for the segmenter: it fills the box, or a square of side 10 around each point where there is none."""
    masks = np.zeros((len(prompts), *size), bool)
    for index, item in enumerate(prompts):
        squares = [(max(x - 5, 0), max(y - 5, 0), x + 5, y + 5) for x, y in item.positive_points]
        masks[index] = fill([item.box] if item.box else squares, size)
    return MaskPrediction(masks=masks, iou_predictions=np.ones(len(prompts), np.float32))


def with_mask(labels: WeakLabels) -> Labels:
    """The same labels with the union of the reference boxes for a mask."""
    boxes = [item.box for item in labels.instances if item.box]
    return Labels(target_mask=fill(boxes, labels.image_size), instances=labels.instances)


def score(reward: Rubric, answer: Answer, reference: WeakLabels) -> float:
    """The reward of an answer where the target mask is the union of the reference boxes."""
    if "mask" not in reward.needs:
        return reward(answer, reference).reward
    return reward(answer, with_mask(reference), segment(answer.prompts, reference.image_size)).reward


REFERENCE = weak(
    instance((40, 40, 140, 140), (70, 70), (110, 110)),
    instance((220, 220, 380, 300), (260, 260), (340, 260)),
)
HONEST = (
    instance((41, 40, 141, 139), (71, 69), (109, 111)),
    instance((219, 222, 378, 301), (262, 259), (341, 262)),
)


# Terms


def table(term: Any, predicted: SpatialPrompt, *reference: SpatialPrompt, side: float = 100) -> list[float]:
    """The row of one predicted instance."""
    row: list[float] = term.table([predicted], reference, (round(side), round(side)))[0].tolist()
    return row


def test_formats() -> None:
    def paid(term: Any, answer: Answer) -> float:
        return float(term(answer, weak(), None))

    answer, fenced = said(), AnswerFormat(require_fence=True)
    assert paid(ThinkFormat(), answer) == 1
    assert paid(ThinkFormat(), replace(answer, think_layout=False)) == 0
    assert paid(fenced, answer) == 1
    assert paid(fenced, replace(answer, fenced=False)) == 0
    assert paid(AnswerFormat(), replace(answer, fenced=False)) == 1
    for status in set(ParseStatus) - {ParseStatus.OK}:
        assert paid(AnswerFormat(), replace(answer, status=status)) == 0


def test_count_ratio() -> None:
    assert [count_ratio(*pair) for pair in ((0, 0), (2, 2), (1, 4), (4, 1), (0, 3))] == [1, 1, 0.25, 0.25, 0]
    assert Count()(said(*HONEST, HONEST[0]), REFERENCE, None) == 1  # the repeated instance does not count


def test_box_tables() -> None:
    a, b = instance((0, 0, 10, 10)), instance((5, 0, 15, 10))  # IoU 50 / 150; edges differ by 5, 0, 5, 0
    assert table(BoxIou(), a, a, b) == [1, pytest.approx(1 / 3)]
    assert table(BoxIou(mode="threshold", threshold=0.3), a, a, b) == [1, 1]
    assert table(BoxIou(mode="threshold", threshold=0.34), a, a, b) == [1, 0]
    assert table(BoxIou(mode="threshold", threshold=1 / 3), a, b) == [0]  # IoU > threshold, strictly
    assert table(BoxL1(mode="soft", fraction=0.05), a, a, b) == [1, pytest.approx(math.exp(-0.5))]  # d = 2.5 / 100
    assert table(BoxL1(fraction=0.0251), a, b) == [1]
    assert table(BoxL1(fraction=0.025), a, b) == [0]  # d < fraction, strictly
    assert table(BoxIou(), a, instance(None, (1, 1))) == [0]
    assert table(BoxL1(mode="soft", fraction=0.5), a, instance(None, (1, 1))) == [0]


def test_point_distance() -> None:
    assert point_distance([(0, 0), (10, 0)], [(10, 3), (0, 4)]) == pytest.approx(3.5)  # crosswise 4 and 3
    assert point_distance([(0, 0), (0, 0)], [(0, 0), (10, 0)]) == pytest.approx(5)  # a twin reaches one only
    assert point_distance([(0, 0)], [(9, 9), (3, 4)]) == pytest.approx(5)
    assert point_distance([(0, 0), (1, 0), (9, 0), (10, 0)], [(0, 0), (10, 0)]) == pytest.approx(0.5)
    assert point_distance([(0, 0), (0, 0), (0, 0), (0, 0)], [(0, 0), (10, 0)]) == pytest.approx(5)
    assert point_distance([(0, 0)], [(math.nan, 0)]) == math.inf


def test_point_tables() -> None:
    reference = instance((0, 0, 20, 20), (5, 5), (15, 15))
    good, stray = instance((0, 0, 20, 20), (5, 8), (15, 12)), instance((0, 0, 20, 10), (5, 5), (15, 15))
    soft = PointDistance(fraction=0.03)
    assert table(soft, good, reference) == [pytest.approx(math.exp(-1))]  # d = 3/100
    assert table(PointDistance(mode="threshold", fraction=0.031), good, reference) == [1]
    assert table(PointDistance(mode="threshold", fraction=0.03), good, reference) == [0]
    assert table(soft, stray, reference) == [0]  # a point outside its own box
    assert table(soft, instance(None, (5, 5), (15, 15)), reference) == [1]
    assert table(soft, instance((0, 0, 9, 9)), reference) == [0]
    assert table(PointsInside(), instance(None, (5, 5), (30, 5)), reference) == [0.5]


def test_points_inside_boxes_and_masks() -> None:
    mask = fill([(2, 1, 4, 3)], (5, 6))
    assert points_inside([(2.5, 1.5), (3.9, 2.9)], mask) == 1
    assert points_inside([(2.5, 1.5), (4.0, 1.5)], mask) == 0.5
    assert points_inside([(-1, 0), (6, 0), (0, 5), (math.nan, 0)], np.ones((5, 6), bool)) == 0
    assert points_inside([], mask) == 0
    assert points_inside([(0, 0), (4, 2), (4.1, 2)], (0, 0, 4, 2)) == pytest.approx(2 / 3)


def test_repeats() -> None:
    def item(positive: tuple[Point, ...], negative: tuple[Point, ...] = ()) -> SpatialPrompt:
        labels = (1,) * len(positive) + (0,) * len(negative)
        return SpatialPrompt(box=(0, 0, 4, 4), point_coords=positive + negative, point_labels=labels)

    a, b, other = item(((1, 1), (2, 2))), item(((2, 2), (1, 1))), item(((1, 1), (3, 3)))
    assert repeats([a, b, other, a]) == [False, True, False, True]
    first, second = item(((1, 1),), ((3, 3),)), item(((1, 1),), ((2, 3),))
    assert repeats([first, second, first]) == [False, False, True]  # background points tell instances apart
    apart, together = item(((1, 1),), ((3, 3), (2, 3))), item(((1, 1),), ((2, 3), (3, 3)))
    assert repeats([apart, together]) == [False, True]  # in whatever order


def test_background_points_tell_apart_what_is_read() -> None:
    """Two instances of points alone that differ in the background point are two, and the same one twice is one."""
    scheme = PromptConfig(box=False, positive_points=1, negative_points=1)
    frame = CoordinateFrame(width=50, height=50, image_width=50, image_height=50)

    def read(*background: str) -> list[Point]:
        items = [f'{{"positive_points":[[9,9]],"negative_points":[{point}]}}' for point in background]
        answer = parse(f"<answer>[{','.join(items)}]</answer>", scheme, frame, ParsingConfig())
        return [found.negative_points[0] for found in answer.prompts]

    assert read("[20,9]", "[9,20]") == [(20.5, 9.5), (9.5, 20.5)]
    assert read("[20,9]", "[20,9]") == [(20.5, 9.5)]


# The golden file


def golden_answer(case: dict[str, Any]) -> Answer:
    height, width = case["image_size"]
    spoken = case.get("frame", [width, height])
    frame = CoordinateFrame(width=spoken[0], height=spoken[1], image_width=width, image_height=height)
    return parse(case["text"], PromptConfig(**case["scheme"]), frame, ParsingConfig())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_rewards(case: dict[str, Any]) -> None:
    """Recomputed from the text.

    Four of them by hand. ``honest pair`` (100 x 100): boxes off by one pixel on one edge of 20 x 20 have IoU 19/20 and
    mean edge error 0.25; points off by (0, 1) and exact: d = 0.5 px, exp(-0.005 / 0.0357) = 0.86936; the union of masks
    is 760 of 800 pixels. ``one of two``: one exact instance over max(1, 2): every accuracy term 1/2, IoU 400/800.
    ``whole image``: IoU 400/10000, edges off by 10, 10, 70, 70. ``no target, empty``: every term 1 whatever the
    weights, 2 + 2 * 1 in all for the mask reward.
    """
    answer, size = golden_answer(case), tuple(case["image_size"])
    assert answer.status == case["status"]
    reference = weak(*(instance(tuple(c["box"]), *map(tuple, c["points"])) for c in case["cues"]), size=size)
    for name, reward in REWARDS.items():
        given = with_mask(reference) if "mask" in reward.needs else reference
        found = reward(answer, given, segment(answer.prompts, size))
        assert found.reward == pytest.approx(case[name]["reward"], abs=1e-6)
        assert dict(found.terms) == pytest.approx(case[name]["terms"], abs=1e-6)


# What they see


def test_a_mask_free_rubric_cannot_be_handed_a_mask() -> None:
    mask = np.ones(SIZE, bool)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        WeakLabels(instances=(), image_size=SIZE, target_mask=mask)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="WeakLabels, without a mask; it was handed Labels"):
        GRASP(said(), Labels(target_mask=mask))
    assert GRASP.needs == {"boxes", "points"}


def test_a_mask_free_rubric_ignores_the_predicted_mask() -> None:
    prediction = segment(HONEST, SIZE)
    assert GRASP(said(*HONEST), REFERENCE, prediction) == GRASP(said(*HONEST), REFERENCE, None)


def test_a_mask_rubric_wants_masks_and_predictions() -> None:
    target = Labels(target_mask=segment(HONEST, SIZE).union)
    with pytest.raises(TypeError, match="Labels with a mask; it was handed WeakLabels"):
        THINK2SEG(said(), REFERENCE)
    with pytest.raises(TypeError, match="was handed WeakLabels"):
        MaskIou()(said(*HONEST), REFERENCE, None)
    with pytest.raises(ValueError, match="needs the segmenter's prediction"):
        THINK2SEG(said(*HONEST), target, None)
    failed = replace(segment(HONEST, SIZE), error="out of memory")
    assert THINK2SEG(said(*HONEST), target, failed).reward == 2
    assert THINK2SEG(said(*HONEST), target, segment(HONEST, SIZE)).reward == 4


def test_a_rubric_mixes_instance_terms_and_mask_terms() -> None:
    both = Rubric({"box_iou": BoxIou(weight=3.0), "mask": MaskIou(weight=2.0), "think": ThinkFormat(weight=0.5)})
    assert both.needs == {"boxes", "mask"}
    labels, answer = with_mask(REFERENCE), said(*HONEST)
    found = both(answer, labels, segment(HONEST, SIZE))
    alone = (
        GRASP(answer, REFERENCE).terms["box_iou"],
        THINK2SEG(answer, labels, segment(HONEST, SIZE)).terms["mask_iou"],
    )
    assert found.reward == pytest.approx(3 * alone[0] + 2 * alone[1] + 0.5, abs=1e-12)
    assert both(said(), labels).terms == {"box_iou": 0, "mask": 0, "think": 1}
    empty = Labels(target_mask=np.zeros(SIZE, bool), instances=())
    assert both(said(), empty).reward == 5.5
    without_instances = Labels(target_mask=labels.target_mask)
    assert both(answer, without_instances, segment(HONEST, SIZE)).terms["box_iou"] == 0


def test_a_null_leaves_a_term_out_and_an_empty_rubric_is_refused() -> None:
    assert set(Rubric({"think": ThinkFormat(), "count": None}).terms) == {"think"}
    with pytest.raises(ConfigError, match=r"reward\.terms=.*must name one term or more"):
        Rubric({"think": None})
    with pytest.raises(ConfigError, match=r"reward\.terms\.odd=3: must be an option with the _target_"):
        Rubric({"odd": 3})


def test_overlong_completions_by_hand() -> None:
    """A limit of 100 tokens, the last 20 of which cost: DAPO's equation 13, plus 1."""
    term = Overlong(max_tokens=100, cache=20)
    values = [term(replace(said(*HONEST), tokens=tokens), REFERENCE, None) for tokens in (5, 80, 85, 95, 100, 120)]
    assert values == pytest.approx([1, 1, 0.75, 0.25, 0, 0])
    with pytest.raises(ConfigError, match=r"reward\.terms\.long\.cache=0"):
        Rubric({"long": Overlong(cache=0)})


def test_a_term_that_gives_no_number_is_named() -> None:
    class Silent(ThinkFormat):
        def __call__(self, *given: object) -> float:
            return None  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"reward\.terms\.own: gave None; a term gives one number for an answer"):
        Rubric({"iou": BoxIou(), "own": Silent()})(said(*HONEST), REFERENCE)


def test_a_term_that_is_neither_paid_nor_audited_is_not_computed() -> None:
    terms = {"think": ThinkFormat(), "mask": MaskIou(weight=0.0, audit=False), "iou": BoxIou(weight=0.0)}
    reward = Rubric(terms)
    assert reward.needs == {"boxes"}  # no mask is predicted for it
    assert reward(said(*HONEST), REFERENCE).terms.keys() == {"think", "iou"}
    assert "mask" in Rubric(terms | {"mask": MaskIou(weight=0.0)}).needs
    assert "mask" in Rubric(terms | {"mask": replace(MaskIou(audit=False), start_weight=0.0, ramp_steps=5)}).needs


# The rules


def test_no_target() -> None:
    wrong, unread = said(HONEST[0]), said(status=ParseStatus.BAD_JSON)
    for reward, empty, formats in (
        (REWARDS["grasp"], 5, 2),
        (REWARDS["visionreasoner"], 6, 3),
        (SOFT, 7, 2),
        (REWARDS["think2seg"], 4, 2),
    ):
        assert [score(reward, answer, weak()) for answer in (said(), wrong, unread)] == [empty, formats, 1]


@pytest.mark.parametrize("status", sorted(set(ParseStatus) - {ParseStatus.OK, ParseStatus.REPAIRED}))
def test_a_target_and_no_answer(status: ParseStatus) -> None:
    for reward in REWARDS.values():
        assert score(reward, said(status=status), REFERENCE) == 1  # the thought
        assert score(reward, replace(said(status=status), think_layout=False), REFERENCE) == 0


def test_an_empty_answer_to_a_target_earns_the_formats_alone() -> None:
    assert [score(reward, said(), REFERENCE) for reward in REWARDS.values()] == [2, 3, 2]


def test_a_repaired_answer_loses_its_format() -> None:
    for reward, weight in ((GRASP, 1.0), (THINK2SEG, 1.0)):
        repaired = said(*HONEST, status=ParseStatus.REPAIRED)
        assert score(reward, repaired, REFERENCE) == pytest.approx(score(reward, said(*HONEST), REFERENCE) - weight)


def test_the_perfect_answer_earns_the_maximum_of_its_scheme() -> None:
    perfect = said(*REFERENCE.instances)
    assert [score(reward, perfect, REFERENCE) for reward in REWARDS.values()] == [5, 6, 4]
    boxes = said(*(instance(item.box) for item in REFERENCE.instances))
    points = said(*(instance(None, *item.point_coords) for item in REFERENCE.instances))
    assert score(GRASP, boxes, REFERENCE) == 4
    assert score(GRASP, points, REFERENCE) == 3


def test_the_reward_is_the_weighted_sum_of_its_terms() -> None:
    weights = {"think_format": 0.5, "answer_format": 0.25, "box_iou": 3, "points": 2, "count": 7}
    reward = rubric("grasp", *(f"{name}.weight={weight}" for name, weight in weights.items()))
    found = reward(said(HONEST[0]), REFERENCE, None)
    t = found.terms
    assert set(t) == {"think_format", "answer_format", "box_iou", "box_l1", "points", "points_inside", "count"}
    expected = 0.5 + 0.25 + 3 * t["box_iou"] + t["box_l1"] + 2 * t["points"] + 7 * t["count"]
    assert found.reward == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in t.values())


def test_instances_are_matched_on_the_summed_score() -> None:
    """Swapped order earns the same, and a missing and a superfluous instance cost the same."""
    one = REFERENCE.instances[0]
    assert score(GRASP, said(*reversed(REFERENCE.instances)), REFERENCE) == 5
    assert score(GRASP, said(one), REFERENCE) == pytest.approx(2 + 3 / 2)
    assert score(GRASP, said(*REFERENCE.instances), weak(one)) == pytest.approx(2 + 3 / 2)


@pytest.mark.parametrize("size", [(100, 200), (200, 100)], ids=["wide", "tall"])
def test_tolerances_are_fractions_of_the_longer_side(size: tuple[int, int]) -> None:
    """Edges off by 15, 0, 15, 0 and a point off by 7.5: a distance of 7.5 pixels, 0.0375 of 200 and 0.075 of 100."""
    reference = weak(instance((10, 10, 60, 60), (30, 30)), size=size)
    answer = said(instance((25, 10, 75, 60), (37.5, 30)))
    for fraction, paid in ((0.05, 1.0), (0.0375, 0.0)):
        reward = Rubric(
            {"edges": BoxL1(fraction=fraction), "points": PointDistance(mode="threshold", fraction=fraction)}
        )
        assert reward(answer, reference).terms == {"edges": paid, "points": paid}


def test_the_weights_decide_which_instances_are_matched() -> None:
    """Two answers whose boxes fit one way round and whose points fit the other."""
    left, right, on_left, on_right = (0, 0, 20, 20), (40, 0, 60, 20), (10, 10), (50, 10)
    answer = said(instance(left, on_right), instance(right, on_left))
    reference = weak(instance(left, on_left), instance(right, on_right))
    boxes = Rubric({"iou": BoxIou(weight=3.0), "inside": PointsInside(weight=1.0)})(answer, reference)
    assert (boxes.terms, boxes.reward) == ({"iou": 1, "inside": 0}, 3)
    points = Rubric({"iou": BoxIou(weight=1.0), "inside": PointsInside(weight=3.0)})(answer, reference)
    assert (points.terms, points.reward) == ({"iou": 0, "inside": 1}, 3)


# Cheating

GRID = tuple(
    instance((x, y, x + 50, y + 50), (x + 20, y + 25), (x + 30, y + 25))
    for x in range(0, 400, 50)
    for y in range(0, 400, 50)
)
WHOLE = instance((0, 0, 420, 400), (70, 70), (340, 260))
CHEATS = {
    "nothing": (),
    "the whole image": (WHOLE,),
    "the whole image twice": (WHOLE, WHOLE),
    "the whole image beside the honest": (*HONEST, WHOLE),
    "one box around both": (instance((41, 40, 378, 301), (71, 69), (341, 262)),),
    "many boxes": GRID,
    "many boxes beside the honest": (*HONEST, *GRID),
    "the honest twice": HONEST * 2,
    "one instance twice": (HONEST[0], HONEST[0]),
    "one instance only": (HONEST[0],),
    "the same point twice": tuple(instance(i.box, i.point_coords[0], i.point_coords[0]) for i in HONEST),
    "the box's centre twice": (
        instance((41, 40, 141, 139), (91, 89.5), (91, 89.5)),
        instance((219, 222, 378, 301), (298.5, 261.5), (298.5, 261.5)),
    ),
    "points outside their box": tuple(instance(i.box, (5, 5), (400, 10)) for i in HONEST),
    "points of the other instance": (
        instance(HONEST[0].box, *HONEST[1].point_coords),
        instance(HONEST[1].box, *HONEST[0].point_coords),
    ),
    "slivers through the target": tuple(
        instance((x, 40, x + 2, 140), (x + 1, 70), (x + 1, 110)) for x in range(40, 140, 4)
    ),
    "boxes grown by half": (
        instance((16, 15, 166, 164), *HONEST[0].point_coords),
        instance((179, 202, 418, 321), *HONEST[1].point_coords),
    ),
}


@pytest.mark.parametrize("reward", [*REWARDS.values(), SOFT], ids=[*REWARDS, "soft"])
@pytest.mark.parametrize("prompts", CHEATS.values(), ids=CHEATS)
def test_no_cheat_beats_the_honest_answer(prompts: tuple[SpatialPrompt, ...], reward: Rubric) -> None:
    honest, cheat = score(reward, said(*HONEST), REFERENCE), score(reward, said(*prompts), REFERENCE)
    assert cheat <= honest + 1e-12


@pytest.mark.parametrize(
    "name", sorted(set(CHEATS) - {"the honest twice", "the same point twice", "the box's centre twice"})
)
def test_cheats_cost_something(name: str) -> None:
    assert score(SOFT, said(*CHEATS[name]), REFERENCE) < score(SOFT, said(*HONEST), REFERENCE) - 0.1


def test_two_identical_points_do_not_beat_two_good_ones() -> None:
    for name in ("the same point twice", "the box's centre twice"):
        assert score(GRASP, said(*CHEATS[name]), REFERENCE) < score(GRASP, said(*HONEST), REFERENCE) - 0.2


def random_instances(draw: np.random.Generator, count: int) -> list[SpatialPrompt]:
    items = []
    for _ in range(count):
        x0, x1 = np.sort(draw.uniform(0, SIZE[1], 2)).tolist()
        y0, y1 = np.sort(draw.uniform(0, SIZE[0], 2)).tolist()
        points = [(float(draw.uniform(x0, x1)), float(draw.uniform(y0, y1))) for _ in range(2)]
        items.append(instance((x0, y0, x1 + 1, y1 + 1), *points))
    return items


def near(draw: np.random.Generator, item: SpatialPrompt, sigma: float) -> SpatialPrompt:
    """The same instance, a little off."""
    assert item.box is not None
    dx, dy = draw.normal(0, sigma, 2).tolist()
    box = (item.box[0] + dx, item.box[1] + dy, item.box[2] + dx, item.box[3] + dy)
    return instance(box, *((x + dx, y + dy) for x, y in item.point_coords))


@pytest.mark.parametrize("reward", [REWARDS["grasp"], REWARDS["visionreasoner"], SOFT], ids=["grasp", "vr", "soft"])
def test_order_counts_for_nothing_and_repetition_never_pays(reward: Rubric) -> None:
    draw = np.random.default_rng(5)
    for _ in range(60):
        reference = weak(*random_instances(draw, int(draw.integers(1, 5))))
        prompts = [near(draw, item, 8) for item in reference.instances][: int(draw.integers(1, 5))]
        prompts += random_instances(draw, int(draw.integers(0, 2)))
        plain = score(reward, said(*prompts), reference)
        for order in list(permutations(range(len(prompts))))[:24]:
            assert score(reward, said(*(prompts[i] for i in order)), reference) == pytest.approx(plain, abs=1e-9)
        shuffled = weak(*reversed(reference.instances))
        assert score(reward, said(*prompts), shuffled) == pytest.approx(plain, abs=1e-9)
        for item in prompts:
            twin = replace(item, point_coords=item.point_coords[::-1])
            assert score(reward, said(*prompts, item), reference) <= plain + 1e-9
            assert score(reward, said(*prompts, item, twin), reference) <= plain + 1e-9


def test_the_unit_of_length_counts_for_nothing() -> None:
    def scaled(item: SpatialPrompt) -> SpatialPrompt:
        assert item.box is not None
        box = (3 * item.box[0], 3 * item.box[1], 3 * item.box[2], 3 * item.box[3])
        return instance(box, *((3 * x, 3 * y) for x, y in item.point_coords))

    large = weak(*map(scaled, REFERENCE.instances), size=(3 * SIZE[0], 3 * SIZE[1]))
    for reward in (REWARDS["grasp"], REWARDS["visionreasoner"], SOFT):
        expected = score(reward, said(*HONEST), REFERENCE)
        assert score(reward, said(*map(scaled, HONEST)), large) == pytest.approx(expected)


def test_farther_is_never_better() -> None:
    target = REFERENCE.instances[1]
    assert target.box is not None
    for reward in (REWARDS["grasp"], REWARDS["visionreasoner"], SOFT, REWARDS["think2seg"]):
        rewards = []
        for shift in range(0, 40, 2):
            box = (target.box[0] - shift, target.box[1], target.box[2] - shift, target.box[3])
            moved = instance(box, *((x - shift, y) for x, y in target.point_coords))
            rewards.append(score(reward, said(moved), weak(target)))
        assert rewards == sorted(rewards, reverse=True)
        assert rewards[0] > rewards[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_rewards_are_finite_whatever_the_numbers(bad: float) -> None:
    broken = (instance((bad, 0, 9, 9), (bad, 1), (2, bad)), instance((0, 0, bad, bad), (1, 1), (bad, bad)))
    for reward in (REWARDS["grasp"], REWARDS["visionreasoner"], SOFT):
        for prompts, reference in ((HONEST, weak(*broken)), (broken, REFERENCE), (broken, weak(*broken))):
            found = reward(said(*prompts), reference, None)
            assert math.isfinite(found.reward)
            assert all(0 <= value <= 1 for value in found.terms.values())


@pytest.mark.parametrize(
    ("term", "argument"),
    [
        (ThinkFormat(weight=-1.0), "weight"),
        (BoxIou(weight=math.nan), "weight"),
        (Count(weight=math.inf), "weight"),
        (PointDistance(weight="1e-3"), "weight"),  # type: ignore[arg-type]
        (AnswerFormat(weight=True), "weight"),
        (BoxIou(mode="hard"), "mode"),
        (PointDistance(mode=None), "mode"),  # type: ignore[arg-type]
        (BoxIou(threshold=1.5), "threshold"),
        (BoxL1(fraction=10), "fraction"),
        (PointDistance(fraction=0.0), "fraction"),
        (MaskIou(weight=-1), "weight"),
    ],
)
def test_bad_arguments_name_their_key(term: Term, argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.terms\.mine\.{argument}="):
        Rubric({"mine": term})
