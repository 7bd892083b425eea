"""Every reward preset: texts through reading and rubric against hand-computed rewards, and what its hacks earn.

The goldens of grasp and think2seg stand in test_rewards.py and test_released.py.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import re
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from golden_presets import (
    FAR,
    NEAR,
    NONE,
    ONE,
    PRESETS,
    TWO,
    Case,
    T,
    boxes,
    cue,
    det,
    eot,
    fenced,
    graph,
    gres,
    hdet,
    hyre,
    pointed,
    rec,
    said,
    sz,
    true,
    vr,
)
from rubrics import rubric

from grasp_rl.config import schema
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig
from grasp_rl.config.targets import instantiate
from grasp_rl.geometry import FloatArray, box_iou, match
from grasp_rl.interfaces import CoordinateFrame, Labels, WeakLabels
from grasp_rl.launch.compose import option
from grasp_rl.prompts.parse import parse
from grasp_rl.prompts.released import READERS
from grasp_rl.rewards.average_precision import coco_average_precision
from grasp_rl.rewards.baseline import RandomBox
from grasp_rl.rewards.matching import greedy, matched_pairs
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.boxes import BoxIou, BoxL1, Count, DetectionAp, DetectionErrors, DetectionF1, Matched
from grasp_rl.rewards.terms.masks import MaskIou
from grasp_rl.rewards.terms.points import PointCount
from grasp_rl.rewards.terms.text import Length, Novelty, Repetition
from grasp_rl.types import Answer, MaskPrediction, SpatialPrompt

CONF = Path(__file__).parents[1] / "conf"
IN_STAGES = {
    "socio_reasoner": {"first": "socio_reasoner_turn1", "second": "socio_reasoner_turn2"},
    "resap_two_tasks": {"first": "resap", "labels": "resap_points"},
}
"""Rewards with a rubric for each stage, which is one of the others."""
EXPECTED = {"rs_eot": 0.2}
"""What a random box earns, in the goldens; elsewhere it is drawn."""


@lru_cache
def node(name: str) -> dict[str, Any]:
    """The YAML of conf/reward, on top of the one that it begins with; Hydra's own composing is tested elsewhere."""
    own = yaml.safe_load((CONF / f"reward/{name}.yaml").read_text())
    result: dict[str, Any] = {}
    for item in own.pop("defaults", []):
        if isinstance(item, str) and item != "_self_":
            result = merged(result, node(item))
        elif isinstance(item, dict):
            result["reader"] = next(iter(item.values()))
    return merged(result, own)


def merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


@lru_cache
def preset_rubric(name: str) -> Rubric:
    built = instantiate({key: value for key, value in node(name).items() if key != "reader"}, key="reward")
    assert isinstance(built, Rubric)
    return built


@lru_cache
def parsing(name: str) -> ParsingConfig:
    """As the reward's YAML overrides it."""
    return ParsingConfig(**yaml.safe_load((CONF / f"parsing/{node(name).get('reader', 'strict')}.yaml").read_text()))


def read(name: str, text: str, tokens: int = 0) -> Answer:
    preset = PRESETS[name]
    frame = CoordinateFrame(width=preset.side, height=preset.side, image_width=preset.side, image_height=preset.side)
    return replace(parse(text, preset.prompt, frame, parsing(name)), text=text, tokens=tokens)


def filled(instances: Any, side: int, grown: int = 0) -> Any:
    """[N, side, side] boxes as masks."""
    masks = np.zeros((len(instances), side, side), bool)
    for mask, item in zip(masks, instances, strict=True):
        if item.box is not None:
            x0, y0, x1, y1 = (min(max(int(value), 0), side) for value in item.box)
            mask[max(0, y0 - grown) : y1 + grown, max(0, x0 - grown) : x1 + grown] = True
    return masks


def earned(name: str, case: Case, reward: Rubric | None = None) -> float:
    preset, reward = PRESETS[name], reward or preset_rubric(name)
    answer = read(name, case.text, case.tokens)
    extra = dict(preset.labels)
    if preset.previous:
        answer = replace(answer, previous=read("socio_reasoner_turn1", preset.previous))
    if "mask" not in reward.needs:
        return reward(answer, WeakLabels(instances=case.truth, image_size=(preset.side,) * 2, **extra)).reward
    target = filled(case.truth, preset.side).any(0)
    masks = filled(answer.prompts, preset.side, preset.grown)
    prediction = MaskPrediction(masks=masks, iou_predictions=np.ones(len(masks), np.float32))
    return reward(answer, Labels(target_mask=target, instances=case.truth, **extra), prediction).reward


CASES = [(name, label) for name, preset in PRESETS.items() for label in preset.cases]


@pytest.mark.parametrize(("name", "label"), CASES, ids=[f"{name}: {label}" for name, label in CASES])
def test_golden(name: str, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomBox, "expected", lambda *_: 0.9 * EXPECTED["rs_eot"])
    case = PRESETS[name].cases[label]
    assert earned(name, case) == pytest.approx(case.reward, abs=1e-6)


def test_rewards_of_stages_are_those_of_their_stages() -> None:
    for name, parts in IN_STAGES.items():
        built = instantiate(option(f"reward/{name}"), key="reward")
        assert {stage: rubric.terms for stage, rubric in built.stages.items()} == {
            stage: preset_rubric(part).terms for stage, part in parts.items()
        }


def test_every_preset_has_a_dozen_goldens() -> None:
    assert {path.stem for path in (CONF / "reward").glob("*.yaml")} == {
        *PRESETS,
        *IN_STAGES,
        "grasp",
        "think2seg",
        "remote_zero",  # tests/test_verify.py: it needs somebody who verifies
    }
    for name, preset in PRESETS.items():
        assert len(preset.cases) >= 12, name
        assert len({case.text for case in preset.cases.values()}) >= 10, name


def test_a_reading_says_whether_there_was_a_fence() -> None:
    assert [read("geo_r1_gres", text).fenced for text in (fenced(gres(T)), said(gres(T)))] == [True, False]
    assert [read("geo_r1_ovd", text).fenced for text in (fenced(det(T)), said(det(T)))] == [True, False]


def test_every_reader_can_be_configured() -> None:
    assert set(schema.READERS) == {"scheme", *READERS}
    found = {parsing(name).reader for name in PRESETS} | {"think2seg"}
    assert found == set(schema.READERS)
    for path in (CONF / "parsing").glob("*.yaml"):
        options = yaml.safe_load(path.read_text())
        assert ParsingConfig(**options).reader == options.get("reader", "scheme")
        assert path.stem in (*READERS, "strict")


def test_the_documentation_has_every_preset_and_its_examples_build() -> None:
    text = (CONF.parent / "docs/rewards.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert {
        name: reader
        for name, reader in named
        if name not in ("grasp", "think2seg", "hybrid", "sam_r1", "sam_r1_fixed", "remote_zero")
    } == {name: node(name)["reader"] for name in PRESETS if "reader" in node(name)}
    assert {name for name, _ in named} == {path.stem for path in (CONF / "reward").glob("*.yaml")} - set(IN_STAGES)
    assert all(f"reward={name}" in text for name in IN_STAGES)
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    ours = [block for block in blocks if "my_lab" not in block]  # what needs a module beside it: tests/test_docs.py
    assert len(ours) >= 2
    for block in ours:
        assert isinstance(instantiate(yaml.safe_load(block), key="reward"), Rubric)


# Invariants


@dataclass(frozen=True)
class Moves:
    """Answers to one question: the honest one is a little off, ``many`` says it among a lot of other boxes."""

    honest: str
    many: str
    whole: str
    twice: str
    empty: str
    repeated_points: str = ""


def _grid(count: int = 31) -> list[str]:
    """``count`` squared boxes of 30 x 30 beside the target."""
    return [f"[{x},{y},{x + 30},{y + 30}]" for x in range(0, 30 * count, 30) for y in range(0, 30 * count, 30)]


N, W = NEAR, "[0,0,1000,1000]"
GUESSES = [N, *_grid(31)]
SAME = "[[200,200],[200,200]]"


def _moves(one: Any, empty: str, many: Any = None) -> Moves:
    many = many or one
    return Moves(one(N), many(*GUESSES), one(W), many(N, N), empty)


def _listed(*items: str) -> str:
    return said("[" + ",".join(items) + "]")


MOVES = {
    "geo_r1_rec": _moves(rec, said("[]"), lambda *items: said("".join(f'{{"b":{item}}}' for item in items[:500]))),
    "geo_r1_ovd": _moves(lambda *items: fenced(det(*items[:250])), fenced("[]")),
    "vlm_r1_od_length": _moves(lambda *items: fenced(det(*items[:250])), fenced("[]")),
    "vlm_r1_detection": _moves(lambda *items: fenced(det(*items[:250])), said("None")),
    "geo_r1_gres": replace(
        _moves(lambda *items: fenced(gres(*items[:60])), said("None")),
        repeated_points=fenced(gres(N).replace("[250,250]", "[150,150]")),
    ),
    "sam_r1": _moves(lambda *items: said(boxes(*items[:60])), said("[]")),
    "sam_r1_fixed": _moves(lambda *items: said(boxes(*items[:60])), said("[]")),
    "remote_reasoner": _moves(lambda *items: _listed(*items[:60]), said("[]")),
    "rsthinker": _moves(lambda *items: _listed(*items[:60]), said("[]")),
    "rs_eot": _moves(eot, "<think>a</think>", lambda *items: "".join(map(eot, items[:300]))),
    "rs_hyre_r1": _moves(hyre, said("[]"), lambda *items: _listed(*(f'{{"bbox":{item}}}' for item in items[:250]))),
    "rs_hyre_r1_detection": _moves(lambda *items: hdet(*items[:250]), said("[]")),
    "resap": _moves(said, said("[]"), lambda *items: _listed(*items[:700])),
    "socio_reasoner_turn1": _moves(lambda *items: said(boxes(*items[:120])), said("[]")),
    "socio_reasoner_turn2": replace(
        _moves(lambda *items: said(pointed(*items[:120], points="[[200,200]]")), said("[]")),
        repeated_points=said(pointed(N, points=SAME)),
    ),
    "r1_sgg_boxes": _moves(lambda *items: said(graph(*items[:250])), said(graph())),
    "seg_zero": replace(
        _moves(lambda box: said(sz(box)), said("[]"), lambda *items: said("".join(map(sz, items[:200])))),
        repeated_points=said(sz(N, "[200,200]", "[200,200]")),
    ),
    "visionreasoner": _moves(lambda *items: said(vr(*((item, "[200,200]") for item in items[:300]))), said("[]")),
    "hybrid": replace(
        _moves(lambda *items: said(cue(*items[:60])), said("[]")),
        repeated_points=said(cue(N, points="[[150,150],[150,150]]")),
    ),
}
POINTED = true((100, 100, 300, 300), points=[((150.5, 150.5), (250.5, 250.5))])
BOXED = [name for name in PRESETS if name in MOVES]


def target(name: str) -> Any:
    """One target, with the points that the preset's scheme has."""
    if name == "visionreasoner":
        return true((100, 100, 300, 300), points=[((200, 200),)])
    return POINTED if name in ("hybrid", "seg_zero") else ONE


HACKABLE = {
    ("resap", "superfluous boxes are free"): (said(N), _listed(N, *_grid(9)), False),
    ("r1_sgg_boxes", "a guess more never costs"): (
        said(graph(N)),
        said(graph(N, "[120,100,320,300]", *_grid(9))),
        True,
    ),
    ("r1_sgg_boxes", "the same box for every target"): (said(graph(FAR)), said(graph(FAR, W)), True),
    ("rs_hyre_r1_detection", "copies of a box that nearly hits"): (
        hdet("[100,100,180,300]"),
        hdet(*["[100,100,180,300]"] * 20),
        True,
    ),
    ("socio_reasoner_turn2", "the same point twice"): (
        said(pointed(T, points="[[200,200]]")),
        said(pointed(T, points=SAME)),
        True,
    ),
    ("socio_reasoner_turn2", "no points at all keep every box"): (
        said(pointed(T, points=str([[200, 200]] * 5))),
        said(pointed(T, points="[]")),
        True,
    ),
    ("geo_r1_gres", "the same point twice"): (
        fenced(gres(N)),
        fenced(gres(N).replace("[250,250]", "[150,150]")),
        False,
    ),
    ("seg_zero", "the same point twice"): (said(sz(N, "[160,150]")), said(sz(N, "[200,200]", "[200,200]")), False),
    ("geo_r1_ovd", "no target: anything without a fence"): (said("None"), said("a b c"), False),
    ("vlm_r1_od_length", "no target: anything without a fence"): (said("None"), said("a b c"), False),
    ("rs_hyre_r1_detection", "no target: anything without a list"): (said("[]"), said("a b c"), False),
    ("visionreasoner", "no target: any box beats the empty answer"): (said("[]"), said(vr((FAR, "[700,700]"))), True),
}
"""What published rewards let one do, kept: (an honest answer, one that earns no less, whether it earns more)."""


@pytest.mark.parametrize("key", HACKABLE, ids=": ".join)
def test_published_rewards_keep_their_hacks(key: tuple[str, str]) -> None:
    name, what = key
    honest, hack, more = HACKABLE[key]
    truth = NONE if what.startswith("no target") else target(name)
    pays = [earned(name, Case(text, 0, truth)) for text in (honest, hack)]
    assert pays[1] > pays[0] + 0.01 if more else pays[1] == pytest.approx(pays[0], abs=1e-9)


def test_the_choice_can_be_padded() -> None:
    honest, padded = (earned("geo_r1_cross_view", Case(said("B", "x"), 0, tokens=n)) for n in (512, 2048))
    assert padded > honest
    wrong = earned("geo_r1_cross_view", Case(said("C", "x"), 0))
    assert wrong == 3  # of 4, for words of any content
    gated = rubric("geo_r1_cross_view", "+reward.terms.length.gate={choice: 1.0}", "length.periodic=false")
    assert earned("geo_r1_cross_view", Case(said("C", "x"), 0), gated) == 2
    assert earned("geo_r1_cross_view", Case(said("B", "x"), 0, tokens=2048), gated) == 3.5


@pytest.mark.parametrize("name", BOXED)
def test_no_other_hack_beats_the_honest_answer(name: str) -> None:
    moves, truth = MOVES[name], target(name)
    honest = earned(name, Case(moves.honest, 0, truth))
    for text in (moves.many, moves.whole, moves.twice, moves.empty, moves.repeated_points, "", "x" * 99):
        if (name, text) != ("socio_reasoner_turn2", moves.repeated_points):  # stands in HACKABLE
            assert earned(name, Case(text, 0, truth)) <= honest + 1e-9, text[:80]
    assert earned(name, Case(moves.empty, 0, truth)) < honest
    assert read(name, moves.many).prompts


@pytest.mark.parametrize("name", [name for name in BOXED if "mask" not in preset_rubric(name).needs])
def test_a_thousand_boxes_do_not_beat_one(name: str) -> None:
    answer = read(name, MOVES[name].honest)
    strays = [SpatialPrompt(box=tuple(yaml.safe_load(item)), category="plane") for item in _grid(32)]
    one = _scored(name, answer, target(name))
    for prompts in ((*answer.prompts, *strays), (*strays, *answer.prompts)):
        many = replace(answer, prompts=prompts, listed=None)
        assert len(prompts) > 1000
        assert _scored(name, many, target(name)) <= one + 1e-9


@pytest.mark.parametrize("name", sorted(set(BOXED) - {"geo_r1_rec", "rs_eot", "rs_hyre_r1", "resap", "seg_zero"}))
def test_the_order_of_instances_counts_for_nothing(name: str) -> None:
    """Where the first of several boxes is the answer (left out here), and where all scores are equal, order decides."""
    truth = true((100, 100, 300, 300), (600, 600, 700, 700), points=[((200, 200),), ((650, 650),)])
    answer = read(name, MOVES[name].honest)
    items = [
        SpatialPrompt(box=b, point_coords=(), category="plane") for b in ((110, 100, 310, 300), (600, 610, 700, 710))
    ]
    stray = SpatialPrompt(box=(400, 400, 430, 430), category="plane")
    by_order = set()
    for order in permutations([*items, stray]):
        for reference in (truth, truth[::-1]):
            by_order.add(round(_scored(name, replace(answer, prompts=order, listed=None), reference), 9))
    assert (len(by_order) > 1) == (name in ("geo_r1_ovd", "vlm_r1_od_length"))


def _scored(name: str, answer: Answer, truth: Any) -> float:
    reward, side = preset_rubric(name), PRESETS[name].side
    if "mask" not in reward.needs:
        return reward(answer, WeakLabels(instances=truth, image_size=(side, side))).reward
    masks = filled(answer.prompts, side)
    prediction = MaskPrediction(masks=masks, iou_predictions=np.ones(len(masks), np.float32))
    return reward(answer, Labels(target_mask=filled(truth, side).any(0), instances=truth), prediction).reward


# Novelty, schedule, gate


def test_identical_thoughts_are_half_as_novel() -> None:
    """Three valid thoughts, all alike: 1 - 0.5 * 1 = 0.5, and 0.7 + 0.1 + 0.2 * 0.5; a wrong answer's earns nothing."""
    reward, thought = preset_rubric("rs_hyre_r1"), "The only plane in the picture."
    texts = [hyre(T), hyre(T), hyre(T), hyre(FAR)]
    answers = [replace(read("rs_hyre_r1", text.replace("A roof.", thought)), tokens=5) for text in texts]
    labels = WeakLabels(instances=ONE, image_size=(1000, 1000))
    alone = reward.score_group(answers, labels, [None] * 4)
    assert [item.reward for item in alone] == pytest.approx([0.8, 0.8, 0.8, 0.1])
    found = reward.with_batch_terms(alone, answers, None)
    assert [item.reward for item in found] == pytest.approx([0.9, 0.9, 0.9, 0.1])
    few = reward.with_batch_terms(alone[:2], answers[:2], None)  # of two valid thoughts none earns anything
    assert [item.reward for item in few] == pytest.approx([0.8, 0.8])


def test_hybrid_can_go_from_cues_to_the_mask() -> None:
    reward = rubric("hybrid", "+reward.terms.mask_iou.start_weight=0.0", "+reward.terms.mask_iou.ramp_steps=100")
    answer, labels = read("hybrid", said(cue(T))), Labels(target_mask=filled(ONE, 1000).any(0), instances=POINTED)
    masks = MaskPrediction(masks=filled(answer.prompts, 1000), iou_predictions=np.ones(1, np.float32))
    assert [reward(answer, labels, masks, step).reward for step in (0, 50, 100, None)] == [5, 6, 7, 7]


# Matching, average precision, baseline


def test_matching_equals_trying_all() -> None:
    draw = np.random.default_rng(1)
    orders = {n: np.array(list(permutations(range(n)))) for n in range(1, 7)}
    for case in range(10_000):
        few, many = sorted(draw.integers(1, 7 if case % 10 == 0 else 5, 2).tolist())
        scores = draw.random((few, many)).round(1 + case % 2)
        best = scores[np.arange(few), orders[many][:, :few]].sum(1).max()
        for table in (scores, scores.T):
            pairs = match(table)
            assert sum(table[pair] for pair in pairs) == pytest.approx(best)
            assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == few


def test_greedy_matching_takes_the_best_pair_first() -> None:
    def naive(scores: FloatArray) -> list[tuple[int, int]]:
        pairs, left = [], {(i, j): float(scores[i, j]) for i in range(scores.shape[0]) for j in range(scores.shape[1])}
        while left and (best := max(left.values())) > 0:
            chosen = next(pair for pair, value in left.items() if value == best)
            pairs.append(chosen)
            left = {pair: v for pair, v in left.items() if pair[0] != chosen[0] and pair[1] != chosen[1]}
        return pairs

    draw = np.random.default_rng(2)
    for _ in range(2000):
        scores = np.maximum(0, draw.random(tuple(draw.integers(1, 6, 2))) - 0.3).round(1)
        assert greedy(scores) == naive(scores)
    assert matched_pairs({"a": np.ones((2, 3))}, {"a": 1.0}, "order") == [(0, 0), (1, 1)]


def random_boxes(draw: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    corner, size = draw.integers(0, 60, (count, 2)), draw.integers(5, 40, (count, 2))
    return [(float(x), float(y), float(x + w), float(y + h)) for (x, y), (w, h) in zip(corner, size, strict=True)]


def coco(found: Any, true_boxes: Any) -> float:
    """What pycocotools says of one image, all scores 1; each a list of (box, category)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(items: Any, **more: Any) -> list[dict[str, Any]]:
        return [
            {
                **{"id": index + 1, "image_id": 0, "category_id": name, "iscrowd": 0},
                **{"bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "area": (b[2] - b[0]) * (b[3] - b[1]), **more},
            }
            for index, (b, name) in enumerate(items)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 0, "width": 2048, "height": 2048}],
            "annotations": rows(true_boxes),
            "categories": [{"id": name} for name in sorted({name for _, name in true_boxes})],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(found, score=1.0)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_average_precision_is_that_of_pycocotools() -> None:
    draw = np.random.default_rng(3)
    seen = set()
    for _ in range(200):
        truth = [(box, int(draw.integers(1, 3))) for box in random_boxes(draw, int(draw.integers(1, 7)))]
        found = [
            (tuple(value + float(draw.integers(-4, 5)) for value in box[:2]) + box[2:], name)
            for box, name in [truth[i] for i in draw.permutation(len(truth))[: int(draw.integers(1, 7))]]
        ]
        found += [(box, int(draw.integers(1, 3))) for box in random_boxes(draw, int(draw.integers(0, 3)))]
        found = [found[i] for i in draw.permutation(len(found))]
        known = {name for _, name in truth}
        expected = coco([item for item in found if item[1] in known], truth) if known & {n for _, n in found} else 0.0
        seen.add(round(expected, 3))
        items = [tuple(SpatialPrompt(box=box, category=str(name)) for box, name in listed) for listed in (found, truth)]
        answer = replace(read("geo_r1_ovd", fenced("[]")), prompts=items[0], listed=None)
        labels = WeakLabels(instances=items[1], image_size=(200, 200))
        assert DetectionAp(count_power=0)(answer, labels, None) == pytest.approx(expected, abs=1e-9)
        if len(known) == 1:
            same = [box for box, name in found if name in known]
            assert coco_average_precision(same, [box for box, _ in truth]) == pytest.approx(expected, abs=1e-9)
    assert len(seen) > 50


@pytest.mark.parametrize("matching", ["hungarian", "union_box"])
def test_a_random_box_earns_what_a_loop_says(matching: str) -> None:
    baseline = RandomBox(boxes=200, seed=3, combine="rescale")
    reward = Rubric({"iou": BoxIou(weight=0.9)}, matching=matching, baseline=baseline)
    labels = WeakLabels(instances=TWO, image_size=(800, 1000))
    draw = np.random.default_rng(3)
    sizes, places = draw.uniform(0.05, 1, (200, 2)), draw.uniform(0, 1, (200, 2))
    reference = [item.box for item in TWO] if matching == "hungarian" else [(100, 100, 700, 700)]
    total = 0.0
    for (w, h), (x, y) in zip(sizes.tolist(), places.tolist(), strict=True):
        x0, y0 = x * (1 - w), y * (1 - h)
        box = (x0 * 1000, y0 * 800, (x0 + w) * 1000, (y0 + h) * 800)
        total += max(box_iou(box, other) for other in reference)
    chance = total / 200 / len(reference)
    answer = replace(read("rs_eot", eot(T)), prompts=(SpatialPrompt(box=(100, 100, 300, 300)),))
    accuracy = reward(answer, labels).terms["iou"]
    assert reward(answer, labels).reward == pytest.approx(0.9 * (accuracy - chance) / (1 - chance))
    clipped = Rubric({"iou": BoxIou(weight=0.9)}, matching=matching, baseline=replace(baseline, combine="clip"))
    assert clipped(answer, labels).reward == pytest.approx(max(0, 0.9 * (accuracy - chance)))


def test_a_squashed_canvas_measures_each_side_by_itself() -> None:
    """An image of 1000 x 500: 10 pixels in y are 20 of the square's."""
    a, b = (SpatialPrompt(box=(0.0, y, 100.0, y + 100)) for y in (0.0, 10.0))
    for squash, distance in ((False, 5 / 1000), (True, 10 / 1000)):
        for fraction, near in ((distance * 1.01, 1.0), (distance * 0.99, 0.0)):
            term = BoxL1(fraction=fraction, squash=squash)
            assert term.table([a], [b], (500, 1000)).item() == near
    grown = [BoxIou(margin=0.1, squash=squash).table([a], [b], (500, 1000)).item() for squash in (False, True)]
    assert grown == pytest.approx([190 / 210, 140 / 160])


def test_the_generalised_iou() -> None:
    """Two unit squares with one between them: IoU 0, union 2 of a hull of 3, GIoU -1/3."""
    items = [SpatialPrompt(box=box) for box in ((0, 0, 1, 1), (2, 0, 3, 1), (0, 0, 0, 0))]
    table = BoxIou(mode="generalised").table(items, items, (10, 10))
    assert table[0, :2].tolist() == pytest.approx([1, (1 - 1 / 3) / 2])
    assert table[2, 2] == 0.5


@pytest.mark.parametrize(
    ("term", "argument"),
    [
        (BoxIou(mode="giou"), "mode"),
        (BoxIou(least_overlap=-1.0), "least_overlap"),
        (BoxIou(k=51.0), "k"),
        (BoxL1(mode="cubic"), "mode"),
        (Matched(weight=-1e4), "weight"),
        (Count(mode="linear"), "mode"),
        (DetectionAp(count_power=-1.0), "count_power"),
        (DetectionErrors(threshold=2.0), "threshold"),
        (DetectionF1(near=-0.1), "near"),
        (PointCount(sigma=0.0), "sigma"),
        (Repetition(words=0), "words"),
        (Length(longest=1.1), "longest"),
        (Novelty(scope="world"), "scope"),
        (MaskIou(tiers=[[0.8, 1.0], [0.5, 0.5]]), "tiers"),
        (MaskIou(start_weight=1.0), "start_weight"),
        (BoxIou(gate={"nobody": 1.0}), "gate"),
    ],
)
def test_bad_arguments_name_their_key(term: Any, argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.terms\.mine\.{argument}="):
        Rubric({"mine": term})


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"matching": "best"}, "matching"),
        ({"normalise": "mean"}, "normalise"),
        ({"no_target": "one"}, "no_target"),
        ({"matching_weights": {"other": 1.0}}, "matching_weights"),
        ({"baseline": 0.2}, "baseline"),
    ],
)
def test_bad_rules_name_their_key(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.{key}="):
        Rubric({"iou": BoxIou()}, **arguments)


@pytest.mark.parametrize(("arguments", "key"), [({"combine": "add"}, "combine"), ({"boxes": 0}, "boxes")])
def test_a_bad_baseline_names_its_key(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.baseline\.{key}="):
        RandomBox(**arguments)


# Hostile texts


HOSTILE = {
    "open braces": "{" * 16000,
    "empty braces": "{}" * 8000,
    "answers that never close": "<answer>[" * 1800,
    "answers": "<answer>[]</answer>" * 850,
    "open tags": "<answer" * 2300,
    "fences": "```json[]" * 1700,
    "white space": "<think>" + " " * 16000,
    "white space in tags": "<think></think>" + " <" * 8000,
    "ends of thoughts": "</think> " * 1800,
    "bbox": "bbox : " * 2300,
    "brackets": "[" * 16000,
    "numbers": "</think>[" + "1 " * 8000,
    "a number": "</think>bbox:[" + "9" * 15000 + "]",
    "choices": "A. " * 5000,
    "capitals": "A" * 16000,
    "full stops": "<think></think><answer>[" + "." * 16000 + "]</answer>",
    "other scripts": "<answer>\u0130</answer>\ud800" + "\u0663" * 9,
    "deep": "<think></think><answer>" + "[" * 64 + "]" * 64 + "</answer>",
    "nested quotes": "<answer>['" + "\\'" * 5000 + "']</answer>",
}


@pytest.mark.parametrize("reader", sorted(READERS))
def test_no_text_is_slow_or_raises(reader: str) -> None:
    frame = CoordinateFrame(width=1000, height=1000, image_width=640, image_height=480)
    prompt = next(p.prompt for name, p in PRESETS.items() if parsing(name).reader in (reader, "scheme"))
    start = time.process_time()
    for text in HOSTILE.values():
        answer = parse(text, prompt, frame, ParsingConfig(reader=reader, nms_iou=1.0, max_instances=1000))
        assert answer.ok or not answer.prompts
        assert 0 <= answer.form <= 1
        for item in answer.prompts:
            assert item.box is None or all(map(math.isfinite, item.box))
    assert time.process_time() - start < 1


def test_mutations_never_raise_and_never_earn_more() -> None:
    """Golden texts with something cut, copied or put in: no reward beyond what the preset can pay."""
    draw = random.Random(4)
    spice = [*"[]{}\",:' \n0-9.", "<answer>", "</answer>", "<think>", "```json", "```", "null", "true", "1e999", "NaN"]
    names = [name for name in PRESETS if "mask" not in preset_rubric(name).needs]
    most = {name: max(case.reward for case in PRESETS[name].cases.values()) for name in names}
    for name in names:
        cases = list(PRESETS[name].cases.values())
        for _ in range(150):
            case = draw.choice(cases)
            i = draw.randrange(len(case.text) + 1)
            text = case.text[:i] + draw.choice(spice) + case.text[i + draw.randrange(3) :]
            found = earned(name, replace(case, text=text))
            assert math.isfinite(found)
            assert found <= most[name] + 1e-9
