"""From one record per sample to the numbers of a table, with intervals. Pure arithmetic; no model, no file.

What counts as what, above all where nothing is there, is decided in docs/adr/0006-giou-and-ciou.md:

========================  =============================================================================================
``giou``                  mean over all samples of the sample's IoU; see :func:`iou`
``ciou``                  sum of intersections over sum of unions, all samples; a mask where nothing is asked for adds
                          to the union
``ciou_target``           the same over the samples with a target alone
``pr@0.5`` .. ``pr@0.9``  share of the samples with a target whose IoU is greater (not equal) than that
``no_target_accuracy``    share of the samples without a target whose answer was read and is empty
``box_iou``               :func:`matched_box_iou`, mean over the samples with a target
``reward``, ``term/*``    mean reward and raw terms, over the samples that could be rewarded
``parse/*``               share of each :class:`~grasp_rl.types.ParseStatus`; ``parsed`` is ok and repaired together
``giou/*``, ``share/*``   by group: ``single`` and ``multi`` instance, ``no_target``
========================  =============================================================================================

A number whose denominator is 0 is left out. ``giou_low``, ``giou_high``, ``ciou_low`` and ``ciou_high`` bound the 95 %
percentile-bootstrap interval over samples (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from grasp_rl.geometry import FloatArray, match, pairwise_box_iou
from grasp_rl.types import ParseStatus, SpatialPrompt
from grasp_rl.utils.files import Record

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_CHUNK = 2_000_000  # numbers resampled at once


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

    @property
    def group(self) -> str:
        """``single``, ``multi`` or ``no_target``; ``unknown`` for a target with an unknown number of instances."""
        if not self.has_target:
            return "no_target"
        return "unknown" if not self.instances else "single" if self.instances == 1 else "multi"


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    samples: int
    """How many are behind it."""


_FIELDS = tuple(field.name for field in fields(SampleScore))


def score_of(record: Record) -> SampleScore:
    """The score in one line of predictions.jsonl."""
    return SampleScore(**{name: record[name] for name in _FIELDS})


def iou(score: SampleScore, empty_iou: str) -> float | None:
    """IoU of one sample, None without a true mask.

    With a target it is intersection over union of the predicted and the true mask, 0 for an answer that was not read.
    Without one it is 1 for an answer that was read and is empty (``empty_iou=one``), and 0 for every other; with
    ``empty_iou=zero`` it is always 0.
    """
    if score.intersection is None or score.union is None:
        return None
    if score.has_target:
        return score.intersection / score.union
    return float(score.empty and empty_iou == "one")


def ious(scores: Iterable[SampleScore], empty_iou: str) -> dict[str, float]:
    """IoU by sample id, of the samples with a true mask."""
    values = {score.sample_id: iou(score, empty_iou) for score in scores}
    return {sample_id: value for sample_id, value in values.items() if value is not None}


def matched_box_iou(predicted: Sequence[SpatialPrompt], cues: Sequence[SpatialPrompt]) -> float | None:
    """IoU of boxes under the best one-to-one matching, summed and divided by the larger number of instances.

    So a missing instance and a superfluous one cost the same. None where no cue has a box.
    """
    boxes = [item.box for item in predicted if item.box is not None]
    references = [cue.box for cue in cues if cue.box is not None]
    if not references:
        return None
    table = pairwise_box_iou(boxes, references)
    return float(sum(table[pair] for pair in match(table))) / max(len(predicted), len(references))


def summarise(
    scores: Sequence[SampleScore], *, empty_iou: str = "one", bootstrap_samples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """All numbers of the module's table, by flat name.

    Args:
        scores: one per sample.
        empty_iou: ``one`` or ``zero``; see :func:`iou`.
        bootstrap_samples: resamples behind the intervals.
        seed: of the resampling.
    """
    result: dict[str, float] = {"samples": len(scores)}
    result |= _overlaps(scores, empty_iou, bootstrap_samples, seed)
    targets = [s for s in scores if s.has_target]
    _put_mean(result, "no_target_accuracy", [s.empty for s in scores if not s.has_target])
    _put_mean(result, "box_iou", [s.box_iou for s in targets if s.box_iou is not None])
    _put_mean(result, "reward", [s.reward for s in scores if s.reward is not None])
    for name in {name: None for s in scores for name in s.terms}:
        _put_mean(result, f"term/{name}", [s.terms[name] for s in scores if name in s.terms])
    _put_mean(result, "parsed", [s.status in (ParseStatus.OK, ParseStatus.REPAIRED) for s in scores])
    for status in ParseStatus:
        _put_mean(result, f"parse/{status}", [s.status == status for s in scores])
    for group in ("single", "multi", "no_target"):
        _put_mean(result, f"share/{group}", [s.group == group for s in scores])
    _put_mean(result, "length", [s.tokens for s in scores])
    _put_mean(result, "truncated", [s.truncated for s in scores])
    return result


def _overlaps(scores: Sequence[SampleScore], empty_iou: str, bootstrap_samples: int, seed: int) -> dict[str, float]:
    """What comes from masks."""
    result: dict[str, float] = {}
    masked = [s for s in scores if s.intersection is not None]
    if not masked:
        return result
    # One row a sample: IoU, intersection, union.
    table = np.array([[iou(s, empty_iou), s.intersection, s.union] for s in masked], dtype=np.float64)
    drawn = _resampled_sums(table, bootstrap_samples, seed)
    result["giou"] = float(table[:, 0].mean())
    result["giou_low"], result["giou_high"] = _bounds(drawn[:, 0] / len(masked))
    if table[:, 2].any():
        result["ciou"] = float(table[:, 1].sum() / table[:, 2].sum())
        result["ciou_low"], result["ciou_high"] = _bounds(drawn[:, 1] / np.maximum(drawn[:, 2], 1))
    targets = table[[s.has_target for s in masked]]
    if len(targets):
        result["ciou_target"] = float(targets[:, 1].sum() / targets[:, 2].sum())
        for threshold in THRESHOLDS:
            result[f"pr@{threshold}"] = float((targets[:, 0] > threshold).mean())
    for group in ("single", "multi"):
        _put_mean(result, f"giou/{group}", table[[s.group == group for s in masked], 0])
    return result


def paired_difference(
    before: Mapping[str, float], after: Mapping[str, float], *, bootstrap_samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of after - before over the samples that both have, with a bootstrap interval over those samples.

    Pairing takes out what makes a sample hard for both, so the interval is much narrower than that of either mean.

    Args:
        before: a value by sample id.
        after: the same quantity of another run on the same samples.
        bootstrap_samples: resamples behind the interval.
        seed: of the resampling.

    Raises:
        ValueError: they have no sample in common.
    """
    common = sorted(before.keys() & after.keys())
    if not common:
        raise ValueError("paired_difference: the two runs have no sample in common")
    differences = np.array([[after[key] - before[key]] for key in common])
    low, high = _bounds(_resampled_sums(differences, bootstrap_samples, seed)[:, 0] / len(common))
    return Interval(float(differences.mean()), low, high, len(common))


def _resampled_sums(table: FloatArray, count: int, seed: int) -> FloatArray:
    """Column sums [count, K] of ``count`` resamples, with replacement, of the rows of ``table`` [N, K]."""
    rng, rows = np.random.default_rng(seed), len(table)
    at_once = max(1, _CHUNK // table.size)
    sizes = [min(at_once, count - start) for start in range(0, count, at_once)]
    return np.concatenate([table[rng.integers(rows, size=(size, rows))].sum(axis=1) for size in sizes])


def _bounds(values: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _put_mean(result: dict[str, float], name: str, values: Sequence[float | bool] | FloatArray) -> None:
    if len(values):
        result[name] = float(np.mean(values))
