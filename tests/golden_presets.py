"""What each reward preset pays for a completion, worked out by hand from the documented formulas; none comes from this
package.

Unless a case says otherwise the image is 1000 x 1000, spoken of in 0..1000, and the target is T = (100, 100, 300, 300),
a "plane" of 40,000 pixels. U = (600, 600, 700, 700), 10,000 pixels, is a second target or a superfluous box. Moved by
50 to the right, T overlaps itself by 150 * 200 = 30,000 of 50,000: IoU 0.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from grasp_rl.config.schema import PromptConfig
from grasp_rl.types import SpatialPrompt

T, U, NEAR, FAR = "[100,100,300,300]", "[600,600,700,700]", "[150,100,350,300]", "[600,600,800,800]"
BOX = PromptConfig(scheme="box", positive_points=0)
BOX_2 = PromptConfig()
KEYPOINTS = PromptConfig(scheme="keypoints", positive_key="keypoint", flat_points=True, flat_separator="")
POINTS_IN_BOX = PromptConfig(scheme="points", positive_key="points")
LABELS = PromptConfig(scheme="labels", answer="labels", box=False, positive_points=0)
CHOICE = PromptConfig(scheme="choice", answer="choice", box=False, positive_points=0)
SEG_ZERO = PromptConfig(scheme="seg_zero", box_key="bbox", positive_key="points", flat_points=True, single_object=True)
VISIONREASONER = PromptConfig(scheme="visionreasoner", positive_points=1, positive_key="point_2d", flat_points=True)


def said(answer: str, thought: str = "A roof.") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def fenced(json_text: str, thought: str = "A roof.") -> str:
    return said(f"```json\n{json_text}\n```", thought)


def true(*boxes: tuple[float, float, float, float], name: str | None = "plane", points: Any = ()) -> Any:
    return tuple(
        SpatialPrompt(
            box=box,
            point_coords=points[index] if points else (),
            point_labels=(1,) * len(points[index]) if points else (),
            category=name,
        )
        for index, box in enumerate(boxes)
    )


ONE = true((100, 100, 300, 300))
TWO = true((100, 100, 300, 300), (600, 600, 700, 700))
NONE: tuple[SpatialPrompt, ...] = ()


@dataclass(frozen=True)
class Case:
    text: str
    reward: float
    truth: tuple[SpatialPrompt, ...] = ONE
    tokens: int = 0


@dataclass(frozen=True)
class Preset:
    cases: dict[str, Case]
    prompt: PromptConfig = field(default_factory=lambda: BOX)
    side: int = 1000
    grown: int = 0
    """Pixels by which the stand-in for the segmenter fills more than the box."""
    labels: dict[str, Any] = field(default_factory=dict)
    previous: str = ""
    """Text of the turn before."""


# One box in braces


def rec(box: str) -> str:
    return said(f'{{"bbox_2d":{box}}}')


GEO_R1_REC = Preset(
    {
        "exact": Case(rec(T), 2),
        "near": Case(rec(NEAR), 1.6),
        "far": Case(rec(FAR), 1),
        "superfluous": Case(said(f'{{"a":{T},"b":{U}}}'), 2),  # the first box counts
        "the wrong one first": Case(said(f'{{"a":{U},"b":{T}}}'), 1),
        "missing": Case(rec(T), 1 + 40000 / 360000, TWO),  # one box around both: (100, 100, 700, 700)
        "empty": Case(said("[]"), 0),
        "unreadable": Case("no idea", 0),
        "no thought": Case(f'<answer>{{"b":{T}}}</answer>', 1),
        "text around": Case(f"well {rec(T)} bye", 2),
        "without braces": Case(said(T), 1),
        "decimals": Case(rec("[100.0,100,300,300]"), 0),
        "an overlap of one pixel": Case(rec("[299,100,499,300]"), 1),
        "an overlap of two": Case(rec("[298,100,498,300]"), 1 + 400 / 79600),
        "corners out of order": Case(rec("[300,300,100,100]"), 1),
        "no target, empty": Case(said("[]"), 0, NONE),
        "no target, a box": Case(rec(T), 1, NONE),
        "a number of 400 digits": Case(rec(f"[{'9' * 400},1,2,3]"), 1),
    }
)


# Detections


def det(*boxes: str, name: str = "plane") -> str:
    return "[" + ",".join(f'{{"bbox_2d":{box},"label":"{name}"}}' for box in boxes) + "]"


ROOT = math.sqrt(0.5)
_OD = {
    "exact": (fenced(det(T)), 1, ONE),
    "IoU 0.81: seven of ten thresholds": (fenced(det("[100,100,262,300]")), 0.7, ONE),
    "far": (fenced(det(FAR)), 0, ONE),
    "missing: 51 of 101 recalls": (fenced(det(T)), 51 / 101, TWO),
    "both": (fenced(det(U, T)), 1, TWO),
    "empty": (fenced("[]"), 0, ONE),
    "no fence": (said(det(T)), 0, ONE),
    "broken": (fenced(det(T)[:-1]), 0, ONE),
    "another class": (fenced(det(T, name="ship")), 0, ONE),
    "another case": (fenced(det(T, name="Plane")), 0, ONE),
    "one of two classes": (fenced(det(T)), 0.5, (*ONE, *true((600, 600, 700, 700), name="ship"))),
    "the last answer": (f"<think>a</think><answer>{det(U)}</answer> <answer>```json\n{det(T)}```</answer>", 1, ONE),
    "the last fence": (said(f"```json{det(U)}``` no: ```json{det(T)}```"), 1, ONE),
    "no target, None": (said("None"), 1, NONE),
    "no target, anything": (said("nothing at all"), 1, NONE),
    "no target, an empty list": (fenced("[]"), 1, NONE),
    "no target, a box": (fenced(det(T)), 0, NONE),
    "no target, an unusable box": (fenced('[{"label":"plane"}]'), 0, NONE),
}
_OD_EXCESS = {
    "superfluous": (fenced(det(T, U)), 1.0, 1),
    "superfluous, and first": (fenced(det(U, T)), 0.5, 1),
    "of an unknown class": (fenced(det(T)[:-1] + "," + det(U, name="ship")[1:]), 1.0, 1),
    "without a label": (fenced(det(T)[:-1] + f',{{"bbox_2d":{U}}}]'), 1.0, 1),
}
_OD_LAYOUT = {
    "no thought": (f"<answer>```json\n{det(T)}\n```</answer>", 1, ONE),
    "no answer tags": (f"```json\n{det(T)}\n```", 0, ONE),
    "no target, no answer tags": ("<think>a</think>None", 0, NONE),
}


def _detection(penalty: float) -> Preset:
    """The same cases; each K = 2 for J = 1 costs the factor ``penalty``."""
    cases = {name: Case(text, 1 + value, truth) for name, (text, value, truth) in _OD.items()}
    cases |= {name: Case(text, 1 + value * penalty) for name, (text, value, _) in _OD_EXCESS.items()}
    return Preset(cases | {name: Case(text, value, truth) for name, (text, value, truth) in _OD_LAYOUT.items()})


VLM_R1_DETECTION = Preset(
    {
        "exact": Case(fenced(det(T)), 2),
        "another case": Case(fenced(det(T, name="PLANE")), 2),
        "another class keeps its place": Case(fenced(det(T, name="ship")), 1.3),
        "near": Case(fenced(det(NEAR)), 1 + 0.7 * 0.6 + 0.3),
        "IoU 1/3 is no pair": Case(fenced(det("[200,100,400,300]")), 1),
        "far": Case(fenced(det(FAR)), 1),
        "one of two and a stray": Case(fenced(det(T, FAR.replace("600", "10"))), 1.5, TWO),
        "superfluous": Case(fenced(det(T, U)), 1 + 0.7 + 0.3 * 0.75),
        "twice": Case(fenced(det(T, T)), 1 + 0.7 + 0.3 * 0.75),
        "missing": Case(fenced(det(T)), 1 + 0.35 + 0.3 * 0.75, TWO),
        "both": Case(fenced(det(U, T)), 2, TWO),
        "empty": Case(fenced("[]"), 1),
        "unreadable": Case(said("nothing"), 1),
        "none": Case(said("None"), 1),
        "no tags": Case(f"```json\n{det(T)}\n```", 1),
        "the first fence": Case(said(f"```json{det(T)}``` or ```json{det(U)}```"), 2),
        "the last answer": Case(f"{fenced(det(U))}<answer>```json{det(T)}```</answer>", 2),
        "an object without a box": Case(fenced(det(T)[:-1] + ',{"label":"plane"}]'), 1 + 0.7 + 0.3 * 0.75),
        "no target, None": Case(said("None"), 2, NONE),
        "no target, none.": Case(said(" none. "), 2, NONE),
        "no target, an empty list": Case(fenced("[]"), 1, NONE),
        "no target, a box": Case(fenced(det(T)), 1, NONE),
        "no target, no tags": Case("none", 1, NONE),
    }
)


# Boxes with two points, and masks


def gres(*boxes: str) -> str:
    points = '"keypoint1":[150,150],"keypoint2":[250,250]'
    return "[" + ",".join(f'{{"bbox_2d":{box},{points}}}' for box in boxes) + "]"


GEO_R1_GRES = Preset(
    {
        "exact": Case(fenced(gres(T)), 2),  # a mask that is 20 pixels too large is cut at its box
        "near": Case(fenced(gres(NEAR)), 1.6),
        "far": Case(fenced(gres("[400,400,500,500]")), 1),
        "superfluous": Case(fenced(gres(T, U)), 1.8),  # 40,000 of 50,000
        "missing": Case(fenced(gres(T)), 1.8, TWO),
        "no fence": Case(said(f"here: {gres(T)}."), 2),
        "a fence in the thought": Case(fenced(gres(T), f"```json{gres(FAR)}```"), 1),
        "an object without points is left out": Case(fenced(gres(T)[:-1] + f',{{"bbox_2d":{U}}}]'), 2),
        "no object with points": Case(fenced(f'[{{"bbox_2d":{T}}}]'), 1),
        "no dictionary": Case(fenced(f"[3,{gres(T)[1:]}"), 1),
        "empty": Case(said("None"), 1),
        "unreadable": Case(said("a roof"), 1),
        "wrong layout": Case(f"```json\n{gres(T)}\n```", 1),
        "no target, None": Case(said("None"), 1, NONE),
        "no target, a box": Case(fenced(gres(T)), 1, NONE),
    },
    prompt=KEYPOINTS,
    grown=20,
)


def boxes(*items: str) -> str:
    return "[" + ",".join(f'{{"bbox_2d":{item}}}' for item in items) + "]"


def _sam_r1(pays: dict[float, float]) -> Preset:
    """The mask's IoU is that of the boxes; ``pays`` gives the reward of each."""
    return Preset(
        {
            "exact": Case(said(boxes(T)), 2 + pays[1.0]),
            "IoU 0.81": Case(said(boxes("[100,100,262,300]")), 2 + pays[0.81]),
            "IoU 0.8": Case(said(boxes("[100,100,260,300]")), 2 + pays[0.8]),
            "IoU 0.75": Case(said(boxes("[100,100,250,300]")), 2 + pays[0.75]),
            "near": Case(said(boxes(NEAR)), 2 + pays[0.6]),
            "IoU 0.5": Case(said(boxes("[100,100,200,300]")), 2),
            "far": Case(said(boxes(FAR)), 2),
            "superfluous": Case(said(boxes(T, U)), 2 + pays[0.8]),
            "missing": Case(said(boxes(T)), 2 + pays[0.8], TWO),
            "empty": Case(said("[]"), 2),
            "unreadable": Case(said(boxes(T)[:-1]), 1),
            "wrong layout": Case(f"<answer>{boxes(T)}</answer>", 1 + pays[1.0]),
            "no target, empty": Case(said("[]"), 6, NONE),
            "no target, a box": Case(said(boxes(T)), 2, NONE),
        }
    )


# Boxes


REMOTE_REASONER = Preset(
    {
        "exact": Case(said(T), 2),
        "nested": Case(said(f"[{T}]"), 2),
        "near": Case(said(NEAR), 1.6),
        "far": Case(said(FAR), 1),
        "superfluous": Case(said(f"[{T},{U}]"), 1.5),
        "missing": Case(said(T), 1.5, TWO),
        "both, swapped": Case(said(f"[{U},{T}]"), 2, TWO),
        "a list of two numbers is dropped": Case(said(f"[{T},[1,2]]"), 2),
        "empty": Case(said("[]"), 1),
        "a word": Case(said("none"), 1),
        "text behind the boxes": Case(said(f"[{T}] done"), 1),
        "no tags: all of the text": Case(f"[{T}]", 1),
        "text on a line of its own behind": Case(said(T) + "\nbye", 1),  # read, though the layout is wrong
        "text in front": Case("so " + said(T), 0),
        "no target, empty": Case(said("[]"), 2, NONE),
        "no target, a box": Case(said(T), 1, NONE),
    }
)
RSTHINKER = Preset(
    {
        "exact": Case(said(f"[{T}]"), 2),
        "flat": Case(said(T), 2),
        "near": Case(said(f"[{NEAR}]"), 1.6),
        "far": Case(said(f"[{FAR}]"), 1),
        "superfluous": Case(said(f"[{T},{U}]"), 1.5),
        "missing": Case(said(f"[{T}]"), 1.5, TWO),
        "both, swapped": Case(said(f"[{U},{T}]"), 2, TWO),
        "empty": Case(said("[]"), 1),
        "unreadable": Case(said("here"), 1),
        "five numbers": Case(said("[100,100,300,300,5]"), 1),
        "no tags: all of the text": Case(f"[{T}]", 1),
        "no answer: the thought's numbers count": Case(f"<think>1</think>[{T}]", 0),
        "no target, empty": Case(said("[]"), 2, NONE),
        "no target, a box": Case(said(f"[{T}]"), 1, NONE),
    }
)


def eot(box: str, thought: str = "A roof.") -> str:
    return f'<think>{thought}</think>{{"bbox":{box}}}'


WHOLE, HALF = true((0, 0, 1000, 1000)), "[0,0,500,1000]"
RS_EOT = Preset(  # E is 0.2 in all cases; -0.9 * 0.2 / 0.8 = -0.225
    {
        "exact": Case(eot("[0,0,1000,1000]"), 1, WHOLE),
        "near: (0.5 - 0.2) / 0.8": Case(eot(HALF), 0.4375, WHOLE),
        "far": Case(eot(FAR), -0.125),
        "superfluous: the first": Case(eot(HALF) + eot("[0,0,1000,1000]"), 0.4375, WHOLE),
        "missing: one box around both": Case(eot(T), 0.9 * (1 / 9 - 0.2) / 0.8 + 0.1, TWO),
        "behind Answer:": Case("<think>a</think>Answer: " + eot("[0,0,1000,1000]")[23:], 1, WHOLE),
        "corners out of order": Case(eot("[1000,1000,0,0]"), 1, WHOLE),
        "a bracket alone": Case(f"<think>a</think>{HALF}", 0.3375 + 0.025, WHOLE),
        "no end of a thought": Case(f'{{"bbox":{HALF}}}', -0.225, WHOLE),
        "no opening tag": Case('a</think>{"bbox":[0,0,1000,1000]}', 1, WHOLE),
        "beyond the frame": Case(eot("[0,0,500,1001]"), -0.225 + 0.05, WHOLE),
        "empty": Case("<think>a</think>", -0.225 + 0.05, WHOLE),
        "no area": Case(eot("[0,0,0,1000]"), -0.125, WHOLE),
        "five numbers": Case(eot("[0,0,500,1000,7]"), 0.4375, WHOLE),
        "a box in the thought alone": Case("<think>bbox: [0,0,1,1]</think>no", -0.225 + 0.025, WHOLE),
        "a quoted one": Case('<think>"bbox": [0,0,1,1]</think>no', -0.225 + 0.05, WHOLE),
        "spaces in tags": Case('a < / think > {"bbox":[0,0,1000,1000]}', 1, WHOLE),
        "no target, empty": Case("<think>a</think>", 0.05, NONE),
        "no target, a box": Case(eot(T), 0.1, NONE),
    }
)


def hyre(box: str) -> str:
    return said(f'{{"bbox":{box}}}')


RS_HYRE_R1 = Preset(
    {
        "exact": Case(hyre(T), 0.8),
        "near": Case(hyre(NEAR), 0.52),
        "IoU 0.4 pays 0.32": Case(hyre("[100,100,180,300]"), 0.7 * 0.32 + 0.1),
        "IoU 0.25": Case(hyre("[100,100,150,300]"), 0.1),
        "far": Case(hyre(FAR), 0.1),
        "flat": Case(said(T), 0.8),
        "superfluous: the first": Case(said(f'[{{"bbox":{T}}},{{"bbox":{U}}}]'), 0.8),
        "missing: one box around both": Case(hyre(T), 0.1, TWO),
        "its other key": Case(rec(T), 0.8),
        "in a fence": Case(fenced(f'{{"bbox":{T}}}'), 0.8),
        "in a sentence": Case(said("The box is [100, 100, 300, 300]."), 0.8),
        "empty": Case(said("[]"), 0.1),
        "unreadable": Case(said("a roof"), 0.1),
        "no thought": Case(f'<answer>{{"bbox":{T}}}</answer>', 0.7),
        "tags in capitals": Case(hyre(T).replace("think>", "THINK>"), 0.8),
        "the answer's, too": Case(hyre(T).replace("answer>", "ANSWER>"), 0.7),
        "corners out of order": Case(hyre("[300,300,100,100]"), 0.1),
        "no target, empty": Case(said("[]"), 0.1, NONE),
        "no target, a box": Case(hyre(T), 0.1, NONE),
    }
)


def hdet(*items: str, name: str = "plane") -> str:
    return said("[" + ",".join(f'{{"bbox":{box},"label":"{name}"}}' for box in items) + "]")


RS_HYRE_R1_DETECTION = Preset(
    {
        "exact": Case(hdet(T), 0.8),
        "both, swapped": Case(hdet(U, T), 0.8, TWO),
        "one of two and a stray": Case(hdet(T, "[0,0,50,50]"), 0.45, TWO),
        "missing: 2/3": Case(hdet(T), 0.7 * 2 / 3 + 0.1, TWO),
        "near: IoU 0.4 counts half": Case(hdet("[100,100,180,300]"), 0.45),
        "ten times: 10/11": Case(hdet(*["[100,100,180,300]"] * 10), 0.7 * 10 / 11 + 0.1),
        "exact, twice: 2/3": Case(hdet(T, T), 0.7 * 2 / 3 + 0.1),
        "far": Case(hdet(FAR), 0.1),
        "another class": Case(hdet(T, name="ship"), 0.1),
        "another case": Case(hdet(T, name=" Plane"), 0.8),
        "another key": Case(said(det(T)), 0.1),
        "corners out of order": Case(hdet("[300,300,100,100]"), 0.8),
        "empty": Case(said("[]"), 0.1),
        "unreadable": Case(said("a roof"), 0.1),
        "no thought": Case(hdet(T)[len("<think>A roof.</think>") :], 0.7),
        "no target, empty": Case(said("[]"), 0.8, NONE),
        "no target, unreadable": Case(said("a roof"), 0.8, NONE),
        "no target, a box": Case(hdet(T), 0.1, NONE),
    }
)
RESAP = Preset(
    {
        "exact": Case(said(T), 1),
        "superfluous": Case(said(f"[{T},[0,0,9,9]]"), 1),
        "the wrong one first": Case(said(f"[[0,0,9,9],{T}]"), 0),
        "near": Case(said("[200,100,400,300]"), 1 / 3),
        "far": Case(said(FAR), 0),
        "missing: one box around both": Case(said(T), 40000 / 360000, TWO),
        "corners out of order": Case(said("[300,300,100,100]"), 1),
        "cut to the frame": Case(said("[-50,-50,2000,2000]"), 0.999**2, WHOLE),
        "rounded": Case(said("[100.4,99.6,300.4,299.6]"), 1),
        "empty": Case(said("[]"), 0),
        "unreadable": Case("no idea", 0),
        "text in the answer": Case(said(f"box {T}"), 0),
        "numbers as text": Case(said("['100','100','300','300']"), 0),
        "five numbers": Case(said("[100,100,300,300,5]"), 0),
        "tags in capitals, attributes": Case(f"<ANSWER id=1> {T} </Answer>", 1),
        "a later one that cannot be read": Case(f"{said(T)}<answer>[x]</answer>", 0),
        "an earlier one that is no list": Case(f"<answer>hm</answer>{said(T)}", 1),
        "no target, empty": Case(said("[]"), 0, NONE),
        "no target, a box": Case(said(T), 0, NONE),
    }
)
RESAP_POINTS = Preset(  # the labels are 1, 0, 1, 1
    {
        "exact": Case(said("[1,0,1,1]"), 1),
        "missing": Case(said("[1,0]"), 0.5),
        "superfluous": Case(said("[1,0,1,1,0,0]"), 1),
        "all on the target": Case(said("[1,1,1,1]"), 0.75),
        "all wrong": Case(said("[0,1,0,0]"), 0),
        "a decimal": Case(said("[1.0,0,1,1]"), 0),
        "a two": Case(said("[2,0,1,1]"), 0),
        "as text": Case(said("['1','0',\"1\",'1']"), 1),
        "booleans": Case(said("[True, False, True, True]"), 1),
        "empty": Case(said("[]"), 0),
        "unreadable": Case(said("1, 0, 1, 1"), 0),
        "no tags": Case("[1,0,1,1]", 0),
        "nested": Case(said("[[1,0,1,1]]"), 0),
    },
    prompt=LABELS,
    labels={"point_labels": (1, 0, 1, 1)},
)

# SocioReasoner: a canvas of 756, exp(-2) = 0.135335

SOCIO_1 = Preset(
    {
        "exact": Case(said(boxes(T)), 4),
        "one threshold of two": Case(said(boxes("[130,100,330,300]")), 3),  # IoU 0.74, edges off by 15
        "far": Case(said(boxes("[500,500,700,700]")), 2),
        "superfluous": Case(said(boxes(T, U)), 2 + 1 / 2 + math.exp(-2)),
        "twice": Case(said(boxes(T, T)), 2 + 1 / 2 + math.exp(-2)),
        "missing": Case(said(boxes(T)), 2 + 1 / 2 + math.exp(-1), TWO),
        "both, swapped": Case(said(boxes(U, T)), 4, TWO),
        "empty": Case(said("[]"), 1 + math.exp(-2)),
        "unreadable": Case(said(boxes(T)[:-1]), 1),
        "another key beside": Case(said(boxes(T)[:-2] + ',"label":"x"}]'), 3),
        "a box missing voids the boxes, not their number": Case(said(boxes(T)[:-1] + ',{"box":1}]'), 2.5, TWO),
        "wrong layout": Case(" " + said(boxes(T)), 3),
        "in a fence": Case(fenced(boxes(T)), 1),
        "no target, empty": Case(said("[]"), 2, NONE),
        "no target, a box": Case(said(boxes(T)), 2, NONE),
        "no target, unreadable": Case(said("x"), 1, NONE),
    },
    side=756,
)


def pointed(*items: str, points: str = "[[150,150],[250,250]]") -> str:
    return "[" + ",".join(f'{{"bbox_2d":{box},"points":{points}}}' for box in items) + "]"


SOCIO_2 = Preset(  # exp(-1/8) = 0.882497
    {
        "two points": Case(said(pointed(T)), 4),
        "three": Case(said(pointed(T, points="[[150,150],[200,200],[250,250]]")), 3 + math.exp(-1 / 8)),
        "one": Case(said(pointed(T, points="[[150,150]]")), 3 + math.exp(-1 / 8)),
        "six": Case(said(pointed(T, points=str([[150, 150]] * 6))), 3 + math.exp(-2)),
        "none": Case(said(pointed(T, points="[]")), 3 + math.exp(-0.5)),
        "another box": Case(said(pointed(NEAR, points="[[160,150],[250,250]]")), 2 + 0.6),
        "a point on the edge": Case(said(pointed(T, points="[[100,150],[250,250]]")), 3),
        "superfluous": Case(said(pointed(T, U)), 2.8),
        "decimals": Case(said(pointed("[100.0,100,300,300]")), 4),
        "missing": Case(said(pointed(T)), 3.8, TWO),
        "no points key": Case(said(boxes(T)), 1),
        "a point that is none": Case(said(pointed(T, points="[150,150]")), 1),
        "unreadable": Case(said(pointed(T)[:-1]), 1),
        "empty": Case(said("[]"), 1),
        "wrong layout": Case(f"<answer>{pointed(T)}</answer>", 3),
        "no target, empty": Case(said("[]"), 1, NONE),
        "no target, a box": Case(said(pointed(T)), 2, NONE),
    },
    prompt=POINTS_IN_BOX,
    side=756,
    previous=said(boxes(T)),
)

# Scene graphs


def graph(*items: str, relations: str = "[]") -> str:
    listed = ",".join(f'{{"id":"plane.{index}","bbox":{box}}}' for index, box in enumerate(items))
    return f'{{"objects":[{listed}],"relationships":{relations}}}'


R1_SGG_BOXES = Preset(
    {
        "exact": Case(said(graph(T)), 3),
        "in a fence": Case(fenced(graph(T)), 3),
        "near: IoU 0.6, L1 0.1": Case(said(graph(NEAR)), 1 + 2 * (1.2 + 5 * math.exp(-0.1)) / 7),
        "far: IoU 0, L1 2": Case(said(graph(FAR)), 1 + 10 * math.exp(-2) / 7),
        "superfluous": Case(said(graph(T, U)), 3),
        "missing": Case(said(graph(T)), 2, TWO),
        "both, swapped": Case(said(graph(U, T)), 3, TWO),
        "empty": Case(said(graph()), 1),
        "unreadable": Case(said(graph(T)[:-1]), 0),
        "no tags": Case(graph(T), 2.5),
        "an answer that never closes": Case(f"<think>a</think><answer>{graph(T)}", 2.5),
        "a relationship of what is not there": Case(
            said(graph(T, relations='[{"subject":"plane.0","predicate":"on","object":"sea.1"}]')), 2
        ),
        "one of what is": Case(
            said(graph(T, relations='[{"subject":"plane.0","predicate":"on","object":"plane.0"}]')), 3
        ),
        "no relationships": Case(said(f'{{"objects":[{{"id":"plane.0","bbox":{T}}}]}}'), 2),
        "an object without a box": Case(said('{"objects":[{"id":"plane.0"}],"relationships":[]}'), 1),
        "no target, empty": Case(said(graph()), 1, NONE),
        "no target, a box": Case(said(graph(T)), 1, NONE),
    }
)


def beside(subject: int = 0, other: int = 1, predicate: str = "next to") -> str:
    return f'{{"subject":"plane.{subject}","predicate":"{predicate}","object":"plane.{other}"}}'


R1_SGG = Preset(  # of two: the first is next to the second
    {
        "exact": Case(said(graph(T, U, relations=f"[{beside()}]")), 10, TWO),
        "swapped": Case(said(graph(U, T, relations=f"[{beside(1, 0)}]")), 10, TWO),
        "capitals": Case(said(graph(T, U, relations=f"[{beside(predicate='Next To')}]")), 10, TWO),
        "another predicate": Case(said(graph(T, U, relations=f"[{beside(predicate='on')}]")), 5, TWO),
        "the other way round": Case(said(graph(T, U, relations=f"[{beside(1, 0)}]")), 5, TWO),
        "none": Case(said(graph(T, U)), 5, TWO),
        "missing": Case(said(graph(T)), 3, TWO),
        "superfluous": Case(said(graph(T, U, FAR, relations=f"[{beside()}]")), 10, TWO),
        "of two the last": Case(said(graph(T, U, relations=f"[{beside()},{beside(predicate='on')}]")), 5, TWO),
        "one of what is not there": Case(said(graph(T, U, relations=f"[{beside()},{beside(0, 9)}]")), 9, TWO),
        "far": Case(said(graph(FAR)), 3 + 10 * math.exp(-2) / 7),  # the class is right
        "no tags": Case(graph(T, U, relations=f"[{beside()}]"), 9.5, TWO),
        "empty": Case(said(graph()), 1, TWO),
        "unreadable": Case(said(graph(T)[:-1]), 0, TWO),
        "no target, empty": Case(said(graph()), 1, NONE),
        "no target, a box": Case(said(graph(T)), 1, NONE),
    },
    labels={"relations": ((0, "next to", 1),)},
)
CROSS_VIEW = Preset(  # the right one is B
    {
        "exact": Case(said("B", "x"), 4),
        "512 tokens": Case(said("B", "x"), 3.75, tokens=512),
        "1024": Case(said("B", "x"), 3.5, tokens=1024),
        "1536 rise again": Case(said("B", "x"), 3.75, tokens=1536),
        "2048 are as good as none": Case(said("B", "x"), 4, tokens=2048),
        "wrong": Case(said("C", "x"), 3),
        "a sentence": Case(said("The answer is B.", "x"), 4),
        "a letter before a word": Case(said("B is the match", "x"), 3),
        "a small letter": Case(said("b", "x"), 4),  # all is capitals before it is read
        "of two the last": Case(said("A. or B.", "x"), 4),
        "no tags": Case("so B", 3),
        "no tags, wrong": Case("so C", 2),
        "a part of a word": Case(said("numb", "x"), 3),
        "empty": Case("", 2),
        "six of seven runs are different": Case("one two three four five six " * 2, 1 + 6 / 7),
    },
    prompt=CHOICE,
    labels={"choice": "B"},
)

# One object with two points on a canvas of 840; the points are 707 apart from none of the true ones

_SZ_TRUTH = true((104, 104, 304, 304), points=[((250, 250), (150, 150))])


def sz(box: str = T, one: str = "[150,150]", two: str = "[250,250]", keys: str = "points") -> str:
    return f'{{"bbox":{box},"{keys}_1":{one},"{keys}_2":{two}}}'


def _sz(text: str, reward: float, truth: Any = _SZ_TRUTH) -> Case:
    return Case(text, reward, truth)


SEG_ZERO_PRESET = Preset(
    {
        "exact": _sz(said(sz()), 5),  # inclusive IoU 197^2 / (2 * 201^2 - 197^2) = 0.924, edges off by 4
        "near: edges off by 13": _sz(said(sz("[130,104,330,304]")), 4),
        "edges off by 10": _sz(said(sz("[114,114,314,314]")), 4),
        "far": _sz(said(sz("[600,600,800,800]", "[650,650]", "[700,700]")), 2),
        "single quotes": _sz(said(sz().replace('"', "'")), 1),
        "point_1": _sz(said(sz(keys="point")), 4),
        "an object in the thought": _sz(said(sz(), 'a {"bbox":[0,0,1,1]}'), 1),
        "empty braces before": _sz(said(sz(), "a {}"), 5),
        "text for a box": _sz(said(sz('"abcd"')), 2),
        "another key of a box": _sz(said(sz().replace("bbox", "bbox_2d")), 5),
        "a point outside its box": _sz(said(sz(one="[50,50]")), 4),
        "decimals are cut": _sz(said(sz("[100,100,300,250]", two="[250,250.9]")), 4),  # the point is at (250, 250)
        "superfluous": _sz(said(f"[{sz()},{sz(U)}]"), 5),
        "missing: one box around both": _sz(
            said(sz()), 5, true((104, 104, 204, 304), (204, 104, 304, 304), points=[((150, 150),), ((250, 250),)])
        ),
        "no tags": _sz(sz(), 4),
        "white space in front": _sz(" " + said(sz()), 4),
        "empty": _sz(said("[]"), 1),
        "unreadable": _sz(said(sz()[:-1]), 1),
        "no target, empty": _sz(said("[]"), 1, NONE),
        "no target, a box": _sz(said(sz()), 2, NONE),
    },
    prompt=SEG_ZERO,
    side=840,
)


def vr(*items: tuple[str, str]) -> str:
    return "[" + ",".join(f'{{"bbox_2d":{box},"point_2d":{point}}}' for box, point in items) + "]"


_VR_ONE = true((100, 100, 300, 300), points=[((200, 200),)])
_VR_TWO = true((100, 100, 300, 300), (600, 600, 700, 700), points=[((200, 200),), ((650, 650),)])
_FIRST, _SECOND = (T, "[200,200]"), (U, "[650,650]")
VISIONREASONER_PRESET = Preset(
    {
        "exact": Case(said(vr(_FIRST)), 7, _VR_ONE),
        "near: IoU 0.6, edges off by 12.5": Case(said(vr(("[150,100,350,300]", "[220,200]"))), 6, _VR_ONE),
        "far": Case(said(vr(_SECOND)), 4, _VR_ONE),
        "superfluous": Case(said(vr(_FIRST, _SECOND)), 5.5, _VR_ONE),
        "missing": Case(said(vr(_FIRST)), 5.5, _VR_TWO),
        "both, swapped": Case(said(vr(_SECOND, _FIRST)), 7, _VR_TWO),
        "empty": Case(said("[]"), 2, _VR_ONE),
        "broken": Case(said(vr(_FIRST)[:-1]), 2, _VR_ONE),
        "in a fence": Case(fenced(vr(_FIRST)), 2, _VR_ONE),
        "a field missing voids the boxes": Case(
            said(vr(_FIRST)[:-1] + f',{{"bbox_2d":{U}}}]'), 1 + 2 * 3 / 4 + 1, _VR_TWO
        ),
        "two sentences again": Case(said(vr(_FIRST), "It. A. A. A."), 6, _VR_ONE),
        "wrong layout": Case(" " + said(vr(_FIRST)), 6, _VR_ONE),
        "no target, empty": Case(said("[]"), 2, NONE),
        "no target, a box": Case(said(vr(_FIRST)), 4, NONE),
    },
    prompt=VISIONREASONER,
    side=840,
)


def cue(*items: str, points: str = "[[150,150],[250,250]]") -> str:
    return "[" + ",".join(f'{{"bbox_2d":{box},"positive_points":{points}}}' for box in items) + "]"


_CUE_ONE = true((100, 100, 300, 300), points=[((150.5, 150.5), (250.5, 250.5))])
_CUE_TWO = true(
    (100, 100, 300, 300),
    (600, 600, 700, 700),
    points=[((150.5, 150.5), (250.5, 250.5)), ((640.5, 650.5), (660.5, 650.5))],
)
HYBRID = Preset(
    {
        "exact": Case(said(cue(T)), 7, _CUE_ONE),
        "near: IoU 195/205, edges off by 2.5": Case(said(cue("[105,100,305,300]")), 5 + 3 * 195 / 205 - 1, _CUE_ONE),
        "points off by 10": Case(said(cue(T, points="[[160,150],[260,250]]")), 6 + math.exp(-0.28), _CUE_ONE),
        "far": Case(said(cue("[800,800,900,900]", points="[[850,850],[860,860]]")), 2, _CUE_ONE),
        "the whole image": Case(said(cue("[0,0,1000,1000]")), 2 + 0.04 + 1 + 0.08, _CUE_ONE),
        "superfluous": Case(said(cue(T)[:-1] + "," + cue(U, points="[[640,650],[660,650]]")[1:]), 5.1, _CUE_ONE),
        "missing": Case(said(cue(T)), 2 + 3 / 2 + 2 * 0.8, _CUE_TWO),
        "twice": Case(said(cue(T, T)), 7, _CUE_ONE),
        "empty": Case(said("[]"), 2, _CUE_ONE),
        "unreadable": Case(said(cue(T)[:-1]), 1, _CUE_ONE),
        "wrong layout": Case(f"<answer>{cue(T)}</answer>", 6, _CUE_ONE),
        "no target, empty": Case(said("[]"), 7, NONE),
        "no target, a box": Case(said(cue(T)), 2, NONE),
    },
    prompt=BOX_2,
)

PRESETS = {
    "seg_zero": SEG_ZERO_PRESET,
    "visionreasoner": VISIONREASONER_PRESET,
    "geo_r1_rec": GEO_R1_REC,
    "geo_r1_ovd": _detection(ROOT),
    "vlm_r1_od_length": _detection(0.5),
    "vlm_r1_detection": VLM_R1_DETECTION,
    "geo_r1_gres": GEO_R1_GRES,
    "sam_r1": _sam_r1({1.0: 4, 0.81: 4, 0.8: 3, 0.75: 3, 0.6: 2}),
    "sam_r1_fixed": _sam_r1({1.0: 4, 0.81: 4, 0.8: 4, 0.75: 4, 0.6: 4}),
    "remote_reasoner": REMOTE_REASONER,
    "rsthinker": RSTHINKER,
    "rs_eot": RS_EOT,
    "rs_hyre_r1": RS_HYRE_R1,
    "rs_hyre_r1_detection": RS_HYRE_R1_DETECTION,
    "resap": RESAP,
    "resap_points": RESAP_POINTS,
    "socio_reasoner_turn1": SOCIO_1,
    "socio_reasoner_turn2": SOCIO_2,
    "r1_sgg_boxes": R1_SGG_BOXES,
    "geo_r1_cross_view": CROSS_VIEW,
    "r1_sgg": R1_SGG,
    "hybrid": HYBRID,
}
