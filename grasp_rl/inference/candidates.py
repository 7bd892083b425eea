"""A second question: which of the points on a grid in the boxes lie on the target (ReSaP).

The labels that the policy is sure of become foreground and background points of the segmenter's prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from grasp_rl.config.schema import CandidatesConfig, ParsingConfig
from grasp_rl.data.candidates import candidate_grid
from grasp_rl.interfaces import Policy
from grasp_rl.prompts.parse import parse
from grasp_rl.types import Answer, Completion, Image, ParseStatus, Point
from grasp_rl.utils.files import Record


@dataclass(frozen=True, kw_only=True)
class LabelledPoint:
    """A candidate point and what the policy says of it."""

    point: Point
    """In original-image pixels."""
    label: int
    """1 on the target, 0 off it."""
    confidence: float
    """Probability of the token that says so."""


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What the policy said about the candidate points of one answer."""

    points: tuple[LabelledPoint, ...]
    """All of them, sure or not; () where the answer could not be read or has another number of labels."""
    text: str
    """The completion; empty where nothing was asked."""

    @property
    def record(self) -> Record:
        """As a record keeps it."""
        points = [[*p.point, p.label, p.confidence] for p in self.points]
        return {"text": self.text, "points": points}

    @staticmethod
    def of(record: Record) -> Labelling:
        """What :attr:`record` says."""
        points = tuple(
            LabelledPoint(point=(x, y), label=int(label), confidence=confidence)
            for x, y, label, confidence in record["points"]
        )
        return Labelling(points=points, text=record["text"])


NOTHING = Labelling(points=(), text="")


def ask(
    policy: Policy,
    images: Sequence[Image],
    queries: Sequence[str],
    answers: Sequence[Answer],
    options: CandidatesConfig,
    *,
    max_new_tokens: int,
) -> list[Labelling]:
    """The labels of the candidate points in the boxes of each answer, greedily; nothing for an answer without boxes.

    Args:
        policy: is asked.
        images: N, [H, W, 3] uint8 RGB.
        queries: N questions, the same as for the boxes.
        answers: N, boxes in original-image pixels.
        options: grid and scheme.
        max_new_tokens: of an answer.
    """
    assert options.prompt is not None
    scheme = options.prompt
    grids = [
        [
            point
            for item in answer.prompts
            if item.box is not None
            for point in candidate_grid(
                item.box, (image.shape[0], image.shape[1]), alpha=options.alpha, most=options.most
            )
        ]
        for image, answer in zip(images, answers, strict=True)
    ]
    asked = [number for number, grid in enumerate(grids) if grid]
    result = [NOTHING] * len(answers)
    if not asked:
        return result
    prompts = [policy.encode(images[n], queries[n], scheme, candidates=grids[n]) for n in asked]
    groups = policy.generate(policy.embed(prompts), None, group_size=1, max_new_tokens=max_new_tokens)
    for number, prompt, (completion,) in zip(asked, prompts, groups, strict=True):
        read = parse(completion.text, scheme, prompt.frame, ParsingConfig(max_instances=4096, max_chars=65536))
        sure = confidences(completion, policy.tokenizer)
        labels, grid = read.point_labels, grids[number]
        usable = read.status is ParseStatus.OK and len(labels) == len(grid) == len(sure)
        points = zip(grid, labels, sure, strict=True) if usable else ()
        result[number] = Labelling(
            points=tuple(LabelledPoint(point=p, label=label, confidence=c) for p, label, c in points),
            text=completion.text,
        )
    return result


def confidences(completion: Completion, tokenizer: Any) -> list[float]:
    """Probability of each 0 or 1 in the last bracketed list of a completion, that of the token that it stands in."""
    pieces = [tokenizer.decode([token]) for token in completion.token_ids]
    text = "".join(pieces)
    owner = [number for number, piece in enumerate(pieces) for _ in piece]
    start = text.rfind("[")
    end = text.find("]", start)
    if start < 0 or end < 0:
        return []
    return [math.exp(completion.logprobs[owner[place]]) for place in range(start, end) if text[place] in "01"]


def with_points(answer: Answer, labelling: Labelling, confidence: float) -> Answer:
    """``answer`` whose every box gets the points that the policy labelled with ``confidence`` or more.

    All boxes get all points, as in ReSaP's eval.py. Points that the answer itself named are replaced.
    """
    sure = [p for p in labelling.points if p.confidence >= confidence]
    if not sure:
        return answer
    coords, labels = tuple(p.point for p in sure), tuple(p.label for p in sure)
    prompts = tuple(
        item if item.box is None else replace(item, point_coords=coords, point_labels=labels) for item in answer.prompts
    )
    return replace(answer, prompts=prompts)
