"""Rollouts: generate G completions of each question, judge them, compare each with its siblings.

The group is the unit: the G siblings of one sample share its picture, its prefill and its segmenter embedding. A group
is judged as soon as it is generated, beside the main work (see grasp_rl.rollouts.reward_worker); the update takes the
first groups while the last are being judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch

from grasp_rl.config.schema import AlgorithmConfig, RunConfig
from grasp_rl.distributed.process_group import Ranks
from grasp_rl.grpo.advantages import advantages
from grasp_rl.grpo.loss import StepSize
from grasp_rl.interfaces import Generator
from grasp_rl.rollouts.reward_worker import Jury, verdict
from grasp_rl.types import Completion, FinishReason, Rollout, RolloutGroup, Sample


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A group that is generated; its verdict may not be in yet."""

    question: int
    """Its number in the step, over all ranks and rounds."""
    sample: Sample
    prompt: Any
    completions: Sequence[Completion]
    verdict: Future[list[Rollout]]

    @property
    def finite(self) -> bool:
        """Whether every logit that was drawn from was a number; where not, the group is counted and left out."""
        return all(c.finish_reason is not FinishReason.NOT_FINITE for c in self.completions)


class StepRollouts:
    """The groups that one optimizer step learns from, with their advantages, in the order in which they were generated.

    That is the order in which they are judged: the first are learned from while the last are judged. Iterating waits
    where a verdict is not in yet; iterating again waits for nothing.

    Args:
        algorithm: how siblings are compared; with ``sampling_rounds`` > 1 groups without advantage are left out.
        ranks: among which the step's questions are divided.
    """

    def __init__(self, algorithm: AlgorithmConfig, ranks: Ranks) -> None:
        self.algorithm, self.ranks = algorithm, ranks
        self.asked = 0
        """Questions so far."""
        self.waited_s = 0.0
        """Seconds spent on waiting for verdicts."""
        self._pending: list[Pending] = []
        self._judged: list[RolloutGroup] = []

    def add(self, pending: Sequence[Pending], asked: int) -> None:
        """Take up the groups that came of ``asked`` questions."""
        self._pending += pending
        self.asked += asked

    def __iter__(self) -> Iterator[RolloutGroup]:
        wanted = -(-self.algorithm.prompts_per_step // self.ranks.count)
        limit = len(self._pending) if self.algorithm.sampling_rounds == 1 else wanted
        given = 0
        for place, pending in enumerate(self._pending):
            group = self._group(place)
            if given < limit and pending.finite and (self.algorithm.sampling_rounds == 1 or any(group.advantages)):
                given += 1
                yield group

    def _group(self, place: int) -> RolloutGroup:
        while place >= len(self._judged):
            pending = self._pending[len(self._judged)]
            begun = time.perf_counter()
            rollouts = tuple(verdict(pending.verdict))
            self.waited_s += time.perf_counter() - begun
            rewards = torch.tensor([[r.reward.reward for r in rollouts]])
            gains = advantages(rewards, baseline=self.algorithm.baseline, scale=self.algorithm.scale_advantages)
            self._judged.append(
                RolloutGroup(
                    sample=pending.sample, prompt=pending.prompt, rollouts=rollouts, advantages=tuple(gains[0].tolist())
                )
            )
        return self._judged[place]

    @property
    def groups(self) -> list[RolloutGroup]:
        """Every judged group of this rank in the questions' order, those left out included."""
        return [group for _, group in self._numbered()]

    def _numbered(self) -> list[tuple[int, RolloutGroup]]:
        found = [(pending.question, self._group(place)) for place, pending in enumerate(self._pending)]
        return sorted(found, key=itemgetter(0))

    def everywhere(self) -> list[RolloutGroup]:
        """Every judged group of all ranks in the questions' order, those left out included; without sample and prompt.

        All ranks call it together.
        """
        mine = [(number, replace(group, sample=None, prompt=None)) for number, group in self._numbered()]  # type: ignore[arg-type]
        return [group for _, group in sorted(chain(*self.ranks.gather(mine)), key=itemgetter(0))]

    def size(self, max_tokens: int) -> StepSize:
        """Divisors of the loss: over all that is learned from on any rank, whether its verdict is in or not."""
        if self.algorithm.sampling_rounds == 1:
            completions = [c for p in self._pending if p.finite for c in p.completions]
        else:
            completions = [r.completion for group in self for r in group.rollouts]
        mine = {"sequences": len(completions), "tokens": sum(len(c.token_ids) for c in completions)}
        total = self.ranks.total(mine)
        return StepSize(sequences=int(total["sequences"]), tokens=int(total["tokens"]), max_tokens=max_tokens)

    def counters(self) -> dict[str, float]:
        """Groups asked for, missing (see ``rollout.time_limit_s``), and left out because logits were not finite."""
        return self.ranks.total(
            {
                "groups": float(self.asked),
                "groups_missing": float(self.asked - len(self._pending)),
                "groups_not_finite": float(sum(not p.finite for p in self._pending)),
            }
        )


def roll_out(
    policy: Any,
    generator: Generator,
    jury: Jury,
    questions: Callable[[int], Sequence[Sample]],
    config: RunConfig,
    step: int,
    ranks: Ranks | None = None,
) -> StepRollouts:
    """Generate a group for every question of ``step`` and hand each to the jury as soon as it is there.

    Question i is rank i mod R's. With ``algorithm.sampling_rounds`` > 1, more questions follow until
    ``prompts_per_step`` groups have an advantage: DAPO's dynamic sampling (arXiv 2503.14476, section 3.2).

    Args:
        policy: encodes and, as a rule, generates.
        generator: where completions come from.
        jury: segments and rewards them.
        questions: the samples of round 0, 1, ... over all ranks.
        config: the run's.
        step: the optimizer step, part of every draw's key.
        ranks: among which the questions are divided; None for one process.
    """
    ranks = ranks or Ranks()
    rollouts, first = StepRollouts(config.algorithm, ranks), 0
    for number in range(config.algorithm.sampling_rounds):
        samples = questions(number)
        mine = set(range(ranks.rank, len(samples), ranks.count))
        found = list(_one_round(policy, generator, jury, samples, mine, first, config, step))
        if config.algorithm.sampling_rounds > 1:  # which groups are learned from goes by the question
            found.sort(key=attrgetter("question"))
        rollouts.add(found, len(mine))
        first += len(samples)
        if number + 1 < config.algorithm.sampling_rounds:
            enough = ranks.total({"groups": len(list(rollouts))})["groups"]
            if enough >= config.algorithm.prompts_per_step:
                break
    return rollouts


def _one_round(
    policy: Any,
    generator: Generator,
    jury: Jury,
    samples: Sequence[Sample],
    mine: set[int],
    first: int,
    config: RunConfig,
    step: int,
) -> Iterator[Pending]:
    """The groups of ``mine`` as they are generated; the questions' numbers begin at ``first``.

    Where layers are fetched one by one, every rank generates all groups, to keep in step.
    """
    wanted = list(range(len(samples))) if _in_step(config) else sorted(mine)
    asked = [samples[index] for index in wanted]
    prompts = [policy.encode(sample.image, sample.query, config.prompt) for sample in asked]
    for place, completions in generator.generate(
        policy,
        asked,
        prompts,
        group_size=config.algorithm.group_size,
        config=config.rollout,
        seed=config.seed,
        step=step,
    ):
        if wanted[place] not in mine:
            continue
        sample, prompt = asked[place], prompts[place]
        yield Pending(
            question=first + wanted[place],
            sample=sample,
            prompt=prompt,
            completions=completions,
            verdict=jury.submit(sample, prompt.frame, completions),
        )


def _in_step(config: RunConfig) -> bool:
    return config.engine.gather == "layer" and config.engine.name.startswith("zero3")
