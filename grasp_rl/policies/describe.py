"""What stands beside saved weights: the model card, and how the policy is to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from grasp_rl.config.schema import RunConfig
from grasp_rl.data.catalog import entry_of
from grasp_rl.interfaces import Policy
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.runs import data_record
from grasp_rl.runs.asked import Asked
from grasp_rl.runs.model_card import Asking, write_card
from grasp_rl.utils.files import Record

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
    commit = getattr(policy, "commit", None)
    write_card(folder, config, step=step, scores=scores, commit=commit, asking=asking, terms=terms_of(config))


def terms_of(config: RunConfig) -> list[str]:
    """A sentence about the licence of each dataset of a run.

    What was recorded when a dataset was prepared stands before the catalog's entry. Drawn scenes have no terms.
    """
    data = config.data or {}
    nodes = [node for node in (data, *(data.get("sets") or {}).values()) if not node.get("sets")]
    names = [str(node["name"]) for node in nodes if node.get("name")]
    prepared = {str(about.get("name")): about for about in data_record.licences(Path(config.run_dir))}
    sentences = [_sentence(about, "as recorded when it was prepared") for about in prepared.values()]
    for name in names:
        entry = entry_of(name)
        if entry is None:
            sentences += [f"{name}: its licence is not known here."] if not prepared else []
        elif entry.name not in prepared:
            sentences.append(_sentence(entry.as_record(), f"by the catalog of grasp_rl, the data being named {name}"))
    return list(dict.fromkeys(sentences))


def _sentence(about: Record, source: str) -> str:
    upstream = f"; images of {about['upstream']}" if about.get("upstream") else ""
    passed = f"may be passed on: {about.get('redistribution')}"
    return f"{about.get('title')}: licence: {about.get('licence')}{upstream}; {passed} ({source})."
