"""Later turns: the policy is shown what came of its answer, and answers again.

A turn is asked in a user turn behind the one before, so every sibling of a group has a prompt of its own, which begins
with the prompt of the first turn (SocioReasoner, arXiv 2601.10477, asks it in a conversation of its own and trains on
one turn after the other; here both are behind one another and both are trained on in one step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig, TurnConfig
from grasp_rl.interfaces import Policy
from grasp_rl.rewards.stages import FIRST, StageRubrics
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.types import Answer, BoolMask, Completion, Image, Sample, SegmentedRollout

BLUE, RED = (0, 0, 255), (255, 0, 0)
LINE = 2
"""Width of an outline in pixels."""
OPACITY = 102 / 255
"""Of the mask in an overlay."""


@dataclass(frozen=True, kw_only=True)
class LaterTurn:
    """A turn after the first, as an evaluation asks it."""

    settings: TurnConfig
    pipeline: RewardPipeline


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a later turn shows."""

    image: Image
    """[H, W, 3] uint8 RGB."""
    window: tuple[int, int, int, int]
    """(x0, y0, x1, y1) of it in original-image pixels."""


def shown(image: Image, answer: Answer, mask: BoolMask, turn: TurnConfig) -> Shown:
    """What ``turn`` shows of an answer to ``image``.

    Args:
        image: [H, W, 3] uint8 RGB.
        answer: of the turn before, in original-image pixels. Without a box that can be read, the whole image is shown.
        mask: [H, W] what was segmented.
        turn: how.
    """
    height, width = image.shape[:2]
    if turn.feedback == "overlay":
        return Shown(image=_overlay(image, answer, mask), window=(0, 0, width, height))
    x0, y0, x1, y1 = window = _window(answer, (height, width), turn.margin)
    part = np.ascontiguousarray(image[y0:y1, x0:x1])
    if turn.feedback == "zoom":
        factor = min(width / (x1 - x0), height / (y1 - y0))
        size = (max(1, round((x1 - x0) * factor)), max(1, round((y1 - y0) * factor)))
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    return Shown(image=part, window=window)


def _overlay(image: Image, answer: Answer, mask: BoolMask) -> Image:
    """``image`` with boxes outlined in blue, and the mask in red over them."""
    drawn = image.copy()
    for item in answer.prompts:
        if item.box is not None:
            x0, y0, x1, y1 = (round(value) for value in item.box)
            cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), BLUE, LINE)
    drawn[mask] = np.rint((1 - OPACITY) * drawn[mask] + OPACITY * np.array(RED)).astype(np.uint8)
    return drawn


def _window(answer: Answer, size: tuple[int, int], margin: float) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1): the boxes, or the points of instances without one, and ``margin`` of their longer side."""
    height, width = size
    boxes = [item.box for item in answer.prompts if item.box is not None]
    boxes += [(x, y, x, y) for item in answer.prompts if item.box is None for x, y in item.positive_points]
    if not boxes:
        return 0, 0, width, height
    x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
    x1, y1 = max(b[2] for b in boxes), max(b[3] for b in boxes)
    extra = max(margin * max(x1 - x0, y1 - y0), 1.0)
    left, top = max(0, int(x0 - extra)), max(0, int(y0 - extra))
    return left, top, min(width, int(np.ceil(x1 + extra))), min(height, int(np.ceil(y1 + extra)))


def first_prompt(policy: Policy, sample: Sample, config: RunConfig) -> Any:
    """The encoded prompt that asks ``sample`` in the first turn, under the scheme of its task."""
    task = config.rollout.tasks.get(sample.task)
    points = sample.candidates.point_coords if sample.candidates is not None else ()
    prompt = config.prompt if task is None else task.prompt
    return policy.encode(sample.image, sample.query, prompt, sample.more_images, points)


def next_prompt(policy: Policy, before: Any, said: Completion, seen: Shown, query: str, turn: TurnConfig) -> Any:
    """The encoded prompt of ``turn`` after ``said`` answered the prompt ``before``."""
    prompt = policy.encode_next_turn(before, said, seen.image, query, turn.prompt, turn.feedback)
    x0, y0, x1, y1 = seen.window
    frame = replace(prompt.frame, image_width=x1 - x0, image_height=y1 - y0, left=x0, top=y0)
    return replace(prompt, frame=frame)


def stages_of(config: RunConfig, pipeline: RewardPipeline) -> dict[str, RewardPipeline]:
    """The pipeline of every turn or task by its name, in their order; ``first`` alone where a run has no others.

    The masks of all turns but the last are predicted even where no reward needs them: they are shown.

    Raises:
        ConfigError: the reward has stages, and they are not the run's.
    """
    turns, tasks = config.rollout.turns, config.rollout.tasks
    names = [FIRST, *turns, *tasks]
    reward = pipeline.reward
    if isinstance(reward, StageRubrics) and set(reward.stages) != set(names):
        raise ConfigError(
            f"reward.stages: has {', '.join(reward.stages)}; this run's rollout has {', '.join(names)}. "
            "A reward of several turns or tasks goes with a rollout option that has them"
        )
    result = {}
    for name, rubric in reward.stages.items() if isinstance(reward, StageRubrics) else ():
        if rubric.group_terms("batch"):
            raise ConfigError(f"reward.stages.{name}: a term with scope=batch goes with a run of one turn and task")
    for name in names:
        turn = turns.get(name) or tasks.get(name)
        result[name] = replace(
            pipeline,
            reward=reward.stage(name) if isinstance(reward, StageRubrics) else reward,
            prompt=pipeline.prompt if turn is None else turn.prompt,
            parsing=(turn.parsing if turn is not None else None) or pipeline.parsing,
            always_segment=pipeline.always_segment or (bool(turns) and name != names[-1]),
        )
    return result


def turns_of(config: RunConfig, pipeline: RewardPipeline) -> tuple[RewardPipeline, list[LaterTurn]]:
    """The pipeline of the first turn, and the later turns in their order; tasks beside the first are not evaluated."""
    stages = stages_of(config, pipeline)
    return stages[FIRST], [LaterTurn(settings=t, pipeline=stages[name]) for name, t in config.rollout.turns.items()]


def shown_of(rollouts: Sequence[SegmentedRollout], image: Image, turn: TurnConfig) -> list[Shown]:
    """What ``turn`` shows of each rollout, which has its masks."""
    empty = np.zeros(image.shape[:2], dtype=np.bool_)
    masks = [empty if r.masks is None or r.masks.error is not None else r.masks.union for r in rollouts]
    return [shown(image, r.answer, mask, turn) for r, mask in zip(rollouts, masks, strict=True)]
