"""A config in, its bill out: memory, time and disk."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace

from grasp_rl.config.schema import RunConfig
from grasp_rl.planning.disk import disk_gib
from grasp_rl.planning.hardware import Device
from grasp_rl.planning.load import Layout, Load
from grasp_rl.planning.memory import memory_gib
from grasp_rl.planning.shapes import Shapes, shapes_of
from grasp_rl.planning.timing import decode_seconds, step_flops, step_seconds
from grasp_rl.policies.tiny.policy import SIDE
from grasp_rl.utils.files import Record

SEGMENTERS = {
    "sam2-hiera-tiny": 39e6, "sam2.1-hiera-tiny": 39e6, "sam2-hiera-small": 46e6, "sam2.1-hiera-small": 46e6,
    "sam2-hiera-base-plus": 81e6, "sam2.1-hiera-base-plus": 81e6, "sam2-hiera-large": 224e6,
    "sam2.1-hiera-large": 224e6, "sam-vit-base": 94e6, "sam-vit-large": 312e6, "sam-vit-huge": 641e6, "sam3": 860e6,
}  # fmt: skip
"""Parameters by the end of the hub id, as the model pages state them."""
SEGMENTER_WORK_GIB = 2.0
"""What encoding an image of 1024 pixels takes beside the weights. Assumed."""
PROMPT, TINY_PROMPT = 330, 150
"""Tokens of a prompt beside its image; the tiny policy's template is short. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a config does not say."""

    prompt_tokens: int | None = None
    """Tokens of a prompt beside its image; None for the usual ones."""
    completion_tokens: int | None = None
    """Mean length of a completion; None for as long as it may be."""
    image: tuple[int, int] = (840, 840)
    """(width, height) of the images in pixels."""
    validation: int = 256
    """Answers of a validation or test whose number the config leaves to the data."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes."""

    memory: dict[str, float]
    """GiB by part on each device, and ``peak``."""
    seconds: dict[str, float]
    """Seconds by phase of an optimizer step, and ``step``."""
    hours: dict[str, float]
    """Hours from start to end: ``training`` and ``evaluation``."""
    devices: int
    device_hours: float
    """Of all devices: training, and evaluation, in which all but one wait."""
    disk: dict[str, float]
    """GiB by part, ``total`` and ``left``."""
    fits: bool
    """Whether the peak is no more than the device's memory."""


def estimate(config: RunConfig, device: Device, assumed: Assumptions) -> Estimate:
    """The bill of ``config`` on ``device``.

    Raises:
        ConfigError: the policy's shape cannot be known here.
    """
    shapes = _shapes(json.dumps(config.policy, sort_keys=True, default=str), assumed.image)
    load, layout = load_of(config, device, assumed, shapes), layout_of(config)
    memory = memory_gib(shapes, load, layout, segmenter_gib=segmenter_gib(config.segmenter), reserve=device.reserve)
    seconds = step_seconds(shapes, load, device)
    validations, tests = _answers(config, assumed)
    hours = {
        "training": seconds["step"] * config.algorithm.steps / 3600,
        "evaluation": (validations + tests) * _answer_seconds(config, device, assumed, shapes, load) / 3600,
    }
    return Estimate(
        memory=memory,
        seconds=seconds,
        hours=hours,
        devices=layout.ranks,
        device_hours=sum(hours.values()) * layout.ranks,
        disk=disk_gib(shapes, layout, config, tests, assumed.image[0] * assumed.image[1]),
        fits=memory["peak"] <= device.memory_gib,
    )


@functools.cache
def _shapes(policy: str, image: tuple[int, int]) -> Shapes:
    return shapes_of(json.loads(policy), image)


def load_of(config: RunConfig, device: Device, assumed: Assumptions, shapes: Shapes) -> Load:
    """What ``config`` asks of one rank."""
    algorithm, policy = config.algorithm, config.policy
    prompts = -(-algorithm.prompts_per_step // layout_of(config).ranks)
    in_step = config.engine.gathers_by_layer
    generated = algorithm.prompts_per_step if in_step else prompts
    two_calls = policy.get("packed_attention", "two_calls") == "two_calls"
    return Load(
        prompt=text_tokens(config, assumed) + shapes.image_tokens,
        completion=assumed.completion_tokens or config.rollout.max_new_tokens,
        group=algorithm.group_size,
        prompts=prompts,
        micro_batch=min(algorithm.micro_batch_groups, prompts),
        generated=generated,
        rows=min(config.rollout.batch_rows, generated * algorithm.group_size),
        recompute=policy.get("checkpoint_activations", "none"),
        kl=algorithm.beta > 0,
        iterations=algorithm.iterations,
        rounds=algorithm.sampling_rounds,
        varlen=two_calls and device.name != "cpu" and shapes.bytes_each == 2,
        elsewhere=config.generator["_target_"].endswith(".VllmServer"),
    )


def text_tokens(config: RunConfig, assumed: Assumptions) -> int:
    """Tokens of a prompt beside its image."""
    usual = TINY_PROMPT if config.policy["_target_"].endswith(".TinyPolicy") else PROMPT
    return assumed.prompt_tokens or usual


def layout_of(config: RunConfig) -> Layout:
    """The engine's layout over all ranks of all nodes."""
    engine = config.engine
    return Layout(engine=engine.name, ranks=engine.nproc * engine.nnodes, gather=engine.gather)


def segmenter_gib(segmenter: Record) -> float:
    """GiB of a segmenter on the device; nothing for those without weights."""
    name = str(segmenter.get("path", ""))
    known = [size for end, size in SEGMENTERS.items() if name.endswith(end)]
    if not known or segmenter.get("device") == "cpu":
        return 0.0
    each = 2 if segmenter.get("dtype") in ("bfloat16", "float16") else 4
    return known[0] * each / 2**30 + SEGMENTER_WORK_GIB


def image_of(config: RunConfig, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) to plan with: what is wanted, the drawn scenes' own, or the largest that the policy takes."""
    if wanted:
        return wanted
    if config.data["_target_"].endswith(".SyntheticSource"):
        return SIDE, SIDE
    side = int(((config.policy.get("image") or {}).get("max_pixels") or 840 * 840) ** 0.5)
    return side, side


def _answers(config: RunConfig, assumed: Assumptions) -> tuple[int, int]:
    """(answers of all validations, answers of the two tests)."""
    settings, steps = config.evaluation, config.algorithm.steps
    times = 1 + -(-steps // settings.every) if settings.every else 0  # before the first step, too
    return times * (settings.val_limit or assumed.validation), 2 * (settings.test_limit or assumed.validation)


def _answer_seconds(config: RunConfig, device: Device, assumed: Assumptions, shapes: Shapes, load: Load) -> float:
    """Of one greedy answer, ``evaluation.batch_size`` of them at a time."""
    batch, longest = config.evaluation.batch_size, config.evaluation.max_new_tokens
    alone = replace(
        load,
        completion=min(assumed.completion_tokens or longest, longest),
        group=1,
        generated=batch,
        rows=batch,
        rounds=1,
        elsewhere=False,
    )
    prefill = step_flops(shapes, alone)["prefill"] / (device.tflops * 1e12 * device.compute_share)
    return (prefill + decode_seconds(shapes, alone, device)) / batch
