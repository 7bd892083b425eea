"""Rollouts: generate G completions of each question, reward them, compare each with its siblings.

The group is the unit: the G siblings of one sample share its image, its prefill and its segmenter embedding. A group
is rewarded as soon as it is generated, beside the main work (see grasp_rl.rollouts.reward_worker); the update takes the
first groups while the last are being rewarded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any

import torch

from grasp_rl.config.schema import AlgorithmConfig, RunConfig
from grasp_rl.distributed.process_group import ProcessGroup
from grasp_rl.grpo.advantages import advantages
from grasp_rl.grpo.loss import StepSize
from grasp_rl.interfaces import Advantage, Generator, Policy
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.stages import FIRST
from grasp_rl.rollouts.reward_worker import Rewarded, RewardTask, RewardWorker, result_of
from grasp_rl.rollouts.turns import first_prompt, next_prompt
from grasp_rl.types import Completion, FinishReason, GroupOutcome, Rollout, RolloutGroup, Sample


@dataclass(frozen=True, kw_only=True)
class PendingGroup:
    """A group that is generated; its reward may not be in yet."""

    question: int
    """Its number in the step, over all ranks and rounds."""
    sample: Sample
    prompt: Any
    """Of the first turn."""
    completions: Sequence[Completion]
    rewarded: Future[Rewarded]
    turn: int = 0
    continuations: tuple[Any, ...] | None = None
    """In a later turn, what each sibling was asked."""

    @property
    def finite(self) -> bool:
        """Whether every logit that was drawn from was a number; where not, the group is counted and left out."""
        return all(c.finish_reason is not FinishReason.NOT_FINITE for c in self.completions)


class RolloutBatch:
    """The groups that one optimizer step learns from, with their advantages, in the order in which they were generated.

    That is the order in which they are rewarded: the first are learned from while the last are rewarded. Iterating
    waits where a reward is not in yet; iterating again waits for nothing.

    Args:
        algorithm: how siblings are compared; with ``sampling_rounds`` > 1 groups without advantage are left out.
        process_group: among whose ranks the step's questions are divided.
        advantage: how siblings are compared instead; None for what ``algorithm`` says.
    """

    def __init__(
        self, algorithm: AlgorithmConfig, process_group: ProcessGroup, advantage: Advantage | None = None
    ) -> None:
        self.algorithm, self.process_group, self.advantage = algorithm, process_group, advantage
        self.asked = 0
        """Questions so far."""
        self.waited_s = 0.0
        """Seconds spent on waiting for rewards."""
        self._pending: list[PendingGroup] = []
        self._places: list[tuple[int, int]] = []
        """(number of the call of :meth:`add`, question) of each pending group, which orders groups over all ranks."""
        self._calls = 0
        self._chosen: frozenset[tuple[int, int]] = frozenset()
        """Places of the groups that :meth:`choose` chose."""
        self._groups: list[RolloutGroup] = []
        self._rewarded: list[list[Rollout]] = []
        """The rollouts of the first groups, where they were compared with one another."""

    def add(self, pending: Sequence[PendingGroup], asked: int) -> None:
        """Take up the groups that came of ``asked`` questions, or of as many groups in the turn before."""
        self._places += [(self._calls, group.question) for group in pending]
        self._calls += 1
        self._pending += pending
        self.asked += asked

    def compare(self, rubric: Rubric, step: int) -> None:
        """Add the terms that compare answers within a batch: what was generated on all ranks since the last call.

        All ranks call it together; it waits until everything is rewarded.
        """
        new = [self._wait(pending) for pending in self._pending[len(self._rewarded) :]]
        shares = self.process_group.all_gather([[(r.reward, r.answer) for r in group] for group in new])
        pairs = [pair for share in shares for group in share for pair in group]
        whole = rubric.with_batch_terms([reward for reward, _ in pairs], [answer for _, answer in pairs], step)
        rank = self.process_group.rank
        rewards = iter(whole[sum(len(group) for share in shares[:rank] for group in share) :])
        self._rewarded += [[replace(rollout, reward=next(rewards)) for rollout in group] for group in new]

    def choose(self) -> int:
        """Choose the first ``prompts_per_step`` groups that have an advantage; returns how many there are.

        All ranks call it together, so that as many processes as there are choose the same; it waits until everything is
        rewarded.
        """
        mine = [
            place
            for index, (place, pending) in enumerate(zip(self._places, self._pending, strict=True))
            if pending.finite and any(self._group(index).advantages)
        ]
        everywhere = sorted(chain(*self.process_group.all_gather(mine)))
        self._chosen = frozenset(everywhere[: self.algorithm.prompts_per_step])
        return len(everywhere)

    def __iter__(self) -> Iterator[RolloutGroup]:
        every = self.algorithm.sampling_rounds == 1
        for index, (place, pending) in enumerate(zip(self._places, self._pending, strict=True)):
            if pending.finite if every else place in self._chosen:
                yield self._group(index)

    def _group(self, place: int) -> RolloutGroup:
        while place >= len(self._groups):
            number = len(self._groups)
            pending = self._pending[number]
            compared = number < len(self._rewarded)
            rollouts = tuple(self._rewarded[number] if compared else self._wait(pending))
            rewards = torch.tensor([[r.reward.reward for r in rollouts]])
            gains = advantages(
                rewards,
                baseline=self.algorithm.baseline,
                scale=self.algorithm.scale_advantages,
                epsilon=self.algorithm.scale_epsilon,
                min_range=self.algorithm.min_reward_range,
                own=self.advantage,
            )
            self._groups.append(
                RolloutGroup(
                    sample=pending.sample,
                    prompt=pending.prompt,
                    rollouts=rollouts,
                    advantages=tuple(gains[0].tolist()),
                    turn=pending.turn,
                    continuations=pending.continuations,
                )
            )
        return self._groups[place]

    def _wait(self, pending: PendingGroup) -> list[Rollout]:
        begun = time.perf_counter()
        rollouts, _ = result_of(pending.rewarded)
        self.waited_s += time.perf_counter() - begun
        return rollouts

    @property
    def groups(self) -> list[RolloutGroup]:
        """Every rewarded group of this rank, turn by turn in the questions' order, those left out included."""
        return [group for _, group in self._numbered()]

    def _numbered(self) -> list[tuple[int, RolloutGroup]]:
        result = [(pending.question, self._group(place)) for place, pending in enumerate(self._pending)]
        return sorted(result, key=lambda pair: (pair[1].turn, pair[0]))

    def everywhere(self) -> list[GroupOutcome]:
        """The outcome of every rewarded group of all ranks, turn by turn in the questions' order, those left out, too.

        All ranks call it together.
        """
        mine = [
            GroupOutcome(
                question=number,
                rollouts=group.rollouts,
                advantages=group.advantages,
                turn=group.turn,
                task=group.task,
            )
            for number, group in self._numbered()
        ]
        return sorted(chain(*self.process_group.all_gather(mine)), key=attrgetter("turn", "question"))

    def size(self, max_tokens: int) -> StepSize:
        """Divisors of the loss: over all that is learned from on any rank, whether its reward is in or not."""
        if self.algorithm.sampling_rounds == 1:
            completions = [c for p in self._pending if p.finite for c in p.completions]
        else:
            completions = [r.completion for group in self for r in group.rollouts]
        mine = {"sequences": len(completions), "tokens": sum(len(c.token_ids) for c in completions)}
        total = self.process_group.all_reduce_sum(mine)
        return StepSize(sequences=int(total["sequences"]), tokens=int(total["tokens"]), max_tokens=max_tokens)

    def counters(self) -> dict[str, float]:
        """Groups asked for, missing (see ``rollout.time_limit_s``), and left out because logits were not finite."""
        return self.process_group.all_reduce_sum(
            {
                "groups": float(self.asked),
                "groups_missing": float(self.asked - len(self._pending)),
                "groups_not_finite": float(sum(not p.finite for p in self._pending)),
            }
        )


def collect_rollouts(
    policy: Policy,
    generator: Generator,
    reward_worker: RewardWorker,
    questions: Callable[[int], Sequence[Sample]],
    config: RunConfig,
    step: int,
    process_group: ProcessGroup | None = None,
    advantage: Advantage | None = None,
) -> RolloutBatch:
    """Generate a group for every question of ``step`` and hand each to the reward worker as soon as it is there.

    Question i is rank i mod R's. With ``algorithm.sampling_rounds`` > 1, more questions follow until
    ``prompts_per_step`` groups have an advantage: DAPO's dynamic sampling (arXiv 2503.14476, section 3.2). With
    ``rollout.turns`` each group is followed by one in which every completion is shown what came of it.

    Args:
        policy: encodes and, as a rule, generates.
        generator: where completions come from.
        reward_worker: segments and rewards them.
        questions: the samples of round 0, 1, ... over all ranks.
        config: the run's.
        step: the optimizer step, part of every draw's key.
        process_group: among which the questions are divided; None for one process.
        advantage: see :class:`RolloutBatch`.
    """
    process_group = process_group or ProcessGroup()
    rollouts, first = RolloutBatch(config.algorithm, process_group, advantage), 0
    for number in range(config.algorithm.sampling_rounds):
        samples = questions(number)
        mine = set(range(process_group.rank, len(samples), process_group.world_size))
        result = list(_one_round(policy, generator, reward_worker, samples, mine, first, config, step))
        if config.algorithm.sampling_rounds > 1:  # which groups are learned from goes by the question
            result.sort(key=attrgetter("question"))
        rollouts.add(result, len(mine))
        _compare(rollouts, reward_worker, step)
        for turn in range(1, 1 + len(config.rollout.turns)):
            asked = [group for group in result if group.finite]
            result = list(_next_turn(policy, generator, reward_worker, asked, turn, config, step))
            rollouts.add(result, len(asked))
            _compare(rollouts, reward_worker, step)
        first += len(samples)
        if config.algorithm.sampling_rounds > 1 and rollouts.choose() >= config.algorithm.prompts_per_step:
            break
    return rollouts


def _compare(rollouts: RolloutBatch, reward_worker: RewardWorker, step: int) -> None:
    """Add the terms that compare answers within the batch, where the reward has such."""
    reward = reward_worker.pipeline.reward
    if isinstance(reward, Rubric) and reward.group_terms("batch"):
        rollouts.compare(reward, step)


def _one_round(
    policy: Policy,
    generator: Generator,
    reward_worker: RewardWorker,
    samples: Sequence[Sample],
    mine: set[int],
    first: int,
    config: RunConfig,
    step: int,
) -> Iterator[PendingGroup]:
    """The groups of ``mine`` as they are generated; the questions' numbers begin at ``first``.

    Where layers are fetched one by one, every rank generates all groups, to keep in step.
    """
    indices = list(range(len(samples))) if config.engine.ranks_forward_together else sorted(mine)
    asked = [samples[index] for index in indices]
    prompts = [first_prompt(policy, sample, config) for sample in asked]
    for place, completions in generator.generate(
        policy,
        asked,
        prompts,
        group_size=config.algorithm.group_size,
        config=config.rollout,
        seed=config.seed,
        step=step,
    ):
        if indices[place] not in mine:
            continue
        sample, prompt = asked[place], prompts[place]
        yield PendingGroup(
            question=first + indices[place],
            sample=sample,
            prompt=prompt,
            completions=completions,
            rewarded=reward_worker.submit(
                RewardTask(
                    sample=sample,
                    frames=prompt.frame,
                    completions=completions,
                    step=step,
                    stage=sample.task or FIRST,
                    show=next(iter(config.rollout.turns.values()), None),
                )
            ),
        )


def _next_turn(
    policy: Policy,
    generator: Generator,
    reward_worker: RewardWorker,
    groups: Sequence[PendingGroup],
    turn: int,
    config: RunConfig,
    step: int,
) -> Iterator[PendingGroup]:
    """The groups of ``turn``, from 1: every completion of the turn before is shown what came of it and answered once.

    Draws are keyed by question, turn and sibling.
    """
    turns = list(config.rollout.turns.items())
    name, settings = turns[turn - 1]
    results = [result_of(group.rewarded) for group in groups]
    prompts = [
        [
            next_prompt(policy, before, said, seen, group.sample.query, settings)
            for before, said, seen in zip(
                group.continuations or [group.prompt] * len(seen_of), group.completions, seen_of, strict=True
            )
        ]
        for group, (_, seen_of) in zip(groups, results, strict=True)
    ]
    flat = [prompt for group in prompts for prompt in group]
    samples = [
        replace(group.sample, sample_id=f"{group.sample.sample_id}\n{name}\n{number}")
        for group, its in zip(groups, prompts, strict=True)
        for number in range(len(its))
    ]
    said = dict(
        generator.generate(policy, samples, flat, group_size=1, config=config.rollout, seed=config.seed, step=step)
    )
    first = 0
    for group, its, (rollouts, _) in zip(groups, prompts, results, strict=True):
        places = range(first, first + len(its))
        first += len(its)
        if not all(place in said for place in places):
            continue  # the time limit came before one of the siblings
        completions = [said[place][0] for place in places]
        task = RewardTask(
            sample=group.sample,
            frames=[prompt.frame for prompt in its],
            completions=completions,
            step=step,
            stage=name,
            previous=[rollout.answer for rollout in rollouts],
            show=turns[turn][1] if turn < len(turns) else None,
        )
        yield PendingGroup(
            question=group.question,
            sample=group.sample,
            prompt=group.prompt,
            completions=completions,
            rewarded=reward_worker.submit(task),
            turn=turn,
            continuations=tuple(its),
        )
