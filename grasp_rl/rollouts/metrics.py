"""What a step's rollouts say about themselves: means, within-group spread, lengths and parse statuses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_rl.types import FinishReason, GroupOutcome, ParseStatus, Rollout, RolloutGroup


def step_statistics(groups: Sequence[RolloutGroup | GroupOutcome]) -> dict[str, float]:
    """:func:`rollout_statistics` of the last turn's groups, and ``turn<n>/...`` for those of the turns before.

    Groups of other tasks than the first are ``task/<name>/...``.
    """
    row: dict[str, float] = {}
    parts: dict[str, list[RolloutGroup | GroupOutcome]] = {}
    last = max(group.turn for group in groups)
    for group in groups:
        prefix = "" if group.turn == last else f"turn{group.turn + 1}/"
        parts.setdefault(f"task/{group.task}/" if group.task else prefix, []).append(group)
    for prefix, its in parts.items():
        rewards = torch.tensor([[rollout.reward.reward for rollout in group.rollouts] for group in its])
        row |= {prefix + name: value for name, value in rollout_statistics(its, rewards).items()}
    return row


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
        "reward_not_finite": float((~rewards.isfinite()).float().mean()),
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
    return row | advantage_shares(groups, rewards)


def advantage_shares(groups: Sequence[RolloutGroup | GroupOutcome], rewards: Tensor) -> dict[str, float]:
    """``term/<name>/advantage_share``: the part of the advantages' variance that each term's pay brings.

    cov(pay, reward) / var(reward) within the groups, each group weighing as its advantages are large: the shares add
    up to 1, and a term that works against the others has a negative one. Nothing where no sibling differs.

    Args:
        groups: N groups of G rollouts.
        rewards: [N, G].
    """
    centred = (rewards - rewards.mean(1, keepdim=True)).double()
    spread = torch.tensor([[abs(gain) for gain in group.advantages] for group in groups]).double().sum(1, keepdim=True)
    scale = spread / centred.abs().sum(1, keepdim=True).clamp(min=1e-12)
    whole = float((scale * centred).square().sum())
    names = groups[0].rollouts[0].reward.paid
    if not names or not math.isfinite(whole) or whole < 1e-18:
        return {}
    row = {}
    for name in names:
        pay = torch.tensor([[r.reward.paid.get(name, 0.0) for r in group.rollouts] for group in groups]).double()
        part = (scale * (pay - pay.mean(1, keepdim=True)) * scale * centred).sum()
        row[f"term/{name}/advantage_share"] = float(part) / whole
    return row


def not_finite_terms(rollouts: Iterable[Rollout]) -> list[str]:
    """Names of the reward terms whose value or pay is not a finite number in some rollout, in the reward's order."""
    return list(
        dict.fromkeys(
            name
            for rollout in rollouts
            for values in (rollout.reward.terms, rollout.reward.paid)
            for name, value in values.items()
            if not math.isfinite(value)
        )
    )


READ = (ParseStatus.OK, ParseStatus.REPAIRED)
_MOST = 0.5
"""Share of answers lost from which on that is said."""


@dataclass(frozen=True, kw_only=True)
class LostAnswers:
    """Why most answers earn nothing."""

    short: str
    """The key to turn, for a progress line."""
    sentence: str


def lost_answers(
    truncated: float, unread: Mapping[ParseStatus, float], cap: str, *, were_read: bool = False
) -> LostAnswers | None:
    """What loses more than half of the answers; None where nothing does.

    Args:
        truncated: share of the answers that were cut off.
        unread: share of the answers of each status that is a failure.
        cap: config key of the limit on tokens.
        were_read: whether nearly all answers of the same policy were finished and could be read before.
    """
    share = max(truncated, sum(unread.values()))
    if share > _MOST and were_read:
        longer = f", or its answers have grown longer: raise {cap}" if truncated > _MOST else ""
        return LostAnswers(
            short="collapsed? optimizer.lr",
            sentence=(
                f"{share:.0%} of the answers are cut off or cannot be read, where nearly all could be read before: the "
                "policy may have collapsed: lower optimizer.lr or raise algorithm.beta, and go on from an earlier "
                f"checkpoint, if there is one{longer}"
            ),
        )
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
