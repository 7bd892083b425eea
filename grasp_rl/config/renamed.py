"""Names of the version before: read for one version, so that its run directories and command lines still work."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

MODULES = {
    "grasp_rl.policies.tiny": "grasp_rl.policies.tiny.policy",
    "grasp_rl.policies.hf_vlm": "grasp_rl.policies.pretrained",
    "grasp_rl.policies.backbone": "grasp_rl.policies.backbones.base",
    "grasp_rl.segmenters.sam3_tracker": "grasp_rl.segmenters.sam3",
    "grasp_rl.data.jsonl": "grasp_rl.data.readers.jsonl",
    "grasp_rl.data.synthetic": "grasp_rl.data.synthetic.dataset",
    "grasp_rl.generators.in_process": "grasp_rl.rollouts.generators.in_process",
    "grasp_rl.generators.vllm_server": "grasp_rl.rollouts.generators.vllm_server",
}
"""Modules that a ``_target_`` may name, by their old name."""

_GRASP = {
    "think": "think_format",
    "answer": "answer_format",
    "box_iou": "box_iou",
    "box_l1": "box_l1",
    "points": "points",
    "points_inside": "points_inside",
    "count": "count",
}
KEYS = {
    "verb": "command",
    "evaluation.empty_iou": "evaluation.protocol.empty_iou",
    "rollout.judge": "rollout.reward_worker",
    "policy.train_tower": "policy.train_vision_encoder",
    "reward.mask_weight": "reward.terms.mask_iou.weight",
    "reward.require_fence": "reward.terms.answer_format.require_fence",
    **{f"reward.{old}_weight": f"reward.terms.{new}.weight" for old, new in _GRASP.items()},
    **{f"reward.{name}_mode": f"reward.terms.{name}.mode" for name in ("box_iou", "box_l1", "points")},
    **{f"reward.{name}_fraction": f"reward.terms.{name}.fraction" for name in ("box_l1", "points")},
    "reward.box_iou_threshold": "reward.terms.box_iou.threshold",
}
"""Config keys by their old name."""

GAINED: dict[str, dict[str, Any]] = {
    "grasp_rl.data.readers.jsonl.JsonlSource": {"allow_outside": False},
    "grasp_rl.data.synthetic.dataset.SyntheticSource": {"level": "easy", "target": "instance", "texture_pieces": False},
}
"""Arguments that a component has gained since its first runs, with the value that those ran with."""

_TERMS = "grasp_rl.rewards.terms"
_TARGETS = {
    "think_format": f"{_TERMS}.format.ThinkFormat",
    "answer_format": f"{_TERMS}.format.AnswerFormat",
    "box_iou": f"{_TERMS}.boxes.BoxIou",
    "box_l1": f"{_TERMS}.boxes.BoxL1",
    "points": f"{_TERMS}.points.PointDistance",
    "points_inside": f"{_TERMS}.points.PointsInside",
    "count": f"{_TERMS}.boxes.Count",
    "mask_iou": f"{_TERMS}.masks.MaskIou",
}


def current_key(key: str) -> str:
    """The present name of a config key."""
    return KEYS.get(key, key)


def completed(node: Any) -> Any:
    """A config, or a part of one, whose components have the arguments that they gained; the rest is left as it is."""
    if isinstance(node, list):
        return [completed(item) for item in node]
    if not isinstance(node, dict):
        return node
    return GAINED.get(str(node.get("_target_")), {}) | {key: completed(value) for key, value in node.items()}


def upgrade(raw: dict[str, Any]) -> dict[str, Any]:
    """A resolved config of version 1 as one of version 2; what it computes is the same."""
    config = {current_key(key): value for key, value in raw.items()} | {"version": 2}
    for name in ("policy", "segmenter", "reward", "data", "tracker", "generator"):
        config[name] = _component(name, config.get(name))
    if isinstance(rollout := config.get("rollout"), dict) and "judge" in rollout:
        config["rollout"] = {("reward_worker" if k == "judge" else k): v for k, v in rollout.items()}
    if isinstance(evaluation := config.get("evaluation"), dict):
        rest = {key: value for key, value in evaluation.items() if key != "empty_iou"}
        rest["protocol"] = {
            "_target_": "grasp_rl.evaluation.protocols.masks.MaskProtocol",
            "name": "ours",
            "headline": "giou",
            "empty_iou": evaluation.get("empty_iou", "one"),
            "false_positives": True,
            "strict": True,
        }
        config["evaluation"] = rest
    if isinstance(sft := config.get("sft"), dict):
        phases = [
            {("questions_per_image" if k == "questions_per_picture" else k): v for k, v in phase.items()}
            for phase in sft.get("phases", [])
        ]
        config["sft"] = sft | {"phases": phases}
    return config


def _component(name: str, node: Any) -> Any:
    """A component with its present class and keyword arguments."""
    if isinstance(node, list):
        return [_component(name, item) for item in node]
    if not isinstance(node, dict):
        return node
    module, _, symbol = str(node.get("_target_", "")).rpartition(".")
    if (module, symbol) == ("grasp_rl.rewards.grasp", "GraspReward"):
        return _rubric(node, list(_GRASP.values()))
    if (module, symbol) == ("grasp_rl.rewards.think2seg", "Think2SegReward"):
        rubric = _rubric(node, ["mask_iou", "answer_format", "think_format"])
        rubric["terms"]["answer_format"]["require_fence"] = True
        return rubric
    fields = {current_key(f"{name}.{key}").removeprefix(f"{name}."): _component(name, v) for key, v in node.items()}
    if "_target_" in fields:
        fields["_target_"] = f"{MODULES.get(module, module)}.{symbol}"
    return fields


def _rubric(node: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The rubric of one of the two reward classes of version 1."""
    terms: dict[str, Any] = {name: {"_target_": _TARGETS[name], "weight": 1.0} for name in names}
    for key, value in node.items():
        if key != "_target_":
            _, _, term, argument = KEYS[f"reward.{key}"].split(".")
            terms[term][argument] = value
    return {"_target_": "grasp_rl.rewards.rubric.Rubric", "terms": terms}
