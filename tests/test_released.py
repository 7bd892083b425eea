"""reward=think2seg and reward=visionreasoner read and score as the released code of those systems does.

The values are worked out by hand from what that code is documented to do; none comes from this package.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from rubrics import rubric

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.config.targets import to_config
from grasp_rl.interfaces import CoordinateFrame, Labels, WeakLabels
from grasp_rl.launch import compose
from grasp_rl.prompts.parse import parse, repeated_sentences
from grasp_rl.prompts.released import layout, reads
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.segmenters.segment import segment, within
from grasp_rl.types import Answer, MaskPrediction, ParseStatus, RewardBreakdown, SpatialPrompt

FRAME = CoordinateFrame(width=840, height=840, image_width=840, image_height=840)
BOX_2 = PromptConfig(template="compact")
VR_SCHEME = PromptConfig(
    scheme="visionreasoner", positive_points=1, positive_key="point_2d", flat_points=True, template="compact"
)
T2S = ParsingConfig(reader="think2seg")
VR = ParsingConfig(reader="visionreasoner", nms_iou=1.0, max_instances=120)
ONE = '{"bbox_2d":[100,100,200,200],"positive_points":[[120,120],[180,180]]}'
OBJECT = '{"bbox_2d":[100,100,200,200],"point_2d":[150,150]}'


def t2s(text: str, prompt: PromptConfig = BOX_2) -> Answer:
    return parse(text, prompt, FRAME, T2S)


def fenced(json_text: str) -> str:
    return f"<think>a</think><answer>```json\n{json_text}\n```</answer>"


def t2s_reward(text: str) -> RewardBreakdown:
    """With a perfect segmenter for boxes, against the box (100, 100, 200, 200)."""
    answer = t2s(text)
    target = np.zeros((840, 840), bool)
    target[100:200, 100:200] = True
    masks = np.zeros((len(answer.prompts), 840, 840), bool)
    for index, item in enumerate(answer.prompts):
        if item.box is not None:
            x0, y0, x1, y1 = map(int, item.box)
            masks[index, y0:y1, x0:x1] = True
    prediction = MaskPrediction(masks=masks, iou_predictions=np.ones(len(masks), np.float32))
    return rubric("think2seg")(answer, Labels(target_mask=target), prediction if len(masks) else None)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        (fenced(f"[{ONE}]"), (1, 1, 1)),
        (f"```json\n[{ONE}]\n```", (1, 1, 0)),  # the tags are asked of the thought's term only
        (f"<think>a</think>```json\n[{ONE}]\n```", (1, 1, 0)),
        (f"<think>a</think><answer>[{ONE}]</answer>", (0, 0, 1)),  # without a fence nothing is read
        (fenced('[{"bbox_2d":[100,100,200,200]}]'), (1, 1, 1)),  # a box or points
        (fenced("[{'bbox_2d':[100,100,200,200]}]"), (1, 1, 1)),  # single quotes are mended, and earn the term
        (fenced('[{"bbox_2d":[100,100,200,200]'), (1, 1, 1)),  # cut off, and mended
        (fenced(f'{{"objects":[{ONE}]}}'), (1, 1, 1)),  # sliced from the first bracket to the last
        (fenced(f'[{ONE[:-1]},"label":"roof"}}]'), (1, 1, 1)),
        (fenced(f'[{ONE[:-1]},"negative_points":[]}}]'), (0, 0, 1)),  # an empty list is there for nothing
        (fenced('[{"bbox_2d":[100,100,200,200],"positive_points":[[120,120]]}]'), (0, 0, 1)),
        (fenced('[{"label":"roof"}]'), (0, 0, 1)),
        (fenced("[]"), (0, 1, 1)),
        (" " + fenced(f"[{ONE}]"), (1, 1, 0)),  # white space in front
        (fenced(f"[{ONE}]") + "\n", (1, 1, 0)),
        ("<think>b</think>" + fenced(f"[{ONE}]"), (1, 1, 1)),  # two thoughts are one
        (fenced(f"[{ONE}]").replace("</think>", "</think> \n "), (1, 1, 1)),
        (fenced(f"[{ONE}]").replace("</think>", "</think> so "), (1, 1, 0)),
    ],
)
def test_think2seg(text: str, terms: tuple[float, float, float]) -> None:
    found = t2s_reward(text)
    assert tuple(found.terms[name] for name in ("mask_iou", "answer_format", "think_format")) == terms
    assert found.reward == 2 * terms[0] + terms[1] + terms[2]


def test_think2seg_mixes_boxes_and_points_and_drops_repeated_boxes_alone() -> None:
    points = '{"positive_points":[[10,10],[20,20]]}'
    small = '{"bbox_2d":[100,100,200,190]}'
    answer = t2s(fenced(f"[{small},{points},{ONE},{points}]"))
    assert [item.box for item in answer.prompts] == [None, (100, 100, 200, 200), None]
    assert answer.prompts[0].point_coords == ((10.5, 10.5), (20.5, 20.5))


def test_think2seg_reads_negative_points_where_the_scheme_has_them() -> None:
    scheme = replace(BOX_2, negative_points=2)
    both = ONE[:-1] + ',"negative_points":[[5,5],[9,9]]}'
    assert t2s(fenced(f"[{both}]"), scheme).prompts[0].point_labels == (1, 1, 0, 0)
    assert not t2s(fenced(f"[{both.replace(',[9,9]', '')}]"), scheme).ok


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("nothing", ParseStatus.NO_ANSWER),
        (fenced("no list"), ParseStatus.BAD_JSON),
        (fenced("[" * 20 + "]" * 20), ParseStatus.TOO_LONG),
        (fenced('[{"bbox_2d":[1,2,NaN,4]}]'), ParseStatus.BAD_NUMBER),
        (fenced('[{"bbox_2d":["1","2","3","4"]}]'), ParseStatus.BAD_SCHEMA),
        ("x" * 20000, ParseStatus.TOO_LONG),
    ],
)
def test_think2seg_never_raises(text: str, status: ParseStatus) -> None:
    assert t2s(text).status is status


def vr(json_text: str, think: str = "A roof.") -> Answer:
    return parse(f"<think>{think}</think><answer>{json_text}</answer>", VR_SCHEME, FRAME, VR)


def vr_terms(
    answer: Answer, *reference: tuple[tuple[float, float, float, float], tuple[float, float]]
) -> dict[str, float]:
    instances = tuple(SpatialPrompt(box=box, point_coords=(point,), point_labels=(1,)) for box, point in reference)
    return dict(rubric("visionreasoner")(answer, WeakLabels(instances=instances, image_size=(840, 840))).terms)


TRUTH = ((100.0, 100.0, 200.0, 200.0), (150.0, 150.0))


def test_visionreasoner_pays_seven_for_a_perfect_answer() -> None:
    answer = vr(f"[{OBJECT}]")
    labels = WeakLabels(
        instances=(SpatialPrompt(box=TRUTH[0], point_coords=(TRUTH[1],), point_labels=(1,)),), image_size=(840, 840)
    )
    assert rubric("visionreasoner")(answer, labels).reward == 7


@pytest.mark.parametrize(
    ("json_text", "form", "count"),
    [
        (f"[{OBJECT}]", 1.0, 1),
        (f'[{OBJECT},{{"bbox_2d":[1,2,3,4]}}]', 0.75, 0),  # three of four fields; the fourth voids all boxes
        ('[{"bbox_2d":[1,2,3],"point_2d":[1,2]}]', 0.5, 0),
        ('[{"bbox_2d":[100,100,100,200],"point_2d":[1,2]}]', 1.0, 1),  # no area counts all the same
        ('[3,{"label":"roof"}]', 0.0, 0),
        ("[]", 0.0, 0),
        (f'[{OBJECT[:-1]},"label":"roof"}}]', 1.0, 1),
        ("[" + ",".join([OBJECT] * 130) + "]", 1.0, 120),  # cut at 120
    ],
)
def test_visionreasoner_counts_every_field(json_text: str, form: float, count: int) -> None:
    answer = vr(json_text)
    assert (answer.form, len(answer.prompts)) == (form, count)
    assert answer.ok == (form == 1 or json_text == "[]")
    assert vr_terms(answer, TRUTH)["answer_format"] == form


@pytest.mark.parametrize(
    "text", [f"```json\n[{OBJECT}]\n```", f"[{OBJECT}", "{}", "", f"[{OBJECT.replace('100', 'x')}]"]
)
def test_visionreasoner_reads_strict_json_alone(text: str) -> None:
    answer = vr(text)
    assert not answer.ok
    assert vr_terms(answer, TRUTH)["answer_format"] == 0


def test_visionreasoner_leaves_boxes_and_points_as_they_are_said() -> None:
    (item,) = vr('[{"bbox_2d":[900,200,100,-5],"point_2d":[900,3]}]').prompts
    assert item.box == (900, 200, 100, -5)
    assert item.point_coords == ((900, 3),)
    wide = CoordinateFrame(width=840, height=840, image_width=420, image_height=1680)
    answer = parse(f"<think>a</think><answer>[{OBJECT}]</answer>", VR_SCHEME, wide, VR)
    assert answer.prompts[0].box == (50, 200, 100, 400)
    assert answer.prompts[0].point_coords == ((75, 300),)


@pytest.mark.parametrize(("point", "inside"), [([200, 150], 1), ([150, 200], 1), ([201, 150], 0), ([100, 100], 1)])
def test_a_point_on_the_edge_of_its_own_box_is_inside(point: list[int], inside: float) -> None:
    answer = vr(f'[{{"bbox_2d":[100,100,200,200],"point_2d":{point}}}]')
    truth = (TRUTH[0], (float(point[0]), float(point[1])))
    assert vr_terms(answer, truth)["points"] == inside


@pytest.mark.parametrize(
    ("width", "paid"),
    [
        (49, 0.0),  # (49 + 1) * 101 / (101 * 101) = 0.495
        (50, 1.0),  # 51/101 = 0.505 inclusive; 50/100 = 0.5 without, which is not over 0.5
    ],
)
def test_iou_counts_pixels_inclusively(width: int, paid: float) -> None:
    answer = vr(f'[{{"bbox_2d":[100,100,{100 + width},200],"point_2d":[110,150]}}]')
    assert vr_terms(answer, TRUTH)["box_iou"] == paid


def test_a_repeated_object_is_matched_like_any_other() -> None:
    second = ((101.0, 100.0, 201.0, 200.0), (151.0, 150.0))
    assert vr_terms(vr(f"[{OBJECT},{OBJECT}]"), TRUTH, second)["box_iou"] == 1
    assert vr_terms(vr(f"[{OBJECT},{OBJECT}]"), TRUTH)["box_iou"] == 0.5


@pytest.mark.parametrize(
    ("thought", "repeated", "paid"),
    [
        ("It. One. Two. Three.", 0, 1),
        ("It. One. Two. One.", 1, 1),
        ("It. One. One. One.", 2, 0),
        ("It. A. B. A. B.", 2, 0),
        ("...", 0, 1),
    ],
)
def test_two_repeated_sentences_cost_the_term(thought: str, repeated: int, paid: float) -> None:
    assert repeated_sentences(thought) == repeated
    assert vr_terms(vr(f"[{OBJECT}]", thought), TRUTH)["no_repetition"] == paid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think></think><answer></answer>", True),
        ("<think>a</think>b</think> <answer>c</answer>d</answer>", True),
        ("<think>a</think><answer>b", False),
        ("<think>a<answer>b</answer>", False),
        ("</think><answer></answer>", False),
        ("<think>" + "</think><answer>" * 5000, False),
    ],
)
def test_the_layout(text: str, expected: bool) -> None:
    assert layout(text) is expected


def test_a_reward_brings_its_reading_and_the_users_wins() -> None:
    def reader(*words: str) -> str:
        with compose.hydra("train") as engine:
            return to_config(compose.single(engine, ["command=train", *words], ()).config).parsing.reader

    assert [reader(f"reward={name}") for name in ("grasp", "think2seg", "visionreasoner")] == [
        "scheme",
        "think2seg",
        "visionreasoner",
    ]
    assert reader("reward=think2seg", "parsing=strict") == "scheme"
    assert reader("parsing=visionreasoner") == "visionreasoner"


def test_a_scheme_of_another_system_is_read_by_its_own_rules() -> None:
    assert [reads(name, BOX_2) for name in ("scheme", "think2seg", "visionreasoner")] == [False, True, False]
    assert [reads(name, VR_SCHEME) for name in ("think2seg", "visionreasoner")] == [False, True]
    assert t2s(f"<think>a</think><answer>[{OBJECT}]</answer>", VR_SCHEME).ok


def test_what_is_segmented_lies_in_the_image() -> None:
    plain = SpatialPrompt(box=(1, 2, 3, 4), point_coords=((1.5, 2.5),), point_labels=(1,))
    assert within(plain, (10, 20)) is plain
    odd = SpatialPrompt(box=(30, 8, 5, -3), point_coords=((30, 3), (2, 11)), point_labels=(1, 0))
    assert within(odd, (10, 20)).box == (5, 0, 20, 8)
    assert within(odd, (10, 20)).point_coords == ((19.5, 3), (2, 9.5))
    for box in ((5, 5, 5, 5), (25, 15, 30, 20), (-9, -9, -5, -5)):
        x0, y0, x1, y1 = within(SpatialPrompt(box=box), (10, 20)).box or (math.nan,) * 4
        assert 0 <= x0 < x1 <= 20
        assert 0 <= y0 < y1 <= 10
    answer = Answer(prompts=(odd,), status=ParseStatus.OK)
    (masks,) = segment(BoxFillSegmenter(), np.zeros((10, 20, 3), np.uint8), [answer], name="x")
    assert masks.error is None
    assert int(masks.union.sum()) == 15 * 8
