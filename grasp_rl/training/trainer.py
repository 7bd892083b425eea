"""GRPO for a policy that points: the training loop.

    for each optimizer step:
        1. take the next questions
        2. roll out G completions each: generate, parse, segment, reward
        3. compare every reward with its siblings': the advantage
        4. update the policy on the packed groups
        5. log; now and then validate and save

Steps 2 to 4 overlap: a group is rewarded while the next ones are generated and the first are learned from.

This is GRPO (Shao et al. 2024, arXiv 2402.03300, algorithm 1, outcome supervision) without a value model. With the
default options the advantage is centred but not divided by the group's standard deviation and the loss has a constant
divisor (Dr. GRPO, arXiv 2503.20783): neither easy groups nor short answers weigh more. With beta = 0 there is no
reference policy. Data order and every draw are functions of (seed, step), so a resumed run is the same run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from grasp_rl.data.sampler import PromptSampler
from grasp_rl.distributed.engine import Engine
from grasp_rl.interfaces import Generator, Policy
from grasp_rl.rollouts.collect import RolloutBatch
from grasp_rl.rollouts.metrics import step_statistics
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.runs import signals
from grasp_rl.training.hooks import Checkpointer, Evaluator, RunLog, StopRules, Stopwatch
from grasp_rl.training.update import PolicyUpdater
from grasp_rl.types import Sample
from grasp_rl.utils.files import Record

log = logging.getLogger(__name__)

Collect = Callable[[RewardWorker, Callable[[int], Sequence[Sample]], int], RolloutBatch]


@dataclass(kw_only=True)
class Trainer:
    """The loop and its parts, built by grasp_rl.training.train; every rank has one, and rank 0's writes the files."""

    policy: Policy
    engine: Engine
    sampler: PromptSampler
    """The samples of (step, sampling round)."""
    collect: Collect
    """Rollouts of a step's samples, rewarded by the worker; see grasp_rl.rollouts.collect."""
    update: PolicyUpdater
    generator: Generator
    reward_worker: RewardWorker
    evaluator: Evaluator
    checkpointer: Checkpointer
    stop: StopRules
    log: RunLog
    steps: int
    """Optimizer steps of the whole run."""
    first_step: int
    """Optimizer steps that a resumed run has made."""
    overdue: bool
    """Whether the step that the run goes on from was left before its validation."""
    resumed: bool
    max_new_tokens: int
    is_trial: bool
    """Whether the run is a trial of a search, which may end it."""
    one_round: bool
    """Whether a step's samples are drawn once, so that its rollouts can be left in the middle on several ranks."""

    def run(self) -> Record:
        """Make the optimizer steps that are left, with a test before and after; of a run of no steps it is one test."""
        before = self.evaluator.test("before", self.first_step, keep=self.resumed)
        if self.first_step == 0 < self.steps and self.evaluator.due(0, self.steps):
            self.evaluator.validate(0)  # curves begin before the first step
        self.policy.train()
        if self.overdue:
            self._milestones(self.first_step)
        with self.sampler.read_ahead():
            for step in range(self.first_step, self.steps):
                with self._saved_if_interrupted(step):
                    clock = Stopwatch()
                    rollouts = self._collect(step)
                    clock.lap("rollout_s")
                    row = self.update(rollouts, rollouts.size(self.max_new_tokens))
                    clock.lap("update_s")
                with self._saved_if_interrupted(step + 1):
                    groups = rollouts.everywhere()
                    counters = self.engine.process_group.all_reduce_sum(self.generator.counters())
                    row |= {**rollouts.counters(), **counters}
                    row |= step_statistics(groups) if groups else {}
                    self.log.step(step + 1, row, clock.laps() | {"reward_wait_s": rollouts.waited_s})
                    self.stop.check(step + 1, row, groups)
                    self._milestones(step + 1)
                    self.generator.weights_changed(self.policy, step + 1)
                if self.is_trial and self.engine.process_group.any_rank(self.stop.pruned_at is not None):
                    return self._ended(step + 1, before) | {"pruned_at": step + 1}
        return self._ended(self.steps, before)

    def _ended(self, steps: int, before: Record) -> Record:
        """The test of the best checkpoint, and what the run was."""
        best = self.checkpointer.load_best()
        after = self.evaluator.test("after", steps) if steps else self.evaluator.untrained()
        return {"steps": steps, "best_step": best, "before": before, "after": after}

    def close(self) -> None:
        """End what runs beside the loop."""
        for part in (self.reward_worker, self.generator, self.engine):
            part.close()

    def _collect(self, step: int) -> RolloutBatch:
        """The rollouts of ``step`` of this rank; an interruption is heard, and agreed upon by all ranks."""
        rollouts = None
        can_leave = self.engine.process_group.world_size == 1 or self.one_round
        hearing = signals.opened() if can_leave else signals.held()
        with self.engine.full_parameters(), contextlib.suppress(KeyboardInterrupt), hearing:
            rollouts = self.collect(self.reward_worker, partial(self.sampler, step), step)
        if self.engine.process_group.any_rank(signals.pending()) or rollouts is None:
            raise KeyboardInterrupt
        return rollouts

    def _milestones(self, step: int) -> None:
        """Validate and save where it is due. The best checkpoint is the one with the highest validation reward."""
        validate, save = self.evaluator.due(step, self.steps), self.checkpointer.due(step)
        if not (validate or save):
            return
        scores = self.evaluator.validate(step) if validate else {}
        self.stop.validated(step, scores)
        value = scores.get("reward")  # None where nothing is rewarded
        marked = self.checkpointer.best
        best = (step, value) if value is not None and (marked is None or value > marked[1]) else marked
        with signals.held():
            self.checkpointer.save(step, lost=self.stop.lost, best=best)

    @contextlib.contextmanager
    def _saved_if_interrupted(self, step: int) -> Iterator[None]:
        """Where the block is interrupted, the state after ``step`` optimizer steps is saved: nothing of it is lost."""
        try:
            with signals.held():
                yield
        except KeyboardInterrupt:
            with signals.held():
                self.engine.zero_grad()
                overdue = self.evaluator.due(step, self.steps) and not self.checkpointer.has(step)
                if step > self.first_step:
                    self.checkpointer.save(step, lost=self.stop.lost, overdue=overdue)
                log.warning("interrupted after %d steps", step)
            raise
