"""Published protocols: values worked out by hand; a second implementation of each is in test_protocols_twice.py."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import instantiate
from grasp_rl.evaluation.canvas import place, rectangle
from grasp_rl.evaluation.metrics import SampleScore, matched_box_iou, score_of
from grasp_rl.evaluation.predictions import encode_mask
from grasp_rl.evaluation.protocols.boxes import BoxProtocol, DetectionProtocol
from grasp_rl.evaluation.protocols.published import PublishedProtocol
from grasp_rl.evaluation.protocols.several import SeveralProtocols
from grasp_rl.geometry import clipped
from grasp_rl.launch.compose import option
from grasp_rl.types import BoolMask, SpatialPrompt

SIDE = 10
Area = tuple[int, int, int, int]


def drawn(areas: Iterable[Area]) -> BoolMask:
    """[10, 10] True within the boxes x0, y0, x1, y1."""
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    for x0, y0, x1, y1 in areas:
        mask[y0:y1, x0:x1] = True
    return mask


def row(
    number: int, true: list[Area], predicted: list[Area], *, status: str = "ok", boxes: list[Area] | None = None,
    named: bool = True, **more: Any,
) -> SampleScore:  # fmt: skip
    """A score and its record: the instances of both sides as boxes, the answer's own boxes the same unless given."""
    p, t = drawn(predicted), drawn(true)
    said = predicted if boxes is None else boxes
    prompts = [SpatialPrompt(box=tuple(map(float, box))) for box in said]  # type: ignore[arg-type]
    truth = [SpatialPrompt(box=tuple(map(float, box))) for box in true]  # type: ignore[arg-type]
    record = {
        "sample_id": f"s{number}", "status": status, "empty": status == "ok" and not said, "text": "",
        "prompts": [{"box": list(prompt.box or ())} for prompt in prompts], "size": [SIDE, SIDE],
        "predicted": encode_mask(p), "target": encode_mask(t), "target_boxes": [list(map(float, box)) for box in true],
        "has_target": bool(true), "instances": len(true), "intersection": int((p & t).sum()),
        "union": int((p | t).sum()), "box_iou": matched_box_iou(prompts, truth), "reward": None, "terms": {},
        "tokens": 5, "truncated": False,
    }  # fmt: skip
    if len(predicted) > 1:
        record["masks"] = [encode_mask(drawn([area])) for area in predicted]
    if named:
        record["target_masks"] = [encode_mask(drawn([area])) for area in true]
    return score_of(record | more)


HAND = [
    row(0, [(0, 0, 5, 5)], [(0, 0, 5, 5)]),  # 25 of 25
    row(1, [(0, 0, 10, 5)], [(0, 0, 5, 5)]),  # 25 of 50
    row(2, [(0, 0, 10, 2)], [(0, 5, 10, 6)]),  # 0 of 30
    row(3, [], []),  # nothing there, nothing said
    row(4, [], [], status="bad_json"),  # nothing there, not read
    row(5, [], [(0, 0, 10, 1)]),  # nothing there, 10 pixels
    row(6, [(0, 0, 10, 2)], [], status="no_answer"),  # 20 pixels, not read
    row(7, [(0, 0, 10, 2)], []),  # 20 pixels, nothing said
]
TABLE: dict[str, tuple[float, float, float | None]] = {
    "ours": (2.5 / 8, 50 / 155, 1 / 5),
    "think2seg": (2.5 / 8, 50 / 145, 1 / 5),
    "think2seg_ref": (2.5 / 8, 50 / 145, 2 / 4),
    "segearth_r1": (3.5 / 8, 50 / 155, 3 / 8),
    "segearth_r2": (3.5 / 8, 50 / 155, None),
    "geo_r1_gres": (1.5 / 8, 50 / 155, None),
    "unigeoseg": (3.5 / 8, 50 / 155, 3 / 8),
    "vision_reasoner": (1.5 / 7, 50 / 155, None),
    "seg_zero": (1.5 / 8, 50 / 155, None),
    "resap": (1.5 / 8, 50 / 115, None),
    "lisa": (3.5 / 8, 50 / 155, None),
}
"""gIoU, cIoU and Pr@0.5 of the eight pairs, where the evaluator has them."""


settings_of = functools.cache(lambda name: option(f"evaluation/protocol/{name}"))


def protocol(name: str, **changes: Any) -> Any:
    """The protocol of a YAML; a canvas has the pairs' own size unless it is said."""
    settings = dict(settings_of(name))
    if settings.get("canvas", "original") != "original":
        settings["side"] = SIDE
    return instantiate(settings | changes, (), "evaluation.protocol")


@pytest.mark.parametrize("name", TABLE)
def test_eight_pairs_by_hand(name: str) -> None:
    giou, ciou, precision = TABLE[name]
    found = protocol(name).summarise(HAND, bootstrap_samples=10)
    assert found["giou"] == pytest.approx(giou, abs=1e-6)
    assert found["ciou"] == pytest.approx(ciou, abs=1e-9)
    assert found.get("pr@0.5") == (None if precision is None else pytest.approx(precision))
    assert found["giou_low"] <= found["giou"] <= found["giou_high"]


def test_masks_in_order() -> None:
    """Two true instances and one prediction: the last one again (SegEarth-R2), or nothing (LISA)."""
    few = row(0, [(0, 0, 10, 1), (0, 4, 10, 6)], [(0, 0, 10, 1)])
    found = protocol("segearth_r2").summarise([few], bootstrap_samples=5)
    assert (found["giou"], found["ciou"]) == (0.5, 10 / 40)
    found = protocol("lisa").summarise([few], bootstrap_samples=5)
    assert (found["giou"], found["ciou"]) == (pytest.approx(0.5, abs=1e-6), 10 / 30)
    many = row(1, [(0, 0, 10, 1)], [(0, 0, 10, 1), (0, 4, 10, 6)])
    assert protocol("segearth_r2").summarise([many], bootstrap_samples=5)["giou"] == 1
    swapped = row(2, [(0, 0, 10, 1), (0, 4, 10, 6)], [(0, 4, 10, 6), (0, 0, 10, 1)])
    assert protocol("segearth_r2").summarise([swapped], bootstrap_samples=5)["giou"] == 0
    assert protocol("segearth_r2", matching="hungarian").summarise([swapped], bootstrap_samples=5)["giou"] == 1
    assert protocol("segearth_r2", matching="hungarian").summarise([many], bootstrap_samples=5)["giou"] == 0.5
    unnamed = row(4, [(0, 0, 10, 1), (0, 4, 10, 6)], [(0, 4, 10, 6), (0, 0, 10, 1)], named=False)
    assert protocol("lisa").summarise([unnamed], bootstrap_samples=5)["giou"] == pytest.approx(1, abs=1e-6)
    both = [few, row(3, [(0, 0, 5, 5)], [(0, 0, 5, 5)])]
    assert protocol("segearth_r2").summarise(both, bootstrap_samples=5)["giou"] == pytest.approx(2 / 3)  # over masks
    assert protocol("segearth_r2", mean_over="samples").summarise(both, bootstrap_samples=5)["giou"] == 0.75


def test_masks_are_cut_to_their_boxes() -> None:
    wide = row(0, [(0, 0, 5, 10)], [(0, 0, 10, 10)], boxes=[(0, 0, 5, 10)])
    assert protocol("geo_r1_gres").summarise([wide], bootstrap_samples=5)["giou"] == 1
    assert protocol("seg_zero").summarise([wide], bootstrap_samples=5)["giou"] == 0.5


def test_canvases() -> None:
    """A mask of 4 x 8 whose right half is True, on 8 x 8 canvases."""
    mask = np.zeros((4, 8), dtype=np.bool_)
    mask[:, 4:] = True
    assert place(mask, "original", 0) is mask
    squash, corner, centre = (place(mask, canvas, 8) for canvas in ("squash", "corner", "centre"))  # type: ignore[arg-type]
    assert squash.shape == corner.shape == centre.shape == (8, 8)
    assert squash[:, 4:].all()
    assert not squash[:, :4].any()
    assert corner[:4, 4:].all()
    assert corner.sum() == 16
    assert centre[2:6, 4:].all()
    assert centre.sum() == 16
    speck = np.zeros((4, 4), dtype=np.bool_)
    speck[1, 1] = True
    assert place(speck, "squash", 8, bilinear=True).sum() > place(speck, "squash", 8).sum() == 4
    assert rectangle(np.eye(4, dtype=np.bool_)).all()
    assert not rectangle(np.zeros((2, 2), dtype=np.bool_)).any()
    assert clipped(np.ones((4, 4), dtype=np.bool_), (0.5, 1.0, 2.9, 2.0)).sum() == 2  # edges are cut, not rounded
    assert not clipped(np.ones((4, 4), dtype=np.bool_), (-5.0, -5.0, -1.0, -1.0)).any()


def test_ignored_pixels_count_on_no_side() -> None:
    ignored = encode_mask(drawn([(5, 0, 10, 10)]))
    score = row(0, [(0, 0, 5, 5)], [(0, 0, 10, 5)], ignored=ignored)
    assert protocol("seg_zero").summarise([score], bootstrap_samples=5)["giou"] == 1


REC = [
    ('<answer>{"a": [1, 1, 2, 2], "b": [0, 0, 5, 5]}</answer>', 1.0),
    ('<answer>```json\n[{"b": [0, 0, 5, 5]}, {"b": [0,0,10,5]}]\n```</answer>', 0.5),
    ('<answer>{"b": [0, 0, 5, 5.0]}</answer>', 0.0),
    ('<answer>{"b": [ 0, 0, 5, 5]}</answer>', 0.0),
    ("<answer>[0, 0, 5, 5]</answer>", 0.0),
    ('{"b": [0, 0, 5, 5]}', 0.0),
    ('<answer>{"b": [0, 0, 10, 5]}</answer>', 0.5),
    ("", 0.0),
]


@pytest.mark.parametrize(("text", "iou"), REC)
def test_the_last_box_of_whole_numbers(text: str, iou: float) -> None:
    score = row(0, [(0, 0, 5, 5)], [], text=text)
    assert protocol("geo_r1_rec").iou(score) == iou
    assert protocol("geo_r1_rec").summarise([score])["acc@0.5"] == float(iou > 0.5)  # not equal


def test_the_text_is_in_its_own_frame() -> None:
    score = row(0, [(0, 0, 5, 5)], [], text='<answer>{"b": [0, 0, 500, 500]}</answer>', frame=[1000, 1000])
    assert protocol("geo_r1_rec").iou(score) == 1
    assert protocol("geo_r1_rec").iou(row(0, [(0, 0, 5, 5)], [(0, 0, 5, 5)])) == 1  # boxes without a text
    assert protocol("geo_r1_rec").iou(row(0, [], [])) is None


def test_corners_read_as_sides() -> None:
    """Boxes of 2 x 2 at (6, 6) and (7, 7): IoU 1/7 as corners; as sides 8 and 9 wide, at 6 and 7."""
    score = row(0, [(6, 6, 8, 8)], [(7, 7, 9, 9)], text="[[7, 7, 9, 9]]")
    assert matched_box_iou([SpatialPrompt(box=(7, 7, 9, 9))], [SpatialPrompt(box=(6, 6, 8, 8))]) == pytest.approx(1 / 7)
    inter, first, second = (14 - 7) ** 2, 8**2, 9**2
    assert protocol("rsthinker_box").iou(score) == pytest.approx(inter / (first + second - inter))
    assert "higher than the boxes deserve" in protocol("rsthinker_box").warning
    assert protocol("geo_r1_rec").warning is None


def test_masks_made_otherwise_than_published_are_said() -> None:
    from grasp_rl.evaluation.evaluate import warnings_of
    from grasp_rl.segmenters.box_fill import BoxFillSegmenter

    class Sam(BoxFillSegmenter):
        def __init__(self, multimask: bool) -> None:
            super().__init__()
            self.multimask = multimask

    every = instantiate(option("evaluation/protocol/all"), (), "evaluation.protocol")
    _, single = warnings_of(every, Sam(False))
    assert single == (
        "vision_reasoner, seg_zero, resap: of the best of three masks of a prompt as published, scored here with "
        "segmenter.multimask=false; evaluate, or rescore the run, with segmenter.multimask=true for such numbers"
    )
    assert warnings_of(every, Sam(True))[1].startswith("think2seg, think2seg_ref, geo_r1_gres: of one mask of a prompt")
    assert len(warnings_of(every, BoxFillSegmenter())) == len(warnings_of(every, None)) == 1
    assert warnings_of(protocol("resap"), Sam(True)) == warnings_of(protocol("ours"), Sam(False)) == []


def test_detection_ranks_nothing() -> None:
    """Two images, one class: a hit and a false alarm on the first, a miss on the second; COCO's 101-point precision."""
    rows = [
        row(0, [(0, 0, 5, 5)], [(0, 0, 5, 5), (5, 5, 9, 9)], attributes={"category": "ship"}),
        row(1, [(0, 0, 5, 5)], [], attributes={"category": "ship"}),
        row(2, [], [(0, 0, 5, 5)], attributes={"category": "ship"}),  # an absent class is not asked for
    ]
    found = DetectionProtocol(name="ovd").summarise(rows)
    assert found["scored"] == 2
    assert found["ap50"] == pytest.approx(51 / 101, abs=1e-6)  # recall 0.5 at precision 1, its first 51 points
    silent = DetectionProtocol(name="ovd").numbers([row(0, [(0, 0, 5, 5)], [])])
    assert silent == {"scored": 1, "ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    assert DetectionProtocol(name="ovd").numbers([row(0, [], [])]) == {"scored": 0}


def test_all_stand_side_by_side() -> None:
    every = instantiate(option("evaluation/protocol/all"), (), "evaluation.protocol")
    assert isinstance(every, SeveralProtocols)
    assert (every.name, every.headline) == ("ours", "giou")
    found = every.summarise(HAND, bootstrap_samples=10)
    assert found["giou"] == pytest.approx(TABLE["ours"][0])
    assert found["seg_zero/giou"] == pytest.approx(TABLE["seg_zero"][0])
    names = {name.removesuffix("/scored") for name in found if name.endswith("/scored")}
    assert "think2seg/reward" not in found
    alone = protocol("think2seg").summarise(HAND, bootstrap_samples=10)  # a run may have it alone
    assert (alone["samples"], alone["parsed"]) == (8, 6 / 8)
    assert {"think2seg", "think2seg_ref", "segearth_r1", "geo_r1_rec", "rsthinker_box", "geo_r1_ovd"} <= names
    assert every.iou(HAND[1]) == 0.5


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"canvas": "round"}, "canvas='round'"),
        ({"canvas": "squash"}, "side=0"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"matching": "best"}, "matching='best'"),
    ],
)
def test_a_wrong_rule_is_named(words: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PublishedProtocol(name="x", **words)
    with pytest.raises(ConfigError, match="reading"):
        BoxProtocol(name="x", reading="middle")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leader"):
        SeveralProtocols({"a": DetectionProtocol(name="a")}, leader="b")


def test_a_score_without_its_record_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="score_of"):
        protocol("seg_zero").iou(replace(HAND[0], record=None))
