"""What the training loop calls beside the algorithm: logging, validation and tests, checkpoints, reasons to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import CheckpointConfig, EvaluationConfig
from grasp_rl.distributed.engine import Engine
from grasp_rl.distributed.process_group import ALONE
from grasp_rl.evaluation.evaluate import evaluate, evaluation_files
from grasp_rl.interfaces import DataSource, EvaluationProtocol, Policy, Tracker
from grasp_rl.rollouts.metrics import READ, LostAnswers, lost_answers, not_finite_terms
from grasp_rl.rollouts.reward_pipeline import FailureLimit, RewardPipeline
from grasp_rl.rollouts.turns import LaterTurn
from grasp_rl.runs import checkpoints, signals
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.runs.study import TrialReport
from grasp_rl.tracking.metrics_log import MetricsLog
from grasp_rl.types import GroupOutcome, ParseStatus
from grasp_rl.utils.files import read_json

log = logging.getLogger(__name__)

MAX_LOST = 3
_WELL_READ = 0.8
"""Share of a step's answers from which on they count as read and finished."""
_TORN = "most rewards were not finite; mend"
"""Optimizer steps in a row that were lost for one and the same reason, after which a run stops."""


class RunLog:
    """The numbers of a run, written by rank 0: metrics.jsonl, timings.jsonl, progress.json and the tracker.

    Args:
        run_dir: where the files are.
        tracker: a mirror of the metrics.
        steps: of the whole run.
        first_step: from which it goes on; the rows up to it are kept.
        is_main: whether this rank writes.
    """

    def __init__(self, run_dir: Path, tracker: Tracker, *, steps: int, first_step: int, is_main: bool) -> None:
        self.run_dir, self.tracker, self.is_main, self.first_step = run_dir, tracker, is_main, first_step
        self._said: set[str] = set()
        self._were_read = False
        """Whether nearly all answers of an earlier step of this start were finished and could be read."""
        if is_main:
            self.metrics = MetricsLog(run_dir, resume_step=first_step or None)
            self.progress = ProgressWriter(run_dir, steps, first_step)

    def start(self, config: Mapping[str, Any]) -> None:
        """The run begins with this resolved config."""
        if self.is_main:
            self.tracker.start(self.run_dir, config, resume=self.first_step > 0)
            self._pass_on()

    def step(self, step: int, row: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """An optimizer step is done."""
        if self.is_main:
            self.metrics.log(step, row)
            self.metrics.time(step, seconds)
            self.tracker.log({**row, **{f"seconds/{name}": value for name, value in seconds.items()}}, step)
            trouble = self._trouble(row)
            self.progress.update("train", step, reward=row.get("reward"), message=trouble.short if trouble else "")
            self._pass_on()
            if trouble and trouble.short not in self._said:
                self._said.add(trouble.short)
                self.note(f"optimizer step {step}: {trouble.sentence}")

    def _trouble(self, row: Mapping[str, float]) -> LostAnswers | None:
        """What loses most completions of the step with the metrics ``row``."""
        unread = {status: row.get(f"parse/{status}", 0.0) for status in ParseStatus if status not in READ}
        read = sum(row.get(f"parse/{status}", 0.0) for status in READ)
        truncated = row.get("truncated", 0.0)
        lost = lost_answers(truncated, unread, "rollout.max_new_tokens", were_read=self._were_read)
        self._were_read |= read >= _WELL_READ and truncated <= 1 - _WELL_READ
        return lost

    def _pass_on(self) -> None:
        """Say on the terminal what the tracker has to say."""
        for text in getattr(self.tracker, "notes", ()):
            self.progress.note(text)

    def note(self, text: str) -> None:
        """Say ``text`` in the log and on the terminal."""
        if self.is_main:
            log.warning("%s", text)
            self.progress.note(text)

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """The validation split was scored."""
        if self.is_main:
            row = {f"val/{key}": value for key, value in scores.items()}
            self.metrics.log(step, row)
            self.tracker.log(row, step)
            self.progress.update("train", step, giou=scores.get("giou"))

    def test(self, when: str, step: int, scores: Mapping[str, float], folder: Path) -> None:
        """The test split was scored into ``folder``."""
        if self.is_main:
            self.progress.update(f"test {when}", step, test=(when, scores.get("giou")))
            self.tracker.log({f"test_{when}/{key}": value for key, value in scores.items()}, step)
            self.tracker.images(f"test_{when}", sorted(folder.glob("overlays/*.png")), step)
            self.tracker.artifact("evaluation", evaluation_files(folder), {"step": step, "when": when, **scores})

    def ended(self) -> None:
        """All steps are made: the newest checkpoint and the best one are described to the tracker."""
        if self.is_main:
            marked, saved = checkpoints.best(self.run_dir), checkpoints.steps(self.run_dir)
            for step in sorted({*saved[-1:], *(marked or ())[:1]}):
                self.tracker.artifact("checkpoint", *checkpoints.described(self.run_dir, step))

    def phase(self, name: str, step: int, *counts: int) -> None:
        """Work of another kind goes on: ``counts`` done and their total."""
        if self.is_main:
            self.progress.update(name, step, message="/".join(map(str, counts)))


class Evaluator:
    """Scores the validation and test splits during training.

    Args:
        policy: trained.
        engine: gathers its parameters.
        pipeline: parses, segments and rewards, and always segments.
        data: has the splits.
        protocol: what counts as what.
        config: which splits, how many samples, when.
        replicated: whether every rank scores everything, because all have to make the same forwards.
        run_dir: gets a folder for each test.
        log: is told.
        scores: gets what was scored, by name; the model card shows it.
        later: turns after the first.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        pipeline: RewardPipeline,
        data: DataSource,
        protocol: EvaluationProtocol,
        config: EvaluationConfig,
        *,
        replicated: bool,
        run_dir: Path,
        log: RunLog,
        scores: dict[str, dict[str, float]],
        later: Sequence[LaterTurn] = (),
    ) -> None:
        self.policy, self.engine, self.pipeline, self.data = policy, engine, pipeline, data
        self.protocol, self.config, self.replicated, self.run_dir, self.log = protocol, config, replicated, run_dir, log
        self.scores, self.later = scores, later

    def due(self, step: int, last: int) -> bool:
        """Whether a validation is due after ``step`` of ``last`` optimizer steps."""
        return self.config.every > 0 and (step == last or step % self.config.every == 0)

    def validate(self, step: int) -> dict[str, float]:
        """The scores of the validation split after ``step`` optimizer steps."""
        self.log.phase("validate", step)
        scores = self._scored("val", self.config.val_limit)
        scores.pop("seconds_per_image")
        self.scores[f"val, step {step}"] = scores
        self.log.validation(step, scores)
        return scores

    def test(self, when: str, step: int, *, keep: bool = False) -> dict[str, float]:
        """Score the test split into ``eval_<when>/``; with ``keep``, a score that is there already stands."""
        folder, name = self.run_dir / f"eval_{when}", f"{self.config.test_split}, {when}"
        known = self.engine.process_group.all_gather(read_json(folder / "metrics.json") if keep else None)[0]
        if known is not None:
            self.scores[name] = known
            return dict(known)
        shown = partial(self.log.phase, f"test {when}", step)
        self.scores[name] = self._scored(self.config.test_split, self.config.test_limit, folder, shown)
        self.log.test(when, step, self.scores[name], folder)
        return self.scores[name]

    def untrained(self) -> dict[str, float]:
        """The test after no optimizer step at all: that from before, as ``eval_after/``, too."""
        before, after = self.run_dir / "eval_before", self.run_dir / "eval_after"
        group = self.engine.process_group
        if group.is_main:
            shutil.copytree(before, after, dirs_exist_ok=True)
        group.barrier()
        return self.test("after", 0, keep=True)

    def _scored(
        self, split: str, limit: int | None, folder: Path | None = None, shown: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        group = self.engine.process_group
        with self.engine.full_parameters(), signals.opened() if group.world_size == 1 else signals.held():
            scored = evaluate(
                self.policy,
                self.pipeline,
                self.data.split(split),
                config=self.config,
                protocol=self.protocol,
                limit=limit,
                process_group=ALONE if self.replicated else group,
                folder=folder if group.is_main or not self.replicated else None,
                on_progress=shown,
                later=self.later,
            )
        return dict(scored.metrics)


class Checkpointer:
    """Writes the complete state of a run, finds it again, and marks the best.

    Args:
        run_dir: has the checkpoints.
        policy: trained.
        engine: its optimizer's state.
        settings: when, and how many are kept.
        engine_name: of the config; a checkpoint goes on with an engine of its kind.
        write_card: writes the model card of a step into a policy folder.
        last: optimizer steps of the whole run.
        trusted: whether a checkpoint of somebody else may be read as the pickle that it is.
    """

    def __init__(
        self,
        run_dir: Path,
        policy: Policy,
        engine: Engine,
        settings: CheckpointConfig,
        *,
        engine_name: str,
        write_card: Callable[[Path, int], None],
        last: int,
        trusted: bool = False,
    ) -> None:
        self.run_dir, self.policy, self.engine, self.settings = run_dir, policy, engine, settings
        self.engine_name, self.write_card, self.last, self.trusted = engine_name, write_card, last, trusted
        self.saved_at = time.monotonic()

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, validation value) of the best checkpoint."""
        return checkpoints.best(self.run_dir)

    def has(self, step: int) -> bool:
        """Whether ``step`` has a checkpoint."""
        return checkpoints.folder_of(self.run_dir, step).is_dir()

    def due(self, step: int) -> bool:
        """Whether ``step`` is to be saved, by its number or by the clock; all ranks ask together."""
        minutes = self.settings.every_minutes
        late = minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        by_number = step == self.last or (self.settings.every > 0 and step % self.settings.every == 0)
        return by_number or self.engine.process_group.any_rank(late)

    def save(
        self, step: int, *, lost: Mapping[str, int], best: tuple[int, float] | None = None, overdue: bool = False
    ) -> None:
        """Write the checkpoint of ``step`` with all ranks.

        Args:
            step: optimizer steps done.
            lost: steps in a row that were lost, by reason.
            best: (step, validation value) of the best checkpoint, this one included; None keeps the mark.
            overdue: a validation of this step is still to be made.

        Raises:
            OSError: it could not be written and ``checkpoint.on_error`` is stop.
        """
        group, best = self.engine.process_group, best or self.best
        building = checkpoints.building(self.run_dir, step) if group.is_main else contextlib.nullcontext()
        try:
            with building:
                group.barrier()
                part = checkpoints.part_of(self.run_dir, step)
                self.engine.save(part / checkpoints.ENGINE)
                with self.engine.full_parameters(whole=True):
                    if group.is_main:
                        self.policy.save(part / checkpoints.POLICY)
                        self.write_card(part / checkpoints.POLICY, step)
                group.barrier()
                if group.is_main:
                    state = {"ranks": group.world_size, "engine": self.engine_name, "lost": dict(lost)}
                    checkpoints.commit(self.run_dir, step, {**state, "best": best, "overdue": overdue})
                    if best:
                        checkpoints.mark_best(self.run_dir, *best)
                    checkpoints.prune(self.run_dir, self.settings.keep_last)
        except OSError as error:
            if self.settings.on_error == "stop" or group.world_size > 1:
                raise
            log.error("%s; going on, since checkpoint.on_error=continue", error)
        self.saved_at = time.monotonic()
        group.barrier()

    def load(self) -> tuple[int, dict[str, int], bool]:
        """Load the newest sound checkpoint: (its step, what was lost, whether its validation is overdue).

        Step 0, with a warning, where there is none yet.

        Raises:
            ConfigError: the run already has more steps than it shall, or another engine's state.
        """
        group = self.engine.process_group
        step = group.all_gather(checkpoints.newest_sound(self.run_dir) if group.is_main else None)[0]
        if step is None:
            log.warning("resume: %s has no checkpoint yet, starting from step 0", self.run_dir)
            return 0, {}, False
        if step > self.last:
            raise ConfigError(f"algorithm.steps={self.last}: the run already has {step}; raise it")
        folder = checkpoints.folder_of(self.run_dir, step)
        state = checkpoints.load_state(self.run_dir, step, ("engine", "ranks", "best", "lost", "overdue"))
        if (state["engine"] == "local") != (self.engine_name == "local"):
            raise ConfigError(
                f"engine={self.engine_name}: the checkpoint of step {step} was written by "
                f"engine={state['engine']}; go on with that, or start anew with init_from"
            )
        if self.engine_name == "local":
            self.policy.load_weights(folder / checkpoints.POLICY)
        own = group.all_gather(checkpoints.is_own(self.run_dir, step) if group.is_main else None)[0]
        self.engine.load(folder / checkpoints.ENGINE, ranks=state["ranks"], trusted=own or self.trusted)
        if group.is_main and state["best"]:
            checkpoints.mark_best(self.run_dir, *state["best"])
        log.info("resuming from step %d, %d steps left", step, self.last - step)
        return int(step), dict(state["lost"]), bool(state["overdue"])

    def load_best(self) -> int | None:
        """Give the policy the weights of the best checkpoint; its step, None where none is marked."""
        if self.best is None:
            return None
        with self.engine.full_parameters(whole=True, write=True):
            self.policy.load_weights(checkpoints.folder_of(self.run_dir, self.best[0]) / checkpoints.POLICY)
        return self.best[0]


class StopRules:
    """Stops a run that goes on losing its steps, or whose segmenter fails, and a trial that its search gives up.

    Args:
        max_failed_prompts: share of a step's prompts on which the segmenter may fail.
        trial: what the run tells the study that it is a trial of, on rank 0.
        is_main: whether this rank warns.
    """

    def __init__(self, max_failed_prompts: float, trial: TrialReport | None = None, *, is_main: bool = True) -> None:
        self.trial, self.is_main = trial, is_main
        self.pruned_at: int | None = None
        """The optimizer step after which the study ended the trial."""
        self.limit = FailureLimit(max_failed_prompts, "rollout.max_failed_prompts")
        self.lost: dict[str, int] = {}
        """Steps in a row that were lost, by reason."""

    def check(self, step: int, row: Mapping[str, float], groups: Sequence[GroupOutcome]) -> None:
        """Look at a step that was made.

        Raises:
            RuntimeError: with what to change.
        """
        self.limit.check((rollout for group in groups for rollout in group.rollouts), f"step {step}")
        nothing = row["groups"] == row["groups_missing"] or row.get("timed_out") == 1
        torn = [rollout for group in groups for rollout in group.rollouts if not math.isfinite(rollout.reward.reward)]
        terms = ", ".join(f"reward.terms.{name}" for name in sorted(not_finite_terms(torn)))
        if torn and self.is_main:
            log.warning(
                "step %d: %d rewards are not finite (%s); each takes the smallest of its group", step, len(torn), terms
            )
        reasons = {
            "the gradient was not finite; lower optimizer.lr": row["skipped"] > 0,
            "the policy's logits were not finite; lower optimizer.lr and go on from a checkpoint before": (
                row["groups_not_finite"] > 0 and row["groups_not_finite"] + row["groups_missing"] == row["groups"]
            ),
            _TORN: len(torn) > sum(len(group.rollouts) for group in groups) / 2,
            "no completion was finished in time; raise rollout.time_limit_s or lower rollout.max_new_tokens": nothing,
        }
        self.lost = {why: self.lost.get(why, 0) + 1 for why, happened in reasons.items() if happened}
        for why, count in self.lost.items():
            said = f"{why} {terms}" if why == _TORN else why
            log.warning("step lost: %s", said)
            if count >= MAX_LOST:
                raise RuntimeError(f"{MAX_LOST} steps in a row were lost: {said}")

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Look at the scores of the validation split after ``step`` optimizer steps."""
        if self.trial is None or self.trial.metric not in scores:
            return
        if self.trial.validated(step, scores[self.trial.metric]):
            self.pruned_at = step
            log.warning("pruned after %d steps: earlier trials had more by then", step)


class Stopwatch:
    """Named laps in seconds since the last one."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """A part that ends now is called ``name``."""
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    def laps(self) -> dict[str, float]:
        """All laps and ``step_s``, their sum."""
        return self._laps | {"step_s": self._last - self._start}
