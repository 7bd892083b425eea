"""What a step's rollouts say about themselves: means, within-group spread, lengths and parse statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_rl.types import FinishReason, GroupOutcome, ParseStatus, RolloutGroup


def rollout_statistics(groups: Sequence[RolloutGroup | GroupOutcome], rewards: Tensor) -> dict[str, float]:
    """Numbers of one optimizer step for metrics.jsonl.

    Args:
        groups: N groups of G rollouts.
        rewards: [N, G].

    ``term/<name>/group_std`` is the mean over groups of a raw reward term's standard deviation within the group: a term
    at 0 never tells siblings apart and teaches nothing. ``zero_variance`` is the share of groups whose rewards are all
    equal.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    count = len(rollouts)
    row = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(dim=1).mean()),
        "zero_variance": float((rewards.amax(1) == rewards.amin(1)).float().mean()),
        "length": sum(len(r.completion.token_ids) for r in rollouts) / count,
        "truncated": sum(r.completion.finish_reason is FinishReason.LENGTH for r in rollouts) / count,
        "timed_out": sum(r.completion.finish_reason is FinishReason.TIMEOUT for r in rollouts) / count,
        "instances": sum(len(r.answer.prompts) for r in rollouts) / count,
    }
    row["segmenter_failed"] = sum(r.segmenter_error is not None for r in rollouts) / count
    for status in ParseStatus:
        row[f"parse/{status}"] = sum(r.answer.status is status for r in rollouts) / count
    for name in rollouts[0].reward.terms:
        values = torch.tensor([[r.reward.terms[name] for r in group.rollouts] for group in groups])
        row[f"term/{name}/mean"] = float(values.mean())
        row[f"term/{name}/group_std"] = float(values.std(dim=1).mean())
    return row


READ = (ParseStatus.OK, ParseStatus.REPAIRED)
_MOST = 0.5
"""Share of answers lost from which on that is said."""


@dataclass(frozen=True, kw_only=True)
class LostAnswers:
    """Why most answers earn nothing."""

    short: str
    """The key to turn, for a progress line."""
    sentence: str


def lost_answers(truncated: float, unread: Mapping[ParseStatus, float], cap: str) -> LostAnswers | None:
    """What loses more than half of the answers; None where nothing does.

    Args:
        truncated: share of the answers that were cut off.
        unread: share of the answers of each status that is a failure.
        cap: config key of the limit on tokens.
    """
    if truncated > _MOST:
        return LostAnswers(
            short=f"cut off: {cap}", sentence=f"{truncated:.0%} of the answers were cut off; raise {cap}"
        )
    if sum(unread.values()) <= _MOST:
        return None
    worst = max(unread, key=lambda status: unread[status])
    return LostAnswers(
        short="unread: parsing.repair",
        sentence=(
            f"{sum(unread.values()):.0%} of the answers could not be read (most: {worst}); parsing.repair=true reads "
            "near misses, policy.prompt_template another question, grasp-rl sft teaches the form"
        ),
    )
