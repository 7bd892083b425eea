"""Names of the same settings in other trainers, so that one that is typed here is answered with ours.

From TRL's GRPOConfig and transformers' TrainingArguments, PEFT, verl, EasyR1 (verl's keys under other groups) and
ms-swift. A name stands here by the last part, or the last parts, of its key.
"""

from __future__ import annotations

KEYS = {
    # optimizer
    "learning_rate": "optimizer.lr",
    "lr_scheduler_type": "optimizer.schedule",
    "lr_scheduler": "optimizer.schedule",
    "warmup_ratio": "optimizer.warmup_steps",
    "lr_warmup_steps": "optimizer.warmup_steps",
    "lr_warmup_ratio": "optimizer.warmup_steps",
    "lr_warmup_steps_ratio": "optimizer.warmup_steps",
    "min_lr_ratio": "optimizer.final_lr_ratio",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "grad_clip": "optimizer.max_grad_norm",
    # the step
    "num_train_epochs": "algorithm.steps",
    "total_epochs": "algorithm.steps",
    "epochs": "algorithm.steps",
    "max_steps": "algorithm.steps",
    "total_training_steps": "algorithm.steps",
    "num_generations": "algorithm.group_size",
    "rollout.n": "algorithm.group_size",
    "per_device_train_batch_size": "algorithm.prompts_per_step",
    "train_batch_size": "algorithm.prompts_per_step",
    "rollout_batch_size": "algorithm.prompts_per_step",
    "generation_batch_size": "algorithm.prompts_per_step",
    "gradient_accumulation_steps": "algorithm.micro_batch_groups",
    "ppo_mini_batch_size": "algorithm.iterations",
    "global_batch_size": "algorithm.iterations",
    "ppo_micro_batch_size_per_gpu": "algorithm.micro_batch_groups",
    "micro_batch_size_per_device_for_update": "algorithm.micro_batch_groups",
    "num_iterations": "algorithm.iterations",
    "ppo_epochs": "algorithm.iterations",
    # the loss
    "beta": "algorithm.beta",
    "kl_coef": "algorithm.beta",
    "kl_loss_coef": "algorithm.beta",
    "epsilon": "algorithm.clip_low",
    "epsilon_high": "algorithm.clip_high",
    "clip_ratio": "algorithm.clip_low",
    "clip_ratio_low": "algorithm.clip_low",
    "clip_ratio_high": "algorithm.clip_high",
    "loss_type": "algorithm.loss",
    "loss_agg_mode": "algorithm.loss",
    "scale_rewards": "algorithm.scale_advantages",
    "norm_adv_by_std_in_grpo": "algorithm.scale_advantages",
    "importance_sampling_level": "algorithm.importance",
    "adv_estimator": "algorithm.baseline",
    "reward_weights": "reward.terms",
    "reward_funcs": "reward.terms",
    # rollouts
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "max_new_tokens": "rollout.max_new_tokens",
    "max_tokens": "rollout.max_new_tokens",
    "max_completion_length": "rollout.max_new_tokens",
    "max_response_length": "rollout.max_new_tokens",
    "response_length": "rollout.max_new_tokens",
    "use_vllm": "generator",
    # the policy
    "model_name_or_path": "policy.path",
    "model_path": "policy.path",
    "model.path": "policy.path",
    "torch_dtype": "policy.dtype",
    "bf16": "policy.dtype",
    "fp16": "policy.dtype",
    "attn_implementation": "policy.attention",
    "gradient_checkpointing": "policy.checkpoint_activations",
    "enable_gradient_checkpointing": "policy.checkpoint_activations",
    "freeze_vision_tower": "policy.train_vision_encoder",
    "freeze_vision_modules": "policy.train_vision_encoder",
    "lora_r": "policy.lora_rank",
    "lora_target_modules": "policy.lora_targets",
    "max_pixels": "policy.image.max_pixels",
    "min_pixels": "policy.image.min_pixels",
    # the run
    "output_dir": "run_dir",
    "default_local_dir": "run_dir",
    "run_name": "name",
    "experiment_name": "name",
    "resume_from_checkpoint": "resume",
    "save_steps": "checkpoint.every",
    "save_freq": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
    "save_limit": "checkpoint.keep_last",
    "eval_steps": "evaluation.every",
    "test_freq": "evaluation.every",
    "val_freq": "evaluation.every",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "report_to": "tracker",
    "deepspeed": "engine",
    "n_gpus_per_node": "engine.nproc",
    "train_files": "data.root",
    "dataset_name": "data.root",
}
"""Our key by their name."""

NOTES = {
    "algorithm.steps": "optimizer steps; an epoch is the number of questions / algorithm.prompts_per_step",
    "algorithm.prompts_per_step": (
        "questions an optimizer step, of all processes together; where theirs counts completions, divide by the group "
        "size"
    ),
    "algorithm.micro_batch_groups": (
        "groups in one forward and backward: memory alone; how many questions a step learns from is "
        "algorithm.prompts_per_step"
    ),
    "algorithm.iterations": "optimizer steps on the same rollouts",
    "algorithm.baseline": "the published settings are algorithm=grpo, dapo, rloo and others",
    "optimizer.warmup_steps": "steps, no share",
    "policy.train_vision_encoder": "true trains it",
    "policy.checkpoint_activations": "none, selective or full",
    "reward.terms": "reward.terms.NAME.weight; what is paid is a preset, reward=NAME",
    "generator": "generator=vllm_server",
    "engine": "engine=zero2, for example",
    "tracker": "tracker=wandb or tensorboard",
    "data.root": "data=jsonl data.root=FOLDER",
}
"""What is different about our key, by its name."""


def ours(typed: str) -> str:
    """Our key for the dotted name ``typed``, with what is different about it in brackets; empty where none is known."""
    parts = typed.split(".")
    for start in range(len(parts)):
        key = KEYS.get(".".join(parts[start:]))
        if key is not None and key != typed:
            return f"{key} ({NOTES[key]})" if key in NOTES else key
    return ""
