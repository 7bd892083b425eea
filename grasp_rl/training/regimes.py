"""`grasp-rl train` in the worker: the stages of a run as ``config.regime`` names them, one after the other.

    supervised fine-tuning ─▶ mining ─▶ round 1 ─▶ ... ─▶ the last round
    <run>/sft                 <run>     <run>/round_1     <run>

A stage is a run that this package has anyway, in a folder of its own, with the weights of the stage before as its
``init_from``; the last round is the run itself. One that is done leaves a file that says so and is not done again; one
that was left goes on from its own checkpoint. So a run that goes on needs no record of where it was.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import MiningConfig, RegimeConfig, RunConfig
from grasp_rl.config.targets import instantiate
from grasp_rl.distributed.build import loading
from grasp_rl.distributed.process_group import kept
from grasp_rl.interfaces import Components
from grasp_rl.runs import origin
from grasp_rl.runs.run_dir import CONFIG, MINING, RESULT, ROUND, SFT, config_hash, mark_ended, mark_started
from grasp_rl.training import mining, sft, train
from grasp_rl.training.questions import chosen
from grasp_rl.utils.files import Record, read_json, write_json, write_text

_VERIFIER = "grasp_rl.policies.verifier.PolicyVerifier"
_SEEDS_APART = 100_003
"""Between the seeds of rounds, so that no round asks the questions of another or of a run beside it in a sweep."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run."""

    name: str
    config: RunConfig
    """As the stage is run; its ``run_dir`` is the stage's folder."""
    run: Callable[[RunConfig, Components], Record]
    result: Path | None
    """Where what it gave is written once it is done; None for the last, whose result is the run's."""


def run(config: RunConfig, components: Components) -> Record:
    """Train through the stages of ``config.regime``; returns what result.json holds: that of the last round.

    Raises:
        ConfigError: a stage cannot start or go on as configured.
        RuntimeError: see :func:`grasp_rl.training.train.run`.
        KeyboardInterrupt: the run was interrupted; what its stage saved last stands.
    """
    if config.regime.plain:
        return train.run(config, components)
    parts = _Parts(components, config)
    del components  # what a stage replaces can go
    result: Record = {}
    with kept(config.engine) as group:
        for stage in stages_of(config):
            known = read_json(stage.result) if stage.result is not None and config.resume is not None else None
            known = group.all_gather(known)[0]
            if known is not None:
                log.info("stage %s is done", stage.name)
                continue
            log.info("stage %s in %s", stage.name, stage.config.run_dir)
            if group.is_main:
                _begin(stage)
            result = stage.run(stage.config, parts.of(stage.config))
            if group.is_main and stage.result is not None:
                _end(stage, result)
            group.barrier()
    return result


def stages_of(config: RunConfig) -> Iterator[Stage]:
    """The stages of a run in their order.

    Raises:
        ConfigError: there are rounds, and the reward has nothing that a round's policy could verify answers with.
    """
    regime, run_dir = config.regime, Path(config.run_dir)
    if regime.rounds > 1 and not with_verifier(config.reward, "", always=True)[1]:
        raise ConfigError(
            f"regime.rounds={regime.rounds}: the policy of a round verifies the answers of the next, and this reward "
            f"has no term with a verifier ({_VERIFIER}); take reward=remote_zero, or regime.rounds=1"
        )
    alone = RegimeConfig(name=regime.name, shots=regime.shots)
    latest = config.init_from
    if regime.sft:
        folder = run_dir / SFT
        yield Stage(name="sft", config=_in(config, folder, latest, alone), run=sft.run, result=folder / RESULT)
        latest = str(folder)
    reuse = regime.mining.reuse
    if regime.mines:
        yield Stage(name="mine", config=replace(config, init_from=latest), run=_mine, result=run_dir / MINING)
        reuse = str(run_dir)
    for number in range(1, regime.rounds + 1):
        last = number == regime.rounds
        folder = run_dir if last else run_dir / ROUND.format(number)
        made = _in(config, folder, latest, replace(alone, mining=MiningConfig(reuse=reuse)))
        if regime.rounds > 1:
            reward = config.reward
            if latest is not None:
                reward, _ = with_verifier(config.reward, latest, always=number > 1)
            made = replace(made, reward=reward, seed=(config.seed + (number - 1) * _SEEDS_APART) % 2**31)
        yield Stage(
            name="grpo" if last else ROUND.format(number),
            config=made,
            run=train.run,
            result=None if last else folder / RESULT,
        )
        latest = str(folder)


def with_verifier(node: Any, weights: str, *, always: bool) -> tuple[Any, int]:
    """``node``, a reward's config, with ``weights`` for every verifier in it, and how many these are.

    Args:
        node: as config.yaml has it.
        weights: a run directory, a checkpoint or a policy folder.
        always: also where a verifier has weights already.
    """
    if isinstance(node, list):
        parts = [with_verifier(item, weights, always=always) for item in node]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if not isinstance(node, dict):
        return node, 0
    if node.get("_target_") == _VERIFIER:
        given = node.get("weights")
        return node | {"weights": weights if always or given is None else given}, 1
    entries = {key: with_verifier(value, weights, always=always) for key, value in node.items()}
    return {key: part for key, (part, _) in entries.items()}, sum(count for _, count in entries.values())


class _Parts:
    """The components of the stage that is run: those of the run as far as they serve, others built anew.

    Args:
        components: of the run.
        config: that they were built from.
    """

    def __init__(self, components: Components, config: RunConfig) -> None:
        self.components, self.reward = components, config.reward
        self.used = False

    def of(self, config: RunConfig) -> Components:
        """The components of a stage; an engine that divides a policy leaves it in parts, so that it is built anew."""
        trusted = config.trusted_modules
        if self.used and config.engine.zero_stage:
            self.components = replace(self.components, policy=None)  # type: ignore[arg-type]
            gc.collect()
            torch.cuda.empty_cache()
            with loading(config):
                self.components = replace(self.components, policy=instantiate(config.policy, trusted, "policy"))
        if config.reward != self.reward:
            self.components = replace(self.components, reward=None)  # type: ignore[arg-type]
            self.components = replace(self.components, reward=instantiate(config.reward, trusted, "reward"))
            self.reward = config.reward
        if self.used:  # a trainer closes them at its end
            self.components = replace(
                self.components,
                generator=instantiate(config.generator, trusted, "generator"),
                tracker=instantiate(config.tracker, trusted, "tracker"),
            )
        self.used = True
        return self.components


def _in(config: RunConfig, folder: Path, init_from: str | None, regime: RegimeConfig) -> RunConfig:
    """``config`` for a stage in ``folder``."""
    resume = None if config.resume is None else str(folder)
    return replace(config, run_dir=str(folder), resume=resume, init_from=init_from, regime=regime)


def _mine(config: RunConfig, components: Components) -> Record:
    return mining.run(config, components, chosen(config, components.data.split("train")))


def _begin(stage: Stage) -> None:
    """Make the stage's folder a run directory that can be read by itself."""
    if stage.result is None or stage.result.name != RESULT:
        return
    folder = Path(stage.config.run_dir)
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(asdict(stage.config))))
    origin.sign(folder / CONFIG)
    mark_started(folder, os.getpid(), config_hash(asdict(stage.config)))


def _end(stage: Stage, result: Record) -> None:
    """Say that the stage is done."""
    assert stage.result is not None
    if stage.result.name == RESULT:
        mark_ended(Path(stage.config.run_dir), "done", 0)
        result = {"command": stage.config.command, "run_dir": stage.config.run_dir} | result
    write_json(stage.result, result)
