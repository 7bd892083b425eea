"""Seconds of an optimizer step: arithmetic where it binds, memory's bandwidth where that does."""

from __future__ import annotations

from grasp_rl.planning.hardware import Device
from grasp_rl.planning.load import Load
from grasp_rl.planning.shapes import Shapes


def vision_flops(shapes: Shapes) -> float:
    """Of one forward over an image."""
    linear = 2.0 * ((shapes.vision_encoder - shapes.merger) * shapes.patches + shapes.merger * shapes.image_tokens)
    return linear + 4.0 * shapes.vision_hidden * shapes.vision_pairs


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
    """Of an optimizer step on one rank, decoding apart: prefill, reference and update."""
    vision_encoder, row = vision_flops(shapes), row_flops(shapes, load)
    prefill = vision_encoder + language_flops(shapes, load.prompt, load.prompt**2 / 2)
    if load.elsewhere and shapes.vision_trained:
        prefill = 0.0
    elif load.elsewhere:
        prefill = vision_encoder
    looks = vision_encoder if shapes.vision_trained else 0.0  # a frozen vision encoder looks once a step
    again = {"none": 0.0, "selective": 0.1, "full": 1.0}[load.recompute]
    backward = 1.0 if shapes.adapter else 2.0  # frozen weights have no gradient of their own
    return {
        "prefill": prefill * load.generated * load.rounds,
        "reference": (row + looks) * load.prompts if load.kl else 0.0,
        "update": (row + looks) * (1 + backward + again) * load.prompts * load.iterations,
    }


def decode_seconds(shapes: Shapes, load: Load, device: Device) -> float:
    """Of all completions of a rank's step: every token reads the weights once and the keys and values of its rows."""
    if load.elsewhere:
        return 0.0
    mine = load.generated * load.group
    rows = min(load.rows, mine)
    weights = (shapes.language + shapes.words) * shapes.bytes_each
    context = load.prompt + load.completion / 2
    cache = rows * context * shapes.layers * 2 * shapes.kv_width * shapes.bytes_each
    token_s = (weights + cache) / (device.bandwidth_gbs * 1e9 * device.bandwidth_share)
    arithmetic = 2.0 * (shapes.language + shapes.hidden * shapes.vocabulary) * rows
    attention = 4.0 * shapes.layers * shapes.query_width * rows * context
    token_s = max(token_s, (arithmetic + attention) / (device.tflops * 1e12 * device.compute_share))
    return token_s * load.completion * -(-mine // rows) * load.rounds


def step_seconds(shapes: Shapes, load: Load, device: Device) -> dict[str, float]:
    """Seconds by phase and ``step``, their sum. Left out: segmenting, which runs beside, and talk between devices."""
    rate = device.tflops * 1e12 * device.compute_share
    result = {phase: flops / rate for phase, flops in step_flops(shapes, load).items()}
    result["decode"] = decode_seconds(shapes, load, device)
    return result | {"step": sum(result.values())}
