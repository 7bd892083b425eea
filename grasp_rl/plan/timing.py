"""Seconds of an optimizer step: arithmetic where it binds, memory's bandwidth where that does."""

from __future__ import annotations

from grasp_rl.plan.hardware import Device
from grasp_rl.plan.memory import Layout, Load
from grasp_rl.plan.shapes import Shapes


def tower_flops(shapes: Shapes) -> float:
    """Of one forward over a picture, attention apart: most layers see small windows only."""
    return 2.0 * ((shapes.tower - shapes.merger) * shapes.patches + shapes.merger * shapes.picture_tokens)


def language_flops(shapes: Shapes, tokens: float, pairs: float) -> float:
    """Of one forward over ``tokens``, whose queries see ``pairs`` keys together."""
    return 2.0 * shapes.language * tokens + 4.0 * shapes.layers * shapes.query_width * pairs


def row_flops(shapes: Shapes, load: Load) -> float:
    """Of one forward over a packed row and of the head over its completions."""
    said = load.group * load.completion
    pairs = load.prompt**2 / 2 + said * (load.prompt + load.completion / 2)
    head = 2.0 * shapes.hidden * shapes.vocabulary * said
    return language_flops(shapes, load.prompt + said, pairs) + head


def step_flops(shapes: Shapes, load: Load) -> dict[str, float]:
    """Of an optimizer step on all ranks, decoding apart: prefill, reference and update."""
    tower, row = tower_flops(shapes), row_flops(shapes, load)
    tower_trained = shapes.trained > shapes.language + shapes.words and not shapes.adapter
    prefill = tower + language_flops(shapes, load.prompt, load.prompt**2 / 2)
    reference = row + (tower if tower_trained else 0.0) if load.kl else 0.0
    again = {"none": 0.0, "selective": 0.1, "full": 1.0}[load.recompute]
    backward = 1.0 if shapes.adapter else 2.0  # frozen weights have no gradient of their own
    update = row * (1 + backward + again) + (tower * 3 if tower_trained else 0.0)
    return {
        "prefill": prefill * load.prompts,
        "reference": reference * load.prompts,
        "update": update * load.prompts * load.iterations,
    }


def decode_seconds(shapes: Shapes, load: Load, layout: Layout, device: Device) -> float:
    """Of all completions of a step: every token reads the weights once and the keys and values of its rows."""
    mine = max(1, load.prompts // layout.ranks) * load.group
    rows = min(load.rows, mine)
    weights = (shapes.language + shapes.words) * shapes.bytes_each
    cache = rows * (load.prompt + load.completion / 2) * shapes.layers * 2 * shapes.kv_width * shapes.bytes_each
    token_s = (weights + cache) / (device.bandwidth_gbs * 1e9 * device.bandwidth_share)
    arithmetic = 2.0 * (shapes.language + shapes.hidden * shapes.vocabulary) * rows
    attention = 4.0 * shapes.layers * shapes.query_width * rows * (load.prompt + load.completion / 2)
    token_s = max(token_s, (arithmetic + attention) / (device.tflops * 1e12 * device.compute_share))
    return token_s * load.completion * -(-mine // rows)


def step_seconds(shapes: Shapes, load: Load, layout: Layout, device: Device) -> dict[str, float]:
    """Seconds by phase and ``step``, their sum; segmenting is taken to run beside the update."""
    rate = device.tflops * 1e12 * device.compute_share * layout.ranks
    found = {phase: flops / rate for phase, flops in step_flops(shapes, load).items()}
    found["decode"] = decode_seconds(shapes, load, layout, device)
    return found | {"step": sum(found.values())}
