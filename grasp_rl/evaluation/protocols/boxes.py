"""Box scores by the rules of published evaluators: of one box read off the answer's text, or as a detector's."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from grasp_rl.config.errors import require
from grasp_rl.evaluation.metrics import SampleScore, of_answers
from grasp_rl.evaluation.pairs import Pair
from grasp_rl.geometry import pairwise_box_iou
from grasp_rl.types import Box
from grasp_rl.utils.files import Record

_INTEGERS = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]")
_NUMBER = re.compile(r"-?\d*\.\d+|-?\d+")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class BoxProtocol:
    """One box per question: the share whose IoU with the true box is high enough (``acc@t``), and the mean ``box_iou``.

    Over the samples with exactly one true box (``scored`` of them). An answer without a readable box is wrong.

    Raises:
        ConfigError: an argument has no such value.
    """

    name: str
    """Printed with every number."""
    reading: Literal["last_integers", "first_numbers"] = "last_integers"
    """last_integers: the last [a, b, c, d] of whole numbers within <answer> that stands in an object, {...};
    first_numbers: the first four numbers of the whole text."""
    thresholds: tuple[float, ...] = (0.5,)
    strict: bool = True
    """Whether an IoU must be greater than the threshold, not equal."""
    sides_for_corners: bool = False
    """Whether both boxes' second corner is taken for width and height. Wrong for corners: it makes boxes larger and
    overlaps easier."""

    def __post_init__(self) -> None:
        require(
            self.reading in ("last_integers", "first_numbers"),
            "evaluation.protocol.reading",
            self.reading,
            "last_integers or first_numbers",
        )
        object.__setattr__(self, "thresholds", tuple(float(t) for t in self.thresholds))
        require(
            len(self.thresholds) > 0, "evaluation.protocol.thresholds", list(self.thresholds), "one or more numbers"
        )

    @property
    def headline(self) -> str:
        """The metric that a table leads with."""
        return f"acc@{self.thresholds[0]:g}"

    @property
    def warning(self) -> str | None:
        """What must be said beside the numbers, or None."""
        if not self.sides_for_corners:
            return None
        return f"{self.name} takes x1 y1 x2 y2 for x y width height: its scores are higher than the boxes deserve"

    def iou(self, score: SampleScore) -> float | None:
        """IoU of the box that was read with the true one, 0 without one; None unless there is exactly one true box."""
        pair = Pair.of(score)
        truth = pair.target_boxes
        if truth is None or len(truth) != 1:
            return None
        box = self.box(pair)
        if box is None:
            return 0.0
        ours, true = (self._as_read(b) for b in (box, truth[0]))
        return float(pairwise_box_iou([ours], [true])[0, 0])

    def box(self, pair: Pair) -> Box | None:
        """The answer's box in original-image pixels; of an answer without text the last one given."""
        text = pair.record.get("text")
        if not text:
            given = [box for box in pair.boxes if box is not None]
            return (given[-1] if self.reading == "last_integers" else given[0]) if given else None
        numbers = self._numbers(text)
        if numbers is None:
            return None
        (height, width), (frame_width, frame_height) = pair.size, pair.frame
        x, y = width / frame_width, height / frame_height
        return numbers[0] * x, numbers[1] * y, numbers[2] * x, numbers[3] * y

    def _numbers(self, text: str) -> Box | None:
        if self.reading == "first_numbers":
            matches = _NUMBER.findall(text)[:4]
            return _four(matches) if len(matches) == 4 else None
        answer = _ANSWER.search(text)
        content = answer[1] if answer else ""
        boxes = _INTEGERS.findall(content[content.find("{") + 1 : content.rfind("}") + 1]) if "{" in content else []
        return _four(boxes[-1]) if boxes else None

    def _as_read(self, box: Box) -> Box:
        if not self.sides_for_corners:
            return box
        return box[0], box[1], box[0] + box[2], box[1] + box[3]

    def summarise(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """:meth:`numbers`, and what no protocol decides about."""
        about: dict[str, float] = {"samples": len(scores), **of_answers(scores)}
        return about | self.numbers(scores, bootstrap_samples=bootstrap_samples, seed=seed)

    def numbers(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """``scored``, ``box_iou`` and ``acc@t``, by flat name."""
        ious = np.array([iou for score in scores if (iou := self.iou(score)) is not None])
        result: dict[str, float] = {"scored": len(ious)}
        if len(ious):
            result["box_iou"] = float(ious.mean())
            for t in self.thresholds:
                result[f"acc@{t:g}"] = float((ious > t if self.strict else ious >= t).mean())
        return result


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """COCO's average precision of all boxes, each with score 1, so that nothing is ranked.

    Every sample is an image of its own, its class the attribute ``category``; a question about an absent class has no
    place in it and is left out.
    """

    name: str
    headline: str = "ap"

    def iou(self, score: SampleScore) -> float | None:
        """Box IoU under the best matching, as recorded."""
        return score.box_iou

    def summarise(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """:meth:`numbers`, and what no protocol decides about."""
        about: dict[str, float] = {"samples": len(scores), **of_answers(scores)}
        return about | self.numbers(scores, bootstrap_samples=bootstrap_samples, seed=seed)

    def numbers(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """``scored``, ``ap`` (IoU 0.50 to 0.95), ``ap50`` and ``ap75``, by flat name."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        pairs = [pair for score in scores if (pair := Pair.of(score)).target_boxes]
        if not pairs:
            return {"scored": 0}
        names = sorted({str(pair.record.get("attributes", {}).get("category", "")) for pair in pairs})
        truth: list[Record] = []
        detections: list[Record] = []
        for image, pair in enumerate(pairs, 1):
            category = names.index(str(pair.record.get("attributes", {}).get("category", ""))) + 1
            shared: Record = {"image_id": image, "category_id": category}
            for box in pair.target_boxes or ():
                sides = _sides(box)
                area = sides[2] * sides[3]
                truth.append(shared | {"id": len(truth) + 1, "bbox": sides, "area": area, "iscrowd": 0})
            detections += [shared | {"bbox": _sides(box), "score": 1.0} for box in pair.boxes if box is not None]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            known = COCO()
            known.dataset = {
                "images": [{"id": image} for image in range(1, len(pairs) + 1)],
                "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
                "annotations": truth,
            }
            known.createIndex()
            if not detections:
                return {"scored": len(pairs), "ap": 0.0, "ap50": 0.0, "ap75": 0.0}
            detected = COCO()
            detected.dataset = known.dataset | {
                "annotations": [
                    row | {"id": n, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
                    for n, row in enumerate(detections, 1)
                ]
            }
            detected.createIndex()
            scored = COCOeval(known, detected, "bbox")
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
        ap, ap50, ap75 = (float(value) for value in scored.stats[:3])
        return {"scored": len(pairs), "ap": ap, "ap50": ap50, "ap75": ap75}


def _four(values: Sequence[str]) -> Box:
    a, b, c, d = (float(value) for value in values)
    return a, b, c, d


def _sides(box: Box) -> list[float]:
    """[x, y, width, height]"""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
