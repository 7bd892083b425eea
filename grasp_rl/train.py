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

import logging
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from grasp_rl import checkpoints, runs
from grasp_rl.batching import rewards_of
from grasp_rl.cards import write_card
from grasp_rl.config import ConfigError, RunConfig
from grasp_rl.engines.local import LocalEngine, pick_device
from grasp_rl.evaluate import evaluate
from grasp_rl.judge import Judge
from grasp_rl.jury import Jury
from grasp_rl.progress import ProgressWriter
from grasp_rl.protocols import Components
from grasp_rl.questions import Questions
from grasp_rl.rollout import StepRollouts, roll_out
from grasp_rl.statistics import rollout_statistics
from grasp_rl.tracking.local import MetricsLog
from grasp_rl.types import Record
from grasp_rl.update import Updater, make_reference

log = logging.getLogger(__name__)

MAX_LOST = 3
"""Optimizer steps in a row that were lost for one and the same reason, after which a run stops."""


def run(config: RunConfig, components: Components) -> Record:
    """Train as ``config`` says, evaluating before and after; returns what result.json holds.

    Raises:
        ConfigError: the run cannot start or go on as configured.
        RuntimeError: three steps in a row were lost, or memory does not suffice.
    """
    trainer = Trainer(config, components)
    exit_code = 1
    try:
        result = trainer.run()
        exit_code = 0
    finally:
        trainer.close()
        components.tracker.finish(exit_code)
    return result


class Trainer:
    """One training run in its folder."""

    def __init__(self, config: RunConfig, components: Components) -> None:
        self.config, self.run_dir = config, Path(config.run_dir)
        self.policy: Any = components.policy.to(pick_device(config.engine))
        self.data, self.tracker = components.data, components.tracker
        if config.init_from:
            self.policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
        self.judge = Judge(
            segmenter=components.segmenter, reward=components.reward, prompt=config.prompt, parsing=config.parsing
        )
        self.examiner = replace(self.judge, always_segment=True)
        masks = components.reward.supervision == "mask"
        self.questions = Questions(self.data.split("train"), config, masks=masks)
        self.jury = Jury(self.judge, config.rollout.judge)
        self.generator = components.generator
        reference = make_reference(self.policy, config.algorithm.beta, config.rollout.temperature)
        total = config.algorithm.steps * config.algorithm.iterations
        self.engine = LocalEngine(self.policy, config.optimizer, total)
        self.update = Updater(
            self.policy,
            self.engine,
            reference,
            algorithm=config.algorithm,
            rollout=config.rollout,
            mismatch_cap=self.generator.mismatch_cap,
        )
        self.first_step = self._resume() if config.resume else 0
        self.metrics = MetricsLog(self.run_dir, resume_step=self.first_step if config.resume else None)
        self.progress = ProgressWriter(self.run_dir, config.algorithm.steps, self.first_step)
        self.lost: dict[str, int] = {}
        """Steps in a row that were lost, by reason."""
        self.scores: dict[str, dict[str, float]] = {}
        """What was scored so far, for the model card."""

    def run(self) -> Record:
        algorithm = self.config.algorithm
        self.tracker.start(self.run_dir, asdict(self.config), resume=self.first_step > 0)
        if self.config.evaluation.every:
            self.data.split("val")  # a split that is missing is better missed now than after the first steps
        before = self._examine("before", self.config.evaluation.test_split, self.config.evaluation.test_limit)
        self.policy.train()
        with self.questions.read_ahead():
            for step in range(self.first_step, algorithm.steps):
                clock = Stopwatch()
                rollouts = roll_out(
                    self.policy, self.generator, self.jury, partial(self.questions, step), self.config, step
                )
                clock.lap("rollout_s")
                row = self.update(rollouts, rollouts.size(self.config.rollout.max_new_tokens))
                self.generator.weights_changed(self.policy, step + 1)
                clock.lap("update_s")
                row |= self._statistics(rollouts)
                self._log(step + 1, row, clock, rollouts.waited_s)
                self._guard(row)
                self._milestones(step + 1)
        best = checkpoints.best(self.run_dir)
        if best:
            self.policy.load_weights(checkpoints.folder_of(self.run_dir, best[0]) / "policy")
        after = self._examine("after", self.config.evaluation.test_split, self.config.evaluation.test_limit)
        return {"steps": algorithm.steps, "best_step": best[0] if best else None, "before": before, "after": after}

    def close(self) -> None:
        """End what runs beside the loop."""
        self.jury.close()
        self.generator.close()

    def _statistics(self, rollouts: StepRollouts) -> dict[str, float]:
        groups = rollouts.groups
        row = {**rollouts.counters(), **self.generator.counters()}
        return row | (rollout_statistics(groups, rewards_of(groups)) if groups else {})

    def _log(self, step: int, row: dict[str, float], clock: Stopwatch, waited_s: float) -> None:
        self.metrics.log(step, row)
        self.metrics.time(step, clock.laps() | {"reward_wait_s": waited_s})
        self.tracker.log(row, step)
        self.progress.update("train", step, reward=row.get("reward"))

    def _guard(self, row: dict[str, float]) -> None:
        """Stop a run that goes on losing its steps.

        Raises:
            RuntimeError: with what to change.
        """
        nothing = row["groups"] == row["groups_missing"] or row.get("timed_out") == 1
        reasons = {
            "the gradient was not finite; lower optimizer.lr": row["skipped"] > 0,
            "the policy's logits were not finite; lower optimizer.lr and go on from a checkpoint before": (
                row["groups_not_finite"] > 0 and row["groups_not_finite"] + row["groups_missing"] == row["groups"]
            ),
            "no completion was finished in time; raise rollout.time_limit_s or lower rollout.max_new_tokens": nothing,
        }
        self.lost = {why: self.lost.get(why, 0) + 1 for why, happened in reasons.items() if happened}
        for why, count in self.lost.items():
            log.warning("step lost: %s", why)
            if count >= MAX_LOST:
                raise RuntimeError(f"{MAX_LOST} steps in a row were lost: {why}")

    def _milestones(self, step: int) -> None:
        """Validate and save where it is due. The best checkpoint is the one with the highest validation reward."""
        last = step == self.config.algorithm.steps
        every, save_every = self.config.evaluation.every, self.config.checkpoint.every
        validate = every > 0 and (last or step % every == 0)
        if not (validate or last or (save_every and step % save_every == 0)):
            return
        checkpoints.save(
            self.run_dir, step, lambda to: self._save_policy(to, step), {"engine": self.engine.state_dict()}
        )
        if validate:
            reward = self._validate(step).get("reward")  # None where no sample has what the reward compares with
            marked = checkpoints.best(self.run_dir)
            if reward is not None and (marked is None or reward > marked[1]):
                checkpoints.mark_best(self.run_dir, step, reward)
        checkpoints.prune(self.run_dir, self.config.checkpoint.keep_last)

    def _save_policy(self, folder: Path, step: int) -> None:
        self.policy.save(folder)
        write_card(folder, self.config, step=step, scores=self.scores, commit=getattr(self.policy, "commit", None))

    def _validate(self, step: int) -> dict[str, float]:
        self.progress.update("validate", step)
        settings = self.config.evaluation
        scored = evaluate(self.policy, self.examiner, self.data.split("val"), config=settings, limit=settings.val_limit)
        kept = {k: v for k, v in scored.metrics.items() if k != "seconds_per_image"}
        self.scores[f"val, step {step}"] = kept
        row = {f"val/{key}": value for key, value in kept.items()}
        self.metrics.log(step, row)
        self.tracker.log(row, step)
        self.progress.update("train", step, giou=kept.get("giou"))
        return kept

    def _examine(self, when: str, split: str, limit: int | None) -> dict[str, float]:
        """Score the test split into eval_<when>/; a resumed run keeps the first score it made."""
        folder = self.run_dir / f"eval_{when}"
        known = runs.read_json(folder / "metrics.json") if when == "before" and self.config.resume else None
        if known is not None:
            self.scores[f"{split}, {when}"] = known
            return known
        step = self.first_step if when == "before" else self.config.algorithm.steps
        self.progress.update(f"test {when}", step)
        scored = evaluate(
            self.policy,
            self.examiner,
            self.data.split(split),
            config=self.config.evaluation,
            limit=limit,
            folder=folder,
            on_progress=lambda done, total: self.progress.update(f"test {when}", step, message=f"{done}/{total}"),
        )
        self.scores[f"{split}, {when}"] = dict(scored.metrics)
        self.progress.update(f"test {when}", step, giou=scored.metrics.get("giou"))
        self.tracker.log({f"test_{when}/{key}": value for key, value in scored.metrics.items()}, step)
        self.tracker.images(f"test_{when}", sorted(folder.glob("overlays/*.png")), step)
        return dict(scored.metrics)

    def _resume(self) -> int:
        """Load the newest checkpoint and return its step; 0, with a warning, where there is none yet."""
        found = checkpoints.steps(self.run_dir)
        if not found:
            log.warning("resume: %s has no checkpoint yet, starting from step 0", self.run_dir)
            return 0
        step = found[-1]
        if step > self.config.algorithm.steps:
            raise ConfigError(f"algorithm.steps={self.config.algorithm.steps}: the run already has {step}; raise it")
        self.policy.load_weights(checkpoints.folder_of(self.run_dir, step) / "policy")
        self.engine.load_state_dict(checkpoints.load_state(self.run_dir, step)["engine"])
        log.info("resuming from step %d, %d steps left", step, self.config.algorithm.steps - step)
        return step


class Stopwatch:
    """Named laps in seconds since the last one."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    def laps(self) -> dict[str, float]:
        """All laps and ``step_s``, their sum."""
        return self._laps | {"step_s": self._last - self._start}
