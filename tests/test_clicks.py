"""Clicks: how they are simulated, said, read and demonstrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ClicksConfig, ParsingConfig, PromptConfig, SftConfig, SftPhase
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prompts.parse import parse
from grasp_rl.prompts.render import format_answer
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.training.clicks import ClickSimulator, clicks_of
from grasp_rl.training.demonstrations import thought_of
from grasp_rl.training.sft_rows import RowStream
from grasp_rl.types import BoolMask, ParseStatus, Sample, SpatialPrompt

CLICKS = PromptConfig(scheme="clicks", box=False, positive_points=0, clicks=3, template="compact")
FRAME = CoordinateFrame(width=100, height=100, image_width=100, image_height=100)


def block(x0: int, y0: int, x1: int, y1: int) -> BoolMask:
    mask = np.zeros((40, 60), dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def always(mask: BoolMask) -> Callable[[SpatialPrompt], BoolMask]:
    return lambda _: mask


def test_the_first_click_is_the_deepest_point() -> None:
    made = clicks_of(block(10, 10, 21, 21), always(block(0, 0, 0, 0)), 1)
    assert (made.point_coords, made.point_labels, made.box) == (((15.5, 15.5),), (1,), (10.0, 10.0, 21.0, 21.0))


def test_what_is_missed_gets_a_positive_click() -> None:
    """The segmenter finds the left half of a 22 x 11 object: the next click is at the centre of the right half."""
    made = clicks_of(block(10, 10, 32, 21), always(block(10, 10, 21, 21)), 2)
    assert (made.point_coords[1], made.point_labels) == ((26.5, 15.5), (1, 1))


def test_the_largest_error_is_clicked_and_a_tie_is_missed_area() -> None:
    truth, miss = block(10, 10, 20, 20), block(10, 10, 20, 14)
    for extra, label in ((9, 0), (4, 1), (3, 1)):  # a blob of 9 x 10, 4 x 10 and 3 x 10 pixels beside 4 x 10 missed
        made = clicks_of(truth, always((truth & ~miss) | block(40, 10, 40 + extra, 20)), 2)
        assert made.point_labels == (1, label), extra
        x, y = made.point_coords[1]
        assert (40 < x < 49) if not label else (10 < x < 20 and 10 < y < 14)


def test_clicks_end_where_nothing_is_left_to_say() -> None:
    truth = block(10, 10, 30, 20)
    assert len(clicks_of(truth, always(truth), 6).point_coords) == 1
    assert len(clicks_of(truth, always(block(10, 10, 29, 20)), 6, 0.95).point_coords) == 1  # an IoU of 0.95
    assert len(clicks_of(truth, always(block(10, 10, 29, 20)), 6, 0.96).point_coords) == 2  # the same click again
    other = block(40, 10, 50, 20)
    assert clicks_of(truth, always(truth | other), 2).point_labels == (1, 0)
    assert clicks_of(truth, always(truth | other), 2, free=truth | other).point_labels == (1,)
    short = block(10, 10, 24, 20)  # 60 pixels are missed, 100 of the other instance covered
    assert clicks_of(truth, always(short | other), 2).point_labels == (1, 0)
    assert clicks_of(truth, always(short | other), 2, free=truth | other).point_labels == (1, 1)


def test_every_click_is_seen_by_the_segmenter() -> None:
    truth, asked = block(10, 10, 50, 20), []

    def grows(prompt: SpatialPrompt) -> BoolMask:
        asked.append(prompt)
        return block(10, 10, 20 + 8 * len(prompt.point_coords), 20)

    made = clicks_of(truth, grows, 3)
    assert [len(prompt.point_coords) for prompt in asked] == [1, 2]
    assert asked[1].point_coords == made.point_coords[:2]
    assert all(prompt.box is None for prompt in asked)


class Counting(BoxFillSegmenter):
    encoded = 0

    def encode(self, image: np.ndarray) -> tuple[int, int]:
        self.encoded += 1
        return super().encode(image)


def test_a_sample_is_simulated_once_and_needs_a_mask(samples: list[Sample]) -> None:
    segmenter = Counting()
    simulator = ClickSimulator(segmenter, 4, 0.95)
    sample = next(sample for sample in samples if sample.weak_labels)
    first = simulator(sample)
    assert simulator(sample) is first
    assert segmenter.encoded == 1
    assert all(1 <= len(item.point_coords) <= 4 and item.point_labels[0] == 1 for item in first)
    assert [item.box for item in first] == sorted(item.box for item in first)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match=r"sft\.clicks\.source=simulated: .* has no mask .*source=weak_labels"):
        simulator(replace(sample, sample_id="boxes", target_mask=None))

    def fails(embedding: object, prompts: object) -> None:
        raise RuntimeError("no weights")

    segmenter.decode = fails  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"the segmenter failed .*no weights"):
        simulator(replace(sample, sample_id="another"))


def test_the_scheme_keeps_order_and_labels() -> None:
    item = SpatialPrompt(point_coords=((10.2, 20.9), (30.0, 40.0), (1.0, 2.0), (5.0, 5.0)), point_labels=(1, 0, 1, 1))
    text = format_answer([item], "", FRAME, CLICKS)
    assert '[{"clicks":[[10,20,1],[30,40,0],[1,2,1]]}]' in text
    (heard,) = parse(text, CLICKS, FRAME, ParsingConfig()).prompts
    assert heard.point_coords == ((10.5, 20.5), (30.5, 40.5), (1.5, 2.5))
    assert heard.point_labels == (1, 0, 1)
    with pytest.raises(ValueError, match="needs a foreground point first"):
        format_answer([SpatialPrompt(point_coords=((1, 1),), point_labels=(0,))], "", FRAME, CLICKS)


@pytest.mark.parametrize(
    "clicks",
    [
        "[]", "[[1,2]]", "[[1,2,1,1]]", "[[1,2,2]]", "[[1,2,0]]", "[[1,2,true]]", '[[1,2,"1"]]', "[1,2,1]", "[[1,2,0.5]]",
        "[[1,2,1],[1,2,1],[1,2,1],[1,2,1]]", "null",
    ],
)  # fmt: skip
def test_clicks_that_are_none(clicks: str) -> None:
    answer = parse(f'<answer>[{{"clicks":{clicks}}}]</answer>', CLICKS, FRAME, ParsingConfig())
    assert answer.status is ParseStatus.BAD_SCHEMA


def test_one_click_is_read_under_repair() -> None:
    answer = parse('[{"clicks":[[1,2,1]],"label":"roof"}]', CLICKS, FRAME, ParsingConfig(repair=True))
    assert (answer.status, answer.prompts[0].point_labels) == (ParseStatus.REPAIRED, (1,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clicks": 17}, r"prompt\.clicks=17: must be in 0\.\.16"),
        ({"positive_points": 1}, r"prompt\.clicks=3: must be 0 with other points"),
        ({"clicks_key": "bbox_2d"}, "four different"),
    ],
)
def test_schemes_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(CLICKS, **changes)  # type: ignore[arg-type]


def said_in_rows(policy: TinyPolicy, source: SyntheticSource, sft: SftConfig) -> list[str]:
    phase = SftPhase(steps=2, batch_size=4, attention_weight=0.1)
    rows = RowStream(
        policy, source.split("train"), {"clicks": (CLICKS, 1.0)}, phase, seed=0, phase_number=0, sft=sft,
        segmenter=BoxFillSegmenter(radius=0.15),
    )  # fmt: skip
    return [
        policy.tokenizer.decode(tokens[asked:], skip_special_tokens=True)
        for row in rows[0]
        for tokens, asked in zip(row.completions, row.unscored, strict=True)
    ]


def test_rows_demonstrate_clicks(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    frame = CoordinateFrame(width=112, height=112, image_width=112, image_height=112)
    found = {}
    for name in ("simulated", "weak_labels"):
        said = said_in_rows(random_policy, source, SftConfig(clicks=ClicksConfig(source=name)))
        found[name] = [parse(text, CLICKS, frame, ParsingConfig()) for text in said]
        assert all(answer.status is ParseStatus.OK for answer in found[name])
    labels = {name: [p.point_labels for a in answers for p in a.prompts] for name, answers in found.items()}
    assert set(labels["weak_labels"]) == {(1, 1, 1)}
    assert any(0 in labels for labels in labels["simulated"])  # a disc reaches beyond a small object


def test_thoughts(random_policy: TinyPolicy, source: SyntheticSource, samples: list[Sample]) -> None:
    sample, rng = replace(samples[0], query="Where are the boats?", reasoning="2 boats"), np.random.default_rng(0)
    assert thought_of(sample, "given", rng, 2) == "2 boats"
    assert thought_of(replace(sample, reasoning=None), "given", rng, 2) == ""
    assert thought_of(sample, "none", rng, 2) == ""
    drawn = {thought_of(sample, "template", rng, count) for count in (0, 1, 2) for _ in range(30)}
    assert len(drawn) == 12
    assert all("where are the boats" in text.lower() and "?" not in text for text in drawn)
    empty, spoken = (said_in_rows(random_policy, source, SftConfig(reasoning=how)) for how in ("none", "template"))
    assert all(text.startswith("<think></think>") for text in empty)
    assert not any(text.startswith("<think></think>") for text in spoken)
    with pytest.raises(ConfigError, match=r"sft\.reasoning='some': must be one of given, none, template"):
        SftConfig(reasoning="some")
