"""What stands beside saved weights: the model card, and how the policy is to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from grasp_rl.config.schema import RunConfig
from grasp_rl.interfaces import Policy
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.runs.asked import Asked
from grasp_rl.runs.model_card import Asking, write_card

_SIDE = 512
"""Of the image that the card's question is about, in pixels."""


def describe(
    folder: Path, policy: Policy, config: RunConfig, *, step: int, scores: Mapping[str, Mapping[str, float]]
) -> None:
    """Write ``README.md`` and, for a vision-language policy, ``grasp_rl.json`` into a policy folder.

    Args:
        folder: what ``policy.save`` wrote.
        policy: saved there.
        config: the run's.
        step: optimizer steps done.
        scores: metrics by the name of what was scored.

    Raises:
        OSError: a file cannot be written.
    """
    asking = None
    if isinstance(policy, VlmPolicy):
        dtype = str(policy.stock.dtype).removeprefix("torch.")
        image = asdict(policy.backbone.size)
        asked = Asked(prompt=config.prompt, coordinates=policy.coordinates, image=image, dtype=dtype)
        asked.write(folder)
        prompt = policy.encode(np.zeros((_SIDE, _SIDE, 3), np.uint8), "QUESTION", config.prompt)
        turns = [(str(m["role"]), " ".join(part.get("text", "") for part in m["content"])) for m in prompt.messages]
        asking = Asking(
            turns=tuple((role, text.strip()) for role, text in turns),
            canvas=f"{prompt.frame.width:g} x {prompt.frame.height:g}",
            coordinates=policy.coordinates,
        )
    write_card(folder, config, step=step, scores=scores, commit=getattr(policy, "commit", None), asking=asking)
