"""Hostile and honest completions: every status, hand-computed coordinates, and time linear in the length."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.parse import parse
from grasp_rl.types import Answer, ParseStatus

FRAME = CoordinateFrame(width=100, height=50, image_width=200, image_height=200)  # one unit is 2 x 4 pixels
BOX = PromptConfig(scheme="box", positive_points=0)
BOX_2 = PromptConfig()
POINTS = PromptConfig(scheme="points", box=False)
BOTH = PromptConfig(scheme="box_2pos_2neg", negative_points=2)
STRICT = ParsingConfig()
REPAIR = ParsingConfig(repair=True)
GOOD = '[{"bbox_2d":[10,10,30,20],"positive_points":[[12,11],[20,15]]}]'
FULL = f"<think>Two roofs.</think>\n<answer>```json\n{GOOD}\n```</answer>"


def read(text: str, prompt: PromptConfig = BOX_2, config: ParsingConfig = STRICT) -> Answer:
    answer = parse(text, prompt, FRAME, config)
    check(answer)
    return answer


def status(json_text: str, prompt: PromptConfig = BOX, config: ParsingConfig = STRICT) -> ParseStatus:
    return read(f"<answer>{json_text}</answer>", prompt, config).status


def check(answer: Answer) -> None:
    """What holds for every answer."""
    assert answer.ok or not answer.prompts
    for item in answer.prompts:
        if item.box is not None:
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= FRAME.image_width
            assert 0 <= y0 < y1 <= FRAME.image_height
        for x, y in item.point_coords:
            assert 0 < x < FRAME.image_width
            assert 0 < y < FRAME.image_height


def box_of(json_box: str) -> tuple[float, ...] | None:
    (item,) = read(f'<answer>[{{"bbox_2d":{json_box}}}]</answer>', BOX).prompts
    return item.box


def test_an_honest_completion() -> None:
    answer = read(FULL)
    assert (answer.status, answer.thinking) == (ParseStatus.OK, "Two roofs.")
    assert answer.think_layout
    assert answer.fenced
    (item,) = answer.prompts
    assert item.box == (20, 40, 60, 80)
    assert item.point_coords == ((25, 46), (41, 62))  # cell 12 is 24..26, cell 11 is 44..48
    assert item.point_labels == (1, 1)


def test_points_carry_their_labels() -> None:
    (item,) = read(
        '<answer>[{"negative_points":[[0,0],[99,49]],"positive_points":[[1,1],[2,2]],"bbox_2d":[0,0,9,9]}]</answer>',
        BOTH,
    ).prompts
    assert item.positive_points == ((3, 6), (5, 10))
    assert item.negative_points == ((1, 2), (199, 198))


def test_corners_are_ordered_and_clipped() -> None:
    assert box_of("[30,20,10,10]") == (20, 40, 60, 80)
    assert box_of("[10,20,30,10]") == (20, 40, 60, 80)
    assert box_of("[-5,-5,1000,1e3]") == (0, 0, 200, 200)
    assert box_of("[0.5,0.25,1.5,1]") == (1, 1, 3, 4)
    assert str(box_of("[-0.0,-0.0,5,5]")) == "(0.0, 0.0, 10.0, 20.0)"


def test_points_are_clipped_into_the_image() -> None:
    (item,) = read('<answer>[{"positive_points":[[-7,1e5],[100,50]]}]</answer>', POINTS).prompts
    assert item.point_coords == ((1, 198), (199, 198))


@pytest.mark.parametrize("box", ["[5,5,5,9]", "[5,5,9,5]", "[100,0,120,9]", "[-9,0,0,9]", "[0,0,1e-320,1e-320]"])
def test_a_box_without_area_fails_the_answer(box: str) -> None:
    assert status(f'[{{"bbox_2d":[0,0,9,9]}},{{"bbox_2d":{box}}}]') is ParseStatus.BAD_NUMBER


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ParseStatus.NO_ANSWER),
        ("plain words", ParseStatus.NO_ANSWER),
        ("<answer>[]", ParseStatus.NO_ANSWER),
        ("[]</answer>", ParseStatus.NO_ANSWER),
        ("</answer>[]<answer>", ParseStatus.NO_ANSWER),
        ("<ANSWER>[]</ANSWER>", ParseStatus.NO_ANSWER),
        ("<answer></answer>", ParseStatus.BAD_JSON),
        ("<answer>[] and more</answer>", ParseStatus.BAD_JSON),
        ("<answer>None</answer>", ParseStatus.BAD_JSON),
        ("<answer>{</answer>", ParseStatus.BAD_JSON),
        ("<answer>[{'bbox_2d':[0,0,9,9]}]</answer>", ParseStatus.BAD_JSON),
        ("<answer>```\n[]\n```</answer>", ParseStatus.BAD_JSON),
        ("<answer>```json\n[]</answer>", ParseStatus.BAD_JSON),
        ("<answer>```json``</answer>", ParseStatus.BAD_JSON),
        ("<answer>```jsonc\n[]\n```</answer>", ParseStatus.BAD_JSON),
        ("<answer><answer>[]</answer></answer>", ParseStatus.BAD_JSON),
        ("<answer>null</answer>", ParseStatus.BAD_SCHEMA),
        ("<answer>{}</answer>", ParseStatus.BAD_SCHEMA),
        ("<answer>[[0,0,9,9]]</answer>", ParseStatus.BAD_SCHEMA),
        ('<answer>"[]"</answer>', ParseStatus.BAD_SCHEMA),
        ("<answer>7</answer>", ParseStatus.BAD_SCHEMA),
        ("<answer>[]</answer>", ParseStatus.OK),
        ("<answer>```json[]```</answer>", ParseStatus.OK),
        ("<answer>oops</answer> no: <answer> [ ] </answer>", ParseStatus.OK),
        ("<answer><answer>[]</answer>", ParseStatus.OK),
    ],
)
def test_statuses(text: str, expected: ParseStatus) -> None:
    assert read(text).status is expected


@pytest.mark.parametrize(
    "fields",
    [
        '"bbox_2d":[0,0,9]',
        '"bbox_2d":[0,0,9,9,9]',
        '"bbox_2d":[0,0,9,"9"]',
        '"bbox_2d":[0,0,9,true]',
        '"bbox_2d":[0,0,9,null]',
        '"bbox_2d":[0,0,9,[9]]',
        '"bbox_2d":"0,0,9,9"',
        '"bbox_2d":null',
        '"bbox_2d":{"x":1}',
        '"bbox":[0,0,9,9]',
        '"bbox_2d":[0,0,9,9],"label":"roof"',
        '"bbox_2d":[0,0,9,9],"negative_points":[]',
        '"bbox_2d":[0,0,9,9],"positive_points":[]',
        '"bbox_2d":[0,0,9,9],"bbox_2d":[0,0,8,8]',
        "",
    ],
)
def test_fields_outside_the_scheme(fields: str) -> None:
    assert status(f"[{{{fields}}}]") is ParseStatus.BAD_SCHEMA


@pytest.mark.parametrize(
    "points", ["[]", "[[1,1]]", "[[1,1],[2,2],[3,3]]", "[1,1]", "[[1,1],[2]]", "[[1,1],[2,false]]"]
)
def test_exactly_the_schemes_points(points: str) -> None:
    assert status(f'[{{"positive_points":{points}}}]', POINTS) is ParseStatus.BAD_SCHEMA


def test_a_scheme_with_negative_points_demands_them() -> None:
    assert read(FULL, BOTH).status is ParseStatus.BAD_SCHEMA


@pytest.mark.parametrize(
    "number",
    ["1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1000001", "-1e7", "9" * 33, "9" * 5000, "0." + "1" * 31],
)
def test_bad_numbers(number: str) -> None:
    assert status(f'[{{"bbox_2d":[0,0,9,{number}]}}]') is ParseStatus.BAD_NUMBER


def test_numbers_at_the_limits() -> None:
    assert status('[{"bbox_2d":[0,0,9,1000000]}]') is ParseStatus.OK
    assert status('[{"bbox_2d":[0,0,9,9.' + "1" * 30 + "]}]") is ParseStatus.OK


def test_constants_are_refused_wherever_they_stand() -> None:
    assert status("[NaN]") is ParseStatus.BAD_NUMBER
    assert status('[{"bbox_2d":-Infinity}]') is ParseStatus.BAD_NUMBER


def test_full_width_and_other_digits_are_no_numbers() -> None:
    for digit in "\uff19\u0669\u0c69\u00b2":
        assert status(f'[{{"bbox_2d":[0,0,9,{digit}]}}]') is ParseStatus.BAD_JSON


def test_invisible_characters_and_surrogates() -> None:
    assert status('[{"bbox_\u200b2d":[0,0,9,9]}]') is ParseStatus.BAD_SCHEMA
    assert status('\u202e[{"bbox_2d":[0,0,9,9]}]') is ParseStatus.BAD_JSON
    assert status('[{"\ud800":[0,0,9,9]}]') is ParseStatus.BAD_SCHEMA
    assert read(f"<think>\ud83d \u05d0\u0628</think>\u200b<answer>{GOOD}</answer>").think_layout is False
    assert read(f"<think>\ud83d</think><answer>{GOOD}</answer>").thinking == "\ud83d"


@pytest.mark.parametrize(
    ("text", "layout", "thinking"),
    [
        ("<think>a</think><answer>[]</answer>", True, "a"),
        (" \n<think>a</think> \t\n<answer>x</answer>\n", True, "a"),
        ("<think></think><answer>[]</answer>", True, ""),
        ("<answer>[]</answer>", False, None),
        ("<think>a<answer>[]</answer>", False, None),
        ("a</think><answer>[]</answer>", False, None),
        ("</think><think><answer>[]</answer>", False, None),
        ("<think>a</think><answer>[]</answer>.", False, "a"),
        (".<think>a</think><answer>[]</answer>", False, "a"),
        ("<think>a</think>.<answer>[]</answer>", False, "a"),
        ("<think>a</think><think>b</think><answer>[]</answer>", False, "a"),
        ("<think>a</think><answer>[]</answer><answer>[]</answer>", False, "a"),
        ("<think><answer>[]</answer></think>", False, "<answer>[]</answer>"),
        ("<answer>[]</answer><think>a</think>", False, "a"),
        ("<think>a</think><answer>[]", False, "a"),
    ],
)
def test_think_layout(text: str, layout: bool, thinking: str | None) -> None:
    answer = read(text)
    assert (answer.think_layout, answer.thinking) == (layout, thinking)


def test_the_fence_can_be_demanded() -> None:
    demanded = ParsingConfig(require_fence=True)
    assert read(FULL, config=demanded).status is ParseStatus.OK
    bare = read(f"<answer>{GOOD}</answer>", config=demanded)
    assert (bare.status, bare.fenced) == (ParseStatus.BAD_JSON, False)
    assert read(f"<answer>{GOOD}</answer>").fenced is False


def test_caps() -> None:
    item = '{"bbox_2d":[0,0,9,9]}'
    assert status("[" + ",".join([item] * 64) + "]") is ParseStatus.OK
    assert status("[" + ",".join([item] * 65) + "]") is ParseStatus.TOO_LONG
    assert status("[" * 8 + "]" * 8) is ParseStatus.BAD_SCHEMA
    assert status("[" * 9 + "]" * 9) is ParseStatus.TOO_LONG
    assert status("]]]" + "[" * 9) is ParseStatus.TOO_LONG
    assert status('["' + "[" * 99 + '"]') is ParseStatus.BAD_SCHEMA  # brackets in a string nest nothing
    assert status('["' + '\\"[' * 99 + '"]') is ParseStatus.BAD_SCHEMA
    assert status('["\\\\",' + "[" * 99) is ParseStatus.TOO_LONG  # the string ends behind its escaped backslash
    assert status("[" + "[[]]," * 600 + "1]", config=replace(STRICT, max_instances=1000)) is ParseStatus.BAD_SCHEMA
    assert status('[{"bbox_2d":[' + "[]," * 1300 + "1]}]") is ParseStatus.TOO_LONG
    eight = PromptConfig(positive_points=8, negative_points=8)
    points = "[" + ",".join(["[1,1]"] * 8) + "]"
    most = f'{{"bbox_2d":[0,0,9,9],"positive_points":{points},"negative_points":{points}}}'
    assert status("[" + ",".join([most] * 64) + "]", eight) is ParseStatus.OK
    exact = "<answer>[]</answer>".ljust(STRICT.max_chars)
    assert read(exact).status is ParseStatus.OK
    assert read(exact + " ").status is ParseStatus.TOO_LONG


def test_repetitions_are_dropped() -> None:
    boxes = '[{"bbox_2d":[0,0,20,20]},{"bbox_2d":[0,0,21,20]},{"bbox_2d":[50,20,70,40]}]'
    first, second = read(f"<answer>{boxes}</answer>", BOX).prompts
    assert (first.box, second.box) == ((0, 0, 42, 80), (100, 80, 140, 160))
    keep = ParsingConfig(nms_iou=1.0)
    assert len(read(f"<answer>{boxes}</answer>", BOX, keep).prompts) == 3
    points = '[{"positive_points":[[1,1],[2,2]]},{"positive_points":[[3,3],[4,4]]},{"positive_points":[[2,2],[1,1]]}]'
    kept = read(f"<answer>{points}</answer>", POINTS).prompts
    assert [item.point_coords[0] for item in kept] == [(3, 6), (7, 14)]
    assert len(read(f"<answer>{points}</answer>", POINTS, keep).prompts) == 3


@pytest.mark.parametrize(
    ("json_text", "expected"),
    [
        ("[{'bbox_2d':[0,0,9,9]}]", ParseStatus.REPAIRED),
        ('[{"bbox_2d":[0,0,9,9],}]', ParseStatus.REPAIRED),
        ('```json\n[{"bbox_2d":[0,0,9,9]}]', ParseStatus.REPAIRED),
        ('[{"bbox_2d":[0,0,9,9]}]', ParseStatus.OK),
        ("[]", ParseStatus.OK),
        ("[", ParseStatus.BAD_JSON),  # an empty answer is said, not inferred
        ("nothing here", ParseStatus.BAD_JSON),
        ("[{'bbox_2d':[0,0,9]}]", ParseStatus.BAD_SCHEMA),
        ("[{'bbox_2d':[0,0,9,1e999]}]", ParseStatus.BAD_NUMBER),
        ("[{'bbox_2d':[0,0,9,nan]}]", ParseStatus.BAD_SCHEMA),
        ("[{'bbox_2d':[0,0,9," + "9" * 4000 + "]}]", ParseStatus.BAD_NUMBER),
        ("['" + "[" * 4000, ParseStatus.TOO_LONG),
        ('"' + "[" * 4000, ParseStatus.BAD_JSON),
        ("['\"'," + "[" * 4000, ParseStatus.BAD_JSON),  # nesting hidden in what only strict JSON takes for a string
        ("[{'bbox_2d':[0,0,9,9]}]" + " ." * 4096, ParseStatus.BAD_JSON),  # over the length that is repaired
    ],
)
def test_repair(json_text: str, expected: ParseStatus) -> None:
    assert status(json_text, config=REPAIR) is expected


def test_repaired_text_keeps_the_caps_and_the_fence_rule() -> None:
    assert status("[" + "{'bbox_2d':[0,0,9,9]} " * 100, config=REPAIR) is ParseStatus.TOO_LONG
    boundless = ParsingConfig(repair=True, max_abs_coordinate=math.inf)
    assert status("[{'bbox_2d':[0,0,9," + "9" * 4000 + "]}]", config=boundless) is ParseStatus.BAD_NUMBER
    both = ParsingConfig(repair=True, require_fence=True)
    assert status("[{'bbox_2d':[0,0,9,9]}]", config=both) is ParseStatus.BAD_JSON
    assert status("```json\n[{'bbox_2d':[0,0,9,9]}]\n```", config=both) is ParseStatus.REPAIRED


ONE, TWO = '{"bbox_2d":[10,20,30,40]}', '{"bbox_2d":[50,10,70,30]}'


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (f"```json\n[{ONE}]\n```", 1),
        (f"```\n[{ONE}]\n```", 1),
        (f"[{ONE}]", 1),
        (f"<think>a [thought]</think>\n[{ONE}]", 1),
        (f"```json\n[{ONE}]\n```\nand\n```json\n[{TWO}]\n```", 2),
        ('```json\n[{"bbox_2d":[10,20,30,40],"label":"boat"}]\n```', 1),
        ('<answer>[{"bbox_2d":[10,20,30,40],"label":"a \\"boat\\" [1]"}]</answer>', 1),
        (f"<answer>{ONE}</answer>", 1),
        (f"<answer>{ONE}\n{TWO}</answer>", 2),
        (f"<answer>{ONE},{TWO}</answer>", 2),
        (f"<answer>[{ONE}]\n[{TWO}]</answer>", 2),
        (f"<answer>[[{ONE},{TWO}]]</answer>", 2),
        (f"<think>t</think><answer>```json\n[{ONE}]\n```", 1),
        (f"<think>t</think><answer>[{ONE},{TWO}]", 2),
        ('<answer>[{"bbox_2d":["10","20"," 30","40.0"]}]</answer>', 1),
        ('<answer>[{"bbox_2d":[[10,20,30,40]]}]</answer>', 1),
        ('<answer>[{"bbox_2d":[[10,20,30,40],[50,10,70,30]]}]</answer>', 2),
        ("<answer>[[10,20,30,40],[50,10,70,30]]</answer>", 2),
        ("<answer>［｛“bbox_2d”：［１０，20、30，40］｝］</answer>", 1),
        ("<answer>[{'bbox_2d':[10,20,30,40]},{'bbox_2d':[50,10,70,30]}]</answer>", 2),
    ],
)
def test_what_untrained_models_write_is_read_under_repair_alone(text: str, count: int) -> None:
    assert not read(text, BOX).ok
    answer = read(text, BOX, REPAIR)
    scale = (FRAME.image_width / FRAME.width, FRAME.image_height / FRAME.height) * 2
    expected = [(10.0, 20.0, 30.0, 40.0), (50.0, 10.0, 70.0, 30.0)][:count]
    assert answer.status is ParseStatus.REPAIRED
    assert [item.box for item in answer.prompts] == [
        tuple(v * s for v, s in zip(box, scale, strict=True)) for box in expected
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer></answer>", ParseStatus.BAD_JSON),
        ("There is no boat.", ParseStatus.NO_ANSWER),
        (f"<think>[{ONE}]", ParseStatus.NO_ANSWER),  # an unfinished thought
        (f"<think>[{ONE}]</think>", ParseStatus.NO_ANSWER),
        ("<think>draft <answer>[[1,2,3,4]]</answer> no, better", ParseStatus.NO_ANSWER),
        (f"<think>a</think><think>b <answer>[{ONE}", ParseStatus.NO_ANSWER),
        ('<answer>{"bbox_2d":[10,20,30,40],{"bbox_2d":[50,10,70,30]}</answer>', ParseStatus.BAD_JSON),  # one is lost
        ("<answer>[{'bbox_2d':[10%,20%,30%,40%]}]</answer>", ParseStatus.BAD_NUMBER),
        ("<answer>[[]]</answer>", ParseStatus.BAD_SCHEMA),
        ("```json\n```", ParseStatus.NO_ANSWER),
        ('<answer>[{"label":"boat"}]</answer>', ParseStatus.BAD_SCHEMA),
        ('<answer>[{"bbox_2d":["10px","20","30","40"]}]</answer>', ParseStatus.BAD_SCHEMA),
        ('<answer>[{"bbox_2d":[10,20,30,40],"bbox_2d":[1,2,3,4]}]</answer>', ParseStatus.BAD_SCHEMA),
        ("<answer>[null]</answer>", ParseStatus.BAD_SCHEMA),
    ],
)
def test_what_repair_does_not_read(text: str, expected: ParseStatus) -> None:
    assert read(text, BOX, REPAIR).status is expected


def test_nothing_there_is_an_answer_under_repair() -> None:
    answer = read("```json\n[]\n```", BOX, REPAIR)
    assert (answer.status, answer.prompts) == (ParseStatus.REPAIRED, ())


def test_a_number_that_was_cut_off_is_no_corner() -> None:
    whole = f"<think>t</think><answer>[{ONE},{TWO}]"
    first, second = whole.index(ONE) + len(ONE), len(whole) - 1
    for end in range(len(whole)):
        answer = read(whole[:end], BOX, REPAIR)
        assert len(answer.prompts) == (end >= first) + (end >= second), whole[:end]
        assert answer.ok == (end >= first)
    assert len(read("<answer>[[10,20,30,40],[50,10,70,3", BOX, REPAIR).prompts) == 1
    assert read('<answer>[{"bbox_2d":[10,20,30,40],"positive_points":[[12,21],[20,25', BOX_2, REPAIR).prompts == ()


def test_points_and_single_objects_are_read_under_repair() -> None:
    text = (
        '<answer>{"bbox_2d":["10","20","30","40"],"positive_points":[[["12","21"],["20","25"]]],"label":"x"}</answer>'
    )
    assert read(text, BOX_2, REPAIR).status is ParseStatus.REPAIRED
    single = replace(BOX, single_object=True)
    assert len(read(f"<answer>[{ONE}]</answer>", single, REPAIR).prompts) == 1
    assert read(f"<answer>[{ONE},{TWO}]</answer>", single, REPAIR).status is ParseStatus.BAD_SCHEMA
    assert read("```json\nnull\n```", single, REPAIR).prompts == ()


MEGABYTE = 1_000_000
HOSTILE: dict[str, Callable[[int], str]] = {
    "words": lambda n: "word " * (n // 5),
    "brackets": lambda n: "<answer>" + "[" * n + "</answer>",
    "braces": lambda n: "<answer>" + '{"a":' * (n // 5) + "</answer>",
    "quotes": lambda n: "<answer>[" + '"' * n + "</answer>",
    "brackets in a string": lambda n: '<answer>["' + "[{," * (n // 3) + '"]</answer>',
    "backslashes": lambda n: '<answer>["' + "\\" * n + '"]</answer>',
    "open tags": lambda n: "<answer>" * (n // 8),
    "close tags": lambda n: "</answer>" * (n // 9),
    "nested answers": lambda n: "<answer>" * (n // 17) + "</answer>" * (n // 17),
    "nested thoughts": lambda n: "<think>" * (n // 15) + "</think>" * (n // 15) + FULL,
    "open fence and spaces": lambda n: "<answer>```json\n[" + " " * n + "</answer>",
    "spaces between blocks": lambda n: "<think></think>" + " " * n + f"<answer>{GOOD}</answer>" + " " * n,
    "fences": lambda n: "<answer>" + "```json " * (n // 8) + "```</answer>",
    "digits": lambda n: "<answer>[" + "9" * n + "]</answer>",
    "points": lambda n: '<answer>[{"positive_points":[' + "[1,1]," * (n // 6) + "[1,1]]}]</answer>",
    "keys": lambda n: "<answer>[{" + ",".join(f'"{i}":0' for i in range(n // 10)) + "}]</answer>",
    "a long thought": lambda n: f"<think>{'<' * n}</think><answer>{GOOD}</answer>",
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_is_refused_at_once(make: Callable[[int], str]) -> None:
    assert read(make(MEGABYTE)).status is ParseStatus.TOO_LONG


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_time_is_linear_where_the_cap_is_raised(make: Callable[[int], str]) -> None:
    """Twice the text takes at most 2.5 times as long. A busy machine only ever adds time, so the best runs count."""
    config = ParsingConfig(max_chars=10 * MEGABYTE)
    half, whole = make(MEGABYTE // 2), make(MEGABYTE)
    best = [math.inf, math.inf]
    for attempt in range(30):
        for index, text in enumerate((half, whole)):
            start = time.process_time()
            parse(text, BOX_2, FRAME, config)
            best[index] = min(best[index], time.process_time() - start)
        if attempt >= 2 and best[1] <= 2.5 * max(best[0], 1e-3):
            break
    assert best[1] <= 2.5 * max(best[0], 1e-3)
    assert best[1] < 1.5


def test_a_million_points_are_refused_before_they_are_decoded() -> None:
    config = ParsingConfig(max_chars=10 * MEGABYTE)
    text = '<answer>[{"positive_points":[' + ",".join(["[1,1]"] * MEGABYTE) + "]}]</answer>"
    assert read(text, POINTS, config).status is ParseStatus.TOO_LONG


SEEDS = [
    (FULL, BOX_2),
    ("<think>None.</think>\n<answer>```json\n[]\n```</answer>", BOX_2),
    ('<think>x</think><answer>[{"bbox_2d":[1,2,3,4]},{"bbox_2d":[40,2,60,40.5]}]</answer>', BOX),
    ('<answer>[{"positive_points":[[1,2],[-3,4e1]]}]</answer>', POINTS),
    (FULL.replace("}]", ',"negative_points":[[1,1],[90,40]]}]'), BOTH),
]
SPICE = [*'[]{}",:\\ \n0-9.e', "<answer>", "</answer>", "<think>", "</think>", "```json", "```", "NaN", "1e999", "true"]
SPICE += ["null", "\ud800", "\u202e", "\uff11", "\u200b", "-0.0", '"bbox_2d":', "9" * 40, "[[[[[[[[[", "-Infinity", "'"]


def mutate(draw: random.Random, text: str) -> str:
    """One to four cuts, copies, insertions or truncations."""
    for _ in range(draw.randrange(1, 5)):
        i, kind = draw.randrange(len(text) + 1), draw.randrange(6)
        j = i + draw.randrange(12)
        if kind == 0:
            text = text[:i] + text[j:]
        elif kind == 1:
            text = text[:j] + text[i:]
        elif kind == 2 and draw.random() < 0.2:
            text = text[:i]
        else:
            text = text[:i] + draw.choice(SPICE) + text[i + kind % 2 :]
    return text


def test_a_hundred_thousand_mutations_in_ten_seconds() -> None:
    draw, seconds, seen = random.Random(20), 0.0, set()
    for _ in range(100):
        batch = [(mutate(draw, text), prompt) for text, prompt in draw.choices(SEEDS, k=1000)]
        start = time.process_time()
        answers = [parse(text, prompt, FRAME, STRICT) for text, prompt in batch]
        seconds += time.process_time() - start
        for answer in answers:
            check(answer)
        seen |= {answer.status for answer in answers}
    assert seconds < 10
    assert seen == set(ParseStatus) - {ParseStatus.REPAIRED}


@pytest.mark.parametrize("reader", ["think2seg", "visionreasoner"])
@pytest.mark.parametrize("number", ["9" * 401, "-" + "9" * 401, "9" * 5000, "1e999", "NaN", "Infinity"])
def test_no_number_makes_a_released_reading_fail(reader: str, number: str) -> None:
    text = f'<think>a</think><answer>```json\n[{{"bbox_2d":[{number},2,3,4]}}]\n```</answer>'
    for said in (text, text.replace("```json\n", "").replace("\n```", "")):
        for config in (ParsingConfig(reader=reader), ParsingConfig(reader=reader, repair=True)):
            assert parse(said, BOX, FRAME, config).prompts == ()


@pytest.mark.parametrize("reader", ["scheme", "think2seg", "visionreasoner"])
def test_mutations_with_repair(reader: str) -> None:
    draw = random.Random(21)
    statuses = set()
    config = replace(REPAIR, reader=reader)
    for text, prompt in draw.choices(SEEDS, k=3000):
        answer = parse(mutate(draw, text), prompt, FRAME, config)
        statuses.add(answer.status)
        if reader != "visionreasoner":  # which leaves boxes and points as they are said
            check(answer)
    assert statuses == set(ParseStatus)


PIECES = st.sampled_from([*SPICE, GOOD, FULL, '{"bbox_2d":[0,0,9,9]}', "[", "]", ",", "<answer>", "</answer>"])
ANY_TEXT = st.text(st.characters(exclude_categories=()))


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(st.lists(st.one_of(PIECES, ANY_TEXT), max_size=30), st.sampled_from([BOX, BOX_2, POINTS, BOTH]), st.booleans())
def test_any_text_gives_an_answer(parts: list[str], prompt: PromptConfig, wrapped: bool) -> None:
    text = "".join(parts)
    text = f"<think></think><answer>{text}</answer>" if wrapped else text
    for config in (STRICT, REPAIR):
        check(parse(text, prompt, FRAME, config))


NUMBERS = st.one_of(st.integers(-200, 200), st.floats(-1e5, 1e5, allow_nan=False)).map(repr)


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(NUMBERS, min_size=8, max_size=8), max_size=5))
def test_any_numbers_in_good_json_are_all_read_or_all_refused(rows: list[list[str]]) -> None:
    items = ",".join(
        f'{{"bbox_2d":[{",".join(r[:4])}],"positive_points":[[{r[4]},{r[5]}],[{r[6]},{r[7]}]]}}' for r in rows
    )
    answer = read(f"<answer>[{items}]</answer>", BOX_2, replace(STRICT, nms_iou=1.0))
    assert answer.status in (ParseStatus.OK, ParseStatus.BAD_NUMBER)
    assert len(answer.prompts) == (len(rows) if answer.ok else 0)
