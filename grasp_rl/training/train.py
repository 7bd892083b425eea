"""`grasp-rl train` in the worker: the parts of a training run, built from its config and components, and the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.data.sampler import PromptSampler
from grasp_rl.distributed.build import make_engine, whole
from grasp_rl.distributed.engine import Engine, pick_device
from grasp_rl.evaluation.evaluate import check_truth, files_of, warnings_of
from grasp_rl.interfaces import Components, Policy
from grasp_rl.planning.plausibility import doubts
from grasp_rl.policies.describe import describe
from grasp_rl.policies.questions import check_questions
from grasp_rl.rollouts.collect import RolloutBatch, collect_rollouts
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.rollouts.turns import stages_of, turns_of
from grasp_rl.runs import checkpoints, data_record
from grasp_rl.runs.study import STUDY, TrialReport
from grasp_rl.training.hooks import Checkpointer, Evaluator, RunLog, StopRules
from grasp_rl.training.questions import chosen
from grasp_rl.training.trainer import Trainer
from grasp_rl.training.update import PolicyUpdater, make_reference
from grasp_rl.types import Sample
from grasp_rl.utils.files import Record


def run(config: RunConfig, components: Components) -> Record:
    """Train as ``config`` says, evaluating before and after; returns what result.json holds.

    Raises:
        ConfigError: the run cannot start or go on as configured.
        RuntimeError: three steps in a row were lost, the segmenter fails, or memory does not suffice.
        OSError: a checkpoint could not be written, and ``checkpoint.on_error`` is stop.
        KeyboardInterrupt: the run was interrupted; its last step boundary is a checkpoint.
    """
    trainer = make_trainer(config, components)
    trainer.log.start(asdict(config))
    if trainer.log.is_main:
        scored = {config.evaluation.test_split: config.evaluation.test_limit}
        scored |= {"val": config.evaluation.val_limit} if config.evaluation.every else {}
        files = [path for name, limit in scored.items() for path in files_of(components.data.split(name), limit)]
        data_record.write(Path(config.run_dir), files)
    for text in [*doubts(config), *warnings_of(components.protocol, components.segmenter)]:
        trainer.log.note(text)
    exit_code = 1
    try:
        result = trainer.run()
        trainer.log.ended()
        exit_code = 0
    finally:
        trainer.close()
        if trainer.log.is_main:
            components.tracker.finish(exit_code)
    return result


def make_trainer(config: RunConfig, components: Components) -> Trainer:
    """The trainer of ``config``, its state loaded where the run goes on.

    Raises:
        ConfigError: the run cannot start or go on as configured.
    """
    run_dir, algorithm = Path(config.run_dir), config.algorithm
    policy: Policy = components.policy.to(pick_device(config.engine))
    pipeline = RewardPipeline(
        segmenter=components.segmenter, reward=components.reward, prompt=config.prompt, parsing=config.parsing
    )
    training = components.data.split("train")
    validation = [components.data.split("val")] if config.evaluation.every else []
    for split in (training, *validation, components.data.split(config.evaluation.test_split)):
        check_questions(policy, split, [config.prompt])  # what is missing or wrong is better found now than later
    check_truth(components.data.split(config.evaluation.test_split), config.evaluation.test_limit)
    for split in validation:
        check_truth(split, config.evaluation.val_limit)
    if config.rollout.turns and not getattr(components.generator, "takes_turns", True):
        raise ConfigError("rollout.turns: this generator asks one turn only; take generator=in_process")
    sampler = PromptSampler(chosen(config, training), config, masks="mask" in components.reward.needs)
    engine, update = _engine_and_update(config, policy, components)
    scores: dict[str, dict[str, float]] = {}

    def card(folder: Path, step: int) -> None:
        describe(folder, policy, config, step=step, scores=scores)

    checkpointer = Checkpointer(
        run_dir,
        policy,
        engine,
        config.checkpoint,
        engine_name=config.engine.name,
        write_card=card,
        last=algorithm.steps,
        trusted=config.trust_checkpoint,
    )
    is_main = engine.process_group.is_main
    stop = StopRules(config.rollout.max_failed_prompts, _trial(config, is_main=is_main), is_main=is_main)
    resumed = config.resume is not None
    first_step, stop.lost, overdue = checkpointer.load() if resumed else (0, {}, False)
    log = RunLog(
        run_dir,
        components.tracker,
        steps=algorithm.steps,
        first_step=first_step,
        is_main=engine.process_group.is_main,
    )
    first, later = turns_of(config, replace(pipeline, always_segment=True))
    evaluator = Evaluator(
        policy,
        engine,
        first,
        components.data,
        components.protocol,
        config.evaluation,
        replicated=config.engine.ranks_forward_together,
        run_dir=run_dir,
        log=log,
        scores=scores,
        later=later,
    )

    def collect(worker: RewardWorker, samples: Callable[[int], Sequence[Sample]], step: int) -> RolloutBatch:
        return collect_rollouts(
            policy, components.generator, worker, samples, config, step, engine.process_group, components.advantage
        )

    return Trainer(
        policy=policy,
        engine=engine,
        sampler=sampler,
        collect=collect,
        update=update,
        generator=components.generator,
        reward_worker=RewardWorker(pipeline, config.rollout.reward_worker, stages_of(config, pipeline)),
        evaluator=evaluator,
        checkpointer=checkpointer,
        stop=stop,
        log=log,
        steps=algorithm.steps,
        first_step=first_step,
        overdue=overdue,
        resumed=resumed,
        max_new_tokens=config.rollout.max_new_tokens,
        is_trial=config.sweep.trial is not None,
        one_round=algorithm.sampling_rounds == 1,
    )


def _trial(config: RunConfig, *, is_main: bool) -> TrialReport | None:
    """The run's side of its trial; None on other ranks, and where the run has been taken out of its sweep's folder."""
    study, sweep = Path(config.run_dir).parent / STUDY, config.sweep
    if sweep.trial is None or not is_main or not study.is_file():
        return None
    return TrialReport(study, sweep.trial, sweep.search)


def _engine_and_update(config: RunConfig, policy: Policy, components: Components) -> tuple[Engine, PolicyUpdater]:
    """The engine and the update of ``policy``, which first loads the weights of ``init_from``."""
    algorithm = config.algorithm
    with whole(policy):
        if config.init_from:
            policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
        reference = make_reference(policy, algorithm.beta)
    engine = make_engine(policy, config.optimizer, algorithm.steps * algorithm.iterations, config.engine)
    update = PolicyUpdater(
        policy,
        engine,
        engine.wrap_frozen(reference),
        algorithm=algorithm,
        rollout=config.rollout,
        mismatch_cap=components.generator.mismatch_cap,
        surrogate=components.surrogate,
    )
    return engine, update
