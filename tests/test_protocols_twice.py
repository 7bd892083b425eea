"""Every published protocol a second time, in plain loops over drawn answers; what it says is not taken from our modules.

Sources are those named in the headers of conf/evaluation/protocol and in docs/coverage.md.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from grasp_rl.config.targets import instantiate
from grasp_rl.evaluation.metrics import SampleScore, score_of
from grasp_rl.launch.compose import option

HEIGHT, WIDTH, SIDE = 10, 14, 28
"""Of every image, and of the canvas that stands for a protocol's own."""
PAIRS = 60
KINDS = (
    "both", "close", "one", "few", "half", "none", "missed", "false", "unread", "unread none", "vain", "both",
)  # fmt: skip
Area = tuple[int, int, int, int]
Mask = np.ndarray


@dataclass(frozen=True)
class Case:
    """One question with its answer: boxes whose pixels are the masks of the instances."""

    true: Sequence[Area]
    said: Sequence[Area]
    read: bool
    """Whether the answer could be read."""
    vain: bool
    """Whether the segmenter found nothing in any box."""
    text: str
    category: str


def drawn_cases(seed: str) -> list[Case]:
    """Answers of every kind: right and wrong, to nothing, of nothing, not read, and with boxes that hold nothing."""
    draw = random.Random(seed)

    def area() -> Area:
        x, y = draw.randrange(WIDTH - 3), draw.randrange(HEIGHT - 3)
        return x, y, draw.randrange(x + 2, WIDTH + 1), draw.randrange(y + 2, HEIGHT + 1)

    def near(a: Area) -> Area:
        return a[0], a[1], min(WIDTH, a[2] + draw.randrange(2)), max(a[1] + 2, a[3] - draw.randrange(2))

    cases = []
    for number in range(PAIRS):
        kind = KINDS[number % len(KINDS)]
        true = [area() for _ in range(draw.choice([1, 2, 3]))]
        true = [] if kind in ("none", "false", "unread none") else true[:1] if kind == "one" else true
        said = [near(a) for a in true] if kind in ("close", "one") else [area() for _ in range(draw.choice([1, 2, 3]))]
        if kind == "few":
            true = [area() for _ in range(3)]
            said = [near(a) for a in true[:2]]
        if kind == "half":
            x, y = draw.randrange(WIDTH - 4), draw.randrange(HEIGHT - 3)
            true, said = [(x, y, x + 4, y + 3)], [(x, y, x + 2, y + 3)]
        said = said if kind in ("both", "close", "one", "few", "half", "false", "vain") else []
        read = not kind.startswith("unread")
        cases.append(Case(true, said, read, kind == "vain", text_of(draw, said), draw.choice(["ship", "road"])))
    return cases


def text_of(draw: random.Random, said: Sequence[Area]) -> str:
    """An answer with the boxes of ``said``, in one of the ways in which models write and miswrite them."""
    boxes = [list(a) for a in said] or [[1, 2, 3, 4]]
    way = draw.randrange(6)
    objects = ", ".join(f'{{"bbox_2d": {box}, "label": "ship"}}' for box in boxes)
    if way == 0:
        return f"<answer>{boxes[0]}</answer>"  # no object around it
    if way == 1:
        return f'<answer>{{"bbox": [{boxes[0][0]}.0, {boxes[0][1]}, {boxes[0][2]}, {boxes[0][3]}]}}</answer>'
    if way == 2:
        return f"[{objects}]"  # no tags
    return f"<think>Two ships, 0.5 apart.</think><answer>```json\n[{objects}]\n```</answer>"


def scored(cases: Sequence[Case]) -> list[SampleScore]:
    """The cases as lines of predictions.jsonl."""
    return [score_of(record_of(f"s{number}", case)) for number, case in enumerate(cases)]


def record_of(name: str, case: Case) -> dict[str, Any]:
    predicted, true = together(masks_of(case)), together([filled(a) for a in case.true])
    record = {
        "sample_id": name, "status": "ok" if case.read else "bad_json", "empty": case.read and not case.said,
        "text": case.text, "prompts": [{"box": told(a)} for a in case.said], "size": [HEIGHT, WIDTH],
        "predicted": rle(predicted), "target": rle(true), "target_boxes": [list(map(float, a)) for a in case.true],
        "target_masks": [rle(filled(a)) for a in case.true], "has_target": bool(case.true), "instances": len(case.true),
        "intersection": int((predicted & true).sum()), "union": int((predicted | true).sum()), "box_iou": None,
        "reward": None, "terms": {}, "tokens": 5, "truncated": False, "attributes": {"category": case.category},
    }  # fmt: skip
    return record | ({"masks": [rle(mask) for mask in masks_of(case)]} if len(case.said) > 1 else {})


def told(area: Area) -> list[float]:
    """The box of an answer: less than what the segmenter fills, and between pixels."""
    return [area[0] + 0.6123, area[1] + 0.5877, area[2] - 0.4011, area[3] - 0.3917]


def rle(mask: Mask) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def filled(area: Area) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for y in range(area[1], area[3]):
        for x in range(area[0], area[2]):
            mask[y, x] = True
    return mask


def masks_of(case: Case) -> list[Mask]:
    return [np.zeros((HEIGHT, WIDTH), dtype=bool) if case.vain else filled(a) for a in case.said]


def together(masks: Sequence[Mask]) -> Mask:
    result = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for mask in masks:
        result = result | mask
    return result


def resized(mask: Mask, rows: int, columns: int, *, widened: bool = False) -> Mask:
    """The nearest pixel's value; or True where any of the four that interpolation mixes is (their weights are > 0)."""
    result = np.zeros((rows, columns), dtype=bool)
    for y in range(rows):
        for x in range(columns):
            if widened:
                v, u = (y + 0.5) * HEIGHT / rows - 0.5, (x + 0.5) * WIDTH / columns - 0.5
                ys = [j for j in (int(np.floor(v)), int(np.floor(v)) + 1) if abs(j - v) < 1]
                xs = [i for i in (int(np.floor(u)), int(np.floor(u)) + 1) if abs(i - u) < 1]
                result[y, x] = any(mask[min(max(j, 0), HEIGHT - 1), min(max(i, 0), WIDTH - 1)] for j in ys for i in xs)
            else:
                result[y, x] = mask[y * HEIGHT // rows, x * WIDTH // columns]
    return result


def squash(mask: Mask) -> Mask:
    return resized(mask, SIDE, SIDE)


def letterbox(mask: Mask, *, centred: bool = False, widened: bool = False) -> Mask:
    """The longer side fills the canvas; what is left is right and below, or halved around."""
    rows, columns = HEIGHT * SIDE // WIDTH, SIDE
    top = (SIDE - rows) // 2 if centred else 0
    canvas = np.zeros((SIDE, SIDE), dtype=bool)
    canvas[top : top + rows, :columns] = resized(mask, rows, columns, widened=widened)
    return canvas


@dataclass
class Counted:
    """What one pair adds to the sums."""

    iou: float
    both: int = 0
    either: int = 0
    in_precision: bool = False


def pair(predicted: Mask, true: Mask) -> tuple[int, int]:
    return int((predicted & true).sum()), int((predicted | true).sum())


def whole(case: Case) -> tuple[Mask, Mask]:
    """(predicted, true), all instances together."""
    return together(masks_of(case)), together([filled(a) for a in case.true])


def ours(case: Case) -> list[Counted]:
    predicted, true = whole(case)
    both, either = pair(predicted, true)
    if case.true:
        return [Counted(both / either, both, either, True)]
    return [Counted(float(case.read and not case.said), 0, either)]


def think2seg(case: Case) -> list[Counted]:
    """An empty list is right where nothing is there; a false positive adds no area; an unread answer its target's."""
    predicted, true = map(squash, whole(case))
    if not case.true:
        return [Counted(float(case.read and len(case.said) == 0))]
    both, either = pair(predicted, true)
    return [Counted(both / either, both, either, True)] if case.read else [Counted(0, 0, int(true.sum()), True)]


def think2seg_ref(case: Case) -> list[Counted]:
    (counted,) = think2seg(case)
    return [Counted(counted.iou, counted.both, counted.either, bool(squash(whole(case)[0]).any()))]


def segearth_r1(case: Case) -> list[Counted]:
    """Masks alone: both empty is right, whatever was said."""
    both, either = pair(*map(letterbox, whole(case)))
    return [Counted(both / either if either else 1.0, both, either, True)]


def unigeoseg(case: Case) -> list[Counted]:
    both, either = pair(*(letterbox(mask, centred=True) for mask in whole(case)))
    return [Counted(both / (either + 1e-5) if either else 1.0, both, either, True)]


def segearth_r2(case: Case) -> list[Counted]:
    """The k-th true mask with the k-th predicted one, the last one again where there are too few."""
    predicted = [letterbox(mask) for mask in masks_of(case)]
    true = [letterbox(filled(a), widened=True) for a in case.true]
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    if not true:  # our reading
        both, either = pair(letterbox(whole(case)[0]), nothing)
        return [Counted(float(not either), both, either)]
    found = []
    for number, mask in enumerate(true):
        given = predicted[min(number, len(predicted) - 1)] if predicted else nothing
        both, either = pair(given, mask)
        found.append(Counted(both / either if either else 1.0, both, either))
    return found


def lisa(case: Case) -> list[Counted]:
    """The k-th true mask with the k-th predicted one; every object weighs the same."""
    predicted, true = [letterbox(mask) for mask in masks_of(case)], [letterbox(filled(a)) for a in case.true]
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    if not true:  # our reading
        predicted, true = [letterbox(whole(case)[0])], [nothing]
    found = []
    for number, mask in enumerate(true):
        both, either = pair(predicted[number] if number < len(predicted) else nothing, mask)
        found.append(Counted(both / (either + 1e-5) + (either == 0), both, either))
    return found


def geo_r1_gres(case: Case) -> list[Counted]:
    """Each mask cut to its box, whose edges are truncated; 0/0 is 0."""
    cut = []
    for mask, box in zip(masks_of(case), case.said, strict=True):
        x0, y0, x1, y1 = (int(edge) for edge in told(box))
        inside = np.zeros_like(mask)
        inside[max(y0, 0) : y1, max(x0, 0) : x1] = mask[max(y0, 0) : y1, max(x0, 0) : x1]
        cut.append(inside)
    both, either = pair(together(cut), whole(case)[1])
    return [Counted(both / either if either > 0 else 0.0, both, either)]


def vision_reasoner(case: Case) -> list[Counted]:
    """A pair of empty masks raises, and is left out; an answer that was not read stays in as 0."""
    both, either = pair(*whole(case))
    if not case.read:
        return [Counted(0.0, 0, either)]
    return [Counted(both / either, both, either)] if either else []


def seg_zero(case: Case) -> list[Counted]:
    both, either = pair(*whole(case))
    return [Counted(both / either if case.read and either else 0.0, both if case.read else 0, either)]


def resap(case: Case) -> list[Counted]:
    """No box, read or not: (0, 0, 0)."""
    if not case.read or not case.said:
        return [Counted(0.0)]
    both, either = pair(*map(squash, whole(case)))
    return [Counted(both / either if either > 0 else 0.0, both, either)]


MASKS: dict[str, tuple[Callable[[Case], list[Counted]], bool]] = {
    "ours": (ours, True), "think2seg": (think2seg, True), "think2seg_ref": (think2seg_ref, False),
    "segearth_r1": (segearth_r1, True), "segearth_r2": (segearth_r2, True), "geo_r1_gres": (geo_r1_gres, True),
    "unigeoseg": (unigeoseg, True), "vision_reasoner": (vision_reasoner, True), "seg_zero": (seg_zero, True),
    "resap": (resap, True), "lisa": (lisa, True),
}  # fmt: skip
"""By protocol; and whether Pr@k demands more than k."""
BOXES = {"geo_r1_rec", "geo_r1_ovd", "rsthinker_box"}

settings_of = functools.cache(lambda name: option(f"evaluation/protocol/{name}"))


def protocol(name: str) -> Any:
    settings = dict(settings_of(name))
    if settings.get("canvas", "original") != "original":
        settings["side"] = SIDE
    return instantiate(settings, (), "evaluation.protocol")


def test_every_protocol_is_here() -> None:
    assert set(settings_of("all")["protocols"]) == {*MASKS, *BOXES}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    by_hand, strict = MASKS[name]
    cases = drawn_cases(name)
    counted = [found for case in cases if (found := by_hand(case))]
    every = [one for found in counted for one in found]
    given = protocol(name)
    result = given.summarise(scored(cases), bootstrap_samples=5)
    assert result.get("scored", len(cases)) == len(counted)
    assert result["giou"] == pytest.approx(sum(one.iou for one in every) / len(every), abs=1e-9)
    assert result["ciou"] == pytest.approx(sum(one.both for one in every) / sum(one.either for one in every), abs=1e-9)
    hits = [one.iou for one in every if one.in_precision]
    for k in (0.5, 0.7, 0.9):
        share = sum(iou > k if strict else iou >= k for iou in hits) / len(hits) if hits else None
        assert result.get(f"pr@{k}") == (None if share is None else pytest.approx(share))
    for case, score in zip(cases, scored(cases), strict=True):
        found = by_hand(case)
        single = sum(one.iou for one in found) / len(found) if found else None
        assert given.iou(score) == (None if single is None else pytest.approx(single, abs=1e-9))


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    across = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    down = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return across * down / (sum(areas) - across * down)


def last_of_an_object(text: str) -> list[int] | None:
    """The last box of whole numbers in the first answer that has a brace before and after it."""
    begin, end = text.find("<answer>"), text.find("</answer>")
    answer = text[begin + 8 : end] if 0 <= begin < end else ""
    for start in range(len(answer) - 1, -1, -1):
        found = re.match(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]", answer[start:])
        if found and "{" in answer[:start] and "}" in answer[start + found.end() :]:
            return [int(number) for number in found.groups()]
    return None


def first_four(text: str) -> list[float] | None:
    found = re.findall(r"-?\d*\.\d+|-?\d+", text)
    return [float(number) for number in found[:4]] if len(found) >= 4 else None


def test_one_box_of_the_text() -> None:
    cases = [case for seed in "abcd" for case in drawn_cases(seed) if case.said]
    single = [case for case in cases if len(case.true) == 1]
    rec = [box_iou(box, case.true[0]) if (box := last_of_an_object(case.text)) else 0.0 for case in single]
    result = protocol("geo_r1_rec").summarise(scored(cases))
    assert result["scored"] == len(single) >= PAIRS
    assert result["box_iou"] == pytest.approx(sum(rec) / len(rec))
    assert result["acc@0.5"] == pytest.approx(sum(iou > 0.5 for iou in rec) / len(rec))
    assert 0 < result["acc@0.5"] < 1

    def added(box: Sequence[float]) -> list[float]:
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]

    sides = [box_iou(added(b), added(case.true[0])) if (b := first_four(case.text)) else 0.0 for case in single]
    result = protocol("rsthinker_box").summarise(scored(cases))
    assert result["box_iou"] == pytest.approx(sum(sides) / len(sides))
    for t in (0.5, 0.75, 0.95):
        assert result[f"acc@{t}"] == pytest.approx(sum(iou >= t for iou in sides) / len(sides))


def test_average_precision_without_a_ranking() -> None:
    cases = drawn_cases("ovd")
    asked = [case for case in cases if case.true]
    precisions: dict[float, list[float]] = {}
    for category in ("road", "ship"):
        mine = [case for case in asked if case.category == category]
        for t in [0.5 + 0.05 * step for step in range(10)]:
            hits: list[bool] = []
            for case in mine:
                free = set(range(len(case.true)))
                for box in case.said:
                    best, match = t - 1e-9, None
                    for number in sorted(free):
                        if (iou := box_iou(told(box), case.true[number])) >= best:
                            best, match = iou, number
                    hits.append(match is not None)
                    free -= {match}
            total = sum(len(case.true) for case in mine)
            curve, right = [], 0
            for count, hit in enumerate(hits, 1):
                right += hit
                curve.append((right / total, right / count))
            for recall in [step / 100 for step in range(101)]:
                reached = [precision for at, precision in curve if at >= recall - 1e-9]
                precisions.setdefault(round(t, 2), []).append(max(reached, default=0.0))
    result = protocol("geo_r1_ovd").summarise(scored(cases))
    assert result["scored"] == len(asked)
    assert 0 < result["ap"] < result["ap50"] < 1
    assert result["ap"] == pytest.approx(np.mean([np.mean(found) for found in precisions.values()]), abs=1e-6)
    assert result["ap50"] == pytest.approx(np.mean(precisions[0.5]), abs=1e-6)
    assert result["ap75"] == pytest.approx(np.mean(precisions[0.75]), abs=1e-6)
