"""Whether both sides of `grasp-rl bench step` compute the same loss: same model, image, completions and rewards.

    python -m grasp_rl.bench.parity TASK DESCRIPTOR

Completions, rewards, old and reference log-probabilities are drawn, so that ratio and KL term are not trivial.
tests/parity compares gradients too, on a smaller model and for every loss.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grasp_rl.bench.ours import make_policy
from grasp_rl.bench.peer import make_trainer
from grasp_rl.bench.task import BETA, Pipe, Task
from grasp_rl.grpo.advantages import advantages
from grasp_rl.grpo.loss import LossConfig, StepSize, policy_loss
from grasp_rl.planning.step_model import PROMPT, QUESTION

GROUPS, LENGTH = 4, 32
"""At most so many completions of so many tokens are compared."""


@torch.no_grad()
def compare(task: Task) -> dict[str, float]:
    """Our loss, TRL's, and the largest difference between log-probabilities."""
    small = replace(task, groups=min(task.groups, GROUPS), length=min(task.length, LENGTH), mode="plain")
    shape, draws = (1, small.groups, small.length), torch.Generator().manual_seed(small.seed)
    policy: Any = make_policy(small)
    prompt = policy.encode(small.image(), QUESTION, PROMPT)
    ids = torch.randint(len(policy.tokenizer.all_special_tokens), 256, shape, generator=draws)
    noise = [torch.randn(shape, generator=draws) for _ in range(2)]
    gains = advantages(torch.tensor([small.rewards()]), scale=True)
    scores = policy.logprobs(policy.embed([prompt]), [[tuple(c) for c in ids[0].tolist()]])
    old, reference = scores.logp + 0.2 * noise[0], scores.logp + 0.3 * noise[1]
    config = LossConfig(loss="sequence_mean", importance="token", clip_low=0.2, clip_high=0.2, beta=BETA)
    size = StepSize(sequences=small.groups, tokens=ids.numel(), max_tokens=small.length)
    loss, _ = policy_loss(scores.logp, old, reference, gains, scores.valid, config=config, step=size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(small, folder)
    model = trainer.accelerator.unwrap_model(trainer.model).train()
    trainer.current_gradient_accumulation_steps = 1
    rows = peer_rows(prompt, ids[0], policy.image_token_id)
    theirs, *_ = trainer._get_per_token_logps_and_entropies(
        model,
        torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
        torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
        small.length,
        **{name: rows[name] for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")},
    )
    given = {"old_per_token_logps": old[0], "ref_per_token_logps": reference[0], "advantages": gains[0]}
    their_loss = trainer._compute_loss(model, rows | given)
    return {
        "ours": loss.item(),
        "trl": their_loss.item(),
        "loss_difference": abs(loss.item() - their_loss.item()),
        "logprob_difference": (scores.logp[0] - theirs).abs().max().item(),
    }


def peer_rows(prompt: Any, ids: Tensor, image_token: int) -> dict[str, Any]:
    """The batch as TRL's trainer lays it out: the prompt and its image once for each of the completions ``ids``."""
    count = len(ids)
    prompts = prompt.input_ids.expand(count, -1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": torch.ones_like(ids),
        "num_items_in_batch": torch.tensor(ids.numel()),
        "pixel_values": prompt.inputs["pixel_values"].repeat(count, 1),
        "image_grid_thw": prompt.inputs["image_grid_thw"].repeat(count, 1),
        "num_images": [1] * count,
        "mm_token_type_ids": torch.cat([(prompts == image_token).int(), torch.zeros_like(ids)], 1),
    }


def main(argv: Sequence[str]) -> int:
    """Compare once, when asked."""
    task, pipe = Task.loads(argv[0]), Pipe(int(argv[1]))
    task.limit_threads()
    pipe.send({})
    pipe.wait()
    pipe.send(compare(task))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
