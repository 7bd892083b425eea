"""GRPO for a policy that points: the training loop.

    for each optimizer step:
        1. take the next questions
        2. roll out G completions each: generate, parse, segment, reward
        3. compare every reward with its siblings': the advantage
        4. update the policy on the packed groups
        5. log; now and then validate and save

This is GRPO (Shao et al. 2024, arXiv 2402.03300, algorithm 1, outcome supervision) without a value model. With the
default options the advantage is centred but not divided by the group's standard deviation and the loss has a constant
divisor (Dr. GRPO, arXiv 2503.20783): neither easy groups nor short answers weigh more. With beta = 0 there is no
reference policy. Data order and every draw are functions of (seed, step), so a resumed run is the same run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grasp_rl import checkpoints, runs
from grasp_rl.batching import rewards_of
from grasp_rl.cards import write_card
from grasp_rl.config import ConfigError, RunConfig
from grasp_rl.engines.local import LocalEngine, pick_device
from grasp_rl.evaluate import evaluate
from grasp_rl.grpo.advantages import advantages
from grasp_rl.progress import ProgressWriter
from grasp_rl.protocols import Components, Dataset
from grasp_rl.rollout import Judge, follow_groups, generate
from grasp_rl.sampling import sample_order
from grasp_rl.statistics import rollout_statistics
from grasp_rl.tracking.local import MetricsLog
from grasp_rl.types import Completion, Record, Sample
from grasp_rl.update import make_reference, update

log = logging.getLogger(__name__)

MAX_SKIPPED = 3
"""Optimizer steps in a row without a finite gradient after which a run stops."""


def run(config: RunConfig, components: Components) -> Record:
    """Train as ``config`` says, evaluating before and after; returns what result.json holds.

    Raises:
        ConfigError: the run cannot start or go on as configured.
        RuntimeError: the gradient was not finite three steps in a row.
    """
    trainer = Trainer(config, components)
    exit_code = 1
    try:
        result = trainer.run()
        exit_code = 0
    finally:
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
        self.reference = make_reference(self.policy, config.algorithm.beta, config.rollout.temperature)
        total = config.algorithm.steps * config.algorithm.iterations
        self.engine = LocalEngine(self.policy, config.optimizer, total)
        self.first_step = self._resume() if config.resume else 0
        self.metrics = MetricsLog(self.run_dir, resume_step=self.first_step if config.resume else None)
        self.progress = ProgressWriter(self.run_dir, config.algorithm.steps, self.first_step)
        self.skipped = 0
        self.scores: dict[str, dict[str, float]] = {}
        """What was scored so far, for the model card."""

    def run(self) -> Record:
        algorithm = self.config.algorithm
        self.tracker.start(self.run_dir, asdict(self.config), resume=self.first_step > 0)
        questions = self.data.split("train")
        if self.config.evaluation.every:
            self.data.split("val")  # a split that is missing is better missed now than after the first steps
        before = self._examine("before", self.config.evaluation.test_split, self.config.evaluation.test_limit)
        self.policy.train()
        for step in range(self.first_step, algorithm.steps):
            clock = Stopwatch()
            samples = self._next_samples(questions, step)
            prompts, completions = self._generate(samples, step)
            clock.lap("rollout_s")
            groups = follow_groups(self.judge, samples, prompts, completions)
            clock.lap("reward_s")
            rewards = rewards_of(groups)
            gains = advantages(rewards, baseline=algorithm.baseline, scale=algorithm.scale_advantages)
            row = rollout_statistics(groups, rewards)
            row |= update(
                self.policy,
                self.engine,
                groups,
                gains,
                self.reference,
                algorithm=algorithm,
                rollout=self.config.rollout,
            )
            clock.lap("update_s")
            self._log(step + 1, row, clock)
            self._guard(row)
            self._milestones(step + 1)
        best = checkpoints.best(self.run_dir)
        if best:
            self.policy.load_weights(checkpoints.folder_of(self.run_dir, best[0]) / "policy")
        after = self._examine("after", self.config.evaluation.test_split, self.config.evaluation.test_limit)
        return {"steps": algorithm.steps, "best_step": best[0] if best else None, "before": before, "after": after}

    def _next_samples(self, questions: Dataset, step: int) -> list[Sample]:
        """The questions of ``step``; their masks are taken away where the reward is mask-free."""
        count = self.config.algorithm.prompts_per_step
        order = sample_order(self.config.seed, len(questions), step * count, count)
        samples = [questions[index] for index in order]
        return [s.without_mask() for s in samples] if self.judge.reward.supervision == "cues" else samples

    def _generate(self, samples: Sequence[Sample], step: int) -> tuple[list[Any], list[list[Completion]]]:
        return generate(
            self.policy,
            samples,
            self.config.prompt,
            group_size=self.config.algorithm.group_size,
            config=self.config.rollout,
            seed=self.config.seed,
            step=step,
        )

    def _log(self, step: int, row: dict[str, float], clock: Stopwatch) -> None:
        self.metrics.log(step, row)
        self.metrics.time(step, clock.laps())
        self.tracker.log(row, step)
        self.progress.update("train", step, reward=row["reward"])

    def _guard(self, row: dict[str, float]) -> None:
        self.skipped = self.skipped + 1 if row["skipped"] else 0
        if self.skipped >= MAX_SKIPPED:
            raise RuntimeError(f"the gradient was not finite {MAX_SKIPPED} steps in a row; lower optimizer.lr")

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
