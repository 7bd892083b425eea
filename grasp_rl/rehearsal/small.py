"""A recipe's config with a small policy, a small segmenter and drawn data in place of what it names.

Data that are drawn already stay, and so do those of a layout that nothing here draws, read where they lie.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.published import PUBLISHED
from grasp_rl.rehearsal import models
from grasp_rl.rehearsal.layouts import WRITERS, cross_view
from grasp_rl.utils.files import Record

PIXELS = 112 * 112
"""Of an image at most."""
TOKENS = 160
"""Of an answer at most."""
SEGMENTERS = {"SamSegmenter": "random:sam_base", "Sam2Segmenter": "random:sam2_tiny"}
"""Small architectures by class; a segmenter of another class stays."""


def small(config: Record, folder: Path) -> Record:
    """A copy of a run's ``config`` that takes seconds on a CPU; datasets and weights are written to ``folder``.

    Everything else is the recipe's: classes, reader, prompt, reward, turns, algorithm, regime, engine and protocol. At
    most two steps, two questions a step, four completions a question, two processes, images of 112 x 112 and answers
    of 160 tokens.

    Raises:
        ConfigError: no small counterpart is known of the policy or the dataset.
    """
    made = copy.deepcopy(config)
    made["data"] = _data(made["data"], folder / "data")
    made["policy"] |= _policy(made["policy"], folder / "policy")
    made["reward"] = _with_small_policies(made["reward"], folder / "policy")
    kind = str(made["segmenter"]["_target_"]).rpartition(".")[2]
    if kind in SEGMENTERS:
        made["segmenter"] |= {"path": SEGMENTERS[kind]}
    made["engine"] |= {"device": "cpu", "threads": 1, "nproc": min(2, made["engine"]["nproc"]), "nnodes": 1}
    made["engine"] |= {"node_rank": None, "rendezvous": None, "hostfile": None}
    algorithm = made["algorithm"]
    algorithm |= {"steps": min(2, algorithm["steps"]), "prompts_per_step": 2, "micro_batch_groups": 1}
    algorithm["group_size"] = min(4, algorithm["group_size"])
    made["sft"]["phases"] = [phase | {"steps": 2, "batch_size": 2} for phase in made["sft"]["phases"]]
    made["regime"]["rounds"] = min(2, made["regime"]["rounds"])
    made["regime"]["mining"]["limit"] = 2
    made["rollout"]["max_new_tokens"] = min(TOKENS, made["rollout"]["max_new_tokens"])
    for turn in made["rollout"]["turns"].values():
        if turn.get("max_new_tokens"):
            turn["max_new_tokens"] = min(TOKENS, turn["max_new_tokens"])
    evaluation = made["evaluation"]
    evaluation |= {"every": min(2, evaluation["every"]), "val_limit": 2, "test_limit": 2}
    evaluation["max_new_tokens"] = min(TOKENS, evaluation["max_new_tokens"])
    made["checkpoint"] |= {"every": min(2, made["checkpoint"]["every"]), "keep_last": 1}
    return made


def taught(config: Record, folder: Path) -> Record:
    """The config in which the small policy learns the form of the recipe's answers, before the recipe itself."""
    made = copy.deepcopy(config)
    made |= {"command": "sft", "name": "answers", "run_dir": str(folder)}
    made["engine"] |= {"name": "local", "nproc": 1}
    made["policy"] |= {"lora_rank": 0, "train_vision_encoder": False}
    if made["rollout"]["turns"]:
        made["policy"] |= {"packed_attention": "mask"}  # on a CPU the faster for short branches
    made["regime"] |= {"name": "grpo", "sft": False, "shots": None, "rounds": 1}
    made["regime"]["mining"] |= {"before": False, "reuse": None}
    return made


def _data(data: Record, folder: Path) -> Record:
    if "sets" in data:
        return data | {"sets": {key: _data(part, folder / key) for key, part in data["sets"].items()}}
    if "root" not in data:
        return data  # drawn already
    name = str(data.get("name"))
    if name not in WRITERS and name != "cross_view":
        if Path(data["root"]).exists():
            return data
        raise ConfigError(
            f"data.name={name!r}: no synthetic copy of that layout, and data.root={data['root']!r} is not there to be "
            f"read; write a root that is in the experiment, or take one of {', '.join(WRITERS)}"
        )
    root = folder / name
    if not root.exists():
        (cross_view if name == "cross_view" else WRITERS[name])(root)
    return data | {"root": str(root)}


def _with_small_policies(reward: Any, folder: Path) -> Any:
    """A reward whose verifiers, where it has some, are small policies, too."""
    if not isinstance(reward, dict):
        return reward
    made = {key: _with_small_policies(value, folder) for key, value in reward.items()}
    return made | _policy(made, folder) if "image" in made else made


def _policy(policy: Record, folder: Path) -> dict[str, Any]:
    if "path" not in policy:
        return {}  # a tiny one already
    kinds = {one.hub_id: one.model_type for one in PUBLISHED.values()}
    kind = kinds.get(str(policy["path"]))
    if kind not in models.FAMILIES:
        raise ConfigError(f"policy.path={policy['path']!r}: no small model of its class; there are {', '.join(kinds)}")
    if not folder.exists():
        models.build(kind, folder)
    image = policy["image"]
    if image["max_pixels"]:
        image = image | {"max_pixels": PIXELS}
    return {"path": str(folder), "revision": None, "image": image}
