"""The form of a recipe's answers, taught to a small policy: demonstrations of every turn and task of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.data.candidates import with_candidates
from grasp_rl.interfaces import Components
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.prompts.render import wrapped
from grasp_rl.rewards.stages import FIRST
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.turns import first_prompt, next_prompt, shown, stages_of
from grasp_rl.segmenters.segment import segment
from grasp_rl.training.demonstrations import thought_of
from grasp_rl.training.sft_rows import RowStream
from grasp_rl.types import Answer, Completion, FinishReason, Sample
from grasp_rl.utils.keyed_rng import keyed_generator, sample_order

STEPS = 160
"""At most."""
ENOUGH = 0.5
"""Negative log-likelihood of a whole answer, the mean over an epoch, at which it ends: exp(-0.5) = 61 % are said word
for word, and siblings still differ."""
LEARNING_RATE = 1e-2
WARMUP = 10
BATCH = 6
PATIENCE = 20
"""Steps."""
SAMPLES = 16
"""Questions of the training split that are demonstrated: those that a run of two steps asks, and some more."""


@dataclass(frozen=True)
class Demonstration:
    """What the turns of a question, or a task, ask one after the other, and the answers: one packed row."""

    prompt: Any
    """Of the first turn."""
    continuations: tuple[Any, ...]
    """Of every turn; None of the first."""
    said: tuple[tuple[int, ...], ...]
    """Tokens of every turn's answer."""
    task: str = ""
    """Empty for the first."""


def teach(config: RunConfig, components: Components, steps: int = STEPS) -> float:
    """Train the policy until it mostly says what is demonstrated, for at most ``steps``; returns the last epoch's loss.

    A demonstration is a question of the training split with its weak labels, its choice or the labels of its candidate
    points as the answer, in every later turn behind the answers before it and the masks that the segmenter makes of
    them.

    Raises:
        ConfigError: a sample has nothing to demonstrate in a scheme, or no demonstration can be read.
    """
    policy = components.policy
    assert isinstance(policy, VlmPolicy)
    rows = list(demonstrations(config, components))
    if not rows:
        raise ConfigError(
            f"rehearse: no question of {config.data.get('name')} has an answer that parsing reads back; "
            "let prompt and parsing agree"
        )
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    policy.train()
    losses: list[float] = []
    size = min(BATCH, len(rows))
    epoch = math.ceil(len(rows) / size)
    for step in range(steps):
        part = [rows[index] for index in sample_order(config.seed, len(rows), step * size, size)]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        losses.append(_step(policy, optimizer, trained, part))
        if (step + 1 >= epoch and fmean(losses[-epoch:]) < ENOUGH) or _idle(losses):
            break
    return fmean(losses[-epoch:])


def _idle(losses: Sequence[float]) -> bool:
    """Whether the last steps brought nothing: what is left, such as a choice between alike images, cannot be known."""
    last, before = losses[-PATIENCE:], losses[-2 * PATIENCE : -PATIENCE]
    return len(before) == PATIENCE and sum(last) > 0.95 * sum(before)


def _step(policy: VlmPolicy, optimizer: Any, trained: Sequence[Any], rows: Sequence[Demonstration]) -> float:
    """One step; returns the mean negative log-likelihood of a whole answer."""
    answers = [said for row in rows for said in row.said]
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for turns in {len(row.said) for row in rows}:  # a packed batch has as many completions in every row
        loss = _loss(policy, [row for row in rows if len(row.said) == turns])
        torch.autograd.backward(loss / sum(map(len, answers)))
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return total / len(answers)


def _loss(policy: VlmPolicy, rows: Sequence[Demonstration]) -> torch.Tensor:
    """The negative log-likelihood of all answers of ``rows``, which have equally many turns."""
    asked = [
        [() if later is None else tuple(later.input_ids[later.shared :].tolist()) for later in row.continuations]
        for row in rows
    ]
    logp = policy.forward(
        [row.prompt for row in rows],
        [
            [(*before, *said) for before, said in zip(its, row.said, strict=True)]
            for its, row in zip(asked, rows, strict=True)
        ],
        continuations=[row.continuations for row in rows] if len(rows[0].said) > 1 else None,
        unscored=[[len(before) for before in its] for its in asked],
        entropy=False,
    )[0]
    assert logp is not None
    return -logp.sum()


def demonstrations(config: RunConfig, components: Components) -> Iterator[Demonstration]:
    """What the policy is taught, see :func:`teach`."""
    policy = components.policy
    assert isinstance(policy, VlmPolicy)
    data = components.data.split("train")
    turns, tasks = config.rollout.turns, config.rollout.tasks
    schemes = {prompt.scheme: prompt for prompt in (config.prompt, *(turn.prompt for turn in turns.values()))}
    stream = RowStream(
        policy,
        data,
        {name: (prompt, 1.0) for name, prompt in schemes.items()},
        replace(config.sft.phases[0], noise=0.0, box_scale_bias=0.0, box_shift_bias=0.0),
        seed=config.seed,
        phase_number=0,
        sft=config.sft,
        segmenter=components.segmenter,
    )
    pipeline = RewardPipeline(
        segmenter=components.segmenter, reward=components.reward, prompt=config.prompt, parsing=config.parsing
    )
    stages = stages_of(config, pipeline)
    for index in sample_order(config.seed, len(data), 0, min(SAMPLES, len(data))):
        sample = data[index]
        for name, task in tasks.items():
            if task.prompt.answer != "labels" or sample.weak_labels:
                yield from _of_task(config, policy, stream, stages, sample, name)
        yield from _of_turns(config, components, policy, stream, stages, sample)


def _of_turns(
    config: RunConfig,
    components: Components,
    policy: VlmPolicy,
    stream: RowStream,
    stages: Mapping[str, RewardPipeline],
    sample: Sample,
) -> Iterator[Demonstration]:
    """``sample`` in every turn of a run; nothing where a reader cannot take the answer, such as that there is none."""
    turns = config.rollout.turns
    prompt = first_prompt(policy, sample, config)
    asked, scheme, name = prompt, config.prompt, FIRST
    continuations, said = [None], []
    previous: list[Answer] | None = None
    for following, turn in [*turns.items(), ("", None)]:
        text = stream.answer(sample, scheme, asked.frame, _rng(config, sample, name))[0]
        completion = _completion(policy, text)
        said.append(completion.token_ids)
        previous = stages[name].read(asked.frame, [completion], previous)
        if not previous[0].ok:
            return
        if turn is None:
            break
        (masks,) = segment(components.segmenter, sample.image, previous, name=sample.sample_id)
        seen = shown(sample.image, previous[0], masks.union, turn)
        asked, scheme, name = next_prompt(policy, asked, completion, seen, sample.query, turn), turn.prompt, following
        continuations.append(asked)
    yield Demonstration(prompt, tuple(continuations), tuple(said))


def _of_task(
    config: RunConfig,
    policy: VlmPolicy,
    stream: RowStream,
    stages: Mapping[str, RewardPipeline],
    sample: Sample,
    name: str,
) -> Iterator[Demonstration]:
    """``sample`` as the task ``name`` asks it; nothing where the task's reader cannot take the answer."""
    task, rng = config.rollout.tasks[name], _rng(config, sample, name)
    if task.prompt.answer == "labels":
        sample = with_candidates(sample, alpha=task.alpha, most=task.most)
    sample = replace(sample, task=name)
    prompt = first_prompt(policy, sample, config)
    if sample.candidates is not None:
        labels = list(sample.candidates.point_labels)
        text = wrapped(labels, thought_of(sample, config.sft.reasoning, rng, len(labels)), task.prompt)
    else:
        text = stream.answer(sample, task.prompt, prompt.frame, rng)[0]
    completion = _completion(policy, text)
    if stages[name].read(prompt.frame, [completion])[0].ok:
        yield Demonstration(prompt, (None,), (completion.token_ids,), name)


def _completion(policy: VlmPolicy, text: str) -> Completion:
    tokens = policy.tokens_of(text)
    return Completion(token_ids=tokens, logprobs=(0.0,) * len(tokens), text=text, finish_reason=FinishReason.STOP)


def _rng(config: RunConfig, sample: Sample, name: str) -> np.random.Generator:
    return keyed_generator("demonstration", config.seed, sample.dataset, sample.sample_id, name)
