"""What is asked for is what is accepted: templates, canonical completions and the round trip through the parser."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts import released
from grasp_rl.prompts.parse import parse
from grasp_rl.prompts.render import build_messages, format_answer
from grasp_rl.types import Answer, ParseStatus, SpatialPrompt

OPTIONS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((Path(str(files("grasp_rl.conf"))) / "prompt").glob("*.yaml"))
}
LABELS = PromptConfig(scheme="point_labels", answer="labels", box=False, positive_points=0, fence=False)
"""Of a task beside the first, so no option of the group."""
SCHEMES = {name: PromptConfig(**{**option, "template": "think2seg"}) for name, option in OPTIONS.items()} | {
    "point_labels": LABELS
}
SPOKEN = {name: scheme for name, scheme in SCHEMES.items() if scheme.answer in ("instances", "boxes")}
"""Schemes whose answers name places."""
PIXELS = CoordinateFrame(width=840, height=616, image_width=1024, image_height=768)
THOUSAND = CoordinateFrame(width=1000, height=1000, image_width=256, image_height=1500)
FRAMES = {"pixels": PIXELS, "thousand": THOUSAND}
KEEP_ALL = ParsingConfig(nms_iou=1.0)


def text_of(message: dict[str, Any]) -> str:
    text: str = message["content"][-1]["text"]
    return text


def random_instances(draw: np.random.Generator, count: int, frame: CoordinateFrame) -> list[SpatialPrompt]:
    """Instances with every field, boxes at least two units of the frame wide and high."""
    size, scale = np.array([frame.image_width, frame.image_height]), np.array(frame.scale)
    items = []
    for _ in range(count):
        low = draw.uniform(0, size - 2 * scale)
        high = draw.uniform(low + 2 * scale, size)
        points = tuple((float(x), float(y)) for x, y in draw.uniform(0, size, (16, 2)))
        labels = (1, 0) * 8
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        items.append(SpatialPrompt(box=box, point_coords=points, point_labels=labels, category="roof"))
    return items


def said_of(answer: Answer, prompt: PromptConfig) -> list[SpatialPrompt]:
    """The instances as the answer named them, without points that were derived from boxes."""
    return [replace(p, point_coords=(), point_labels=()) if prompt.center_point else p for p in answer.prompts]


def test_packaged_schemes() -> None:
    counts = {name: (s.box, s.positive_points, s.negative_points) for name, s in SCHEMES.items()}
    assert counts == {
        "box": (True, 0, 0),
        "points": (False, 2, 0),
        "box_2points": (True, 2, 0),
        "box_4points": (True, 4, 0),
        "box_2pos_2neg": (True, 2, 2),
        "visionreasoner": (True, 1, 0),
        "seg_zero": (True, 2, 0),
        "keypoints": (True, 2, 0),
        "box_center": (True, 0, 0),
        "boxes_thousand": (True, 0, 0),
        "detection": (True, 0, 0),
        "point_labels": (False, 0, 0),
        "choice": (False, 0, 0),
        "clicks": (False, 0, 0),
    }
    assert all(option["scheme"] == name for name, option in OPTIONS.items())
    assert all(option["template"] == "${policy.prompt_template}" for option in OPTIONS.values())


def test_format_answer_by_hand() -> None:
    frame = CoordinateFrame(width=100, height=50, image_width=200, image_height=200)  # one unit is 2 x 4 pixels
    item = SpatialPrompt(
        box=(20.9, 41.9, 61.1, 82.1),  # 10.45, 10.475, 30.55, 20.525 units
        point_coords=((25.9, 45.9), (60.0, 80.0), (0.0, 199.9)),  # cells 12, 11 and 30, 20 and 0, 49
        point_labels=(1, 1, 0),
    )
    text = format_answer([item], "Two roofs.", frame, SCHEMES["box_2points"])
    assert text == (
        "<think>Two roofs.</think>\n<answer>```json\n"
        '[{"bbox_2d":[10,10,31,21],"positive_points":[[12,11],[30,20]]}]\n```</answer>'
    )
    prompt = PromptConfig(positive_points=1, negative_points=1, box_key="b", positive_key="p", negative_key="n")
    assert '[{"b":[10,10,31,21],"p":[[12,11]],"n":[[0,49]]}]' in format_answer([item], "", frame, prompt)
    assert format_answer([], "", frame, prompt) == "<think></think>\n<answer>```json\n[]\n```</answer>"


def test_the_schemas_of_released_checkpoints() -> None:
    """A flat point or two, one object or a list: read as they are written, and nothing else is."""
    item = SpatialPrompt(box=(10, 10, 30, 20), point_coords=((12, 11), (28, 18)), point_labels=(1, 1))
    frame = CoordinateFrame(width=100, height=100, image_width=100, image_height=100)
    seg_zero, reasoner = SCHEMES["seg_zero"], SCHEMES["visionreasoner"]
    one = format_answer([item], "", frame, seg_zero)
    assert '{"bbox":[10,10,30,20],"points_1":[12,11],"points_2":[28,18]}' in one
    assert '[{"bbox_2d":[10,10,30,20],"point_2d":[12,11]}]' in format_answer([item], "", frame, reasoner)
    assert "\nnull\n" in format_answer([], "", frame, seg_zero)
    bad = ParseStatus.BAD_SCHEMA
    for text, scheme in (
        ('[{"bbox":[1,1,3,2],"points_1":[1,1],"points_2":[2,1]}]', seg_zero),
        ('{"bbox":[1,1,3,2],"points_1":[[1,1]],"points_2":[2,1]}', seg_zero),
        ('{"bbox":[1,1,3,2],"points_1":[1,1]}', seg_zero),
        ('[{"bbox_2d":[1,1,3,2],"point_2d":[[1,1]]}]', reasoner),
        ("null", reasoner),
    ):
        assert parse(f"<answer>{text}</answer>", scheme, frame, ParsingConfig()).status is bad, text
    with pytest.raises(ValueError, match="says one instance, found 2"):
        format_answer([item, item], "", frame, seg_zero)
    with pytest.raises(ConfigError, match="different names for every field"):
        PromptConfig(flat_points=True, positive_points=2, positive_key="p", box_key="p_1")


def test_format_answer_clips_and_keeps_a_unit_of_box() -> None:
    frame = CoordinateFrame(width=100, height=100, image_width=100, image_height=100)
    item = SpatialPrompt(box=(-5, 99.9, 0.2, 130), point_coords=((100, -3), (99.9, 400)), point_labels=(1, 1))
    text = format_answer([item], "", frame, SCHEMES["box_2points"])
    assert '{"bbox_2d":[0,99,1,100],"positive_points":[[99,0],[99,99]]}' in text


def test_format_answer_refuses_what_it_cannot_say() -> None:
    bare = SpatialPrompt(point_coords=((1, 1),), point_labels=(1,))
    with pytest.raises(ValueError, match="needs a box"):
        format_answer([bare], "", PIXELS, SCHEMES["box"])
    with pytest.raises(ValueError, match="needs 2 positive_points, found 1"):
        format_answer([bare], "", PIXELS, SCHEMES["points"])
    with pytest.raises(ValueError, match="tag"):
        format_answer([], "so </think>", PIXELS, SCHEMES["box"])


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("prompt", SPOKEN.values(), ids=SPOKEN)
def test_round_trip_moves_nothing_by_more_than_half_a_unit(prompt: PromptConfig, frame: CoordinateFrame) -> None:
    draw, half = np.random.default_rng(0), np.array(frame.scale) / 2 + 1e-9
    for count in (0, 1) if prompt.single_object else (0, 1, 2, 5, 20):
        items = random_instances(draw, count, frame)
        answer = parse(format_answer(items, "A thought.", frame, prompt), prompt, frame, KEEP_ALL)
        assert answer.status is ParseStatus.OK
        fenced = prompt.fence and (count > 0 or not prompt.none)
        assert (answer.thinking, answer.think_layout, answer.fenced) == ("A thought.", True, fenced)
        assert len(answer.prompts) == count
        for said, heard in zip(items, said_of(answer, prompt), strict=True):
            assert heard.category == ("roof" if prompt.category_key else None)
            assert (heard.box is not None) == prompt.box
            if said.box is not None and heard.box is not None:
                assert np.all(np.abs(np.subtract(said.box, heard.box)) <= np.tile(half, 2))
            expected = said.positive_points[: prompt.positive_points] + said.negative_points[: prompt.negative_points]
            labels = (1,) * prompt.positive_points + (0,) * prompt.negative_points
            if prompt.clicks:
                expected, labels = said.point_coords[: prompt.clicks], said.point_labels[: prompt.clicks]
            assert len(heard.point_coords) == len(expected)
            assert heard.point_labels == labels
            moved = np.reshape(expected, (-1, 2)) - np.reshape(heard.point_coords, (-1, 2))
            assert np.all(np.abs(moved) <= half)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("prompt", SPOKEN.values(), ids=SPOKEN)
def test_said_again_is_the_same_text(prompt: PromptConfig, frame: CoordinateFrame) -> None:
    text = format_answer(
        random_instances(np.random.default_rng(1), 1 if prompt.single_object else 6, frame), "t", frame, prompt
    )
    answer = parse(text, prompt, frame, KEEP_ALL)
    assert format_answer(answer.prompts, "t", frame, prompt) == text


@pytest.mark.parametrize("prompt", SCHEMES.values(), ids=SCHEMES)
def test_think2seg_asks_for_the_scheme_and_shows_it(prompt: PromptConfig) -> None:
    system, user = build_messages('Where would "boats" {{ dock }}?', PIXELS, prompt)
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"][0] == {"type": "image"}
    text = text_of(user)
    assert 'Where would "boats" {{ dock }}?' in text
    places = prompt.answer in ("instances", "boxes")
    assert ("to 840 at the right" in text) == (prompt.answer != "choice")
    assert ("to 616 at the bottom" in text) == (prompt.answer != "choice")
    assert (prompt.box_key in text) == (prompt.answer == "instances" and prompt.box)
    for key, count in ((prompt.positive_key, prompt.positive_points), (prompt.negative_key, prompt.negative_points)):
        assert (key in text) == (count > 0)
        listed = count > 0 and not prompt.flat_points
        assert (f'"{key}": exactly {count} [x, y] point' in text) == listed
    assert prompt.answer == "boxes" or all(f'"{name}"' in text for name in prompt.fields)
    assert not prompt.none or f"write {prompt.none}" in text
    example = text[text.rindex("<think>") :]
    answer = parse(example, prompt, PIXELS, ParsingConfig(require_fence=prompt.fence))
    instances = (1 if prompt.single_object else 2) if places else 0
    assert (answer.status, len(answer.prompts), answer.think_layout) == (ParseStatus.OK, instances, True)
    assert answer.fenced == prompt.fence
    assert answer.choice == ("B" if prompt.answer == "choice" else None)
    assert answer.point_labels == ((1, 0, 1, 1) if prompt.answer == "labels" else ())


def test_flat_boxes_none_and_no_thought() -> None:
    """The forms that released systems speak: a flat list for one box, a word for nothing, an answer alone."""
    frame = CoordinateFrame(width=100, height=100, image_width=200, image_height=100)
    center, points, labels = SCHEMES["box_center"], SCHEMES["keypoints"], SCHEMES["point_labels"]

    def read(text: str, scheme: PromptConfig) -> Answer:
        return parse(f"<answer>{text}</answer>", scheme, frame, ParsingConfig())

    one, two = read("[10,20,30,40]", center), read("[[10,20,30,40],[50,50,60,60]]", center)
    assert one.prompts == (SpatialPrompt(box=(20, 20, 60, 40), point_coords=((40, 30),), point_labels=(1,)),)
    assert len(two.prompts) == 2
    assert read("[]", center).status is ParseStatus.OK
    assert read("[10,20,30]", center).status is ParseStatus.BAD_SCHEMA
    assert read("[[10,20,30,40],7]", center).status is ParseStatus.BAD_SCHEMA
    assert read("[10,20,30,40]", replace(center, flat_single=False)).status is ParseStatus.BAD_SCHEMA
    assert read("None", points).status is ParseStatus.OK
    assert read("none", points).status is ParseStatus.BAD_JSON
    assert read("None", SCHEMES["box"]).status is ParseStatus.BAD_JSON
    assert format_answer([], "t", frame, points) == "<think>t</think>\n<answer>None</answer>"
    assert read("[0,1,1]", labels).point_labels == (0, 1, 1)
    for text in ("[0,2]", "[true]", "[0.5]", "0", '["1"]'):
        assert read(text, labels).status is ParseStatus.BAD_SCHEMA, text
    assert read("(B).", SCHEMES["choice"]).choice == "B"
    assert read("BC", SCHEMES["choice"]).status is ParseStatus.BAD_SCHEMA
    alone = replace(SCHEMES["box"], thinking=False)
    text = format_answer([SpatialPrompt(box=(0, 0, 20, 20))], "unsaid", frame, alone)
    assert text == '<answer>```json\n[{"bbox_2d":[0,0,10,20]}]\n```</answer>'
    assert parse(text, alone, frame, ParsingConfig()).think_layout
    assert not parse(f"<think>so</think>{text}", alone, frame, ParsingConfig()).think_layout
    (_, user) = build_messages("q", frame, alone)
    assert "<think>" not in text_of(user)


@pytest.mark.parametrize("reader", sorted(set(released.SCHEMES) - {"choice", "socio_turn1", "r1_sgg"}))
def test_released_readers_read_an_answer_that_was_asked_for_alone(reader: str) -> None:
    """As they read it behind a thought; a thought that nobody asked for breaks the layout."""
    thinking = PromptConfig(**OPTIONS[released.SCHEMES[reader]])
    frame, config = (
        CoordinateFrame(width=100, height=100, image_width=100, image_height=100),
        ParsingConfig(reader=reader),
    )
    inside = ((30.0, 40.0), (32.0, 44.0), (34.0, 48.0), (36.0, 50.0))
    label = SpatialPrompt(box=(20.0, 30.0, 60.0, 80.0), point_coords=inside, point_labels=(1, 1, 1, 1), category="ship")
    alone = replace(thinking, thinking=False)
    behind = parse(format_answer([label], "I look.", frame, thinking), thinking, frame, config)
    without = parse(format_answer([label], "", frame, alone), alone, frame, config)
    assert without.ok
    assert (without.prompts, without.form, without.think_layout) == (behind.prompts, behind.form, behind.think_layout)
    unasked = parse(format_answer([label], "I look.", frame, thinking), alone, frame, config)
    own_form = released.reads(reader, alone)  # else the scheme's own rules, whose form is the answer's alone
    assert (unasked.form, unasked.think_layout) == (0.0 if own_form else 1.0, False)


def test_several_images_have_a_place_each() -> None:
    (_, user) = build_messages("Which?", PIXELS, SCHEMES["choice"], images=4)
    assert user["content"][:4] == [{"type": "image"}] * 4
    assert "called A, B, C." in text_of(user)


def test_compact_is_one_short_turn() -> None:
    fields = {}
    for name, option in OPTIONS.items():
        (message,) = build_messages("the red roof", PIXELS, PromptConfig(**{**option, "template": "compact"}))
        assert message["role"] == "user"
        assert message["content"][0] == {"type": "image"}
        query, _, fields[name] = text_of(message).partition("\n")
        assert query == "the red roof"
    assert fields == {
        "box": "bbox_2d",
        "points": "positive_points:2",
        "box_2points": "bbox_2d positive_points:2",
        "box_4points": "bbox_2d positive_points:4",
        "box_2pos_2neg": "bbox_2d positive_points:2 negative_points:2",
        "visionreasoner": "bbox_2d point_2d:1",
        "seg_zero": "bbox points:2",
        "keypoints": "bbox_2d keypoint:2",
        "box_center": "bbox_2d",
        "boxes_thousand": "bbox_2d",
        "detection": "bbox_2d label",
        "choice": "",
        "clicks": "clicks:6",
    }


def test_a_users_template_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{{ query }} in {{ width }}x{{ height }}\n{% if box %}{{ box_key }}{% endif %}\n")
    (message,) = build_messages("roof", PIXELS, PromptConfig(template=str(path)))
    assert text_of(message) == "roof in 840x616\nbbox_2d"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ nonsense }}", "cannot be rendered"),
        ("{{ query.__class__.__mro__ }}", "cannot be rendered"),
        ("{% if box %}", "not a valid template"),
        ("{% block system %}x{% endblock %}", "must have `user`"),
        (b"\xff\xfe\x00", "must be one of compact, think2seg or the path"),
    ],
)
def test_bad_templates_are_config_errors(tmp_path: Path, source: str | bytes, reason: str) -> None:
    path = tmp_path / "bad.jinja"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(ConfigError, match=r"prompt\.template=.*" + reason):
        build_messages("roof", PIXELS, PromptConfig(template=str(path)))


def test_a_missing_template_names_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match=r"prompt\.template='think3seg': must be one of compact, think2seg"):
        build_messages("roof", PIXELS, PromptConfig(template="think3seg"))
