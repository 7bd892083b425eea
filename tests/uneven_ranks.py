"""Learn from one set of rollouts whose shares differ in all that can differ; one process, or each of several.

    python -m torch.distributed.run --standalone --nproc-per-node=2 tests/uneven_ranks.py zero3 LORA_RANK FILE

With TORCH_DISTRIBUTED_DEBUG=DETAIL it fails where two ranks make different collective calls.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import rolling
import torch
from safetensors.torch import save_file

from grasp_rl.config.schema import (
    AlgorithmConfig,
    EngineConfig,
    OptimizerConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
)
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.distributed.build import loading, make_engine, whole
from grasp_rl.policies import logprobs
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.training.update import PolicyUpdater, make_reference
from grasp_rl.types import RolloutGroup

ROLLOUT = RolloutConfig(max_new_tokens=12)
LIVE = (0, 1, 2, 4)
"""Groups with an advantage: of two ranks, the first has 3 of its 3, the second the first of its 2."""


def groups_of(policy: TinyPolicy) -> list[RolloutGroup]:
    """Five groups of three, the later ones longer, one without advantage."""
    samples = [SyntheticSource(train_size=5, test_size=5).split("train")[index] for index in range(5)]
    algorithm = AlgorithmConfig(group_size=3)
    found = rolling.rollouts(
        policy, samples, algorithm=algorithm, rollout=ROLLOUT, prompt=PromptConfig(template="compact")
    )
    chance = torch.Generator().manual_seed(3)
    cut = []
    for number, group in enumerate(found):
        rollouts = []
        for rollout in group.rollouts:
            said, length = rollout.completion, 2 + 2 * number
            completion = replace(said, token_ids=said.token_ids[:length], logprobs=said.logprobs[:length])
            rollouts.append(replace(rollout, completion=completion))
        gains = torch.randn(3, generator=chance) if number in LIVE else torch.zeros(3)
        cut.append(replace(group, rollouts=tuple(rollouts), advantages=tuple(gains.tolist())))
    return cut


def learned(name: str, lora_rank: int) -> dict[str, torch.Tensor]:
    """Parameters after four calls of the updater, by name, and the last ``kl``; of rank 0, empty on others."""
    config, optimizer = EngineConfig(name=name, timeout_s=60), OptimizerConfig(lr=1e-3)
    groups = groups_of(TinyPolicy(lora_rank=lora_rank))
    algorithm = AlgorithmConfig(
        group_size=3, micro_batch_groups=2, iterations=2, beta=0.1, skip_zero_advantage=True, loss="token_mean"
    )
    with mock.patch.object(logprobs, "LOGITS_AT_ONCE", 629 * 4):  # four tokens at a time: chunks differ, too
        with loading(RunConfig(engine=config, policy={})):
            policy = TinyPolicy(lora_rank=lora_rank)
        with whole(policy):
            reference = make_reference(policy, algorithm.beta)
        engine = make_engine(policy, optimizer, 8, config)
        update = PolicyUpdater(policy, engine, engine.wrap_frozen(reference), algorithm=algorithm, rollout=ROLLOUT)
        for some in (groups[:1], groups, groups, groups):  # fewer groups than ranks, before a rank has had one
            row = update(some[engine.process_group.rank :: engine.process_group.world_size], rolling.size_of(some, 12))
    with engine.full_parameters(whole=True):
        found = (
            {key: value.detach().clone() for key, value in policy.named_parameters()}
            if engine.process_group.is_main
            else {}
        )
    engine.close()
    return found | ({"kl": torch.tensor(row["kl"])} if found else {})


if __name__ == "__main__":
    if found := learned(sys.argv[1], int(sys.argv[2])):
        save_file(found, Path(sys.argv[3]))
