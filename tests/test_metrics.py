"""The numbers of a table against values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from grasp_rl.evaluation import significance
from grasp_rl.evaluation.metrics import SampleScore, matched_box_iou, of_answers, score_of
from grasp_rl.evaluation.protocols.masks import OURS, MaskProtocol
from grasp_rl.evaluation.significance import paired_difference
from grasp_rl.types import SpatialPrompt


def score(number: int = 0, **changes: Any) -> SampleScore:
    values: dict[str, Any] = {
        "sample_id": f"s{number}",
        "status": "ok",
        "empty": False,
        "has_target": True,
        "instances": 1,
        "intersection": 5,
        "union": 10,
        "box_iou": 0.5,
        "reward": 2.0,
        "terms": {"points": 0.25},
        "tokens": 20,
        "truncated": False,
    }
    return SampleScore(**values | changes)


def no_target(number: int, *, empty: bool, status: str = "ok", predicted: int = 0) -> SampleScore:
    return score(
        number, has_target=False, instances=0, empty=empty, status=status, intersection=0, union=predicted, box_iou=None
    )


TABLE = [
    score(0, intersection=50, union=100),  # 0.5, which is not above 0.5
    score(1, intersection=30, union=40, instances=3, box_iou=0.8, reward=4.0),  # 0.75
    score(2, intersection=0, union=60, status="bad_json", box_iou=0.0, reward=0.0, truncated=True, tokens=80),  # unread
    no_target(3, empty=True),
    no_target(4, empty=False, predicted=100),
    no_target(5, empty=False, status="no_answer"),
]


def test_answers_without_a_reward_are_counted() -> None:
    numbers = of_answers([score(0, reward=2.0), score(1, reward=4.0), score(2, reward=None)])
    assert (numbers["reward"], numbers["reward_missing"]) == (3.0, pytest.approx(1 / 3))
    assert "reward_missing" not in of_answers([score(0), score(1)])
    assert not {"reward", "reward_missing"} & of_answers([score(0, reward=None)]).keys()  # nothing is rewarded


def test_table_by_hand() -> None:
    numbers = OURS.summarise(TABLE, bootstrap_samples=100)
    expected = {
        "samples": 6,
        "giou": (0.5 + 0.75 + 0 + 1 + 0 + 0) / 6,
        "ciou": (50 + 30) / (100 + 40 + 60 + 100),
        "ciou_target": (50 + 30) / (100 + 40 + 60),
        "pr@0.5": 1 / 3,
        "pr@0.7": 1 / 3,
        "pr@0.8": 0,
        "no_target_accuracy": 1 / 3,
        "box_iou": (0.5 + 0.8 + 0) / 3,
        "reward": (2 + 4 + 0 + 2 + 2 + 2) / 6,
        "reward_iou_correlation": 1.5 / np.sqrt(8 * (1 / 144 + 1 / 9 + 25 / 144)),  # 2, 4, 0 against 1/2, 3/4, 0
        "term/points": 0.25,
        "parsed": 4 / 6,
        "parse/ok": 4 / 6,
        "parse/bad_json": 1 / 6,
        "parse/no_answer": 1 / 6,
        "parse/too_long": 0,
        "giou/single": 0.25,
        "giou/multi": 0.75,
        "share/single": 2 / 6,
        "share/multi": 1 / 6,
        "share/no_target": 3 / 6,
        "length": 30,
        "truncated": 1 / 6,
    }
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value), name
    assert 0 <= numbers["giou_low"] < numbers["giou"] < numbers["giou_high"] <= 1
    assert numbers["ciou_low"] < numbers["ciou"] < numbers["ciou_high"]


def test_empty_iou_switch() -> None:
    assert MaskProtocol(empty_iou="zero").summarise(TABLE, bootstrap_samples=10)["giou"] == pytest.approx(1.25 / 6)
    assert OURS.iou(TABLE[3]) == 1
    assert MaskProtocol(empty_iou="zero").iou(TABLE[3]) == 0
    assert OURS.iou(TABLE[4]) == 0
    assert OURS.iou(TABLE[5]) == 0


def test_pr_is_strict_at_every_threshold() -> None:
    for tenth, name in ((6, "pr@0.6"), (7, "pr@0.7"), (8, "pr@0.8"), (9, "pr@0.9")):
        assert OURS.summarise([score(intersection=tenth, union=10)], bootstrap_samples=1)[name] == 0
        assert OURS.summarise([score(intersection=tenth * 10 + 1, union=100)], bootstrap_samples=1)[name] == 1


def test_numbers_without_a_denominator_are_left_out() -> None:
    only_silence = OURS.summarise([no_target(0, empty=True)], bootstrap_samples=10)
    assert only_silence["giou"] == only_silence["no_target_accuracy"] == 1
    assert not only_silence.keys() & {"ciou", "ciou_low", "ciou_target", "pr@0.5", "box_iou", "giou/single"}
    unmasked = OURS.summarise([score(intersection=None, union=None, reward=None)], bootstrap_samples=10)
    assert not unmasked.keys() & {"giou", "giou_low", "ciou", "pr@0.5", "reward", "no_target_accuracy"}
    assert unmasked["box_iou"] == 0.5
    assert OURS.summarise([], bootstrap_samples=10) == {"samples": 0}


def test_a_sample_of_unknown_instances_is_in_no_group() -> None:
    numbers = OURS.summarise([score(instances=None)], bootstrap_samples=10)
    assert numbers["giou"] == 0.5
    assert "giou/single" not in numbers
    assert numbers["share/single"] == numbers["share/multi"] == numbers["share/no_target"] == 0


def test_intervals_are_seeded_and_shrink_with_samples() -> None:
    rng = np.random.default_rng(0)
    many = [score(i, intersection=int(v), union=100) for i, v in enumerate(rng.integers(0, 101, 400))]
    first, again = OURS.summarise(many), OURS.summarise(many)
    assert first == again
    assert first != OURS.summarise(many, seed=1)
    few = OURS.summarise(many[:40])
    assert first["giou_high"] - first["giou_low"] < 0.5 * (few["giou_high"] - few["giou_low"])
    # The normal approximation of the same interval: 1.96 standard errors of the mean on each side.
    values = np.array([s.intersection for s in many], float) / 100
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert first["giou_low"] == pytest.approx(values.mean() - half, abs=0.004)
    assert first["giou_high"] == pytest.approx(values.mean() + half, abs=0.004)


def test_chunks_of_resampling_do_not_run_out_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "CHUNK", 1)
    numbers = OURS.summarise(TABLE, bootstrap_samples=7)
    assert numbers["giou_low"] <= numbers["giou_high"]


def test_paired_difference() -> None:
    before = {"a": 0.2, "b": 0.4, "c": 0.9, "gone": 0.0}
    after = {"a": 0.5, "b": 0.7, "c": 1.2, "new": 1.0}
    found = paired_difference(before, after)
    assert found.mean == pytest.approx(0.3)
    assert found.samples == 3
    assert found.low == pytest.approx(0.3)
    assert found.high == pytest.approx(0.3)
    mixed = paired_difference({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": -1.0})
    assert mixed.mean == 0
    assert mixed.low == -1
    assert mixed.high == 1
    with pytest.raises(ValueError, match="no sample in common"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def box(x0: float, y0: float, x1: float, y1: float) -> SpatialPrompt:
    return SpatialPrompt(box=(x0, y0, x1, y1))


def test_matched_box_iou() -> None:
    weak_labels = [box(0, 0, 10, 10), box(20, 0, 30, 10)]
    swapped = [box(20, 0, 30, 10), box(0, 0, 10, 5)]
    assert matched_box_iou(swapped, weak_labels) == pytest.approx((1 + 0.5) / 2)
    assert matched_box_iou([*swapped, box(50, 50, 60, 60)], weak_labels) == pytest.approx(1.5 / 3)  # superfluous
    assert matched_box_iou(swapped[:1], weak_labels) == pytest.approx(0.5)  # missing
    assert matched_box_iou([], weak_labels) == 0
    assert matched_box_iou(swapped, []) is None
    assert matched_box_iou([SpatialPrompt(point_coords=((1, 1),), point_labels=(1,))], weak_labels) == 0


def test_scores_come_back_from_records() -> None:
    record = {name: getattr(TABLE[1], name) for name in SampleScore.__dataclass_fields__} | {"text": "more"}
    assert score_of(record) == TABLE[1]
