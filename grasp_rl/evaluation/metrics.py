"""The measured record of one answer, and box IoU under the best matching. Pure arithmetic; no model, no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from grasp_rl.geometry import FloatArray, match, pairwise_box_iou
from grasp_rl.types import ParseStatus, SpatialPrompt
from grasp_rl.utils.files import Record


@dataclass(frozen=True, kw_only=True)
class SampleScore:
    """One answer, measured."""

    sample_id: str
    status: str
    """How the completion was read, a ParseStatus."""
    empty: bool
    """Whether it was read and names no instance."""
    has_target: bool
    """Whether the question has one."""
    instances: int | None
    """Instances of the target, None where the dataset does not say."""
    intersection: int | None
    """Pixels in both masks, None without a true mask."""
    union: int | None
    """Pixels in either mask, None without a true mask."""
    box_iou: float | None
    """:func:`matched_box_iou`, None without a target, without true boxes or under a scheme without boxes."""
    reward: float | None
    """None where the sample lacks what the reward compares with."""
    terms: Mapping[str, float]
    tokens: int
    """Tokens of the completion."""
    truncated: bool
    """Whether it ran into the limit on tokens."""
    record: Record | None = field(default=None, compare=False, repr=False)
    """The line of predictions.jsonl that it is read from, for protocols that count on its masks."""

    @property
    def group(self) -> str:
        """``single``, ``multi`` or ``no_target``; ``unknown`` for a target with an unknown number of instances."""
        if not self.has_target:
            return "no_target"
        return "unknown" if not self.instances else "single" if self.instances == 1 else "multi"


_FIELDS = tuple(part.name for part in fields(SampleScore) if part.name != "record")


def score_of(record: Record) -> SampleScore:
    """The score in one line of predictions.jsonl."""
    return SampleScore(**{name: record[name] for name in _FIELDS}, record=record)


def matched_box_iou(predicted: Sequence[SpatialPrompt], weak_labels: Sequence[SpatialPrompt]) -> float | None:
    """IoU of boxes under the best one-to-one matching, summed and divided by the larger number of instances.

    So a missing instance and a superfluous one cost the same. None where no weak label has a box.
    """
    boxes = [item.box for item in predicted if item.box is not None]
    references = [weak_label.box for weak_label in weak_labels if weak_label.box is not None]
    if not references:
        return None
    table = pairwise_box_iou(boxes, references)
    return float(sum(table[pair] for pair in match(table))) / max(len(predicted), len(references))


def of_answers(scores: Sequence[SampleScore]) -> dict[str, float]:
    """Means that no protocol decides about: reward and its terms, parse statuses, kinds of question, length.

    ``reward`` is the mean over the answers with a finite one; ``reward_missing`` the share of those that have none,
    where only some do.
    """
    result: dict[str, float] = {}
    rewards = [s.reward for s in scores if s.reward is not None]
    put_mean(result, "reward", rewards)
    if 0 < len(rewards) < len(scores):
        result["reward_missing"] = 1 - len(rewards) / len(scores)
    for name in {name: None for s in scores for name in s.terms}:
        put_mean(result, f"term/{name}", [s.terms[name] for s in scores if name in s.terms])
    put_mean(result, "parsed", [s.status in (ParseStatus.OK, ParseStatus.REPAIRED) for s in scores])
    for status in ParseStatus:
        put_mean(result, f"parse/{status}", [s.status == status for s in scores])
    for group in ("single", "multi", "no_target"):
        put_mean(result, f"share/{group}", [s.group == group for s in scores])
    correlation = reward_iou_correlation(scores)
    if correlation is not None:
        result["reward_iou_correlation"] = correlation
    put_mean(result, "length", [s.tokens for s in scores])
    put_mean(result, "truncated", [s.truncated for s in scores])
    return result


def reward_iou_correlation(scores: Sequence[SampleScore]) -> float | None:
    """Pearson correlation of reward and mask IoU over the samples with a target.

    What a reward without masks is worth as a stand-in for them. None where fewer than three samples have both, or one
    of the two is the same for all.
    """
    pairs = [
        (s.reward, s.intersection / s.union)
        for s in scores
        if s.has_target and s.reward is not None and s.intersection is not None and s.union
    ]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    if len(table) < 3 or bool(np.any(np.ptp(table, axis=0) < 1e-12)):
        return None
    centred = table - table.mean(0)
    return float((centred[:, 0] @ centred[:, 1]) / np.sqrt((centred**2).sum(0).prod()))


def put_mean(result: dict[str, float], name: str, values: Sequence[float | bool] | FloatArray) -> None:
    """The mean of ``values`` as ``result[name]``; nothing for no values."""
    if len(values):
        result[name] = float(np.mean(values))
