"""Supervised fine-tuning on demonstrations made from a dataset's cues: the papers' SFT baseline, and the warm start.

Several questions about one picture share one packed row, ``[picture | question answer | question answer | ...]``: the
vision tower and the picture's tokens are paid once. Only answers are scored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from grasp_rl import checkpoints
from grasp_rl.config import ConfigError, OptimizerConfig, PromptConfig, RunConfig, SftPhase
from grasp_rl.data.demonstrations import distort
from grasp_rl.engines.local import LocalEngine, pick_device
from grasp_rl.evaluate import evaluate
from grasp_rl.progress import ProgressWriter
from grasp_rl.prompting import format_answer
from grasp_rl.protocols import Components, Dataset
from grasp_rl.rollout import Judge
from grasp_rl.sampling import keyed_generator, sample_order
from grasp_rl.tracking.local import MetricsLog
from grasp_rl.types import Record, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture with several questions and answers."""

    prompt: Any
    """The encoded prompt up to the end of the picture."""
    completions: tuple[tuple[int, ...], ...]
    """Per question: the rest of its prompt, then the answer and the end of sequence."""
    unscored: tuple[int, ...]
    """Per question: how many of those tokens are prompt."""


def run(config: RunConfig, components: Components) -> Record:
    """Fine-tune through the phases of ``config.sft``, saving as it goes; returns what result.json holds.

    Raises:
        ConfigError: the train split gives no cues, or a scheme is unknown.
    """
    run_dir = Path(config.run_dir)
    policy: Any = components.policy.to(pick_device(config.engine))
    if config.init_from:
        policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
    schemes = _schemes(config)
    questions = components.data.split("train")
    metrics = MetricsLog(run_dir, resume_step=None)
    total = sum(phase.steps for phase in config.sft.phases)
    progress = ProgressWriter(run_dir, total)
    policy.train()
    done = 0
    for number, phase in enumerate(config.sft.phases):
        rows = _RowStream(policy, questions, schemes, phase, seed=config.seed, phase_number=number)
        optimizer = OptimizerConfig(
            lr=phase.lr,
            weight_decay=config.optimizer.weight_decay,
            warmup_steps=phase.warmup_steps,
            schedule="cosine",
            final_lr_ratio=phase.final_lr_ratio,
        )
        engine = LocalEngine(policy, optimizer, phase.steps)
        losses: list[float] = []
        for batch in DataLoader(rows, batch_size=None, num_workers=1, prefetch_factor=4):
            losses.append(_step(policy, engine, batch, bf16=config.sft.bf16))
            done += 1
            if done % config.sft.log_every == 0 or done == total:
                row = {"loss": math.fsum(losses) / len(losses), "phase": float(number)}
                losses.clear()
                metrics.log(done, row)
                progress.update(f"sft phase {number + 1}", done)
            if done % config.sft.save_every == 0 or done == total:
                checkpoints.save(run_dir, done, policy.save, {"phase": number})
                checkpoints.prune(run_dir, config.checkpoint.keep_last)
    return {"steps": done, **_examine(config, components, policy, progress, done)}


def _step(policy: Any, engine: LocalEngine, rows: Sequence[Row], *, bf16: bool) -> float:
    """One optimizer step on the mean negative log-likelihood of the answers' tokens."""
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
        logp, _, scored = policy.logprobs(
            policy.embed([row.prompt for row in rows]),
            [row.completions for row in rows],
            unscored=[row.unscored for row in rows],
            entropy=False,
        )
        loss = -logp.sum() / scored.sum()
    engine.backward(loss)
    engine.step()
    return float(loss)


def _examine(
    config: RunConfig, components: Components, policy: Any, progress: ProgressWriter, step: int
) -> dict[str, dict[str, float]]:
    """The test split scored in every scheme that was trained."""
    scores = {}
    for name, (prompt, _) in _schemes(config).items():
        progress.update(f"test {name}", step)
        judge = Judge(
            segmenter=components.segmenter,
            reward=components.reward,
            prompt=prompt,
            parsing=config.parsing,
            always_segment=True,
        )
        result = evaluate(
            policy,
            judge,
            components.data.split(config.evaluation.test_split),
            config=config.evaluation,
            limit=config.evaluation.test_limit,
            folder=Path(config.run_dir) / f"eval_{name}",
        )
        scores[name] = dict(result.metrics)
    return scores


def _schemes(config: RunConfig) -> dict[str, tuple[PromptConfig, float]]:
    """Scheme name to its config and weight."""
    if not config.sft.scheme_weights:
        return {config.prompt.scheme: (config.prompt, 1.0)}
    folder = files("grasp_rl.conf.prompt")
    packaged = sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))
    schemes = {}
    for name, weight in config.sft.scheme_weights.items():
        if name not in packaged or weight <= 0:
            raise ConfigError(f"sft.scheme_weights.{name}={weight}: must be a weight > 0 of {', '.join(packaged)}")
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        if not isinstance(values, dict):
            raise ConfigError(f"conf/prompt/{name}.yaml: must be a mapping, found {type(values).__name__}")
        schemes[name] = (PromptConfig(**{str(k): v for k, v in values.items()} | {"template": config.prompt.template}), weight)
    return schemes


class _RowStream(TorchDataset[list[Row]]):
    """Batches of packed rows; batch ``index`` is a function of (seed, phase, index)."""

    def __init__(
        self,
        policy: Any,
        questions: Dataset,
        schemes: dict[str, tuple[PromptConfig, float]],
        phase: SftPhase,
        *,
        seed: int,
        phase_number: int,
    ) -> None:
        self.policy, self.questions, self.phase = policy, questions, phase
        self.seed, self.number = seed, phase_number
        self.prompts = [prompt for prompt, _ in schemes.values()]
        weights = torch.tensor([weight for _, weight in schemes.values()], dtype=torch.float64)
        self.weights = (weights / weights.sum()).numpy()

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, index: int) -> list[Row]:
        if index >= len(self):
            raise IndexError(index)
        count = self.phase.batch_size
        chosen = sample_order(self.seed + 1000 * self.number, len(self.questions), index * count, count)
        return [self._row(number, f"{index}-{place}") for place, number in enumerate(chosen)]

    def _row(self, number: int, key: str) -> Row:
        rng = keyed_generator("demonstration", self.seed, self.number, key)
        prefix: Any = None
        completions, unscored = [], []
        for sample in self._same_picture(number):
            if sample.cues is None:
                raise ConfigError(f"sft: sample {sample.sample_id} of {sample.dataset} has no boxes and points to imitate")
            scheme = self.prompts[int(rng.choice(len(self.prompts), p=self.weights))]
            encoded = self.policy.encode(sample.image, sample.query, scheme)
            split = self.policy.picture_end(encoded)
            prefix = prefix or replace(encoded, input_ids=encoded.input_ids[:split])
            cues = distort(
                sample.cues,
                rng,
                sample.size,
                scale=self.phase.box_scale_bias,
                shift=self.phase.box_shift_bias,
                noise=self.phase.noise,
            )
            text = format_answer(cues, sample.reasoning or "", encoded.frame, scheme)
            question = encoded.input_ids[split:].tolist()
            completions.append((*question, *self.policy.tokens_of(text)))
            unscored.append(len(question))
        return Row(prompt=prefix, completions=tuple(completions), unscored=tuple(unscored))

    def _same_picture(self, number: int) -> list[Sample]:
        several = getattr(self.questions, "same_picture", None)
        if several is None:
            return [self.questions[number]]
        return list(several(number, self.phase.questions_per_picture))
