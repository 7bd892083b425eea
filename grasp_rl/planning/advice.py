"""Which key to turn where a run does not fit: every answer was tried."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from grasp_rl.config.schema import RunConfig
from grasp_rl.planning.estimate import Assumptions, estimate
from grasp_rl.planning.hardware import Device

Change = dict[str, object]
"""New values by override: keys that are turned together."""
MORE_DEVICES = (2, 4, 8)
"""Numbers of devices that are tried where nothing else helps and nobody said how many there are."""


def advice(config: RunConfig, device: Device, assumed: Assumptions, devices: int | None = None) -> list[str] | None:
    """Overrides with which the run fits: one change if one suffices, else as few as are needed; None if none does.

    Args:
        config: of a run that does not fit.
        device: each device.
        assumed: what the config does not say.
        devices: how many there are; None where nobody said.
    """

    def fits(changes: list[Change]) -> bool:
        return estimate(changed(config, changes), device, assumed).fits

    tried = [*_same_result(config), *_more_devices(config, [devices] if devices else []), *_other_result(config)]
    for change in tried:
        if fits([change]):
            return _words([change])
    if devices is None:
        for change in _more_devices(config, MORE_DEVICES):
            if fits([change]):
                return _words([change])
        tried += _more_devices(config, MORE_DEVICES)
    for count in range(2, len(tried) + 1):
        if fits(tried[:count]):
            needed = tried[:count]
            for change in tried[:count]:
                without = [other for other in needed if other is not change]
                needed = without if fits(without) else needed
            return _words(needed)
    return None


def _same_result(config: RunConfig) -> Iterator[Change]:
    """What costs time only."""
    algorithm, policy = config.algorithm, config.policy
    if algorithm.micro_batch_groups > 1:
        yield {"algorithm.micro_batch_groups": 1}
    rows = min(config.rollout.batch_rows, algorithm.prompts_per_step * algorithm.group_size)
    while rows > algorithm.group_size:
        rows = max(algorithm.group_size, rows // 2)
        yield {"rollout.batch_rows": rows}
    if "checkpoint_activations" in policy:
        modes = ("none", "selective", "full")
        for mode in modes[modes.index(policy["checkpoint_activations"]) + 1 :]:
            yield {"policy.checkpoint_activations": mode}


def _more_devices(config: RunConfig, counts: Iterator[int] | list[int] | tuple[int, ...]) -> Iterator[Change]:
    """What costs devices."""
    engine = config.engine
    for count in counts:
        if count > engine.nproc * engine.nnodes:
            for name in ("zero2", "zero3"):
                yield {"engine": name, "engine.nproc": count}
    if engine.name in ("zero1", "zero2"):
        yield {"engine": "zero3", "engine.nproc": engine.nproc}
    if engine.name in ("zero1", "zero2", "zero3"):
        yield {"engine": "zero3_offload", "engine.nproc": engine.nproc}


def _other_result(config: RunConfig) -> Iterator[Change]:
    """What changes what is learned."""
    policy = config.policy
    if "path" not in policy:
        return
    if not policy.get("lora_rank"):
        yield {"policy.lora_rank": 16}
    pixels = (policy.get("image") or {}).get("max_pixels") or 840 * 840
    for share in (2, 4):
        yield {"policy.image.max_pixels": pixels // share}


def changed(config: RunConfig, changes: list[Change]) -> RunConfig:
    """A copy of ``config`` with ``changes``; the last of a key counts."""
    copied = copy.deepcopy(config)
    values = _merged(changes)
    if values.get("policy.lora_rank"):
        values["policy.train_vision_encoder"] = False  # as conf/policy/_base.yaml has it with LoRA
    for key, value in values.items():
        *path, name = ("engine.name" if key == "engine" else key).split(".")
        node = copied
        for part in path:
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        if isinstance(node, dict):
            node[name] = value
        else:
            setattr(node, name, value)
    return copied


def _merged(changes: list[Change]) -> Change:
    return {key: value for change in changes for key, value in change.items()}


def _words(changes: list[Change]) -> list[str]:
    return [f"{key}={value}" for key, value in _merged(changes).items()]
