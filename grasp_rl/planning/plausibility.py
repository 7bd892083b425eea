"""What a config says that its author is unlikely to mean: sentences with the key; nothing is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from grasp_rl.config.schema import PromptConfig, RunConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts import released
from grasp_rl.prompts.render import worked_example
from grasp_rl.runs.asked import FILE

MAX_FULL_LR = 1e-5
"""Above it, full fine-tuning of a pretrained model by GRPO is unheard of: the papers take 1e-6."""
_FRAME = CoordinateFrame(width=840, height=840, image_width=840, image_height=840)
_PIECES_TO_TOKENS = 1.07
"""Measured on Qwen's vocabulary: 71 to 163 tokens for the seven schemes' examples, within 5 % of this estimate."""
_TOY_POLICY = "grasp_rl.policies.tiny.policy.TinyPolicy"
_TOY_DATA = "grasp_rl.data.synthetic.dataset.SyntheticSource"


def doubts(config: RunConfig) -> Iterator[str]:
    """Sentences about what in ``config`` is unlikely to be meant."""
    policy = config.policy or {}
    toy = policy.get("_target_") == _TOY_POLICY
    pretrained = "path" in policy
    if pretrained and not policy.get("lora_rank") and config.optimizer.lr > MAX_FULL_LR and config.command == "train":
        yield (
            f"optimizer.lr={config.optimizer.lr:g} with every parameter trained (policy.lora_rank=0): the papers take "
            f"1e-6, above {MAX_FULL_LR:g} a pretrained model is soon lost"
        )
    if not toy:
        yield from _short_caps(config)
        reader = config.parsing.reader
        if reader in released.SCHEMES and not released.reads(reader, config.prompt):
            yield (
                f"parsing.reader={reader} does not know the fields of prompt={config.prompt.scheme}, whose own rules "
                f"are used instead: prompt={released.SCHEMES[reader]} asks for what it reads"
            )
    ranks, questions = config.engine.nproc * config.engine.nnodes, config.algorithm.prompts_per_step
    if config.command == "train" and ranks > questions:
        yield (
            f"{ranks} processes share the algorithm.prompts_per_step={questions} questions of a step, and each stays "
            f"whole on one: {ranks - questions} have nothing to learn from; take fewer processes (engine.nproc), or "
            "more questions, which changes what is learned"
        )
    taught_here = pretrained and (Path(policy["path"]) / FILE).is_file()
    if pretrained and not taught_here and (config.data or {}).get("_target_") == _TOY_DATA:
        yield (
            "data=synthetic are drawn scenes for policy=tiny; a pretrained policy learns nothing of use from them: "
            "data=jsonl data.root=FOLDER reads your own images"
        )
    if toy and (config.data or {}).get("_target_") != _TOY_DATA:
        yield (
            "policy=tiny is a toy that knows drawn scenes alone; for real images take a pretrained "
            "one, such as policy=qwen2_5_vl_3b"
        )


def _short_caps(config: RunConfig) -> Iterator[str]:
    """Caps on completions that leave no room for an answer and its thought."""
    example = example_tokens(config.prompt)
    caps = {"evaluation.max_new_tokens": config.evaluation.max_new_tokens}
    if config.command == "train":
        caps |= {"rollout.max_new_tokens": config.rollout.max_new_tokens}
    for key, cap in caps.items():
        if cap < 2 * example:
            yield (
                f"{key}={cap}: the worked example of the question alone takes about {example} tokens; longer answers "
                f"are cut off and count as unread: {key}=1024"
            )


def example_tokens(prompt: PromptConfig) -> int:
    """About how many tokens the worked example of the packaged questions takes in a published model's vocabulary."""
    text = worked_example(_FRAME, prompt)
    pieces = len(re.findall(r"\d|[A-Za-z]+|[^\w\s]+|\n", text))
    return math.ceil(pieces * _PIECES_TO_TOKENS)
