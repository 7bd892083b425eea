"""`grasp-rl bench demo`: the demo's optimizer step, here and in a naive loop on the same tiny model.

The naive loop is what one writes first: every prompt repeated G times, ``generate`` of transformers, one forward over
the padded rows with the logits of all positions, AdamW. Both learn from the same completions with the same advantages;
the naive loop's generation decodes until the longest of them ends. Rewards are left out. One thread; steps take turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from grasp_rl.bench.step import PACKAGES
from grasp_rl.config.schema import (
    AlgorithmConfig,
    OptimizerConfig,
    ParsingConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
)
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.grpo.loss import LossConfig, StepSize, policy_loss
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rollouts.collect import collect_rollouts
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.runs.environment import git, version_of
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.training.update import PolicyUpdater
from grasp_rl.types import Answer, MaskPrediction, RewardBreakdown, RolloutGroup, Sample
from grasp_rl.utils.files import Record, write_json

PROMPTS, GROUP = 12, 8
PHASES = ("rollout", "update", "step")
LEARNING_RATE = 1e-6
"""So small that both sides go on saying the same."""


class ByLength:
    """A reward that costs nothing and tells siblings apart."""

    needs: frozenset[str] = frozenset({"boxes"})

    def __init__(self) -> None:
        self.asked = 0

    def score_group(
        self,
        answers: Sequence[Answer],
        labels: WeakLabels | Labels,
        predictions: Sequence[MaskPrediction | None],
        step: int | None = None,
    ) -> list[RewardBreakdown]:
        first, self.asked = self.asked + 1, self.asked + len(answers)
        return [RewardBreakdown(reward=float(number % 3), terms={}) for number in range(first, self.asked + 1)]


class Ours:
    """The project's own rollout and update."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples, self.policy = samples, TinyPolicy()
        algorithm = AlgorithmConfig(prompts_per_step=PROMPTS, group_size=GROUP)
        prompt = PromptConfig(template="compact")
        self.config = RunConfig(algorithm=algorithm, prompt=prompt, rollout=RolloutConfig(reward_worker="inline"))
        pipeline = RewardPipeline(
            segmenter=BoxFillSegmenter(), reward=ByLength(), prompt=prompt, parsing=ParsingConfig()
        )
        self.reward_worker, self.generator = RewardWorker(pipeline), InProcess()
        engine = LocalEngine(self.policy, OptimizerConfig(lr=LEARNING_RATE), 100)
        self.update = PolicyUpdater(self.policy, engine, None, algorithm=algorithm, rollout=self.config.rollout)
        self.policy.train()

    def step(self, number: int) -> tuple[list[RolloutGroup], dict[str, float]]:
        """One optimizer step; the groups it learned from, and CPU-seconds by phase."""
        begun = time.process_time()
        rollouts = collect_rollouts(
            self.policy, self.generator, self.reward_worker, lambda _: self.samples, self.config, number
        )
        drawn = time.process_time()
        row = self.update(rollouts, rollouts.size(self.config.rollout.max_new_tokens))
        done = time.process_time()
        return list(rollouts), {"rollout": drawn - begun, "update": done - drawn, "loss": row["loss"]}


class Naive:
    """Repeated rows, ``generate``, and logits of every position."""

    def __init__(self, samples: Sequence[Sample], ours: TinyPolicy) -> None:
        self.samples, self.policy = samples, copy.deepcopy(ours)
        self.prompt = PromptConfig(template="compact")
        self.policy.stock.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self.policy.train()

    def step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One optimizer step on the completions of ``groups``, after generating as many tokens; CPU-seconds."""
        longest = max(len(r.completion.token_ids) for group in groups for r in group.rollouts)
        begun = time.process_time()
        inputs = self._inputs()
        with torch.no_grad():
            self.policy.stock.generate(
                **inputs, do_sample=True, top_k=0, max_new_tokens=longest, min_new_tokens=longest
            )
        drawn = time.process_time()
        loss = self._learn(inputs, groups, longest)
        return {"rollout": drawn - begun, "update": time.process_time() - drawn, "loss": loss}

    def _inputs(self) -> dict[str, Tensor]:
        """Every prompt G times, padded on the left."""
        encoded = [self.policy.encode(s.image, s.query, self.prompt) for s in self.samples for _ in range(GROUP)]
        longest = max(len(e.input_ids) for e in encoded)
        ids = torch.full((len(encoded), longest), self.policy.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(encoded):
            ids[row, longest - len(prompt.input_ids) :] = prompt.input_ids
            mask[row, longest - len(prompt.input_ids) :] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": torch.cat([e.inputs["pixel_values"] for e in encoded]),
            "image_grid_thw": torch.cat([e.inputs["image_grid_thw"] for e in encoded]),
            "mm_token_type_ids": (ids == self.policy.image_token_id).int(),
        }

    def _learn(self, inputs: dict[str, Tensor], groups: Sequence[RolloutGroup], longest: int) -> float:
        said = [r.completion.token_ids for group in groups for r in group.rollouts]
        ids = torch.zeros(len(said), longest, dtype=torch.long)
        valid = torch.zeros(len(said), longest, dtype=torch.bool)
        for row, tokens in enumerate(said):
            ids[row, : len(tokens)], valid[row, : len(tokens)] = torch.tensor(tokens), True
        whole = {
            **inputs,
            "input_ids": torch.cat([inputs["input_ids"], ids], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], valid.long()], 1),
            "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, longest)),
        }
        logits = self.policy.stock(**whole, use_cache=False).logits[:, -longest - 1 : -1]
        logp = torch.log_softmax(logits.float(), -1).gather(-1, ids[..., None])[..., 0]
        shape = (len(groups), GROUP, longest)
        logp, valid = logp.view(shape), valid.view(shape)
        size = StepSize(sequences=len(said), tokens=int(valid.sum()), max_tokens=RolloutConfig().max_new_tokens)
        settings = LossConfig(loss="constant", importance="token", clip_low=0.2, clip_high=0.2, beta=0.0)
        gains = torch.tensor([group.advantages for group in groups])
        loss, _ = policy_loss(logp, logp.detach(), None, gains, valid, config=settings, step=size)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def measure(repeats: int) -> Record:
    """CPU-seconds of ``repeats`` steps of either side after one that is not counted, and the losses' difference."""
    split = SyntheticSource().split("train")
    samples = [split[index] for index in range(PROMPTS)]
    ours = Ours(samples)
    naive = Naive(samples, ours.policy)
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    lengths: list[int] = []
    for number in range(repeats + 1):
        groups, mine = ours.step(number)
        rows.append((mine, naive.step(groups)))
        lengths += [len(r.completion.token_ids) for group in groups for r in group.rollouts]
    result: Record = {"repeats": repeats, "tokens": statistics.mean(lengths), "longest": max(lengths)}
    for side, index in (("ours", 0), ("naive", 1)):
        counted = [row[index] for row in rows[1:]]
        part = {phase: statistics.median(row[phase] for row in counted) for phase in ("rollout", "update")}
        part["step"] = statistics.median(row["rollout"] + row["update"] for row in counted)
        result[side] = part
    result["ratio"] = result["naive"]["step"] / result["ours"]["step"]
    result["loss_difference"] = max(abs(a["loss"] - b["loss"]) for a, b in rows)
    return result


def main(argv: Sequence[str]) -> int:
    """Run ``grasp-rl bench demo <argv>`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="grasp-rl bench demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="counted steps of either side (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for demo.json")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measure(max(1, arguments.repeats))
    result |= {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "commit": (git(Path(__file__).parent) or {}).get("commit"),
        "packages": {name: version_of(name) for name in PACKAGES},
    }
    if arguments.out:
        write_json(arguments.out / "demo.json", result)
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    lines = [
        "CPU-seconds   ours  naive",
        *(f"{p:<10} {result['ours'][p]:7.3f} {result['naive'][p]:6.3f}" for p in PHASES),
    ]
    lines += [f"naive / ours {result['ratio']:.2f}", f"losses differ by {result['loss_difference']:.1e}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
