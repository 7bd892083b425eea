"""Supervised fine-tuning on demonstrations made from a dataset's weak labels: the papers' SFT baseline, and the warm
start.

Several questions about one image share one packed row, ``[image | question answer | question answer | ...]``: the
vision encoder and the image's tokens are paid once. Only answers are scored.

With ``attention_weight`` two heads are also taught where to look: a coordinate's prediction attends to the image
tokens that its instance covers (SegEarth-R2, arXiv 2512.20013, supervises attention maps likewise). A small model
without any pretraining otherwise sits on a plateau before it discovers looking.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import OptimizerConfig, PromptConfig, RunConfig, SftPhase
from grasp_rl.distributed.build import make_engine, whole
from grasp_rl.distributed.engine import Engine, pick_device
from grasp_rl.distributed.process_group import ALONE, ProcessGroup
from grasp_rl.evaluation.evaluate import check_truth, evaluate, files_of
from grasp_rl.interfaces import Components
from grasp_rl.policies.describe import describe
from grasp_rl.policies.questions import check_questions
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs import checkpoints, data_record
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.tracking.metrics_log import MetricsLog
from grasp_rl.training.questions import chosen
from grasp_rl.training.sft_rows import Row, RowStream
from grasp_rl.utils.files import Record

log = logging.getLogger(__name__)


def run(config: RunConfig, components: Components) -> Record:
    """Fine-tune through the phases of ``config.sft``, saving as it goes; returns what result.json holds.

    Several processes share the rows of every optimizer step; the loss has the divisors of the whole step.

    Raises:
        ConfigError: the policy is no ``VlmPolicy``, the train split gives no weak labels, a scheme is unknown,
            ``attention_layers`` names a layer that the policy lacks, or several phases are to run under ZeRO.
    """
    if config.engine.zero_stage and len(config.sft.phases) > 1:
        raise ConfigError(
            f"sft.phases: {len(config.sft.phases)} phases, each with a fresh optimizer, run with engine=local only; "
            f"with engine={config.engine.name} give one phase, and go on with init_from"
        )
    run_dir = Path(config.run_dir)
    policy = components.policy.to(pick_device(config.engine))
    if not isinstance(policy, VlmPolicy):
        raise ConfigError(
            f"policy: {type(policy).__name__} cannot be fine-tuned on demonstrations: it is no "
            "grasp_rl.policies.vlm.VlmPolicy, whose tokens sft teaches"
        )
    _check_layers(config, policy)
    with whole(policy):
        if config.init_from:
            policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
    schemes = _schemes(config)
    training = components.data.split("train")
    data = chosen(config, training)
    for split in (training, components.data.split(config.evaluation.test_split)):
        check_questions(policy, split, [prompt for prompt, _ in schemes.values()])
    check_truth(components.data.split(config.evaluation.test_split), config.evaluation.test_limit)
    total = sum(phase.steps for phase in config.sft.phases)
    policy.train()
    done = first = _resumed(config, policy, total) if config.resume is not None else 0
    begin = 0
    record: Record = {}
    for number, phase in enumerate(config.sft.phases):
        begin += phase.steps
        if done >= begin and begin < total:
            continue
        optimizer = OptimizerConfig(
            lr=phase.lr,
            weight_decay=config.optimizer.weight_decay,
            warmup_steps=phase.warmup_steps,
            schedule="cosine",
            final_lr_ratio=phase.final_lr_ratio,
        )
        engine = make_engine(policy, optimizer, phase.steps, config.engine)
        group, made = engine.process_group, done - (begin - phase.steps)
        if made:  # the run goes on within this phase
            ranks = checkpoints.load_state(run_dir, done, ("ranks",))["ranks"]
            own = group.all_gather(checkpoints.is_own(run_dir, done) if group.is_main else None)[0]
            trusted = own or config.trust_checkpoint
            engine.load(checkpoints.folder_of(run_dir, done) / checkpoints.ENGINE, ranks=ranks, trusted=trusted)
        rows = RowStream(
            policy,
            data,
            schemes,
            phase,
            seed=config.seed,
            phase_number=number,
            process_group=group,
            sft=config.sft,
            segmenter=components.segmenter,
        )
        try:
            files = _SftLog(config, components, total, done, first) if group.is_main else None
            done = _run_phase(policy, engine, rows, made, config, files, done)
            if done == total:
                record = {"steps": done}
                if not _is_stage(config):  # what follows scores the policy before it begins
                    record |= _examine(config, components, policy, engine, files.progress if files else None, done)
        finally:
            engine.close()
    return record


class _SftLog:
    """metrics.jsonl, progress.json and the record of the data, of the main rank."""

    def __init__(self, config: RunConfig, components: Components, total: int, done: int, first: int) -> None:
        run_dir = Path(config.run_dir)
        self.metrics = MetricsLog(run_dir, resume_step=done or None)
        self.progress = ProgressWriter(run_dir, total, first)
        scored = components.data.split(config.evaluation.test_split)
        data_record.write(run_dir, files_of(scored, config.evaluation.test_limit))


def _check_layers(config: RunConfig, policy: VlmPolicy) -> None:
    layers = policy.model.config.get_text_config().num_hidden_layers
    for number, phase in enumerate(config.sft.phases):
        absent = [layer for layer in phase.attention_layers if not 0 <= layer < layers]
        if phase.attention_weight and absent:
            raise ConfigError(
                f"sft.phases[{number}].attention_layers: {absent[0]}: the policy has decoder layers 0 to {layers - 1}"
            )


def _run_phase(
    policy: VlmPolicy, engine: Engine, rows: RowStream, made: int, config: RunConfig, files: _SftLog | None, done: int
) -> int:
    """The steps of a phase from its step ``made`` on, the run's ``done`` before them; returns those done after."""
    sft, total = config.sft, sum(phase.steps for phase in config.sft.phases)
    losses: list[dict[str, float]] = []
    for batch in rows.batches(made):
        losses.append(sft_step(policy, engine, batch, rows.phase, bf16=sft.bf16))
        done += 1
        if done % sft.log_every == 0 or done == total:
            row = {key: math.fsum(loss[key] for loss in losses) / len(losses) for key in losses[0]}
            row["phase"] = float(rows.number)
            losses.clear()
            if files is not None:
                files.metrics.log(done, row)
                files.progress.update(f"sft phase {rows.number + 1}", done)
        if done % sft.save_every == 0 or done == total:
            _save(policy, engine, config, done, rows.number)
    return done


def _is_stage(config: RunConfig) -> bool:
    """Whether this is a stage of a training run: it can be gone on with, and what follows scores the policy."""
    return config.command == "train"


def _resumed(config: RunConfig, policy: VlmPolicy, total: int) -> int:
    """Load the policy of the newest sound checkpoint and return its step; 0 where there is none yet.

    Raises:
        ConfigError: the run already has more steps than it shall, or another engine's state.
    """
    run_dir, group = Path(config.run_dir), ProcessGroup()
    step = group.all_gather(checkpoints.newest_sound(run_dir) if group.is_main else None)[0]
    if step is None:
        return 0
    state = checkpoints.load_state(run_dir, step, ("engine", "ranks"))
    if step > total:
        raise ConfigError(f"sft.phases: have {total} steps, {run_dir} already has {step}")
    if (state["engine"] == "local") != (config.engine.name == "local"):
        raise ConfigError(f"engine={config.engine.name}: {run_dir} was begun with engine={state['engine']}; go on so")
    if config.engine.name == "local":
        policy.load_weights(checkpoints.folder_of(run_dir, step) / checkpoints.POLICY)
    log.info("sft: resuming from step %d, %d steps left", step, total - step)
    return int(step)


def _save(policy: VlmPolicy, engine: Engine, config: RunConfig, step: int, phase: int) -> None:
    """Write the checkpoint of ``step`` with all ranks: the policy, and in a stage of a run the optimizer's state."""
    run_dir, group = Path(config.run_dir), engine.process_group
    with checkpoints.building(run_dir, step) if group.is_main else contextlib.nullcontext():
        group.barrier()
        part = checkpoints.part_of(run_dir, step)
        if _is_stage(config):
            engine.save(part / checkpoints.ENGINE)
        with engine.full_parameters(whole=True):
            if group.is_main:
                policy.save(part / checkpoints.POLICY)
                describe(part / checkpoints.POLICY, policy, config, step=step, scores={})
        group.barrier()
        if group.is_main:
            state = {"phase": phase, "ranks": group.world_size, "engine": config.engine.name}
            checkpoints.commit(run_dir, step, state)
            checkpoints.prune(run_dir, config.checkpoint.keep_last)
    group.barrier()


def sft_step(
    policy: VlmPolicy, engine: Engine, rows: Sequence[Row], phase: SftPhase, *, bf16: bool
) -> dict[str, float]:
    """One optimizer step on the mean negative log-likelihood of the answers' tokens, and on where they attend.

    Args:
        policy: trained in place.
        engine: its optimizer.
        rows: this rank's share of the step's rows.
        phase: which weights and layers.
        bf16: autocast to bfloat16.

    Returns:
        the losses of the whole step.
    """
    looks = [(b, *look) for b, row in enumerate(rows) for look in row.looks]
    scored = sum(len(c) - n for row in rows for c, n in zip(row.completions, row.unscored, strict=True))
    size = engine.process_group.all_reduce_sum({"tokens": scored, "looks": len(looks)})
    prompts = [row.prompt.encoded() for row in rows]
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
        logp, _, _, attention = engine.forward(
            prompts,
            [row.completions for row in rows],
            unscored=[row.unscored for row in rows],
            entropy=False,
            attention_layers=phase.attention_layers if phase.attention_weight else (),
        )
    total = nll = -logp.sum() / size["tokens"]
    losses = {"loss": nll.item()}
    if phase.attention_weight:
        losses["look_loss"] = 0.0
    if attention is not None and looks:
        b, g, t = (torch.tensor(values, device=policy.device) for values in list(zip(*looks, strict=True))[:3])
        covered = torch.from_numpy(np.stack([look[3] for look in looks])).to(policy.device)
        share = (attention[b, g, t] * covered).sum(-1)
        look_loss = -(share + 1e-6).log().sum() / size["looks"]
        losses["look_loss"] = look_loss.item()
        total = nll + phase.attention_weight * look_loss
    for _ in engine.synchronized_batches([rows], lambda: rows):  # one forward a rank: the step's only and last
        engine.backward(total)
    engine.step()
    return engine.process_group.all_reduce_sum(losses)


def _examine(
    config: RunConfig,
    components: Components,
    policy: VlmPolicy,
    engine: Engine,
    progress: ProgressWriter | None,
    step: int,
) -> dict[str, dict[str, float]]:
    """The test split scored in every scheme that was trained."""
    scores = {}
    for name, (prompt, _) in _schemes(config).items():
        if progress is not None:
            progress.update(f"test {name}", step)
        pipeline = RewardPipeline(
            segmenter=components.segmenter,
            reward=components.reward,
            prompt=prompt,
            parsing=config.parsing,
            always_segment=True,
        )
        alone = config.engine.ranks_forward_together
        with engine.full_parameters():
            result = evaluate(
                policy,
                pipeline,
                components.data.split(config.evaluation.test_split),
                config=config.evaluation,
                protocol=components.protocol,
                limit=config.evaluation.test_limit,
                process_group=ALONE if alone else engine.process_group,
                folder=Path(config.run_dir) / f"eval_{name}" if engine.process_group.is_main or not alone else None,
            )
        scores[name] = dict(result.metrics)
    return scores


def _schemes(config: RunConfig) -> dict[str, tuple[PromptConfig, float]]:
    """Scheme name to its config and weight."""
    if not config.sft.scheme_weights:
        return {config.prompt.scheme: (config.prompt, 1.0)}
    folder = resources.files("grasp_rl.conf") / "prompt"
    packaged = sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))
    schemes = {}
    for name, weight in config.sft.scheme_weights.items():
        if name not in packaged or weight <= 0:
            raise ConfigError(f"sft.scheme_weights.{name}={weight}: must be a weight > 0 of {', '.join(packaged)}")
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        if not isinstance(values, dict):
            raise ConfigError(f"conf/prompt/{name}.yaml: must be a mapping, found {type(values).__name__}")
        schemes[name] = (
            PromptConfig(**{str(k): v for k, v in values.items()} | {"template": config.prompt.template}),
            weight,
        )
    return schemes
