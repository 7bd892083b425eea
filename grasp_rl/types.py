"""The nouns: one frozen record per stage of the pipeline, in the order in which data flows.

One coordinate frame: every box and point in these records is in pixels of the original image, x to the
right, y down, (0, 0) at the outer corner of the top-left pixel. A box is (x0, y0, x1, y1) with x1 and y1 at the
outer edge of the last pixel, so its area is (x1 - x0) * (y1 - y0) and a mask of columns 3..5 has x0=3, x1=6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
Point = tuple[float, float]
BoolMask = NDArray[np.bool_]
Image = NDArray[np.uint8]
Attribute = str | int | float
Relation = tuple[int, str, int]
"""(subject, predicate, object): two instances by their index, and what holds between them."""


@dataclass(frozen=True, kw_only=True)
class SpatialPrompt:
    """One instance, predicted and reference alike: what a promptable segmenter takes."""

    box: Box | None = None
    """(x0, y0, x1, y1) in original-image pixels, or None for a point-only prompt."""
    point_coords: tuple[Point, ...] = ()
    """K points (x, y) in original-image pixels."""
    point_labels: tuple[int, ...] = ()
    """K labels: 1 foreground, 0 background."""
    category: str | None = field(default=None, repr=False)
    """Name of the instance's class, where answers name it (detection); None elsewhere. No segmenter sees it."""

    def __post_init__(self) -> None:
        if len(self.point_coords) != len(self.point_labels):
            raise ValueError(
                f"SpatialPrompt: {len(self.point_coords)} point_coords but {len(self.point_labels)} point_labels"
            )

    @property
    def positive_points(self) -> tuple[Point, ...]:
        return tuple(p for p, label in zip(self.point_coords, self.point_labels, strict=True) if label == 1)

    @property
    def negative_points(self) -> tuple[Point, ...]:
        return tuple(p for p, label in zip(self.point_coords, self.point_labels, strict=True) if label == 0)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and one question."""

    sample_id: str
    """Unique within its dataset and split; seeds the draws of its rollouts."""
    image: Image
    """[H, W, 3] uint8 RGB."""
    query: str
    """The question in plain words."""
    target_mask: BoolMask | None
    """[H, W] bool; all False for a no-target question; None where masks are not available or not allowed."""
    weak_labels: tuple[SpatialPrompt, ...] | None
    """Weak supervision: one box and interior points per instance; () for a no-target question; None if unknown."""
    dataset: str
    """Name of the dataset."""
    split: str
    """train | val | test | test_ood, or what the dataset calls it."""
    reasoning: str | None = None
    """A reference thought for supervised fine-tuning, where the dataset has one."""
    ignore_mask: BoolMask | None = None
    """[H, W] bool, True where a pixel counts in no metric and no reward; None where all count. The target has none of
    them, and a rubric without mask terms does not see it."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """What the dataset says of the question beside its target, such as ``category`` or ``no_target``; for breakdowns of
    scores, seen by no model and no reward."""

    more_images: tuple[Image, ...] = ()
    """[H, W, 3] uint8 RGB each: images that the question shows behind the first."""
    candidates: SpatialPrompt | None = None
    """Points that the question asks about, each with its true label; None where it asks about none."""
    choice: str | None = None
    """The letter of the right one of ``more_images``, where the question asks for one."""
    relations: tuple[Relation, ...] = ()
    """What holds between the weak labels, where the dataset says so."""
    task: str = ""
    """Name of the run's task that asks the question; empty for the first."""
    instance_masks: Callable[[], list[BoolMask]] | None = field(default=None, compare=False, repr=False)
    """Draws [H, W] of each instance in the dataset's order, for an evaluation that compares one by one; None where the
    dataset names no instances, or no masks of them."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def without_mask(self) -> Sample:
        """The same sample with all masks removed: all that a mask-free reward may see."""
        return replace(self, target_mask=None, instance_masks=None)


class ParseStatus(StrEnum):
    """How a completion was read. Everything but OK and REPAIRED is a failure of the model, and data."""

    OK = "ok"
    REPAIRED = "repaired"
    """Invalid JSON that json-repair could read; only where repair is allowed."""
    NO_ANSWER = "no_answer"
    """No <answer> ... </answer> pair."""
    BAD_JSON = "bad_json"
    BAD_SCHEMA = "bad_schema"
    """Valid JSON that is not a list of instances with the scheme's fields and counts."""
    BAD_NUMBER = "bad_number"
    """A coordinate that is not finite or is absurdly large."""
    TOO_LONG = "too_long"
    """Over the caps on characters, depth or number of instances."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the policy said, in original-image pixels."""

    prompts: tuple[SpatialPrompt, ...]
    """One per instance; () with status OK is the answer to a no-target question."""
    status: ParseStatus
    thinking: str | None = None
    """Text between the think tags, or None."""
    think_layout: bool = False
    """True iff the completion is exactly <think>..</think> <answer>..</answer> and white space."""
    fenced: bool = False
    """True iff the JSON stood in a ```json fence inside the answer."""
    form: float = 0.0
    """The format value of the reader: the share of the scheme's fields that were well-formed, or what a released system
    pays, whatever the status; 1 or 0 where an answer is read whole."""
    listed: int | None = None
    """Objects that the answer lists, also those that cannot be used; None for as many as ``prompts``."""
    repeated_sentences: int = 0
    """Sentences of the completion that repeat an earlier one."""
    point_labels: tuple[int, ...] = ()
    """Labels that the answer gives to the question's candidate points: 1 on the target, 0 off it."""
    choice: str | None = None
    """Which of several images the answer names, where the question asks for that."""
    relations: tuple[Relation, ...] = ()
    """What the answer says of its instances, where the question asks for a scene graph."""
    previous: Answer | None = field(default=None, compare=False, repr=False)
    """The answer of the turn before; None in the first turn."""
    text: str = field(default="", compare=False, repr=False)
    """The completion, where a reward term reads it."""
    tokens: int = field(default=0, compare=False)
    """The completion's length in tokens."""

    @property
    def ok(self) -> bool:
        """True iff the answer can be used: parsed, or repaired where repair is allowed."""
        return self.status in (ParseStatus.OK, ParseStatus.REPAIRED)


@dataclass(frozen=True, kw_only=True)
class MaskPrediction:
    """What the segmenter made of the prompts of one answer."""

    masks: Any
    """[N, H, W] bool at original resolution, one per prompt, in order: a NumPy array, or a tensor where the segmenter
    runs on a device."""
    iou_predictions: NDArray[np.float32]
    """[N] the segmenter's own quality estimate in [0, 1] (1 where it has none)."""
    error: str | None = None
    """Why the segmenter failed on this answer, or None."""
    failed: int = 0
    """Prompts of this answer that it failed on."""
    whole: bool = False
    """Whether the only mask is of all instances together, as other systems may give it."""

    @property
    def union(self) -> BoolMask:
        """[H, W] bool in host memory, the logical OR of all instances."""
        union = self.masks.any(0)
        return np.asarray(union if isinstance(union, np.ndarray) else union.cpu().numpy(), dtype=np.bool_)

    def iou(self, target: BoolMask, ignored: BoolMask | None = None) -> float:
        """IoU of the union with ``target`` [H, W] bool, counted where the masks are; 1 if both are empty.

        Pixels that are True in ``ignored`` [H, W] are left out.

        Raises:
            ValueError: ``target`` has another size.
        """
        if tuple(self.masks.shape[1:]) != target.shape:
            raise ValueError(f"MaskPrediction.iou: masks of {tuple(self.masks.shape[1:])}, a target of {target.shape}")
        union = self.masks.any(0)
        if not isinstance(union, np.ndarray):
            target = union.new_tensor(target)
            ignored = None if ignored is None else union.new_tensor(ignored)
        if ignored is not None:
            union, target = union & ~ignored, target & ~ignored
        both, either = int((union & target).sum()), int((union | target).sum())
        return both / either if either else 1.0

    def rows(self, indices: Sequence[int]) -> MaskPrediction:
        """The prediction for some of the prompts."""
        chosen = list(indices)
        return MaskPrediction(masks=self.masks[chosen], iou_predictions=self.iou_predictions[chosen], error=self.error)


@dataclass(frozen=True, kw_only=True)
class RewardBreakdown:
    """A reward and the raw terms it was summed from."""

    reward: float
    """The weighted sum that the advantage is computed from."""
    terms: Mapping[str, float]
    """Raw, unweighted terms by name."""
    paid: Mapping[str, float] = field(default_factory=dict, compare=False)
    """What each term added to the reward; their sum is the reward."""


class FinishReason(StrEnum):
    """Why a rollout ended."""

    STOP = "stop"
    """End of sequence, or the answer closed where that ends it."""
    LENGTH = "length"
    """As long as it may be."""
    TIMEOUT = "timeout"
    """The time limit came first."""
    NOT_FINITE = "not_finite"
    """The policy's logits were no numbers; what was drawn before stands."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the policy generated for one prompt."""

    token_ids: tuple[int, ...]
    """[C] generated ids, end-of-sequence token included when it was drawn."""
    logprobs: tuple[float, ...]
    """[C] log-probability of each drawn token under the sampling distribution."""
    text: str
    """Decoded text without special tokens."""
    finish_reason: FinishReason


@dataclass(frozen=True, kw_only=True)
class SegmentedRollout:
    """One completion after parsing, segmentation and reward, with its masks: what an evaluation measures."""

    completion: Completion
    answer: Answer
    masks: MaskPrediction | None
    """None where the reward needs no mask."""
    reward: RewardBreakdown

    def without_masks(self) -> Rollout:
        """What training keeps of it."""
        segmented = self.masks is not None
        return Rollout(
            completion=self.completion,
            answer=self.answer,
            reward=self.reward,
            segmented_prompts=len(self.answer.prompts) if segmented else 0,
            failed_prompts=self.masks.failed if self.masks is not None else 0,
            segmenter_error=self.masks.error if self.masks is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One completion and its reward, without masks: what training learns from and passes between processes."""

    completion: Completion
    answer: Answer
    reward: RewardBreakdown
    segmented_prompts: int
    """Prompts that went through the segmenter; 0 where the reward needs no mask."""
    failed_prompts: int
    """Those of them that it failed on."""
    segmenter_error: str | None
    """What the first failure said, or None."""


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The G sibling rollouts of one sample on the rank that generated them; never split over ranks or rows."""

    sample: Sample
    prompt: Any
    """The policy's encoded prompt (policies decide its type), of the first turn."""
    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...]
    """[G] how much better each rollout is than its siblings."""
    turn: int = 0
    """Turn that the rollouts belong to, from 0."""

    continuations: tuple[Any, ...] | None = None
    """In a later turn, [G] what each sibling was asked: an encoded prompt that begins with ``prompt``."""

    @property
    def task(self) -> str:
        """Name of the task that they were asked in; empty for the first."""
        return self.sample.task


@dataclass(frozen=True, kw_only=True)
class GroupOutcome:
    """What every rank is told of a group, whichever rank generated it: enough for the step's statistics."""

    question: int
    """Its number in the optimizer step, over all ranks and sampling rounds."""
    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...]
    turn: int = 0
    task: str = ""
