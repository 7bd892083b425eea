"""Loss and gradient against TRL's GRPOTrainer on the same completions and rewards, image included.

TRL scores one padded row per completion and repeats the image; we score one packed row per group. Run by `make parity`
(needs the `bench` extra).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from grasp_rl.config.schema import PromptConfig
from grasp_rl.grpo.advantages import advantages
from grasp_rl.grpo.loss import LossConfig, StepSize, policy_loss
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.types import Sample

pytestmark = pytest.mark.parity

GROUP, LENGTH = 4, 24
SETTINGS = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2, "beta": 0.0},
    "grpo_kl": {
        "loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2, "beta": 0.04, "use_bias_correction_kl": False,
    },
    "dapo": {"loss_type": "dapo", "scale_rewards": "group", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "epsilon": 0.2, "beta": 0.0},
    "gspo": {
        "loss_type": "grpo", "scale_rewards": "group", "epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.0,
        "importance_sampling_level": "sequence",
    },
    # TRL's epsilon_high is the cap itself; ratios around 1 exceed this one
    "cispo": {"loss_type": "cispo", "scale_rewards": "group", "epsilon": 0.2, "epsilon_high": 1.1, "beta": 0.0},
}  # fmt: skip
LOSSES = {"grpo": "sequence_mean", "dapo": "token_mean", "dr_grpo": "constant", "cispo": "token_mean"}


def make_trainer(policy: TinyPolicy, folder: Path, **settings: Any) -> Any:
    """A real GRPOTrainer around the policy's own stock model."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    # the name from transformers 5.24 on, and the one before
    recompute = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(GRPOConfig, n))
    arguments = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2 * GROUP,
        num_generations=GROUP,
        max_completion_length=LENGTH,
        report_to=[],
        use_cpu=True,
        bf16=False,
        **{recompute: False},
        **settings,
    )
    data = Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    policy.save(folder / "model")
    model: Any = str(folder / "model") if settings["beta"] else policy.stock
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=data,
        processing_class=policy.tokenizer,
    )


@pytest.mark.parametrize("name", list(SETTINGS))
def test_loss_and_gradient_equal_trl(name: str, samples: list[Sample], tmp_path: Path) -> None:
    settings = SETTINGS[name]
    policy = TinyPolicy(weights="random")
    trainer = make_trainer(policy, tmp_path, **settings)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1

    prompt = PromptConfig(template="compact")
    encoded = [policy.encode(s.image, s.query, prompt) for s in samples[:2]]
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(2, GROUP, LENGTH, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        groups = policy.generate(policy.embed(encoded), uniforms, group_size=GROUP, max_new_tokens=LENGTH)
    special = {policy.stock.config.image_token_id, policy.stock.config.video_token_id}
    ids = [
        [tuple(40 if t in special else t for t in c.token_ids[: LENGTH - 5 * g]) for g, c in enumerate(group)]
        for group in groups
    ]
    rewards = torch.rand(2, GROUP, generator=generator)
    gains = advantages(rewards, scale=settings["scale_rewards"] == "group")

    cispo = settings["loss_type"] == "cispo"

    scores = policy.logprobs(policy.embed(encoded), ids)
    logp, valid = scores.logp, scores.valid
    old = logp.detach() + 0.2 * torch.randn(logp.shape, generator=generator) * valid
    reference = logp.detach() + 0.3 * torch.randn(logp.shape, generator=generator) * valid
    loss, _ = policy_loss(
        logp,
        old,
        reference,
        gains,
        valid,
        config=LossConfig(
            loss=LOSSES[str(settings["loss_type"])],
            importance=str(settings.get("importance_sampling_level", "token")),
            clip_low=1.0 if cispo else float(str(settings["epsilon"])),
            clip_high=float(str(settings.get("epsilon_high", settings["epsilon"]))) - cispo,
            surrogate="cispo" if cispo else "clipped",
            beta=float(str(settings["beta"])),
        ),
        step=StepSize(sequences=2 * GROUP, tokens=int(valid.sum()), max_tokens=LENGTH),
    )
    policy.zero_grad()
    loss.backward()
    ours = torch.cat([p.grad.flatten() for p in policy.stock.parameters() if p.grad is not None])

    their_model = trainer.accelerator.unwrap_model(trainer.model)
    their_model.zero_grad()
    their_loss = trainer._compute_loss(their_model, trl_inputs(policy, encoded, ids, gains, old, reference))
    their_loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in their_model.parameters() if p.grad is not None])
    assert abs(loss.item() - their_loss.item()) < 1e-5
    assert theirs.norm() > 0
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


def trl_inputs(
    policy: TinyPolicy, encoded: list[Any], ids: Any, gains: torch.Tensor, old: torch.Tensor, reference: torch.Tensor
) -> dict[str, Any]:
    """The batch as TRL's trainer lays it out: left-padded prompts, right-padded completions, an image per row."""
    longest = max(len(e.input_ids) for e in encoded)
    rows = [(b, g) for b in range(len(ids)) for g in range(len(ids[0]))]
    width = old.shape[-1]
    prompt_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    prompt_mask = torch.zeros_like(prompt_ids)
    completion_ids = torch.zeros(len(rows), width, dtype=torch.long)
    completion_mask = torch.zeros_like(completion_ids)
    for row, (b, g) in enumerate(rows):
        tokens = encoded[b].input_ids
        prompt_ids[row, longest - len(tokens) :], prompt_mask[row, longest - len(tokens) :] = tokens, 1
        completion = torch.tensor(ids[b][g])
        completion_ids[row, : len(completion)], completion_mask[row, : len(completion)] = completion, 1
    types = torch.cat([(prompt_ids == policy.stock.config.image_token_id).int(), torch.zeros_like(completion_ids)], 1)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": gains.flatten(),
        "old_per_token_logps": old.flatten(0, 1),
        "ref_per_token_logps": reference.flatten(0, 1),
        "num_items_in_batch": completion_mask.sum(),
        "pixel_values": torch.cat([encoded[b].inputs["pixel_values"] for b, _ in rows]),
        "image_grid_thw": torch.cat([encoded[b].inputs["image_grid_thw"] for b, _ in rows]),
        "num_images": [1] * len(rows),
        "mm_token_type_ids": types,
    }
