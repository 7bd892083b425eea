"""A config in, its bill out: memory, time, disk, and the key to turn where it does not fit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from grasp_rl.config import RunConfig
from grasp_rl.plan.hardware import Device
from grasp_rl.plan.memory import Layout, Load, disk_gib, memory_gib
from grasp_rl.plan.shapes import Shapes, shapes_of
from grasp_rl.plan.timing import decode_seconds, step_seconds
from grasp_rl.policies.tiny import SIDE
from grasp_rl.types import Record

SEGMENTERS = {
    "sam2-hiera-tiny": 39e6, "sam2.1-hiera-tiny": 39e6, "sam2-hiera-small": 46e6, "sam2.1-hiera-small": 46e6,
    "sam2-hiera-base-plus": 81e6, "sam2.1-hiera-base-plus": 81e6, "sam2-hiera-large": 224e6,
    "sam2.1-hiera-large": 224e6, "sam-vit-base": 94e6, "sam-vit-large": 312e6, "sam-vit-huge": 641e6, "sam3": 860e6,
}  # fmt: skip
"""Parameters by the end of the hub id, as the model pages state them."""
SEGMENTER_WORK_GIB = 2.0
"""What encoding a picture of 1024 pixels takes beside the weights. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a config does not say."""

    prompt_tokens: int = 330
    """Tokens of a prompt beside its picture."""
    completion_tokens: int | None = None
    """Mean length of a completion; None for as long as it may be."""
    picture: tuple[int, int] = (840, 840)
    """(width, height) of the pictures in pixels."""
    validation: int = 256
    """Answers of a validation or test whose number the config leaves to the data."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes."""

    memory: dict[str, float]
    """GiB by part on each device, and ``peak``."""
    seconds: dict[str, float]
    """Seconds by phase of an optimizer step, and ``step``."""
    device_hours: float
    """Of all devices: training and evaluation."""
    disk_gib: float
    fits: bool


def estimate(config: RunConfig, device: Device, assumed: Assumptions) -> Estimate:
    """The bill of ``config`` on ``device``.

    Raises:
        ConfigError: the policy's shape cannot be known here.
    """
    shapes, load, layout = shapes_of(config.policy, assumed.picture), load_of(config, assumed), layout_of(config)
    load = _with_picture(load, shapes)
    memory = memory_gib(shapes, load, layout, segmenter_gib(config.segmenter))
    seconds = step_seconds(shapes, load, layout, device)
    rounds = config.algorithm.steps // config.evaluation.every if config.evaluation.every else 0
    answers = rounds * (config.evaluation.val_limit or assumed.validation)
    answers += 2 * (config.evaluation.test_limit or assumed.validation)
    alone = Load(**{**vars(load), "prompts": config.evaluation.batch_size, "group": 1})
    each = decode_seconds(shapes, alone, Layout(), device) / config.evaluation.batch_size
    training = seconds["step"] * config.algorithm.steps
    return Estimate(
        memory=memory,
        seconds=seconds,
        device_hours=(training * layout.ranks + answers * each) / 3600,
        disk_gib=disk_gib(shapes, config.checkpoint.keep_last),
        fits=memory["peak"] <= device.memory_gib,
    )


def load_of(config: RunConfig, assumed: Assumptions) -> Load:
    """What ``config`` asks of its policy, the picture's tokens left out of the prompt."""
    recompute = config.policy.get("checkpoint_activations", "none")
    return Load(
        prompt=150 if config.policy["_target_"].endswith(".TinyPolicy") else assumed.prompt_tokens,
        completion=assumed.completion_tokens or config.rollout.max_new_tokens,
        group=config.algorithm.group_size,
        prompts=config.algorithm.prompts_per_step,
        micro_batch=config.algorithm.micro_batch_groups,
        rows=config.rollout.batch_rows,
        recompute=recompute,
        kl=config.algorithm.beta > 0,
        iterations=config.algorithm.iterations,
    )


def layout_of(config: RunConfig) -> Layout:
    """The engine's layout over ranks."""
    return Layout(engine=config.engine.name, ranks=config.engine.nproc)


def _with_picture(load: Load, shapes: Shapes) -> Load:
    return Load(**{**vars(load), "prompt": load.prompt + shapes.picture_tokens})


def segmenter_gib(segmenter: Record) -> float:
    """GiB of a segmenter on the device; nothing for those without weights."""
    name = str(segmenter.get("path", ""))
    known = [size for end, size in SEGMENTERS.items() if name.endswith(end)]
    return known[0] * 4 / 2**30 + SEGMENTER_WORK_GIB if known else 0.0


def advice(config: RunConfig, device: Device, assumed: Assumptions) -> list[str] | None:
    """Overrides with which the run fits: one if one suffices, else the first few together; None if none does."""
    changes = list(_knobs(config))
    for change in changes:
        if estimate(_changed(config, [change]), device, assumed).fits:
            return [_said(change)]
    for count in range(2, len(changes) + 1):
        if estimate(_changed(config, changes[:count]), device, assumed).fits:
            return [_said(change) for change in _last_of_each(changes[:count])]
    return None


Change = tuple[str, object]


def _knobs(config: RunConfig) -> Iterator[Change]:
    """What may be turned, from what changes nothing but time to what changes the result."""
    if config.algorithm.micro_batch_groups > 1:
        yield "algorithm.micro_batch_groups", 1
    rows = min(config.rollout.batch_rows, config.algorithm.prompts_per_step * config.algorithm.group_size)
    while rows > config.algorithm.group_size:
        rows = max(config.algorithm.group_size, rows // 2)
        yield "rollout.batch_rows", rows
    if "path" not in config.policy:
        return
    for mode in ("selective", "full"):
        if config.policy.get("checkpoint_activations") not in (mode, "full"):
            yield "policy.checkpoint_activations", mode
    if not config.policy.get("lora_rank"):
        yield "policy.lora_rank", 16
    pixels = (config.policy.get("image") or {}).get("max_pixels") or 840 * 840
    for share in (2, 4):
        yield "policy.image.max_pixels", pixels // share


def _changed(config: RunConfig, changes: list[Change]) -> RunConfig:
    changed = copy.deepcopy(config)
    for key, value in changes:
        *path, name = key.split(".")
        node = changed
        for part in path:
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        if isinstance(node, dict):
            node[name] = value
        else:
            setattr(node, name, value)
    return changed


def _last_of_each(changes: list[Change]) -> list[Change]:
    return list({key: (key, value) for key, value in changes}.values())


def _said(change: Change) -> str:
    return f"{change[0]}={change[1]}"


def picture_of(config: RunConfig, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) to plan with: what is wanted, the drawn scenes' own, or the largest that the policy takes."""
    if wanted:
        return wanted
    if config.data["_target_"].endswith(".SyntheticSource"):
        return SIDE, SIDE
    side = int(((config.policy.get("image") or {}).get("max_pixels") or 840 * 840) ** 0.5)
    return side, side
