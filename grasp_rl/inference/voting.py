"""One answer out of several to the same question. Pure functions of answers and masks.

A ballot is an answer that could be read and, where masks are compared, segmented. The first answer is the greedy one;
of equals the earlier answer wins. What holds for a pixel or a box holds for silence: it needs the votes of most
ballots. Where no pixel and no box has enough votes although most ballots name something, the ballot whose mask agrees
best with the others, or the box with most votes, stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import SamplesConfig
from grasp_rl.geometry import FloatArray, box_iou, mask_iou, match, pairwise_box_iou
from grasp_rl.types import Answer, BoolMask, Box, MaskPrediction, SpatialPrompt
from grasp_rl.utils.files import Record


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What the ballots decided."""

    answer: Answer
    chosen: int
    """Place of the answer that it is, or is nearest to."""
    masks: MaskPrediction | None
    """None where the answer's prompts are to be segmented."""
    segmented: tuple[int, int, str | None] | None = None
    """Prompts of all answers that were segmented, those that failed, and the first error; None where the masks say it.
    A failed answer has no vote, and would else be missed."""
    details: Record
    """``ballots``; ``confidence`` in [0, 1]; ``pairwise_iou``, the mean mask IoU of two ballots, where known."""
    share: FloatArray | None = None
    """[H, W] share of the ballots whose mask has each pixel; None where boxes voted, or nothing did."""


def vote_on_masks(answers: Sequence[Answer], masks: Sequence[MaskPrediction], options: SamplesConfig) -> Vote:
    """``agreement`` or ``best_of_n`` over ``answers``, the greedy one first, and their masks."""
    errors = [m.error for m in masks if m.error is not None]
    segmented = sum(len(a.prompts) for a in answers), sum(m.failed for m in masks), errors[0] if errors else None
    unions = [m.union for a, m in zip(answers, masks, strict=True) if a.ok and m.error is None]
    share = shares(unions) if unions else None
    return replace(_vote_on_masks(answers, masks, options), segmented=segmented, share=share)


def _vote_on_masks(answers: Sequence[Answer], masks: Sequence[MaskPrediction], options: SamplesConfig) -> Vote:
    ballots = [i for i, (a, m) in enumerate(zip(answers, masks, strict=True)) if a.ok and m.error is None]
    if not ballots:
        return Vote(answer=answers[0], chosen=0, masks=masks[0], details={"ballots": 0, "confidence": 0.0})
    unions = [masks[i].union for i in ballots]
    table = np.array([[mask_iou(a, b) for b in unions] for a in unions])
    record: Record = {"ballots": len(ballots)}
    if len(ballots) > 1:
        record["pairwise_iou"] = float(table[np.triu_indices(len(ballots), 1)].mean())
    if options.pick == "agreement":
        return _by_pixels(answers, masks, ballots, unions, table, record, options.threshold)
    place, confidence = _best(answers, masks, ballots, table, options.score)
    chosen = ballots[place]
    return Vote(answer=answers[chosen], chosen=chosen, masks=masks[chosen], details=record | {"confidence": confidence})


def shares(unions: Sequence[BoolMask]) -> FloatArray:
    """[H, W] share of the masks [H, W] that have each pixel."""
    return np.asarray(np.mean(np.stack(unions), axis=0), dtype=np.float64)


def _by_pixels(
    answers: Sequence[Answer],
    masks: Sequence[MaskPrediction],
    ballots: Sequence[int],
    unions: Sequence[BoolMask],
    table: FloatArray,
    record: Record,
    threshold: float,
) -> Vote:
    """The pixels that enough ballots have, and the answer whose mask is nearest to them."""
    share = shares(unions)
    final = share >= threshold - 1e-9
    silent = sum(not answers[i].prompts for i in ballots) / len(ballots)
    if final.any():
        place = int(np.argmax([mask_iou(union, final) for union in unions]))
        confidence = float(share[final].mean())
        whole = MaskPrediction(
            masks=final[None], iou_predictions=np.array([confidence], dtype=np.float32), whole=True
        )  # fmt: skip
    elif silent > 0.5:
        place, confidence = [not answers[i].prompts for i in ballots].index(True), silent
        whole = masks[ballots[place]]
    else:
        speaking = np.array([bool(answers[i].prompts) for i in ballots])
        values = np.where(speaking, _with_others(table), -1.0)
        place, confidence = int(np.argmax(values)), float(values.max())
        whole = masks[ballots[place]]
    chosen = ballots[place]
    return Vote(answer=answers[chosen], chosen=chosen, masks=whole, details=record | {"confidence": confidence})


def _with_others(table: FloatArray) -> FloatArray:
    """Mean of each row of a square ``table`` without its diagonal, which is 1; 1 for a single row."""
    count = len(table)
    return np.ones(1) if count == 1 else (table.sum(axis=1) - 1.0) / (count - 1)


def _best(
    answers: Sequence[Answer], masks: Sequence[MaskPrediction], ballots: Sequence[int], table: FloatArray, score: str
) -> tuple[int, float]:
    """Place among the ballots of the best one, and its score.

    By predicted IoU, silence has none: it is best where most ballots are silent, and never else.
    """
    if score == "agreement":
        values = _with_others(table)
        return int(np.argmax(values)), float(values.max())
    silent = [not answers[i].prompts for i in ballots]
    if sum(silent) > len(ballots) / 2:
        return silent.index(True), sum(silent) / len(ballots)
    estimates = [masks[i].iou_predictions for i in ballots]
    means = [-1.0 if quiet else float(e.mean()) for e, quiet in zip(estimates, silent, strict=True)]
    return int(np.argmax(means)), max(means)


@dataclass
class _Cluster:
    """Boxes of different ballots that are taken for one instance."""

    prompts: list[SpatialPrompt] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    ballots: list[int] = field(default_factory=list)

    @property
    def median(self) -> Box:
        x0, y0, x1, y1 = np.median(np.array(self.boxes), axis=0).tolist()
        return x0, y0, x1, y1

    @property
    def prompt(self) -> SpatialPrompt:
        """The median box, with the points of the member nearest to it."""
        median = self.median
        nearest = max(range(len(self.boxes)), key=lambda i: (box_iou(self.boxes[i], median), -i))
        return replace(self.prompts[nearest], box=median)


def vote_on_boxes(answers: Sequence[Answer], options: SamplesConfig) -> Vote:
    """``majority``: the boxes that enough of ``answers`` have in common, each the median of its kind.

    Raises:
        ConfigError: an instance has no box.
    """
    ballots = [i for i, answer in enumerate(answers) if answer.ok]
    if not ballots:
        return Vote(answer=answers[0], chosen=0, masks=None, details={"ballots": 0, "confidence": 0.0})
    clusters = _clustered(answers, ballots, options.box_iou)
    needed = options.threshold * len(ballots) - 1e-9
    kept = [cluster for cluster in clusters if len(cluster.ballots) >= needed]
    silent = sum(not answers[i].prompts for i in ballots) / len(ballots)
    if not kept and clusters and silent <= 0.5:
        kept = [max(clusters, key=lambda cluster: len(cluster.ballots))]
    confidence = float(np.mean([len(c.ballots) for c in kept])) / len(ballots) if kept else silent
    prompts = tuple(cluster.prompt for cluster in kept)
    alike = [_alike(answers[i].prompts, prompts) for i in ballots]
    chosen = ballots[int(np.argmax(alike))]
    answer = replace(answers[chosen], prompts=prompts)
    return Vote(answer=answer, chosen=chosen, masks=None, details={"ballots": len(ballots), "confidence": confidence})


def _clustered(answers: Sequence[Answer], ballots: Sequence[int], least: float) -> list[_Cluster]:
    """Boxes in the order in which they were said, each with the likest cluster that its own answer is not yet in."""
    clusters: list[_Cluster] = []
    for ballot in ballots:
        for prompt in answers[ballot].prompts:
            if prompt.box is None:
                raise ConfigError("inference.samples.pick=majority: votes on boxes; take a prompt scheme with boxes")
            free = [cluster for cluster in clusters if ballot not in cluster.ballots]
            overlaps = [box_iou(cluster.median, prompt.box) for cluster in free]
            if free and max(overlaps) >= least:
                cluster = free[int(np.argmax(overlaps))]
            else:
                cluster = _Cluster()
                clusters.append(cluster)
            cluster.prompts.append(prompt)
            cluster.boxes.append(prompt.box)
            cluster.ballots.append(ballot)
    return clusters


def _alike(said: Sequence[SpatialPrompt], voted: Sequence[SpatialPrompt]) -> float:
    """Box IoU under the best matching over the larger number of boxes; 1 for no boxes on either side."""
    if not said and not voted:
        return 1.0
    table = pairwise_box_iou([p.box for p in said if p.box], [p.box for p in voted if p.box])
    return float(sum(table[pair] for pair in match(table))) / max(len(said), len(voted))
