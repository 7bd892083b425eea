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
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.data.sampler import PromptSampler
from grasp_rl.distributed.build import make_engine, whole
from grasp_rl.distributed.engine import Engine, pick_device
from grasp_rl.distributed.process_group import ALONE
from grasp_rl.evaluation.evaluate import evaluate
from grasp_rl.interfaces import Components, Policy
from grasp_rl.rollouts.collect import RolloutBatch, collect_rollouts
from grasp_rl.rollouts.metrics import rollout_statistics
from grasp_rl.rollouts.reward_pipeline import FailureLimit, RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.runs import checkpoints, signals
from grasp_rl.runs.model_card import write_card
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.tracking.metrics_log import MetricsLog
from grasp_rl.training.collate import rewards_of
from grasp_rl.training.update import PolicyUpdater, make_reference
from grasp_rl.types import GroupOutcome
from grasp_rl.utils.files import Record, read_json

log = logging.getLogger(__name__)

MAX_LOST = 3
"""Optimizer steps in a row that were lost for one and the same reason, after which a run stops."""


def run(config: RunConfig, components: Components) -> Record:
    """Train as ``config`` says, evaluating before and after; returns what result.json holds.

    Raises:
        ConfigError: the run cannot start or go on as configured.
        RuntimeError: three steps in a row were lost, or memory does not suffice.
        OSError: a checkpoint could not be written, and ``checkpoint.on_error`` is stop.
        KeyboardInterrupt: the run was interrupted; its last step boundary is a checkpoint.
    """
    trainer = Trainer(config, components)
    exit_code = 1
    try:
        result = trainer.run()
        exit_code = 0
    finally:
        trainer.close()
        if trainer.is_main:
            components.tracker.finish(exit_code)
    return result


class Trainer:
    """One training run in its folder; every rank has one, and rank 0's writes the files."""

    def __init__(self, config: RunConfig, components: Components) -> None:
        self.config, self.run_dir = config, Path(config.run_dir)
        self.policy: Policy = components.policy.to(pick_device(config.engine))
        self.data, self.tracker, self.protocol = components.data, components.tracker, components.protocol
        self.pipeline = RewardPipeline(
            segmenter=components.segmenter, reward=components.reward, prompt=config.prompt, parsing=config.parsing
        )
        self.examiner = replace(self.pipeline, always_segment=True)
        masks = "mask" in components.reward.needs
        self.sampler = PromptSampler(self.data.split("train"), config, masks=masks)
        with whole(self.policy):
            if config.init_from:
                self.policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
            reference = make_reference(self.policy, config.algorithm.beta)
        total = config.algorithm.steps * config.algorithm.iterations
        self.engine: Engine = make_engine(self.policy, config.optimizer, total, config.engine)
        self.process_group = self.engine.process_group
        self.is_main = self.process_group.is_main
        self.reward_worker = RewardWorker(self.pipeline, config.rollout.reward_worker)
        self.generator = components.generator
        self.update = PolicyUpdater(
            self.policy,
            self.engine,
            self.engine.wrap_frozen(reference),
            algorithm=config.algorithm,
            rollout=config.rollout,
            mismatch_cap=self.generator.mismatch_cap,
        )
        self.lost: dict[str, int] = {}
        """Steps in a row that were lost, by reason."""
        self.scores: dict[str, dict[str, float]] = {}
        """What was scored so far, for the model card."""
        self.overdue = False
        """Whether the step that the run goes on from was left before its validation."""
        self.first_step = self._resume() if config.resume else 0
        self.saved_at = time.monotonic()
        if self.is_main:
            self.metrics = MetricsLog(self.run_dir, resume_step=self.first_step if config.resume else None)
            self.progress = ProgressWriter(self.run_dir, config.algorithm.steps, self.first_step)

    def run(self) -> Record:
        algorithm = self.config.algorithm
        if self.is_main:
            self.tracker.start(self.run_dir, asdict(self.config), resume=self.first_step > 0)
        if self.config.evaluation.every:
            self.data.split("val")  # a split that is missing is better missed now than after the first steps
        before = self._examine("before", self.config.evaluation.test_split, self.config.evaluation.test_limit)
        self.policy.train()
        if self.overdue:
            self._milestones(self.first_step)
        with self.sampler.read_ahead():
            for step in range(self.first_step, algorithm.steps):
                with self._left_at_the_boundary_before(step):
                    clock = Stopwatch()
                    rollouts = self._collect(step)
                    clock.lap("rollout_s")
                    row = self.update(rollouts, rollouts.size(self.config.rollout.max_new_tokens))
                    clock.lap("update_s")
                with self._left_at_the_boundary_before(step + 1):
                    groups = rollouts.everywhere()
                    row |= self._statistics(rollouts, groups)
                    self._log(step + 1, row, clock, rollouts.waited_s)
                    self._guard(row, groups, step + 1)
                    self._milestones(step + 1)
                    self.generator.weights_changed(self.policy, step + 1)
        best = checkpoints.best(self.run_dir)
        if best:
            with self.engine.full_parameters(whole=True, write=True):
                self.policy.load_weights(checkpoints.folder_of(self.run_dir, best[0]) / checkpoints.POLICY)
        after = self._examine("after", self.config.evaluation.test_split, self.config.evaluation.test_limit)
        return {"steps": algorithm.steps, "best_step": best[0] if best else None, "before": before, "after": after}

    def close(self) -> None:
        """End what runs beside the loop."""
        self.reward_worker.close()
        self.generator.close()
        self.engine.close()

    def _collect(self, step: int) -> RolloutBatch:
        """The rollouts of ``step`` of this rank; an interruption is heard, and agreed upon by all ranks."""
        rollouts = None
        questions = partial(self.sampler, step)
        can_leave = self.process_group.world_size == 1 or self.config.algorithm.sampling_rounds == 1
        hearing = signals.opened() if can_leave else signals.held()
        with self.engine.full_parameters(), contextlib.suppress(KeyboardInterrupt), hearing:
            rollouts = collect_rollouts(
                self.policy, self.generator, self.reward_worker, questions, self.config, step, self.process_group
            )
        if self.process_group.any_rank(signals.pending()) or rollouts is None:
            raise KeyboardInterrupt
        return rollouts

    @contextlib.contextmanager
    def _left_at_the_boundary_before(self, step: int) -> Iterator[None]:
        """Where the block is interrupted, the state after ``step`` optimizer steps is saved: nothing of it is lost."""
        try:
            with signals.held():
                yield
        except KeyboardInterrupt:
            with signals.held():
                self.engine.zero_grad()
                overdue = self._due(step) and not (checkpoints.folder_of(self.run_dir, step)).is_dir()
                if step > self.first_step:
                    self._save(step, overdue=overdue)
                log.warning("interrupted after %d steps", step)
            raise

    def _statistics(self, rollouts: RolloutBatch, groups: Sequence[GroupOutcome]) -> dict[str, float]:
        row = {**rollouts.counters(), **self.process_group.all_reduce_sum(self.generator.counters())}
        return row | (rollout_statistics(groups, rewards_of(groups)) if groups else {})

    def _log(self, step: int, row: dict[str, float], clock: Stopwatch, waited_s: float) -> None:
        if self.is_main:
            self.metrics.log(step, row)
            self.metrics.time(step, clock.laps() | {"reward_wait_s": waited_s})
            self.tracker.log(row, step)
            self.progress.update("train", step, reward=row.get("reward"))

    def _guard(self, row: dict[str, float], groups: Sequence[GroupOutcome], step: int) -> None:
        """Stop a run that goes on losing its steps, or whose segmenter fails.

        Raises:
            RuntimeError: with what to change.
        """
        limit = FailureLimit(self.config.rollout.max_failed_prompts, "rollout.max_failed_prompts")
        limit.check((rollout for group in groups for rollout in group.rollouts), f"step {step}")
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

    def _due(self, step: int) -> bool:
        """Whether a validation is due after ``step`` optimizer steps."""
        every = self.config.evaluation.every
        return every > 0 and (step == self.config.algorithm.steps or step % every == 0)

    def _milestones(self, step: int) -> None:
        """Validate and save where it is due. The best checkpoint is the one with the highest validation reward."""
        settings, validate = self.config.checkpoint, self._due(step)
        minutes = settings.every_minutes
        late = minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        save = step == self.config.algorithm.steps or (settings.every > 0 and step % settings.every == 0)
        if not (validate or save or self.process_group.any_rank(late)):
            return
        value = self._validate(step).get("reward") if validate else None  # None where no sample can be rewarded
        marked = checkpoints.best(self.run_dir)
        better = value is not None and (marked is None or value > marked[1])
        with signals.held():
            self._save(step, best=(step, value) if better and value is not None else marked)

    def _save(self, step: int, *, best: tuple[int, float] | None = None, overdue: bool = False) -> None:
        """Write the checkpoint of ``step`` with all ranks.

        Args:
            step: optimizer steps done.
            best: (step, validation value) of the best checkpoint, this one included; None keeps the mark.
            overdue: a validation of this step is still to be made.

        Raises:
            OSError: it could not be written and ``checkpoint.on_error`` is stop.
        """
        best = best or checkpoints.best(self.run_dir)
        building = checkpoints.building(self.run_dir, step) if self.is_main else contextlib.nullcontext()
        try:
            with building:
                self.process_group.barrier()
                part = checkpoints.part_of(self.run_dir, step)
                self.engine.save(part / checkpoints.ENGINE)
                with self.engine.full_parameters(whole=True):
                    if self.is_main:
                        self._save_policy(part / checkpoints.POLICY, step)
                self.process_group.barrier()
                if self.is_main:
                    state = {
                        "ranks": self.process_group.world_size,
                        "engine": self.config.engine.name,
                        "lost": self.lost,
                    }
                    checkpoints.commit(self.run_dir, step, {**state, "best": best, "overdue": overdue})
                    if best:
                        checkpoints.mark_best(self.run_dir, *best)
                    checkpoints.prune(self.run_dir, self.config.checkpoint.keep_last)
        except OSError as error:
            if self.config.checkpoint.on_error == "stop" or self.process_group.world_size > 1:
                raise
            log.error("%s; going on, since checkpoint.on_error=continue", error)
        self.saved_at = time.monotonic()
        self.process_group.barrier()

    def _save_policy(self, folder: Path, step: int) -> None:
        self.policy.save(folder)
        write_card(folder, self.config, step=step, scores=self.scores, commit=getattr(self.policy, "commit", None))

    def _validate(self, step: int) -> dict[str, float]:
        settings = self.config.evaluation
        if self.is_main:
            self.progress.update("validate", step)
        scored = self._scored("val", settings.val_limit)
        kept = {k: v for k, v in scored.items() if k != "seconds_per_image"}
        self.scores[f"val, step {step}"] = kept
        if self.is_main:
            row = {f"val/{key}": value for key, value in kept.items()}
            self.metrics.log(step, row)
            self.tracker.log(row, step)
            self.progress.update("train", step, giou=kept.get("giou"))
        return kept

    def _examine(self, when: str, split: str, limit: int | None) -> dict[str, float]:
        """Score the test split into eval_<when>/; a resumed run keeps the first score it made."""
        folder = self.run_dir / f"eval_{when}"
        known = read_json(folder / "metrics.json") if when == "before" and self.config.resume else None
        known = self.process_group.all_gather(known)[0]
        if known is not None:
            self.scores[f"{split}, {when}"] = known
            return dict(known)
        step = self.first_step if when == "before" else self.config.algorithm.steps
        scored = self._scored(split, limit, folder=folder, phase=f"test {when}", step=step)
        self.scores[f"{split}, {when}"] = scored
        if self.is_main:
            self.progress.update(f"test {when}", step, giou=scored.get("giou"))
            self.tracker.log({f"test_{when}/{key}": value for key, value in scored.items()}, step)
            self.tracker.images(f"test_{when}", sorted(folder.glob("overlays/*.png")), step)
        return scored

    def _scored(
        self, split: str, limit: int | None, *, folder: Path | None = None, phase: str = "", step: int = 0
    ) -> dict[str, float]:
        """The scores of a split, its batches shared out among the ranks.

        Where parameters come layer by layer, every rank has to make the same forwards, and so evaluates all of it.
        """
        alone = self.config.engine.ranks_forward_together
        with self.engine.full_parameters(), signals.opened() if self.process_group.world_size == 1 else signals.held():
            scored = evaluate(
                self.policy,
                self.examiner,
                self.data.split(split),
                config=self.config.evaluation,
                protocol=self.protocol,
                limit=limit,
                process_group=ALONE if alone else self.process_group,
                folder=folder if self.is_main or not alone else None,
                on_progress=partial(self._show, phase, step) if self.is_main and phase else None,
            )
        return dict(scored.metrics)

    def _show(self, phase: str, step: int, done: int, total: int) -> None:
        self.progress.update(phase, step, message=f"{done}/{total}")

    def _resume(self) -> int:
        """Load the newest sound checkpoint and return its step; 0, with a warning, where there is none yet.

        Raises:
            ConfigError: the run already has more steps than it shall, or another engine's state.
        """
        step = self.process_group.all_gather(checkpoints.newest_sound(self.run_dir) if self.is_main else None)[0]
        if step is None:
            log.warning("resume: %s has no checkpoint yet, starting from step 0", self.run_dir)
            return 0
        if step > self.config.algorithm.steps:
            raise ConfigError(f"algorithm.steps={self.config.algorithm.steps}: the run already has {step}; raise it")
        folder, state = checkpoints.folder_of(self.run_dir, step), checkpoints.load_state(self.run_dir, step)
        if (state["engine"] == "local") != (self.config.engine.name == "local"):
            raise ConfigError(
                f"engine={self.config.engine.name}: the checkpoint of step {step} was written by "
                f"engine={state['engine']}; go on with that, or start anew with init_from"
            )
        if self.config.engine.name == "local":
            self.policy.load_weights(folder / checkpoints.POLICY)
        self.engine.load(folder / checkpoints.ENGINE, ranks=state["ranks"])
        self.lost, self.overdue = dict(state["lost"]), bool(state["overdue"])
        if self.is_main and state["best"]:
            checkpoints.mark_best(self.run_dir, *state["best"])
        log.info("resuming from step %d, %d steps left", step, self.config.algorithm.steps - step)
        return int(step)


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
